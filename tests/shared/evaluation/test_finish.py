"""What happens when training ends. The whole of it runs in tests/shared/cli/test_fit.py; here are its parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch

from polyfm.shared.errors import UsageError
from polyfm.shared.evaluation.finish import collect, finish_finetune, measure, show
from polyfm.shared.training.finetune import FinetuneTask


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
    assert set(found) >= {"rmse", "sum/rmse", "yes/rmse"}


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
    metrics, panels = finish_finetune(task, data)
    assert metrics["baseline/perfect/rmse"] == 0
    assert metrics["baseline/mean/rmse"] == pytest.approx(values.std(0).mean())
    assert metrics["test/rows"] == 4
    assert metrics["test/rmse_low"] <= metrics["test/rmse"] <= metrics["test/rmse_high"]
    assert [panel.title for panel in panels] == ["Test metrics beside baselines", "Predicted against measured"]


def test_an_undefined_score_has_no_interval(encoders: Callable[..., Any], toy: Any, trainer: Any) -> None:
    task, data = FinetuneTask(encoders()), toy(targets=["yes"])
    data.labels["yes"][-4:] = 1  # the test part has one class
    trainer(max_epochs=1).fit(task, datamodule=data)
    metrics, _ = finish_finetune(task, data)
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
