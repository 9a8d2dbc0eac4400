"""What a training run shows and keeps: throughput, checkpoints, early stopping."""

from __future__ import annotations

import difflib
import math
import time
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch import callbacks

from polyfm.shared.data.batch import Batch
from polyfm.shared.errors import DivergenceError, RecipeError, require
from polyfm.shared.training.checkpoint import second_name
from polyfm.shared.training.signals import Signals


class Throughput(L.Callback):
    """Measures samples per second and the share of time spent waiting for data.

    Attributes:
        samples_per_second: Over the whole run, of all processes.
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
        self.samples += len(batch) * trainer.world_size

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Validation is not waiting."""
        self._last_end = None

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Training goes on."""
        self._last_end = time.perf_counter()


class Divergence(L.Callback):
    """Stops a run whose loss is no number any more: nothing that follows is worth its time, and no file may hold it.

    Losses stay on the device; they are looked at every so many steps, and before a checkpoint is written.

    Args:
        every: Steps from one look to the next.
    """

    def __init__(self, every: int = 10) -> None:
        self.every = every
        self._lost: torch.Tensor | None = None

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Remember, and look."""
        lost = ~torch.isfinite(outputs["loss"].detach())
        self._lost = lost if self._lost is None else self._lost | lost
        if trainer.global_step % self.every == 0:
            self._look(trainer)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Look."""
        self._look(trainer)

    def _look(self, trainer: L.Trainer) -> None:
        if self._lost is None:
            return
        lost = self._lost.float()
        if trainer.world_size > 1:  # all stop, or those that go on wait for ever
            lost = trainer.strategy.reduce(lost, reduce_op="max")
        if lost:
            raise DivergenceError(
                f"the loss is no number any more, at step {trainer.global_step} or up to {self.every} before",
                remedy="Train with a lower rate (--model.optimizer.lr), a longer warm-up, or "
                "--trainer.gradient_clip_val 1; checkpoints are from before",
            )


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
    """Keeps ``last.ckpt`` and ``best.ckpt`` in the run folder, and stops a run that is asked to, where it can go on.

    ``last`` is written after every pass over the data and after every validation within one (Lightning's own callback
    writes it only when ``best`` has changed, and then judges steps by a validation that was before them). It is only
    ever written between two optimiser steps, never among the micro-batches of one: their gradients are in no file. If a
    step is followed by a validation, a checkpoint written before or within that says so, and it is done from its start
    when the run goes on.

    Args:
        every_n_steps: Also write ``last`` every so many optimiser steps; 0 for not.
        monitor: What ``best`` is chosen by, at each validation; without it there is only ``last``.
        mode: Whether low (min) or high (max) is good.
    """

    def __init__(
        self, every_n_steps: int = 0, monitor: str = "valid/loss", mode: Literal["min", "max"] = "min"
    ) -> None:
        require(every_n_steps >= 0, "checkpoint.every_n_steps", "at least 1, or 0 for not", every_n_steps)
        self.every_n_steps, self.monitor, self.mode = every_n_steps, monitor, mode
        self.folder = Path("checkpoints")
        self.signals = Signals()
        self.best: float | None = None
        """The best value seen."""
        self._saved_at = 0
        self._improved = self._validating = False

    def within(self, run: Path, signals: Signals | None = None) -> Checkpoint:
        """Write into a run folder.

        Args:
            run: The folder.
            signals: What may ask the run to stop.
        """
        self.folder = run / "checkpoints"
        self.signals = signals or self.signals
        return self

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """From here on a stop waits for a step's end."""
        self.signals.listen()
        self.signals.patient = True

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Save every so many steps; if a validation or the end of the pass follows, there."""
        if _between_steps(trainer) and not trainer.is_last_batch and not _validates_next(trainer):
            self._save_if_due(trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save if it is due, so that the validation is not lost with the process."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking and _can_validate_again(trainer):
            self._validating = True
            self._save_if_due(trainer)

    def on_validation_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """A validation may take longer than a scheduler waits: do not finish it."""
        if self._validating:
            self._stop_if_asked(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Judge; and save if training goes on within the pass."""
        self._validating = False
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        _require_logged(trainer, pl_module, self.monitor, "checkpoint.monitor")
        value = float(trainer.callback_metrics.get(self.monitor, math.nan))
        if not math.isnan(value) and (
            self.best is None or (value < self.best if self.mode == "min" else value > self.best)
        ):
            self.best, self._improved = value, True
        if not _between_steps(trainer):
            self._write(trainer, last=False)  # a run that goes on from the step before comes here again
        elif not trainer.is_last_batch:
            self._save(trainer)
            self._stop_if_asked(trainer, saved=True)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save."""
        self._save(trainer)
        self._stop_if_asked(trainer, saved=True)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """All is saved: a stop need not wait."""
        self.signals.patient = False

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Say that a validation is to be done, which Lightning knows only of one that broke off in a batch."""
        if self._validating:
            progress = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
            earlier = progress["total"]["ready"] - progress["current"]["ready"]
            for part, done in (("total", earlier), ("current", 0)):
                progress[part] = {"ready": done + 1, "started": done + 1, "processed": done, "completed": done}
            progress["is_last_batch"] = False

    def _save_if_due(self, trainer: L.Trainer) -> None:
        """Save every so many steps, and when the run is to stop."""
        step = trainer.global_step
        if self.every_n_steps and step % self.every_n_steps == 0 and step != self._saved_at:
            self._save(trainer)
        self._stop_if_asked(trainer)

    def _stop_if_asked(self, trainer: L.Trainer, *, saved: bool = False) -> None:
        """Stop if a signal came, to whichever process."""
        received = self.signals.received
        if trainer.world_size > 1:
            any_of_us = torch.tensor(received, device=trainer.strategy.root_device)
            received = int(trainer.strategy.reduce(any_of_us, reduce_op="max"))
        if received:
            if not saved:
                self._save(trainer)
            self.signals.received = received
            self.signals.stop()

    def _save(self, trainer: L.Trainer) -> None:
        """Write ``last``, and ``best`` if this is it."""
        self._saved_at = trainer.global_step
        self._write(trainer, last=True)

    def _write(self, trainer: L.Trainer, *, last: bool) -> None:
        """Write a checkpoint under its names; under each it appears whole or not at all."""
        improved, self._improved = self._improved, False
        if not (last or improved):
            return
        self.signals.writing = True
        try:
            for logger in trainer.loggers:
                logger.save()  # the curves are as far as the checkpoint
            fresh = self.folder / "fresh.ckpt"
            trainer.save_checkpoint(fresh)  # by all processes, of which the first writes
            if trainer.is_global_zero:
                if improved:
                    second_name(fresh, self.folder / "best.ckpt")
                if last:
                    fresh.replace(self.folder / "last.ckpt")
                else:
                    fresh.unlink()
        finally:
            self.signals.writing = False

    def state_dict(self) -> dict[str, Any]:
        """The best value, so that a resumed run replaces ``best`` only by a better one."""
        return {"best": self.best, "saved_at": self._saved_at}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it over."""
        self.best, self._saved_at = state_dict["best"], state_dict["saved_at"]


def _require_logged(trainer: L.Trainer, task: Any, monitor: str, where: str) -> None:
    """Refuse to watch what validation does not measure."""
    logged = trainer.callback_metrics
    undefined = monitor == "valid/score" and getattr(task, "target", None) is not None  # such as AUROC of one class
    if monitor not in logged and not undefined:
        near = difflib.get_close_matches(monitor, logged, n=1)
        known = ", ".join(sorted(name for name in logged if name.startswith("valid/")))
        hint = f"Did you mean {near[0]!r}?" if near else f"Known: {known}"
        raise RecipeError(f"there is no metric {monitor!r}", where=where, remedy=hint)


def _between_steps(trainer: L.Trainer) -> bool:
    """Whether the last batch ended an optimiser step: otherwise its gradients wait for more."""
    return not trainer.fit_loop._should_accumulate()


def _validates_next(trainer: L.Trainer) -> bool:
    """Whether a validation follows the batch that has just been trained on."""
    loop = trainer.fit_loop
    return loop._data_fetcher is not None and loop.epoch_loop._should_check_val_fx(loop._data_fetcher)


def _can_validate_again(trainer: L.Trainer) -> bool:
    """Whether a run that goes on from a checkpoint made now does this validation: not after the last step of all."""
    return _between_steps(trainer) and not trainer.fit_loop.done


class Patience(callbacks.EarlyStopping):
    """Stops when the validation score has not risen for a while.

    Args:
        patience: Validations without a better score; 0 never stops.
        monitor: What is watched.
        mode: Whether low (min) or high (max) is good.
    """

    def __init__(self, patience: int = 0, monitor: str = "valid/loss", mode: Literal["min", "max"] = "min") -> None:
        require(patience >= 0, "patience.patience", "at least 1, or 0 for never", patience)
        super().__init__(monitor=monitor, mode=mode, patience=patience or 10**9, strict=False)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            _require_logged(trainer, pl_module, self.monitor, "patience.monitor")
        super().on_validation_end(trainer, pl_module)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A run that had already ended its training here is not given another pass when it goes on."""
        trainer.should_stop = trainer.should_stop or self.wait_count >= self.patience
