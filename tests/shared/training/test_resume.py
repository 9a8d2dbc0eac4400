"""A run that was stopped anywhere and resumed is the run that never stopped, bit by bit."""

from __future__ import annotations

import gc
import itertools
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from tests.resume.watch import Point, Pulled, Watch, pull, same

from polyfm.shared.training.callbacks import Checkpoint, Patience
from polyfm.shared.training.checkpoint import read_checkpoint
from polyfm.shared.training.gradients import GradientPolicy
from polyfm.shared.training.optim import AdamW
from polyfm.shared.training.seeding import StepSeed
from polyfm.shared.training.signals import Signals, Stopped
from polyfm.shared.training.stages import Stage

EPOCHS, BATCHES = 3, 4


def terminate() -> None:
    """What a scheduler sends."""
    os.kill(os.getpid(), signal.SIGTERM)


Run = Callable[..., tuple[Watch, dict[str, Any]]]


@pytest.fixture
def run(
    toy: Callable[..., Any], pretrain: Callable[..., Any], trainer: Callable[..., L.Trainer], tmp_path: Path
) -> Run:
    """Trains SPMM in small, with dropout, teacher, queue and stages; returns what was watched and the end's state."""

    def start(
        name: str,
        at: Point | None = None,
        act: Callable[[], None] = pull,
        *,
        every: int = 1,
        accumulate: int = 1,
        workers: int = 0,
        valid: int = 8,
        chunk: int = 0,
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
            chunk=chunk,
        )
        data = toy(n=16 + 2 * valid, valid=valid, num_workers=workers)
        data.seed = 5
        folder = tmp_path / name
        last = folder / "checkpoints" / "last.ckpt"
        with Signals() as signals:
            watch, checkpoint = Watch(at, act), Checkpoint(every_n_steps=every).within(folder, signals)
            fitted = trainer(
                [StepSeed(data.seed), watch, Patience(patience=50), checkpoint],
                max_epochs=EPOCHS,
                accumulate_grad_batches=accumulate,
                enable_checkpointing=True,
                **more,
            )
            try:
                fitted.fit(task, datamodule=data, ckpt_path=last if last.exists() else None)
            except Pulled:
                return watch, {}
            except Stopped as stopped:
                return watch, {"code": stopped.code}
            finally:
                gc.collect()  # workers of a run that broke off
        return watch, {"task": task.state_dict(), "end": read_checkpoint(last), "best": checkpoint.best}

    return start


POINTS: dict[str, Point] = {
    "in the first step": ("step start", 0, 0),
    "in a step": ("step start", 1, 2),
    "after a step": ("step end", 1, 1),
    "in the last step of a pass": ("step start", 0, BATCHES - 1),
    "after the last step of a pass": ("step end", 0, BATCHES - 1),
    "as validation starts": ("validation start", 0, -1),
    "in validation": ("validation", 0, 0),
    "as validation ends": ("validation end", 0, -1),
    "at the end of a pass": ("epoch end", 0, -1),
    "between passes": ("epoch start", 1, -1),
    "after the first step of a pass": ("step end", 1, 0),
    "in the last validation": ("validation", EPOCHS - 1, 1),
    "at the very end": ("epoch end", EPOCHS - 1, -1),
}
VALIDATIONS: dict[str, dict[str, Any]] = {
    "validation after passes": {},
    "validation within passes": {"val_check_interval": 2},
}
ACCUMULATIONS = (1, 3)
WAYS = {"exception": pull, "SIGTERM": terminate}
SETTINGS = [
    (f"{when}, x{accumulate}", {**validation, "accumulate": accumulate})
    for (when, validation), accumulate in itertools.product(VALIDATIONS.items(), ACCUMULATIONS)
]
# Every point in every setting, by every way; the quick tier takes each point in one setting, by turns.
MATRIX = [
    pytest.param(
        WAYS[way],
        at,
        settings,
        id=f"{way} {where}, {when}",
        marks=() if turn == (row + column) % len(SETTINGS) else pytest.mark.full,
    )
    for column, way in enumerate(WAYS)
    for row, (where, at) in enumerate(POINTS.items())
    for turn, (when, settings) in enumerate(SETTINGS)
]
OTHERS: dict[str, tuple[Callable[[], None], Point, dict[str, Any]]] = {
    f"{way} {name}": (act, at, settings)
    for way, act in WAYS.items()
    for name, at, settings in (
        ("with workers", ("step start", 1, 2), {"workers": 2}),
        ("with workers, in validation", ("validation", 1, 0), {"workers": 2, "val_check_interval": 2}),
        ("with workers, in validation after a pass", ("validation", 0, 0), {"workers": 2}),
        ("with workers, between passes", ("epoch start", 1, -1), {"workers": 2, "accumulate": 3}),
        ("without validation", ("step start", 2, 1), {"valid": 0}),
        ("without validation, after the last step of a pass", ("step end", 1, BATCHES - 1), {"valid": 0}),
        ("validation every other pass", ("step end", 0, BATCHES - 1), {"check_val_every_n_epoch": 2}),
        ("a number of steps", ("validation", 1, 1), {"max_steps": 2 * BATCHES}),
        ("part of the batches", ("epoch start", 1, -1), {"limit_train_batches": 3}),
        ("batches in chunks", ("step start", 1, 2), {"chunk": 3, "accumulate": 3}),
        ("batches in chunks, in validation", ("validation", 1, 0), {"chunk": 3, "val_check_interval": 2}),
        ("part of the batches, with workers", ("validation", 1, 0), {"limit_train_batches": 3, "workers": 2}),
    )
}


def test_the_matrix_is_whole(capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\nresume in process: {len(MATRIX)} cases of the matrix, {len(OTHERS)} others")
    assert (len(MATRIX), len(OTHERS)) == (2 * 13 * 2 * 2, 24)


_WHOLE: dict[str, tuple[Watch, dict[str, Any]]] = {}


@pytest.fixture
def never_stopped(run: Run) -> Run:
    """The run that never stopped, once for each setting; workers change nothing."""

    def whole(**settings: Any) -> tuple[Watch, dict[str, Any]]:
        settings.pop("workers", None)
        key = repr(sorted(settings.items()))
        if key not in _WHOLE:
            _WHOLE[key] = run("whole", **settings)
        return _WHOLE[key]

    return whole


@pytest.mark.parametrize(
    ("act", "at", "settings"), [*MATRIX, *(pytest.param(*case, id=name) for name, case in OTHERS.items())]
)
def test_a_resumed_run_is_the_run_that_never_stopped(
    run: Run, never_stopped: Run, act: Callable[[], None], at: Point, settings: Any
) -> None:
    whole, expected = never_stopped(**settings)
    every = 1 if act is pull else 0  # a run that is asked to stop saves by itself
    stopped, state = run("stopped", at, act, every=every, **settings)
    assert not stopped.at
    assert state.get("code") == (None if act is pull else 143)
    resumed, found = run("stopped", every=every, **settings)

    repeated = [point for point in resumed.seen if point in stopped.seen and point[0] == "step end"]
    assert len(repeated) <= (settings.get("accumulate", 1) if act is pull else 0)
    assert set(stopped.seen) | set(resumed.seen) == set(whole.seen)  # nothing is left out …
    for watch in (stopped, resumed):  # … and everything is as it was
        assert {point: whole.seen[point] for point in watch.seen} == watch.seen
    assert any("teacher." in name for name in expected["task"])
    assert any("queue" in name for name in expected["task"])
    same(expected["task"], found["task"])
    for part in ("optimizer_states", "lr_schedulers", "global_step", "epoch", "ToyData"):
        same(expected["end"][part], found["end"][part], part)
    assert expected["best"] == found["best"]


@pytest.mark.parametrize("act", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("workers", [0, 2])
def test_two_resumes_in_a_row(run: Run, never_stopped: Run, act: Callable[[], None], workers: int) -> None:
    _, expected = never_stopped()
    run("stopped", ("step end", 0, 2), act, workers=workers)
    run("stopped", ("validation start", 1, -1), act, workers=workers)
    _, found = run("stopped", workers=workers)
    same(expected["task"], found["task"])
    same(expected["end"]["optimizer_states"], found["end"]["optimizer_states"])


def test_a_checkpoint_has_the_teacher_of_its_own_step(run: Run, tmp_path: Path) -> None:
    """The moving average is made before the step's checkpoint is written, not after."""
    run("stopped", ("step start", 0, 2))
    second = read_checkpoint(tmp_path / "stopped" / "checkpoints" / "last.ckpt")
    assert second["global_step"] == 2
    run("again", ("step start", 0, 1))
    first = read_checkpoint(tmp_path / "again" / "checkpoints" / "last.ckpt")
    name = "encoders.text.embedder.table.weight"
    before, online = first["state_dict"][f"teacher.{name}"], second["state_dict"][f"model.{name}"]
    torch.testing.assert_close(second["state_dict"][f"teacher.{name}"], 0.9 * before + 0.1 * online)
