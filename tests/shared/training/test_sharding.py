"""`ShardedStrategy`: the run that one device makes, with whole checkpoints, on one process and on two."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.distributed as dist
from tests.distributed.test_objectives import in_double
from tests.shared.conftest import ToyData, make_pretrain, make_trainer
from tests.shared.training.test_large_batch import FineData
from torch.distributed.tensor import DTensor

from polyfm.shared.training.callbacks import Checkpoint
from polyfm.shared.training.checkpoint import read_checkpoint
from polyfm.shared.training.finetune import FinetuneTask
from polyfm.shared.training.optim import AdamW
from polyfm.shared.training.pretrain import PretrainTask
from polyfm.shared.training.seeding import StepSeed
from polyfm.shared.training.stages import Stage

STAGES = {
    "first": Stage(until=0.5, freeze=["model.encoders.text.*", "model.fusion.*"], objectives={"match": 0.0}),
    "then": Stage(until=1.0, freeze=["model.encoders.table.embedder.*"], rates={"model.fusion.*": 0.5}),
    "last": Stage(freeze=["model.encoders.*.projection.*", "objectives.match.*"]),  # begins behind a validation
}


class Split(L.Callback):
    """Looks whether weights and moments are in parts while training."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.weights = {name: isinstance(weight, DTensor) for name, weight in pl_module.named_parameters()}
        moments = trainer.optimizers[0].state.values()
        self.moments = {isinstance(moment["exp_avg"], DTensor) for moment in moments if moment["exp_avg"].ndim}


class Stop(L.Callback):
    """Ends a run after its first pass."""

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        trainer.should_stop = True


def fit(
    folder: Path, task: L.LightningModule, data: ToyData, *, sharded: bool, devices: int = 1, stop: bool = False
) -> L.Trainer:
    """Two passes, or one, from the last checkpoint if there is one."""
    last = folder / "checkpoints" / "last.ckpt"
    callbacks = [StepSeed(0), Split(), Checkpoint().within(folder), *([Stop()] if stop else [])]
    trainer = make_trainer(
        folder,
        callbacks,
        strategy="fsdp2" if sharded else "auto" if devices == 1 else "ddp_fork",
        devices=devices,
        max_epochs=2,
        gradient_clip_val=0.5,
        use_distributed_sampler=False,
        enable_checkpointing=True,
    )
    trainer.fit(task, datamodule=data, ckpt_path=last if last.exists() else None)
    return trainer


def fit_spmm(
    folder: Path, *, sharded: bool, devices: int = 1, stop: bool = False, **settings: Any
) -> tuple[PretrainTask, L.Trainer]:
    task = in_double(make_pretrain(optimizer=AdamW(lr=1e-3, warmup=0), **settings))
    data = FineData(n=32, batch_size=6 // devices, lacking={"text": (0, 3), "table": (7, 8)})
    return task, fit(folder, task, data, sharded=sharded, devices=devices, stop=stop)


def same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert list(found["state_dict"]) == list(expected["state_dict"])
    for name, value in found["state_dict"].items():
        assert type(value) is torch.Tensor
        torch.testing.assert_close(value, expected["state_dict"][name], rtol=1e-6, atol=1e-7)
    (found_state,), (expected_state,) = found["optimizer_states"], expected["optimizer_states"]
    assert found_state["param_groups"] == expected_state["param_groups"]
    for number, moments in expected_state["state"].items():
        for name, value in moments.items():
            torch.testing.assert_close(found_state["state"][number][name], value, rtol=1e-5, atol=1e-9)


@pytest.fixture(autouse=True)
def _leave_no_group() -> Iterator[None]:
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.mark.parametrize("settings", [{}, {"chunk": 2}, {"stages": STAGES}], ids=["plain", "in chunks", "stages"])
def test_sharded_weights_make_the_same_run(tmp_path: Path, settings: Any) -> None:
    task, trainer = fit_spmm(tmp_path / "sharded", sharded=True, **settings)
    expected, _ = fit_spmm(tmp_path / "whole", sharded=False, **settings)
    split = trainer.callbacks[1]
    blocks = {name for name in split.weights if ".blocks." in name}
    assert blocks
    assert all(split.weights[name] for name in blocks)
    assert {name.rpartition(".")[2] for name, is_split in split.weights.items() if not is_split} == {"log_scale"}
    assert split.moments == {True}
    same(*(read_checkpoint(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("sharded", "whole")))
    # The task is whole again: it can be measured, saved and copied.
    assert type(task) is PretrainTask
    for name, value in expected.state_dict().items():
        assert type(task.state_dict()[name]) is torch.Tensor
        torch.testing.assert_close(task.state_dict()[name], value, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("first", [True, False], ids=["sharded goes on whole", "whole goes on sharded"])
def test_a_run_goes_on_under_another_strategy(tmp_path: Path, first: bool) -> None:
    fit_spmm(tmp_path / "run", sharded=first, stop=True)
    fit_spmm(tmp_path / "run", sharded=not first)
    fit_spmm(tmp_path / "whole", sharded=False)
    same(*(read_checkpoint(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("run", "whole")))


def test_a_head_made_from_the_data_is_split_and_found_again(tmp_path: Path, encoders: Callable[..., Any]) -> None:
    found = []
    for name, sharded in (("sharded", True), ("whole", False)):
        for stop in (True, False):  # the second goes on from the first's checkpoint
            task = FinetuneTask(encoders(), hidden=8, optimizer=AdamW(lr=1e-3, warmup=0))
            trainer = fit(tmp_path / name, task, ToyData(targets=["yes"]), sharded=sharded, stop=stop)
            split = trainer.callbacks[1].weights  # type: ignore[attr-defined]
            assert {split[weight] for weight in split if weight.startswith("head.")} == {sharded}
        found.append(float(trainer.callback_metrics["valid/loss"]))
        assert all(type(weight) is torch.nn.Parameter for weight in task.parameters())
    assert found[0] == pytest.approx(found[1], rel=1e-3)


@pytest.mark.gpu
def test_it_trains_in_half_precision_on_a_gpu(tmp_path: Path) -> None:
    task = make_pretrain(chunk=4)
    trainer = make_trainer(
        tmp_path, accelerator="gpu", devices=1, strategy="fsdp2", precision="bf16-mixed", max_steps=2,
        use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(task, datamodule=ToyData(batch_size=8))
    assert torch.isfinite(trainer.callback_metrics["train/loss"])
    assert {weight.device.type for weight in task.parameters()} == {"cpu"}  # whole again
