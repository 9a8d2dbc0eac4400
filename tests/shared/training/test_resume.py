"""A run that was stopped anywhere and resumed is the run that never stopped, bit by bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from polyfm.shared.training.callbacks import Checkpoint
from polyfm.shared.training.checkpoint import read_checkpoint
from polyfm.shared.training.gradients import GradientPolicy
from polyfm.shared.training.optim import AdamW
from polyfm.shared.training.seeding import StepSeed
from polyfm.shared.training.stages import Stage

EPOCHS, BATCHES = 3, 4


class Stopped(Exception):
    """What ends a run at a point."""


class Watch(L.Callback):
    """Keeps every loss; throws at a point of the run.

    Args:
        stop: ("train", epoch, batch) after that step, ("valid", epoch, batch) after that validation batch.
    """

    def __init__(self, stop: tuple[str, int, int] | None = None) -> None:
        self.stop = stop
        self.losses: dict[tuple[str, int, int], float] = {}
        self.stage_weights: dict[tuple[int, int], dict[str, float]] = {}

    def _seen(self, trainer: L.Trainer, kind: str, batch: int, value: float) -> None:
        point = (kind, trainer.current_epoch, batch)
        self.losses[point] = value
        if point == self.stop:
            raise Stopped

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.stage_weights[trainer.current_epoch, batch_idx] = dict(pl_module.stage_weights)
        self._seen(trainer, "train", batch_idx, float(outputs["loss"]))

    def on_validation_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._seen(trainer, "valid", batch_idx, 0.0)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self._seen(trainer, "valid", -1, float(trainer.callback_metrics["valid/loss"]))


Run = Callable[..., tuple[Watch, dict[str, Any]]]


@pytest.fixture
def run(
    toy: Callable[..., Any], pretrain: Callable[..., Any], trainer: Callable[..., L.Trainer], tmp_path: Path
) -> Run:
    """Trains SPMM in small, with dropout, teacher, queue and stages; returns what was watched and the end's state."""

    def start(
        name: str,
        stop: tuple[str, int, int] | None = None,
        *,
        accumulate: int = 1,
        workers: int = 0,
        valid: int = 4,
        **more: Any,
    ) -> tuple[Watch, dict[str, Any]]:
        torch.manual_seed(99)  # nothing may depend on it
        stages = {
            "first": Stage(until=0.5, freeze=["model.fusion.*"], objectives={"match": 0.0}),
            "then": Stage(until=1.75, rates={"model.encoders.text.*": 0.5}),
            "last": Stage(),
        }
        task = pretrain(
            dropout=0.1,
            gradients=GradientPolicy({"next_value": 5.0}),
            optimizer=AdamW(lr=1e-2, warmup=0.3),
            stages=stages,
        )
        data = toy(n=16 + 2 * valid, valid=valid, num_workers=workers)
        data.seed = 5
        folder = tmp_path / name
        watch, checkpoint = Watch(stop), Checkpoint(every_n_steps=1).within(folder)
        if not valid:
            checkpoint.monitor = ""
        last = folder / "checkpoints" / "last.ckpt"
        fitted = trainer(
            [StepSeed(data.seed), watch, checkpoint],
            max_epochs=EPOCHS,
            accumulate_grad_batches=accumulate,
            enable_checkpointing=True,
            **more,
        )
        try:
            fitted.fit(task, datamodule=data, ckpt_path=last if last.exists() else None)
        except Stopped:
            return watch, {}
        return watch, {"task": task.state_dict(), "end": read_checkpoint(last), "best": checkpoint.best}

    return start


def same(first: Any, second: Any, path: str = "") -> None:
    """Equal in every bit, at any depth."""
    if isinstance(first, torch.Tensor):
        assert first.dtype == second.dtype, path
        assert torch.equal(first, second), path
    elif isinstance(first, dict):
        assert list(map(str, first)) == list(map(str, second)), path
        for key in first:
            same(first[key], second[key], f"{path}/{key}")
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), path
        for i, (a, b) in enumerate(zip(first, second, strict=True)):
            same(a, b, f"{path}/{i}")
    else:
        assert first == second, path


CASES = {
    "within a pass": (("train", 1, 1), {}),
    "in the last step of a pass": (("train", 0, BATCHES - 1), {}),
    "between passes": (("train", 1, 0), {}),
    "between passes, with workers": (("train", 1, 0), {"workers": 2}),
    "in validation": (("valid", 1, 0), {}),
    "in the first step": (("train", 0, 0), {}),
    "accumulating": (("train", 1, 2), {"accumulate": 3}),
    "with workers": (("train", 1, 2), {"workers": 2}),
    "without validation": (("train", 2, 1), {"valid": 0}),
    "validation within a pass": (("train", 1, 2), {"val_check_interval": 2}),
}


_WHOLE: dict[str, tuple[Watch, dict[str, Any]]] = {}


@pytest.fixture
def never_stopped(run: Run) -> Run:
    """The run that never stopped, once for each setting; workers change nothing."""

    def whole(**settings: Any) -> tuple[Watch, dict[str, Any]]:
        settings.pop("workers", None)
        key = repr(settings)
        if key not in _WHOLE:
            _WHOLE[key] = run("whole", **settings)
        return _WHOLE[key]

    return whole


@pytest.mark.parametrize(("stop", "settings"), CASES.values(), ids=CASES)
def test_a_resumed_run_is_the_run_that_never_stopped(
    run: Run, never_stopped: Run, stop: tuple[str, int, int], settings: Any
) -> None:
    whole, expected = never_stopped(**settings)
    assert not run("stopped", stop, **settings)[1]
    resumed, found = run("stopped", **settings)

    assert resumed.losses  # it did go on …
    assert ("train", 0, 0) not in resumed.losses or stop == ("train", 0, 0)  # … from where it was
    assert {point: whole.losses[point] for point in resumed.losses} == resumed.losses
    assert {at: whole.stage_weights[at] for at in resumed.stage_weights} == resumed.stage_weights
    assert any("teacher." in name for name in expected["task"])
    assert any("queue" in name for name in expected["task"])
    same(expected["task"], found["task"])
    for part in ("optimizer_states", "lr_schedulers", "global_step", "epoch", "ToyData"):
        same(expected["end"][part], found["end"][part], part)
    assert expected["best"] == found["best"]


def test_two_resumes_in_a_row(run: Run, never_stopped: Run) -> None:
    _, expected = never_stopped()
    run("stopped", ("train", 0, 2))
    run("stopped", ("train", 1, 3))
    _, found = run("stopped")
    same(expected["task"], found["task"])
    same(expected["end"]["optimizer_states"], found["end"]["optimizer_states"])


def test_a_checkpoint_has_the_teacher_of_its_own_step(run: Run, tmp_path: Path) -> None:
    """The moving average is made before the step's checkpoint is written, not after."""
    run("stopped", ("train", 0, 2))
    second = read_checkpoint(tmp_path / "stopped" / "checkpoints" / "last.ckpt")
    assert second["global_step"] == 2
    run("again", ("train", 0, 1))
    first = read_checkpoint(tmp_path / "again" / "checkpoints" / "last.ckpt")
    name = "encoders.text.embedder.table.weight"
    before, online = first["state_dict"][f"teacher.{name}"], second["state_dict"][f"model.{name}"]
    torch.testing.assert_close(second["state_dict"][f"teacher.{name}"], 0.9 * before + 0.1 * online)
