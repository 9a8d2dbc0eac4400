"""What happens when training ends. The whole of it runs in tests/shared/cli/test_fit.py; here are its parts."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch

from polyfm.shared.errors import UsageError
from polyfm.shared.evaluation.finish import collect, judge, measure, measure_baselines, show, winner
from polyfm.shared.training.finetune import FinetuneTask
from polyfm.shared.training.targets.binary import Binary
from polyfm.shared.training.targets.regression import Regression
from polyfm.shared.training.targets.target import Target


@pytest.fixture
def fitted(encoders: Callable[..., Any], toy: Any, trainer: Callable[..., L.Trainer]) -> tuple[FinetuneTask, Any]:
    task, data = FinetuneTask(encoders(dropout=0.2)), toy(targets=["sum", "yes"])
    trainer(max_epochs=1).fit(task, datamodule=data)
    return task, data


def test_predictions_stand_in_the_order_of_the_rows(fitted: Any) -> None:
    task, data = fitted
    task.train()
    found = collect(task, data, "train")
    assert found.shape == (16, 2)
    assert not task.training  # no dropout in what is measured
    rows = data.part("train")[[5, 11]]
    with torch.inference_mode():
        alone = task.predict_step(data.collate(rows.tolist()))["predictions"].numpy()
    np.testing.assert_allclose(found[[5, 11]], alone, atol=1e-5)


def test_metrics_of_a_fine_tuned_part(fitted: Any) -> None:
    task, data = fitted
    found = measure(task, data, "valid")
    assert found == task.target.metrics(collect(task, data, "valid"), data.target_values(data.part("valid")))
    assert set(found) >= {"nrmse", "sum/rmse", "yes/rmse"}


def test_losses_of_a_pre_trained_part_are_means_over_items(
    pretrain: Callable[..., Any], toy: Any, trainer: Callable[..., L.Trainer]
) -> None:
    task, data = pretrain(), toy(valid=4)
    validated = trainer().validate(task, datamodule=data, verbose=False)[0]
    found = measure(task, data, "valid")
    for name in ("contrast", "match", "next_token", "next_value"):
        assert found[f"{name}/loss"] == pytest.approx(validated[f"valid/{name}/loss"], rel=1e-5)


def test_a_part_that_is_empty_is_said_so(fitted: Any, pretrain: Callable[..., Any], toy: Any) -> None:
    data = toy(valid=0)
    data.setup()
    with pytest.raises(UsageError, match="the data of this run have no valid part"):
        measure(pretrain(), data, "valid")


def test_the_model_and_its_baselines_are_measured_on_the_same_rows(fitted: Any) -> None:
    task, data = fitted
    values = data.target_values(data.part("test"))
    data.baselines = lambda target: {"perfect": lambda: values, "mean": lambda: np.tile(values.mean(0), (4, 1))}
    metrics, panels = judge(task.target, data, collect(task, data, "test"))
    assert metrics["baseline/perfect/nrmse"] == metrics["baseline/perfect/sum/rmse"] == 0
    assert metrics["baseline/mean/sum/rmse"] == pytest.approx(values.std(0)[0])
    assert "test/rmse" not in metrics  # of two units there is no mean
    assert metrics["test/rows"] == 4
    assert metrics["test/nrmse_low"] <= metrics["test/nrmse"] <= metrics["test/nrmse_high"]
    assert [panel.title for panel in panels] == [
        *("Test metrics beside baselines", "Each label"),
        *("Predicted against measured: sum", "Predicted against measured: yes"),
    ]


def test_baselines_may_be_left_out(fitted: Any) -> None:
    task, data = fitted
    data.baselines = lambda target: {"never": lambda: 1 / 0}
    metrics, panels = judge(task.target, data, collect(task, data, "test"), baselines=False)
    assert not [name for name in metrics if name.startswith("baseline/")]
    assert panels[0].title == "Test metrics"


class TestThresholdsOfBaselines:
    """Those of the best F1 on the baseline's own predictions of the validation part, as the model's are."""

    @staticmethod
    def data(valid: list[float]) -> Any:
        """Labels: 1, 0 in validation (if any), 1, 1, 0, 0 in the test part. The baseline never says more than 0.3."""
        labels = np.array([1.0, 0.0] * bool(valid) + [1, 1, 0, 0])[:, None]
        said = np.array([*valid, 0.3, 0.25, 0.1, 0.05])[:, None]
        parts = {"valid": np.arange(len(valid)), "test": np.arange(len(valid), len(labels))}
        method = lambda rows=parts["test"]: said[rows]  # noqa: E731
        return SimpleNamespace(
            part=parts.__getitem__, target_values=labels.__getitem__, baselines=lambda target: {"timid": method}
        )

    def test_a_baseline_is_judged_at_its_own(self) -> None:
        target = Binary(["a"], positive_weight=[1.0], threshold=[0.9])
        found = measure_baselines(target, self.data([0.2, 0.1]))
        assert (found["baseline/timid/f1"], found["baseline/timid/mcc"]) == (1.0, 1.0)
        assert target.threshold == [0.9]  # the model's stays

    def test_without_validation_it_is_one_half(self) -> None:
        target = Binary(["a"], positive_weight=[1.0], threshold=[0.2])
        found = measure_baselines(target, self.data([]))
        assert (found["baseline/timid/f1"], found["baseline/timid/balanced_accuracy"]) == (0.0, 0.5)

    def test_validation_is_predicted_only_where_something_is_chosen_on_it(self) -> None:
        data = self.data([0.2, 0.1])
        data.baselines = lambda target: {"plain": lambda: np.zeros((4, 1))}  # of no other rows
        found = measure_baselines(Regression(["a"], mean=[0.0], scale=[1.0]), data)
        assert found["baseline/plain/mae"] == 0.5


def test_an_undefined_score_has_no_interval(encoders: Callable[..., Any], toy: Any, trainer: Any) -> None:
    task, data = FinetuneTask(encoders()), toy(targets=["yes"])
    data.labels["yes"][-4:] = 1  # the test part has one class
    trainer(max_epochs=1).fit(task, datamodule=data)
    assert task.target is not None
    metrics, _ = judge(task.target, data, collect(task, data, "test"))
    assert "test/auroc" not in metrics
    assert "test/auroc_low" not in metrics
    assert all(np.isfinite(value) for value in metrics.values())


def test_what_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    show({"test/rmse": 0.51234, "train/waiting": 0.1, "baseline/forest/rmse": 0.25, "baseline/forest/r2": 0.5})
    lines = capsys.readouterr().out.splitlines()
    assert [" ".join(line.split()) for line in lines if line] == [
        "test/rmse 0.5123",
        "baseline forest rmse 0.25, r2 0.5",
    ]


NUMBER = Regression(["a"], mean=[0.0], scale=[1.0])
YES = Binary(["a"], positive_weight=[1.0], threshold=[0.5])
WINNERS = {
    "baseline": (NUMBER, {"test/rmse": 0.779, "baseline/forest/rmse": 0.6421, "baseline/ridge/rmse": 0.7}, "Best by test rmse: baseline forest 0.6421, before this model 0.779"),
    "model": (NUMBER, {"test/rmse": 0.5, "baseline/forest/rmse": 0.6, "baseline/ridge/rmse": 0.55}, "Best by test rmse: this model 0.5, before baseline ridge 0.55"),
    "higher is better": (YES, {"test/auroc": 0.9, "baseline/forest/auroc": 0.8, "baseline/odd/f1": 1.0}, "Best by test auroc: this model 0.9, before baseline forest 0.8"),
    "level": (YES, {"test/auroc": 1.0, "baseline/forest/auroc": 1.0}, "Test auroc: this model 1 and baseline forest 1 are level"),
    "a model that fell over": (NUMBER, {"test/rmse": float("nan"), "baseline/forest/rmse": 0.6}, "Best by test rmse: baseline forest 0.6, before this model nan"),
    "a baseline that fell over": (NUMBER, {"test/rmse": 0.5, "baseline/a/rmse": float("nan"), "baseline/b/rmse": 0.6}, "Best by test rmse: this model 0.5, before baseline b 0.6"),
    "no baselines": (NUMBER, {"test/rmse": 0.5}, ""),
    "undefined": (YES, {"test/accuracy": 1.0, "baseline/forest/accuracy": 0.5}, ""),
}  # fmt: skip


@pytest.mark.parametrize(("target", "metrics", "line"), WINNERS.values(), ids=WINNERS)
def test_the_last_line_says_who_won_whoever_it_is(
    capsys: pytest.CaptureFixture[str], target: Target, metrics: dict[str, float], line: str
) -> None:
    assert winner(metrics, target) == line
    show(metrics, target)
    if line:
        assert capsys.readouterr().out.splitlines()[-1].strip() == line
