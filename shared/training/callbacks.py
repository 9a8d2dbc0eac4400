"""What a training run shows and keeps: throughput, checkpoints, early stopping."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, TQDMProgressBar

from polyfm.shared.data.batch import Batch


class Throughput(L.Callback):
    """Measures samples per second and the share of time spent waiting for data.

    Attributes:
        samples_per_second: Over the last steps (exponential mean).
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


class Bar(TQDMProgressBar):
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


class Checkpoint(ModelCheckpoint):
    """Keeps ``last.ckpt`` and ``best.ckpt`` in the run folder.

    Args:
        every_n_steps: Also write ``last`` every so many steps; 0 for after validation only.
        monitor: What ``best`` is chosen by; ``last`` is best where there is no validation part.
        mode: min or max.
    """

    def __init__(self, every_n_steps: int = 0, monitor: str = "valid/loss", mode: str = "min") -> None:
        super().__init__(
            monitor=monitor,
            mode=mode,
            save_last=True,
            filename="best",
            enable_version_counter=False,
            every_n_train_steps=every_n_steps or None,
        )

    def within(self, run: Path) -> Checkpoint:
        """Write into a run folder.

        Args:
            run: The folder.
        """
        self.dirpath = str(run / "checkpoints")
        return self


class Patience(EarlyStopping):
    """Stops when the validation score has not risen for a while.

    Args:
        patience: Validations without a better score; 0 never stops.
        monitor: What is watched.
        mode: min or max.
    """

    def __init__(self, patience: int = 0, monitor: str = "valid/loss", mode: str = "min") -> None:
        super().__init__(monitor=monitor, mode=mode, patience=patience or 10**9, strict=False)
