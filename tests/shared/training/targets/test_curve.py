"""Areas and thresholds against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sk

from polyfm.shared.training.targets.curve import Curve


@given(st.lists(st.tuples(st.sampled_from([0.1, 0.2, 0.5, 0.9]), st.booleans()), min_size=2, max_size=30))
def test_areas_are_those_of_scikit_learn_also_with_ties(pairs: list[tuple[float, bool]]) -> None:
    p, y = np.array([pair[0] for pair in pairs]), np.array([pair[1] for pair in pairs])
    if 0 < y.sum() < len(y):
        curve = Curve.of(p, y)
        assert curve.metrics()["auroc"] == pytest.approx(sk.roc_auc_score(y, p))
        assert curve.metrics()["auprc"] == pytest.approx(sk.average_precision_score(y, p))
        best = max(sk.f1_score(y, p >= cut) for cut in p)
        assert sk.f1_score(y, p >= curve.best_f1()) == pytest.approx(best)
