"""Which target labels get, its round trip through a checkpoint, what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from polyfm.shared.errors import DataError, RecipeError
from polyfm.shared.training.targets.binary import Binary
from polyfm.shared.training.targets.kinds import fit_target, require_labels, target_from_state
from polyfm.shared.training.targets.multi_class import MultiClass
from polyfm.shared.training.targets.regression import Regression
from polyfm.shared.training.targets.target import Target

NAN = float("nan")


def column(*values: float) -> np.ndarray:
    return np.array(values, dtype=float)[:, None]


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
    assert target.unchosen().state() == fit_target(kind, ["a"], column(0, 1, 1), []).state()


@pytest.mark.parametrize("kind", ["regression", "binary", "multiclass"])
def test_the_score_is_the_primary_metric(kind: str) -> None:
    rng = np.random.default_rng(3)
    values = (rng.random((40, 1 if kind == "multiclass" else 3)) < 0.5) * 1.0
    target = fit_target(kind, ["a", "b", "c"][: values.shape[1]], values, [])
    predictions = rng.random((40, target.outputs))
    values[:5, 0] = NAN
    assert target.score(predictions, values) == pytest.approx(target.metrics(predictions, values)[target.primary])
    assert target.score(predictions, values * NAN) is None


def test_wrong_kinds_and_columns_are_refused() -> None:
    with pytest.raises(RecipeError, match="there is no kind 'ordinal'. Known: auto, regression, binary, multiclass"):
        fit_target("ordinal", ["a"], column(0, 1))
    with pytest.raises(DataError, match=r"no label column is given. Name one: --data.targets COLUMN"):
        fit_target("auto", [], np.zeros((2, 0)))
    with pytest.raises(DataError, match=r"Name one: --data.targets COLUMN"):
        require_labels([])
    with pytest.raises(DataError, match="column 'a' has no label"):
        fit_target("auto", ["a"], column(NAN, NAN))
