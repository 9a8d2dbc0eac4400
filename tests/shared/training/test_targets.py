"""Targets: losses by hand with missing labels, calibrated probabilities, metrics against the libraries of the field."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
import torchmetrics.functional as tm
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sk

from polyfm.shared.errors import DataError, RecipeError
from polyfm.shared.training.targets import (
    Binary,
    Curve,
    MultiClass,
    Regression,
    Target,
    average_columns,
    fit_target,
    ranks,
    target_from_state,
)

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

    def test_a_constant_label_has_scale_one(self) -> None:
        assert Regression.fit(["a"], column(2, 2)).scale == [1.0]

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

    def test_a_column_without_labels_is_refused(self) -> None:
        with pytest.raises(DataError, match="column 'b' has no label among the training rows"):
            Regression.fit(["a", "b"], np.array([[1.0, NAN], [2.0, NAN]]))


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

    def test_threshold_stays_where_validation_has_one_class(self) -> None:
        target = Binary.fit(["a"], column(1, 0))
        target.choose(column(0.9, 0.1), column(1, NAN))
        assert target.threshold == [0.5]

    def test_labels_other_than_0_and_1_are_refused(self) -> None:
        with pytest.raises(DataError, match="label 2 in column 'b' is neither 0 nor 1") as error:
            Binary.fit(["a", "b"], np.array([[1.0, 1.0], [0.0, 2.0]]))
        assert "--model.kind regression" in str(error.value)

    def test_one_class_is_refused(self) -> None:
        with pytest.raises(DataError, match="column 'a' has only one class among its 2 training labels"):
            Binary.fit(["a"], column(1, 1, NAN))

    def test_of_several_columns_one_may_have_one_class(self) -> None:
        values = np.array([[1, 0, NAN], [0, 0, NAN]], dtype=float)
        assert Binary.fit(["a", "b", "c"], values).positive_weight == [1.0, 1.0, 1.0]


class TestMultiClass:
    def test_weights_and_loss_by_hand(self) -> None:
        target = MultiClass.fit(["a"], column(0, 0, 0, 1))
        assert target.classes == ["0", "1"]
        # √(4 / (2·3)) and √(4 / (2·1))
        assert target.class_weight == [pytest.approx(math.sqrt(2 / 3)), pytest.approx(math.sqrt(2))]
        loss = target.loss(torch.zeros(3, 2), torch.tensor([[0.0], [1.0], [NAN]]))
        assert loss.item() == pytest.approx(math.log(2) * (math.sqrt(2 / 3) + math.sqrt(2)) / 2)

    def test_decoded_probabilities_are_calibrated(self) -> None:
        target = MultiClass.fit(["a"], column(0, 0, 0, 1, 2, 2))
        share = torch.tensor([3 / 6, 1 / 6, 2 / 6])
        best = (torch.tensor(target.class_weight) * share).log()[None]
        torch.testing.assert_close(target.decode(best), share[None])

    def test_metrics_against_torchmetrics(self) -> None:
        rng = np.random.default_rng(2)
        values, predictions = rng.integers(0, 3, (50, 1)).astype(float), rng.dirichlet(np.ones(3), 50)
        values[0] = NAN
        found = MultiClass.fit(["a"], values).metrics(predictions, values)
        y, p = torch.tensor(values[1:, 0]).long(), torch.tensor(predictions[1:])
        settings: dict[str, Any] = {"task": "multiclass", "num_classes": 3}
        assert found["accuracy"] == pytest.approx(float(tm.accuracy(p, y, average="micro", **settings)))
        assert found["macro_f1"] == pytest.approx(float(tm.f1_score(p, y, average="macro", **settings)), abs=1e-6)
        assert found["balanced_accuracy"] == pytest.approx(
            float(tm.recall(p, y, average="macro", **settings)), abs=1e-6
        )

    def test_without_labels_there_are_no_metrics(self) -> None:
        assert MultiClass.fit(["a"], column(0, 1)).metrics(np.eye(2), column(NAN, NAN)) == {}

    def test_named_classes_that_training_lacks_keep_their_place(self) -> None:
        target = MultiClass.fit(["a"], column(0, 2), ["low", "middle", "high"])
        assert (target.outputs, target.classes) == (3, ["low", "middle", "high"])

    def test_a_class_that_training_labels_lack_is_missing_in_the_loss_and_wrong_in_the_metrics(self) -> None:
        target = MultiClass.fit(["a"], column(0, 1, 0, 1))
        values = torch.tensor([[0.0], [5.0]])
        assert target.loss(torch.zeros(2, 2), values).item() == pytest.approx(math.log(2))
        assert target.metrics(np.eye(2), values.numpy())["accuracy"] == 0.5

    @pytest.mark.parametrize("wrong", [1.5, -1.0])
    def test_labels_that_are_no_classes_are_refused(self, wrong: float) -> None:
        with pytest.raises(DataError, match=f"label {wrong:g} in column 'a' is no class"):
            MultiClass.fit(["a"], column(0, wrong))

    def test_one_class_and_several_columns_are_refused(self) -> None:
        with pytest.raises(DataError, match="only one class among its 2 training labels"):
            MultiClass.fit(["a"], column(1, 1))
        with pytest.raises(DataError, match="one column, not for 2"):
            MultiClass.fit(["a", "b"], np.zeros((2, 2)))


@pytest.mark.parametrize(
    ("values", "classes", "kind"),
    [
        (column(0, 1, NAN), [], Binary),
        (column(0.5, 1), [], Regression),
        (column(0, 1, 2), [], Regression),
        (column(0, 1), ["no", "yes"], MultiClass),
    ],
)
def test_kind_by_the_labels(values: np.ndarray, classes: list[str], kind: type[Target]) -> None:
    assert type(fit_target("auto", ["a"], values, classes)) is kind


@pytest.mark.parametrize("kind", ["regression", "binary", "multiclass"])
def test_kind_by_name_and_round_trip_through_primitives(kind: str) -> None:
    target = fit_target(kind, ["a"], column(0, 1, 1), [])
    target.choose(column(0.2, 0.7, 0.9), column(0, 1, 1))
    state = target.state()
    again = target_from_state(state)
    assert (type(again), again) == (type(target), target)
    assert state["kind"] == type(target).__name__


@pytest.mark.parametrize("kind", ["regression", "binary", "multiclass"])
def test_the_score_is_the_primary_metric(kind: str) -> None:
    rng = np.random.default_rng(3)
    values = (rng.random((40, 1 if kind == "multiclass" else 3)) < 0.5) * 1.0
    target = fit_target(kind, ["a", "b", "c"][: values.shape[1]], values, [])
    predictions = rng.random((40, target.outputs))
    values[:5, 0] = NAN
    assert target.score(predictions, values) == pytest.approx(target.metrics(predictions, values)[target.primary])
    assert target.score(predictions, values * NAN) is None


@given(st.lists(st.tuples(st.sampled_from([0.1, 0.2, 0.5, 0.9]), st.booleans()), min_size=2, max_size=30))
def test_areas_are_those_of_scikit_learn_also_with_ties(pairs: list[tuple[float, bool]]) -> None:
    p, y = np.array([pair[0] for pair in pairs]), np.array([pair[1] for pair in pairs])
    if 0 < y.sum() < len(y):
        curve = Curve.of(p, y)
        assert curve.metrics()["auroc"] == pytest.approx(sk.roc_auc_score(y, p))
        assert curve.metrics()["auprc"] == pytest.approx(sk.average_precision_score(y, p))
        best = max(sk.f1_score(y, p >= cut) for cut in p)
        assert sk.f1_score(y, p >= curve.best_f1()) == pytest.approx(best)


def test_wrong_kinds_and_columns_are_refused() -> None:
    with pytest.raises(RecipeError, match="there is no kind 'ordinal'. Known: auto, regression, binary, multiclass"):
        fit_target("ordinal", ["a"], column(0, 1))
    with pytest.raises(DataError, match=r"no label column is given. Name one: --data.targets \[COLUMN\]"):
        fit_target("auto", [], np.zeros((2, 0)))
    with pytest.raises(DataError, match="column 'a' has no label"):
        fit_target("auto", ["a"], column(NAN, NAN))


@given(st.lists(st.integers(0, 5), min_size=1, max_size=20))
def test_ranks_are_those_of_scipy(values: list[int]) -> None:
    assert ranks(np.array(values)).tolist() == scipy.stats.rankdata(values).tolist()


def test_columns_are_averaged_where_they_have_the_metric() -> None:
    assert average_columns({"a": {"x": 1.0}}) == {"x": 1.0}
    assert average_columns({"a": {"x": 1.0, "y": 4.0}, "b": {"x": 3.0}}) == {
        "x": 2.0, "y": 4.0, "a/x": 1.0, "a/y": 4.0, "b/x": 3.0,
    }  # fmt: skip
