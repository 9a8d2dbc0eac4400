"""Binary: calibrated probabilities, thresholds, metrics against the libraries of the field."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torchmetrics.functional as tm
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sk

from polyfm.shared.errors import DataError
from polyfm.shared.training.targets.binary import Binary

NAN = float("nan")


def column(*values: float) -> np.ndarray:
    return np.array(values, dtype=float)[:, None]


class TestBinary:
    def test_weight_of_positives_is_negatives_per_positive_within_bounds(self) -> None:
        values = np.array([[1, 1, 0], [0, NAN, 0], [0, 0, 0], [0, 0, 1]] + [[0, 0, 0]] * 96, dtype=float)
        target = Binary.fit(["a", "b", "c"], values)
        assert target.positive_weight == [20.0, 20.0, 20.0]  # 99, 98, 99, clipped
        assert Binary.fit(["a"], column(1, 0, 0, 0)).positive_weight == [3.0]
        assert Binary.fit(["a"], column(*[1] * 60, 0)).positive_weight == [0.05]

    def test_loss_by_hand(self) -> None:
        target = Binary(["a", "b"], positive_weight=[3.0, 1.0], threshold=[0.5, 0.5])
        outputs, values = torch.zeros(2, 2), torch.tensor([[1.0, 0.0], [0.0, NAN]])
        # log 2 each; the positive counts three times; of four labels three are given.
        assert target.loss(outputs, values).item() == pytest.approx(5 * math.log(2) / 3)

    def test_missing_labels_have_no_gradient(self) -> None:
        outputs = torch.zeros(2, 1, requires_grad=True)
        Binary.fit(["a"], column(1, 0)).loss(outputs, torch.tensor([[1.0], [NAN]])).backward()
        assert outputs.grad is not None
        assert outputs.grad[:, 0].tolist() == [-0.5, 0.0]

    @given(rate=st.floats(0.06, 0.94), n=st.integers(50, 400))
    def test_decoded_probabilities_are_calibrated(self, rate: float, n: int) -> None:
        """The best constant logit under the weights decodes to the share of positives."""
        positives = max(1, min(n - 1, round(rate * n)))
        values = column(*[1] * positives, *[0] * (n - positives))
        target = Binary.fit(["a"], values)
        weight = target.positive_weight[0]
        # d loss / d logit = 0 at sigmoid(z) = w p / (w p + q)
        best = math.log(weight * positives / (n - positives))
        z = torch.tensor([[best]], dtype=torch.float64, requires_grad=True)
        target.loss(z.expand(n, 1), torch.from_numpy(values)).backward()
        assert z.grad is not None
        assert abs(z.grad.item()) < 1e-9
        assert target.decode(z.detach()).item() == pytest.approx(positives / n)

    def test_metrics_against_scikit_learn_and_torchmetrics(self) -> None:
        rng = np.random.default_rng(1)
        values = (rng.random((60, 2)) < 0.4).astype(float)
        values[:5, 0] = NAN
        predictions = np.clip(values * 0.3 + rng.random((60, 2)) * 0.7, 0, 1)
        predictions = np.nan_to_num(predictions, nan=0.2)
        target = Binary.fit(["a", "b"], values)
        target.threshold = [0.3, 0.6]
        found = target.metrics(predictions, values)
        for i, name in enumerate("ab"):
            given_rows = ~np.isnan(values[:, i])
            y, p = values[given_rows, i].astype(int), predictions[given_rows, i]
            said = (p >= target.threshold[i]).astype(int)
            ty, tp = torch.tensor(y), torch.tensor(p)
            assert found[f"{name}/auroc"] == pytest.approx(float(tm.auroc(tp, ty, task="binary")), abs=1e-6)
            assert found[f"{name}/auprc"] == pytest.approx(float(tm.average_precision(tp, ty, task="binary")), abs=1e-6)
            assert found[f"{name}/f1"] == pytest.approx(sk.f1_score(y, said))
            assert found[f"{name}/mcc"] == pytest.approx(sk.matthews_corrcoef(y, said))
            assert found[f"{name}/accuracy"] == pytest.approx(sk.accuracy_score(y, said))
            assert found[f"{name}/balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(y, said))
            assert found[f"{name}/brier"] == pytest.approx(sk.brier_score_loss(y, p))
        assert found["auroc"] == pytest.approx((found["a/auroc"] + found["b/auroc"]) / 2)

    def test_undefined_metrics_are_left_out(self) -> None:
        target = Binary(["a", "b"], positive_weight=[1.0, 1.0], threshold=[0.5, 0.5])
        values = np.array([[1.0, 1.0], [1.0, 0.0]])
        found = target.metrics(np.array([[0.9, 0.9], [0.1, 0.1]]), values)
        assert "a/auroc" not in found
        assert found["a/accuracy"] == 0.5
        assert found["auroc"] == found["b/auroc"] == 1.0

    def test_threshold_of_the_best_f1_by_hand(self) -> None:
        target = Binary.fit(["a"], column(1, 0))
        values, predictions = column(1, 1, 0, 1, 0), column(0.9, 0.8, 0.7, 0.6, 0.1)
        # F1 at 0.9: 1/2, at 0.8: 4/5, at 0.7: 2/3, at 0.6: 6/7, at 0.1: 3/4
        target.choose(predictions, values)
        assert target.threshold == [0.6]
        assert target.metrics(predictions, values)["f1"] == pytest.approx(6 / 7)

    def test_what_is_said_at_the_thresholds(self) -> None:
        target = Binary(["a", "b"], [1.0, 1.0], [0.3, 0.9])
        said = target.answers(np.array([[0.3, 0.89], [0.29, 0.9]]))
        assert {name: column.tolist() for name, column in said.items()} == {"a_class": [1, 0], "b_class": [0, 1]}

    def test_threshold_stays_where_validation_has_one_class(self) -> None:
        target = Binary.fit(["a"], column(1, 0))
        target.choose(column(0.9, 0.1), column(1, NAN))
        assert target.threshold == [0.5]

    def test_a_copy_without_choice_leaves_the_original(self) -> None:
        target = Binary.fit(["a"], column(1, 0))
        target.choose(column(0.9, 0.8, 0.1), column(1, 1, 0))
        other = target.unchosen()
        assert other.threshold == [0.5]
        other.choose(column(0.3, 0.2), column(1, 0))
        assert (target.threshold, other.threshold) == ([0.8], [0.3])

    def test_labels_other_than_0_and_1_are_refused(self) -> None:
        with pytest.raises(DataError, match="label 2 in column 'b' is neither 0 nor 1") as error:
            Binary.fit(["a", "b"], np.array([[1.0, 1.0], [0.0, 2.0]]))
        assert "--model.kind regression" in str(error.value)

    def test_one_class_is_refused(self) -> None:
        with pytest.raises(DataError, match="column 'a' has only one class among its 2 training labels"):
            Binary.fit(["a"], column(1, 1, NAN))

    def test_the_remedy_for_one_class_is_right_with_any_split(self) -> None:
        with pytest.raises(DataError) as error:
            Binary.fit(["a"], column(1, 1))
        for way in ("--data.split random", "or another --seed_everything if it is", "choose another column"):
            assert way in str(error.value)

    def test_of_several_columns_one_may_have_one_class(self) -> None:
        values = np.array([[1, 0, NAN], [0, 0, NAN]], dtype=float)
        assert Binary.fit(["a", "b", "c"], values).positive_weight == [1.0, 1.0, 1.0]
