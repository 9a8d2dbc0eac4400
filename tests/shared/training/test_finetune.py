"""`FinetuneTask`: what is trained, the head from training labels only, checkpoints, learning what there is to learn."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch

from polyfm.shared.backbones.fusion import LateFusion
from polyfm.shared.errors import DataError, RecipeError
from polyfm.shared.training.callbacks import Checkpoint, Patience
from polyfm.shared.training.checkpoint import read_checkpoint
from polyfm.shared.training.finetune import FinetuneTask
from polyfm.shared.training.optim import AdamW
from polyfm.shared.training.stages import Stage
from polyfm.shared.training.targets.kinds import fit_target

WIDTH = 16
Encoders = Callable[..., Any]
Trainer = Callable[..., L.Trainer]


def trained(task: FinetuneTask) -> set[str]:
    return {name for name, parameter in task.named_parameters() if parameter.requires_grad}


def with_prefix(task: FinetuneTask, *prefixes: str) -> set[str]:
    return {name for name, _ in task.named_parameters() if name.startswith(prefixes)}


@pytest.mark.parametrize("blocks", [-1, 0, 1, 2])
def test_full_frozen_and_partial_train_exactly_the_right_parameters(
    encoders: Encoders, toy: Any, trainer: Trainer, blocks: int
) -> None:
    """After a few steps these have moved, and no others."""
    task = FinetuneTask(encoders(depth=3), train_blocks=blocks, optimizer=AdamW(lr=0.1, warmup=0))
    data = toy(targets=["sum"])
    names = ("text", "table")
    expected = {"head.1.weight", "head.1.bias"}
    for name in names:
        top = [f"model.encoders.{name}.backbone.blocks.{i}." for i in range(3)][3 - blocks if blocks > 0 else 3 :]
        if blocks:
            expected |= with_prefix(task, f"model.encoders.{name}.backbone.norm.", *top)
        if blocks < 0:
            expected |= with_prefix(task, f"model.encoders.{name}.backbone.", f"model.encoders.{name}.embedder.")
    before = {name: parameter.detach().clone() for name, parameter in task.named_parameters()}
    trainer(max_steps=3).fit(task, datamodule=data)

    assert trained(task) == expected
    moved = {name for name, p in task.named_parameters() if name not in before or not torch.equal(p, before[name])}
    assert moved - expected == set()
    # The keys' bias cancels in the softmax, so it may stay; what is unknown or beyond the text may not occur.
    assert {name for name in expected - moved if "bias" not in name and "embedder" not in name} == set()


def test_rates_fall_with_depth_and_the_head_has_the_full_one(encoders: Encoders, toy: Any, trainer: Trainer) -> None:
    task = FinetuneTask(encoders(depth=2), optimizer=AdamW(lr=1.0, layer_decay=0.5))
    trainer(max_steps=1).fit(task, datamodule=toy(targets=["sum"]))
    names = {id(parameter): name for name, parameter in task.named_parameters()}
    rates = {
        names[id(p)]: group["base_lr"] for group in task.trainer.optimizers[0].param_groups for p in group["params"]
    }
    assert rates["head.1.weight"] == 1.0
    assert {rate for name, rate in rates.items() if ".blocks.1." in name} == {0.5}
    assert {rate for name, rate in rates.items() if ".blocks.0." in name} == {0.25}
    assert {rate for name, rate in rates.items() if ".embedder." in name} == {0.125}
    assert not [name for name in rates if "projection" in name]


def test_a_stage_may_train_what_was_frozen_but_never_the_projection(
    encoders: Encoders, toy: Any, trainer: Trainer
) -> None:
    stages = {"head": Stage(until=1, train=["head.*"]), "all": Stage()}
    task = FinetuneTask(encoders(), train_blocks=0, stages=stages)
    trainer(max_epochs=2).fit(task, datamodule=toy(targets=["sum"]))
    assert not [name for name in trained(task) if "projection" in name]
    assert [name for name in trained(task) if "embedder" in name]


def test_the_head_is_made_from_training_labels_only(encoders: Encoders, toy: Any, trainer: Trainer) -> None:
    data = toy(targets=["sum"])
    held_out = np.arange(data.n) >= data.n - 2 * data.valid
    data.labels["sum"][held_out] += 1000
    task = FinetuneTask(encoders())
    trainer(max_steps=1).fit(task, datamodule=data)
    assert task.target.mean == [pytest.approx(data.labels["sum"][~held_out].mean())]  # type: ignore[union-attr]
    assert task.target.names == ["sum"]  # type: ignore[union-attr]


def test_the_target_is_asked_for_before_there_is_one(encoders: Encoders, toy: Any) -> None:
    data = toy(targets=["sum"])
    data.setup()
    with pytest.raises(RecipeError, match="no target yet"):
        FinetuneTask(encoders()).predict_step(data.collate([0]))


def test_data_without_labels_say_which_option_names_them(encoders: Encoders, toy: Any, trainer: Trainer) -> None:
    with pytest.raises(DataError, match=r"no label column is given. Name one: --data.targets COLUMN"):
        trainer(max_steps=1).fit(FinetuneTask(encoders()), datamodule=toy())


@pytest.mark.parametrize(
    ("kind", "targets", "hidden", "good"),
    [
        ("auto", ["sum"], 0, ("rmse", 0.3)),
        ("auto", ["yes"], 8, ("accuracy", 1.0)),
        ("multiclass", ["class"], 0, ("accuracy", 1.0)),
        ("binary", ["yes", "yes"], 0, ("auroc", 1.0)),
    ],
)
def test_it_learns_32_items_by_heart(
    encoders: Encoders, toy: Any, kind: Any, targets: list[str], hidden: int, good: tuple[str, float]
) -> None:
    data = toy(n=40, targets=targets, batch_size=32)
    data.setup()
    task = FinetuneTask(encoders(), kind=kind, hidden=hidden, dropout=0.0)
    torch.manual_seed(0)
    rows = data.part("train")
    task.set_target(fit_target(kind, targets, data.target_values(rows), []))
    batch = data.collate(rows.tolist())
    optimizer = torch.optim.AdamW(AdamW(lr=5e-3).groups(task))
    for _ in range(80):
        optimizer.zero_grad()
        task._target.loss(task(batch), batch.targets["labels"]).backward()
        optimizer.step()
    task.eval()
    found = task._target.metrics(task.predict_step(batch)["predictions"].detach().numpy(), data.target_values(rows))
    name, bar = good
    spread = data.labels["sum"].std()
    assert found[name] < bar * spread if name == "rmse" else found[name] >= bar


def test_a_missing_modality_is_zeros_beside_the_other(encoders: Encoders, toy: Any) -> None:
    data = toy(targets=["sum"], lacking={"text": (1,), "table": (2,)})
    data.setup()
    task = FinetuneTask(encoders()).eval()
    vectors = task.embed(data.collate([0, 1, 2]))
    assert vectors.shape == (3, 2 * WIDTH)
    assert vectors[1, WIDTH:].count_nonzero() == vectors[2, :WIDTH].count_nonzero() == 0  # table, then text
    assert (vectors[0] != 0).any()
    assert (vectors[1, :WIDTH] != 0).any()
    assert (vectors[2, WIDTH:] != 0).any()


def test_vectors_of_several_modalities_may_be_averaged(encoders: Encoders, toy: Any, trainer: Trainer) -> None:
    data = toy(targets=["sum"], lacking={"text": (1,), "table": (2,)})
    beside, mean = (FinetuneTask(encoders(), fusion=partial(LateFusion, how)) for how in ("concat", "mean"))
    mean.load_state_dict(beside.state_dict())
    data.setup()
    batch = data.collate([0, 1, 2])
    with torch.inference_mode():
        apart, together = beside.eval().embed(batch), mean.eval().embed(batch)
    halves = apart.unflatten(1, (2, WIDTH)).sum(1) / torch.tensor([2.0, 1.0, 1.0])[:, None]
    torch.testing.assert_close(together, halves)
    trainer(max_steps=1).fit(mean, datamodule=data)
    assert mean.head[-1].in_features == WIDTH
    with pytest.raises(RecipeError, match=r"model.fusion: the mean of vectors of different widths \(8, 16\)"):
        LateFusion("mean").width([8, 16])


def test_a_batch_without_one_modality_trains_with_exact_zeros(encoders: Encoders, toy: Any, trainer: Trainer) -> None:
    data = toy(targets=["sum"], lacking={"table": range(24)})
    task = FinetuneTask(encoders(), optimizer=AdamW(lr=0.1, warmup=0, weight_decay=0.0))
    before = {name: p.detach().clone() for name, p in task.named_parameters() if ".encoders.table." in name}
    trainer(max_steps=2).fit(task, datamodule=data)
    named = dict(task.named_parameters())
    assert all(torch.equal(named[name], value) for name, value in before.items())


def test_best_checkpoint_early_stopping_and_round_trip(
    encoders: Encoders, toy: Any, trainer: Trainer, tmp_path: Path
) -> None:
    task, data = FinetuneTask(encoders(), optimizer=AdamW(lr=0.5, warmup=0)), toy(targets=["yes"])  # diverges
    checkpoint = Checkpoint(monitor="valid/score", mode="max").within(tmp_path)
    patience = Patience(patience=3, monitor="valid/score", mode="max")
    fitted = trainer([checkpoint, patience], max_epochs=40, enable_checkpointing=True)
    fitted.fit(task, datamodule=data)
    assert fitted.current_epoch < 40
    assert patience.wait_count == 3

    best = read_checkpoint(tmp_path / "checkpoints" / "best.ckpt")  # weights_only
    last = read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")
    assert best["epoch"] == last["epoch"] - 3
    assert best["target"]["kind"] == "Binary"
    assert best["target"]["threshold"] != [0.5]  # chosen in validation, before the checkpoint was written

    again = FinetuneTask(encoders(seed=7))
    again.on_load_checkpoint(best)
    again.load_state_dict(best["state_dict"])
    score = trainer().validate(again, datamodule=data, verbose=False)[0]["valid/score"]
    assert score == pytest.approx(checkpoint.best)


def test_validation_logs_every_metric_and_one_score(encoders: Encoders, toy: Any, trainer: Trainer) -> None:
    task = FinetuneTask(encoders())
    fitted = trainer(max_epochs=1)
    fitted.fit(task, datamodule=toy(targets=["sum"]))
    logged = fitted.callback_metrics
    assert {"valid/rmse", "valid/mae", "valid/r2", "valid/spearman", "valid/loss"} <= set(logged)
    assert logged["valid/score"] == -logged["valid/rmse"]
    tested = fitted.test(task, datamodule=toy(targets=["sum"]), verbose=False)[0]
    assert tested["test/score"] == -tested["test/rmse"]


def test_the_score_of_several_numbers_has_no_unit(encoders: Encoders, toy: Any, trainer: Trainer) -> None:
    task = FinetuneTask(encoders())
    fitted = trainer(max_epochs=1)
    fitted.fit(task, datamodule=toy(targets=["sum", "class"]))
    logged = fitted.callback_metrics
    assert logged["valid/score"] == -logged["valid/nrmse"]
    assert task.target is not None
    scales = task.target.scale  # type: ignore[attr-defined]
    parts = [float(logged[f"valid/{name}/rmse"]) / scale for name, scale in zip(("sum", "class"), scales, strict=True)]
    assert float(logged["valid/nrmse"]) == pytest.approx(np.mean(parts), rel=1e-5)
