"""`Watch`: what a run did at each of its points, and how it is ended at one of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch

Point = tuple[str, int, int]
"""(hook, epoch, batch); -1 for hooks that have no batch."""


class Pulled(Exception):
    """The plug."""


def pull() -> None:
    """End the run as an error would: nothing of it is saved."""
    raise Pulled


class Watch(L.Callback):
    """Keeps losses, samples and stages by point of the run; acts at one point, before its checkpoint is written.

    Args:
        at: Where.
        act: What happens there, once.
        log: A file to which every point is appended as it is passed: it outlives the process.
    """

    def __init__(self, at: Point | None = None, act: Callable[[], None] = pull, log: Path | None = None) -> None:
        self.at, self.act, self.written = at, act, log
        self.seen: dict[Point, Any] = {}

    def _pass(self, trainer: L.Trainer, hook: str, batch: int = -1, value: Any = None) -> None:
        if value is not None:
            # Validations within a pass follow one another: told apart by the step.
            point = (hook, trainer.current_epoch, batch if batch >= 0 else -1 - trainer.global_step)
            self.seen[point] = value
            if self.written is not None:
                with open(self.written, "a") as file:
                    file.write(json.dumps([point, value]) + "\n")
        if (hook, trainer.current_epoch, batch) == self.at:
            self.at = None
            self.act()

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self._pass(trainer, "epoch start")

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._pass(trainer, "step start", batch_idx)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        value = [float(outputs["loss"]), list(batch.ids), dict(getattr(pl_module, "stage_weights", {}))]
        self._pass(trainer, "step end", batch_idx, value)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self._pass(trainer, "validation start")

    def on_validation_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._pass(trainer, "validation", batch_idx)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self._pass(trainer, "validation end", value=float(trainer.callback_metrics["valid/loss"]))

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._pass(trainer, "epoch end")


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
