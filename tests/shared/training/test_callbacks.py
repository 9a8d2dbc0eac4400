"""Throughput, the bar, which checkpoints are kept when, early stopping."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch

from polyfm.shared.errors import DivergenceError, RecipeError
from polyfm.shared.objectives.masked import MaskedTokens
from polyfm.shared.training import callbacks
from polyfm.shared.training.callbacks import Bar, Checkpoint, Divergence, Patience, Throughput
from polyfm.shared.training.checkpoint import read_checkpoint


class Clock:
    """Time that passes only when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


def test_throughput_counts_samples_and_waiting_but_not_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(callbacks, "time", clock)
    meter, none, one = Throughput(), None, SimpleNamespace(world_size=1)
    meter.on_train_epoch_start(none, none)  # type: ignore[arg-type]
    for wait, work in ((1.0, 3.0), (1.0, 5.0)):
        clock.now += wait
        meter.on_train_batch_start(none, none, none, 0)  # type: ignore[arg-type]
        clock.now += work
        meter.on_train_batch_end(one, none, none, range(4), 0)  # type: ignore[arg-type]
    meter.on_validation_start(none, none)  # type: ignore[arg-type]
    clock.now += 100
    meter.on_validation_end(none, none)  # type: ignore[arg-type]
    assert meter.samples_per_second == pytest.approx(8 / 10)
    assert meter.waiting == pytest.approx(2 / 10)
    clock.now += 2
    meter.on_train_batch_start(none, none, none, 0)  # type: ignore[arg-type]
    assert meter.waiting == pytest.approx(4 / 12)


def test_before_the_first_step_there_is_no_division_by_zero() -> None:
    assert (Throughput().samples_per_second, Throughput().waiting) == (0.0, 0.0)


class TestDivergence:
    def test_a_run_whose_loss_is_no_number_stops_and_leaves_no_checkpoint_of_it(
        self, pretrain: Callable[..., Any], toy: Any, trainer: Callable[..., L.Trainer], tmp_path: Path
    ) -> None:
        class Lost(L.Callback):
            def on_before_optimizer_step(self, trainer: L.Trainer, task: Any, optimizer: Any) -> None:
                if trainer.global_step == 2:
                    next(task.parameters()).grad.fill_(torch.nan)  # type: ignore[union-attr]

        checkpoint = Checkpoint(every_n_steps=1).within(tmp_path)
        run = trainer(max_epochs=9, enable_checkpointing=True, callbacks=[Lost(), Divergence(), checkpoint])
        with pytest.raises(DivergenceError, match="no number any more, at step 4 .* Train with a lower rate"):
            run.fit(pretrain(), toy())
        state = read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")
        assert state["global_step"] == 3

    def test_finite_losses_are_let_through(
        self, pretrain: Callable[..., Any], toy: Any, trainer: Callable[..., L.Trainer]
    ) -> None:
        run = trainer(max_epochs=1, callbacks=[Divergence(every=1)])
        run.fit(pretrain(), toy())
        assert run.global_step > 1


def test_the_bar_shows_speed_and_waiting(
    pretrain: Callable[..., Any], toy: Any, trainer: Callable[..., L.Trainer]
) -> None:
    throughput = Throughput()
    bar = Bar(throughput)
    fitted = trainer([throughput, bar], max_steps=2, enable_progress_bar=True)
    fitted.fit(pretrain(lambda: {"token": MaskedTokens("text")}), datamodule=toy())
    shown = bar.get_metrics(fitted, fitted.lightning_module)
    assert set(shown) == {"train/loss", "samples/s", "waiting"} or {"samples/s", "waiting"} <= set(shown)
    assert shown["waiting"].endswith("%")
    assert "v_num" not in shown


class Scores(L.LightningModule):
    """Has the validation losses it is given, one after the other; its weight counts the steps."""

    def __init__(self, scores: list[float]) -> None:
        super().__init__()
        self.scores, self.steps = scores, torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return -self.steps

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0 and not self.trainer.sanity_checking:
            self.log("valid/loss", self.scores.pop(0))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1.0)


@pytest.fixture
def fit(toy: Any, trainer: Callable[..., L.Trainer], tmp_path: Path) -> Callable[..., dict[str, float]]:
    """Fits 4 steps a pass; returns the step at which each checkpoint was written, by its weight."""

    def run(scores: list[float], checkpoint: Checkpoint, *more: L.Callback, **settings: Any) -> dict[str, float]:
        settings = {"max_epochs": len(scores), "enable_checkpointing": True, **settings}
        data = toy(valid=0) if settings.pop("without_validation", False) else toy()
        trainer([checkpoint.within(tmp_path), *more], **settings).fit(Scores(list(scores)), datamodule=data)
        files = sorted((tmp_path / "checkpoints").iterdir())
        return {path.stem: float(read_checkpoint(path)["state_dict"]["steps"]) for path in files}

    return run


def test_last_is_the_last_and_best_the_best(fit: Callable[..., dict[str, float]]) -> None:
    assert fit([3.0, 1.0, 2.0], Checkpoint()) == {"best": 8, "last": 12}


def test_best_by_the_largest(fit: Callable[..., dict[str, float]]) -> None:
    assert fit([1.0, 3.0, 2.0, 3.0], Checkpoint(mode="max")) == {"best": 8, "last": 16}


def test_a_value_that_is_no_number_is_never_the_best(fit: Callable[..., dict[str, float]]) -> None:
    assert fit([2.0, float("nan"), 1.5, float("nan")], Checkpoint()) == {"best": 12, "last": 16}


def test_a_first_value_that_is_no_number_does_not_stand_in_the_way(fit: Callable[..., dict[str, float]]) -> None:
    assert fit([float("nan"), 3.0, 4.0], Checkpoint()) == {"best": 8, "last": 12}


def test_best_is_found_among_the_batches_of_a_step_but_last_is_between_steps(
    fit: Callable[..., dict[str, float]],
) -> None:
    """Three batches are a step, the fourth ends the pass; the first validation is after two, and moves nothing."""
    settings = {"max_epochs": 1, "val_check_interval": 2, "accumulate_grad_batches": 3}
    assert fit([1.0, 2.0], Checkpoint(), **settings) == {"best": 0, "last": pytest.approx(4 / 3)}


def test_where_the_score_is_undefined_there_is_only_last(
    fit: Callable[..., dict[str, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Scores, "target", "of one class", raising=False)
    assert fit([1.0, 2.0], Checkpoint(monitor="valid/score")) == {"last": 8}


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (lambda: Checkpoint(monitor="valid/los"), "checkpoint.monitor: there is no metric 'valid/los'. Did you mean"),
        (lambda: Patience(3, monitor="accuracy"), "patience.monitor: there is no metric 'accuracy'. Known: valid/loss"),
    ],
)
def test_what_validation_does_not_measure_cannot_be_watched(
    fit: Callable[..., dict[str, float]], part: Callable[[], Any], message: str
) -> None:
    made = part()
    checkpoint, more = (made, ()) if isinstance(made, Checkpoint) else (Checkpoint(), (made,))
    with pytest.raises(RecipeError, match=re.escape(message)):
        fit([1.0, 2.0], checkpoint, *more)


def test_last_is_also_written_every_so_many_steps(
    fit: Callable[..., dict[str, float]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    save = Checkpoint._save

    def watched(checkpoint: Checkpoint, trainer: L.Trainer) -> None:
        written.append(trainer.global_step)
        save(checkpoint, trainer)

    monkeypatch.setattr(Checkpoint, "_save", watched)
    # Step 4 and 8 end a pass and are written after its validation; 9 also ends the run.
    assert fit([2.0, 1.0, 3.0], Checkpoint(every_n_steps=3), max_steps=9) == {"best": 8, "last": 9}
    assert written == [3, 4, 6, 8, 9, 9]


def test_validation_within_a_pass_is_judged_by_the_weights_of_its_step(fit: Callable[..., dict[str, float]]) -> None:
    assert fit([3.0, 2.0, 1.0, 2.0], Checkpoint(), max_epochs=2, val_check_interval=2) == {"best": 6, "last": 8}


def test_no_half_written_file_is_left(fit: Callable[..., dict[str, float]], tmp_path: Path) -> None:
    fit([1.0], Checkpoint(every_n_steps=1))
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}


def test_a_resumed_run_remembers_its_best() -> None:
    checkpoint, again = Checkpoint(), Checkpoint()
    checkpoint.best = 0.5
    again.load_state_dict(checkpoint.state_dict())
    assert again.best == 0.5


@pytest.mark.parametrize(("patience", "passes"), [(2, 4), (0, 6)])
def test_patience(fit: Callable[..., dict[str, float]], patience: int, passes: int) -> None:
    """The best of the second pass is not reached in the third and fourth; 0 never stops."""
    steps = fit([2.0, 1.0, 3.0, 1.5, 0.5, 0.4], Checkpoint(), Patience(patience=patience))
    assert steps["last"] == 4 * passes


def test_a_run_that_patience_has_ended_is_not_given_another_pass(
    fit: Callable[..., dict[str, float]], toy: Any, trainer: Callable[..., L.Trainer], tmp_path: Path
) -> None:
    fit([1.0, 2.0, 3.0, 0.5], Checkpoint(), Patience(patience=2))
    last = tmp_path / "checkpoints" / "last.ckpt"
    again = trainer([Checkpoint().within(tmp_path), Patience(patience=2)], max_epochs=9, enable_checkpointing=True)
    again.fit(Scores([0.5]), datamodule=toy(), ckpt_path=last)
    assert again.global_step == 12
