"""What a training run shows and keeps: throughput, checkpoints, early stopping."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any, Literal

import lightning as L
from lightning.pytorch import callbacks

from polyfm.shared.data.batch import Batch


class Throughput(L.Callback):
    """Measures samples per second and the share of time spent waiting for data.

    Attributes:
        samples_per_second: Over the whole run.
        waiting: Share of time between steps spent waiting for the next batch.
    """

    def __init__(self) -> None:
        self._last_end: float | None = None
        self._start = 0.0
        self.samples = 0
        self.busy = 0.0
        self.idle = 0.0

    @property
    def samples_per_second(self) -> float:
        """Samples per second of training, waiting included, validation left out."""
        return self.samples / max(self.busy + self.idle, 1e-9)

    @property
    def waiting(self) -> float:
        """Share of training time spent waiting for data."""
        return self.idle / max(self.busy + self.idle, 1e-9)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The first wait of an epoch counts from here."""
        self._last_end = time.perf_counter()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """A batch has arrived."""
        self._start = time.perf_counter()
        if self._last_end is not None:
            self.idle += self._start - self._last_end

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """A step is done."""
        self._last_end = time.perf_counter()
        self.busy += self._last_end - self._start
        self.samples += len(batch)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Validation is not waiting."""
        self._last_end = None

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Training goes on."""
        self._last_end = time.perf_counter()


class Bar(callbacks.TQDMProgressBar):
    """Lightning's bar, with samples per second and the share of time spent waiting for data.

    Args:
        throughput: Measures them.
    """

    def __init__(self, throughput: Throughput) -> None:
        super().__init__(refresh_rate=10)
        self.throughput = throughput

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """What stands behind the bar."""
        shown = super().get_metrics(trainer, pl_module)
        shown.pop("v_num", None)
        shown["samples/s"] = f"{self.throughput.samples_per_second:.0f}"
        shown["waiting"] = f"{self.throughput.waiting:.0%}"
        return shown


class Checkpoint(callbacks.Checkpoint):
    """Keeps ``last.ckpt`` and ``best.ckpt`` in the run folder.

    ``last`` is written after every pass over the data and after every validation within one (Lightning's own callback
    writes it only when ``best`` has changed, and then judges steps by a validation that was before them).

    Args:
        every_n_steps: Also write ``last`` every so many optimiser steps; 0 for not.
        monitor: What ``best`` is chosen by, at each validation; without it there is only ``last``.
        mode: Whether low (min) or high (max) is good.
    """

    def __init__(
        self, every_n_steps: int = 0, monitor: str = "valid/loss", mode: Literal["min", "max"] = "min"
    ) -> None:
        self.every_n_steps, self.monitor, self.mode = every_n_steps, monitor, mode
        self.folder = Path("checkpoints")
        self.best: float | None = None
        """The best value seen."""
        self._saved_at = 0
        self._improved = False

    def within(self, run: Path) -> Checkpoint:
        """Write into a run folder.

        Args:
            run: The folder.
        """
        self.folder = run / "checkpoints"
        return self

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Save every so many steps; the last of a pass is saved after its validation."""
        step = trainer.global_step
        if (
            self.every_n_steps
            and step % self.every_n_steps == 0
            and step != self._saved_at
            and not trainer.is_last_batch
        ):
            self._save(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Judge; and save if training goes on within the pass."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        value = trainer.callback_metrics.get(self.monitor)
        if value is not None and (
            self.best is None or (value < self.best if self.mode == "min" else value > self.best)
        ):
            self.best, self._improved = float(value), True
        if not trainer.is_last_batch:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save."""
        self._save(trainer)

    def _save(self, trainer: L.Trainer) -> None:
        """Write ``last``, and ``best`` as a copy of it; each appears whole or not at all."""
        self._saved_at = trainer.global_step
        improved, self._improved = self._improved, False
        for logger in trainer.loggers:
            logger.save()  # the curves are as far as the checkpoint
        fresh = self.folder / "fresh.ckpt"
        trainer.save_checkpoint(fresh)  # by all processes, of which the first writes
        if trainer.is_global_zero:
            if improved:
                copy = self.folder / "copy.ckpt"
                shutil.copyfile(fresh, copy)
                copy.replace(self.folder / "best.ckpt")
            fresh.replace(self.folder / "last.ckpt")

    def state_dict(self) -> dict[str, Any]:
        """The best value, so that a resumed run replaces ``best`` only by a better one."""
        return {"best": self.best, "saved_at": self._saved_at}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it over."""
        self.best, self._saved_at = state_dict["best"], state_dict["saved_at"]


class Patience(callbacks.EarlyStopping):
    """Stops when the validation score has not risen for a while.

    Args:
        patience: Validations without a better score; 0 never stops.
        monitor: What is watched.
        mode: Whether low (min) or high (max) is good.
    """

    def __init__(self, patience: int = 0, monitor: str = "valid/loss", mode: Literal["min", "max"] = "min") -> None:
        super().__init__(monitor=monitor, mode=mode, patience=patience or 10**9, strict=False)
