"""Regression: the loss by hand with missing labels, metrics against the libraries of the field."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
import torchmetrics.functional as tm
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sk

from polyfm.shared.errors import DataError
from polyfm.shared.training.targets.regression import Regression, ranks

NAN = float("nan")


def column(*values: float) -> np.ndarray:
    return np.array(values, dtype=float)[:, None]


class TestRegression:
    VALUES = np.array([[1.0, 10.0], [3.0, NAN], [5.0, 30.0]])

    def test_mean_and_scale_of_the_given_labels(self) -> None:
        target = Regression.fit(["a", "b"], self.VALUES)
        assert target.mean == [3.0, 20.0]
        assert target.scale == [pytest.approx(math.sqrt(8 / 3)), 10.0]
        assert target.outputs == 2

    def test_loss_by_hand_leaves_missing_labels_out(self) -> None:
        target = Regression(["a", "b"], mean=[3.0, 20.0], scale=[2.0, 10.0])
        outputs = torch.tensor([[0.0, 1.0], [1.0, 99.0]])
        # (0 - (1-3)/2)² = 1, (1 - (10-20)/10)² = 4, (1 - (3-3)/2)² = 1, and one is missing: 6 / 3
        loss = target.loss(outputs.requires_grad_(), torch.tensor([[1.0, 10.0], [3.0, NAN]]))
        assert loss.item() == 2.0
        loss.backward()
        assert outputs.grad is not None
        assert outputs.grad[1, 1] == 0
        assert outputs.grad.isfinite().all()

    def test_loss_without_any_label_is_zero_and_connected(self) -> None:
        outputs = torch.ones(2, 1, requires_grad=True)
        loss = Regression(["a"], mean=[0.0], scale=[1.0]).loss(outputs, torch.full((2, 1), NAN))
        loss.backward()
        assert (loss.item(), outputs.grad.abs().sum().item()) == (0.0, 0.0)  # type: ignore[union-attr]

    def test_decoded_predictions_are_in_the_file_s_unit(self) -> None:
        target = Regression.fit(["a", "b"], self.VALUES)
        normal = (torch.tensor([[5.0, 30.0]]) - torch.tensor(target.mean)) / torch.tensor(target.scale)
        torch.testing.assert_close(target.decode(normal), torch.tensor([[5.0, 30.0]]))

    def test_of_several_labels_one_may_be_constant_and_has_scale_one(self) -> None:
        assert Regression.fit(["a", "b"], np.array([[2.0, 1.0], [2.0, 3.0]])).scale == [1.0, 1.0]
        with pytest.raises(DataError, match="column 'a' has the same value 2 in all training rows"):
            Regression.fit(["a"], column(2, 2))

    def test_metrics_against_scikit_learn_scipy_and_torchmetrics(self) -> None:
        rng = np.random.default_rng(0)
        values, predictions = rng.normal(5, 2, (40, 1)), rng.normal(5, 2, (40, 1))
        values[:3] = NAN
        values[5], predictions[8] = values[6], predictions[9]  # ties
        found = Regression.fit(["a"], values).metrics(predictions, values)
        y, p = values[3:, 0], predictions[3:, 0]
        assert found["rmse"] == pytest.approx(sk.root_mean_squared_error(y, p))
        assert found["mae"] == pytest.approx(sk.mean_absolute_error(y, p))
        assert found["r2"] == pytest.approx(float(tm.r2_score(torch.tensor(p), torch.tensor(y))))
        assert found["spearman"] == pytest.approx(scipy.stats.spearmanr(y, p).statistic)

    def test_undefined_metrics_are_left_out(self) -> None:
        target = Regression(["a"], mean=[0.0], scale=[1.0])
        assert set(target.metrics(column(1.0), column(2.0))) == {"rmse", "mae"}  # one row
        assert set(target.metrics(column(1, 2), column(3, 3))) == {"rmse", "mae"}  # one value
        assert set(target.metrics(column(1, 1), column(3, 4))) == {"rmse", "mae", "r2"}  # one prediction
        assert target.metrics(column(1, 1), column(NAN, NAN)) == {}

    def test_score_of_several_columns_has_no_unit(self) -> None:
        values = np.array([[1.0, 1000.0], [3.0, 3000.0], [5.0, NAN]])
        target = Regression(["a", "b"], mean=[3.0, 2000.0], scale=[2.0, 500.0])
        predictions = values + np.array([1.0, 100.0])
        found = target.metrics(np.nan_to_num(predictions), values)
        assert target.primary == "nrmse"
        assert (found["a/nrmse"], found["b/nrmse"]) == (0.5, 0.2)  # 1 / 2 and 100 / 500
        assert target.score(np.nan_to_num(predictions), values) == found["nrmse"] == pytest.approx(0.35)
        assert (found["a/rmse"], found["b/rmse"]) == (1.0, 100.0)  # what is reported stays in its own unit

    def test_another_unit_of_one_column_changes_no_choice(self) -> None:
        rng = np.random.default_rng(4)
        values, predictions = rng.normal(5, 2, (30, 2)), rng.normal(5, 2, (30, 2))
        scores = []
        for factor in (1.0, 1000.0):
            units = np.array([1.0, factor])
            scores.append(Regression.fit(["a", "b"], values * units).score(predictions * units, values * units))
        assert scores[0] == pytest.approx(scores[1])

    def test_score_of_one_column_is_its_rmse(self) -> None:
        target = Regression(["a"], mean=[0.0], scale=[10.0])
        assert (target.primary, target.score(column(1, 2), column(3, 4))) == ("rmse", 2.0)

    def test_a_column_without_labels_is_refused(self) -> None:
        with pytest.raises(DataError, match="column 'b' has no label among the training rows"):
            Regression.fit(["a", "b"], np.array([[1.0, NAN], [2.0, NAN]]))


@given(st.lists(st.integers(0, 5), min_size=1, max_size=20))
def test_ranks_are_those_of_scipy(values: list[int]) -> None:
    assert ranks(np.array(values)).tolist() == scipy.stats.rankdata(values).tolist()
