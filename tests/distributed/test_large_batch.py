"""Batches in chunks on two processes: one exchange of gradients a step, and the run that whole batches make."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.multiprocessing as mp
from tests.distributed.test_objectives import in_double
from tests.shared.conftest import make_pretrain
from tests.shared.training.test_large_batch import FineData
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from polyfm.shared.training.checkpoint import read_checkpoint
from polyfm.shared.training.optim import AdamW
from polyfm.shared.training.seeding import StepSeed

LACKING = {"text": (0, 3, 5), "table": range(8, 20)}


class Kept(L.Callback):
    """Writes down what each process has in the end, and how often gradients were exchanged."""

    def __init__(self, path: Path) -> None:
        self.path, self.exchanges = path, 0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        wrapped = trainer.strategy.model
        assert isinstance(wrapped, DistributedDataParallel)

        def count(state: Any, bucket: Any) -> Any:
            self.exchanges += bucket.is_last()
            return allreduce_hook(None, bucket)

        count.__annotations__ = {}  # their names are not what is expected
        wrapped.register_comm_hook(None, count)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        loss = trainer.callback_metrics["train/loss"]
        moments = trainer.optimizers[0].state_dict()["state"]
        kept = {"task": pl_module.state_dict(), "moments": moments, "loss": loss, "exchanges": self.exchanges}
        torch.save(kept, self.path.with_suffix(f".{trainer.global_rank}"))


def fit(path: Path, chunk: int, accumulate: int) -> list[dict[str, Any]]:
    mp.spawn(train, args=(path, chunk, accumulate))  # type: ignore[no-untyped-call]  # fresh, because it forks
    return [read_checkpoint(path.with_suffix(f".{rank}")) for rank in (0, 1)]


def train(_: int, path: Path, chunk: int, accumulate: int) -> None:
    task = in_double(make_pretrain(chunk=chunk, optimizer=AdamW(lr=1e-3, warmup=0)))
    trainer = L.Trainer(
        max_steps=3, accumulate_grad_batches=accumulate, gradient_clip_val=1.0, callbacks=[StepSeed(0), Kept(path)],
        accelerator="cpu", devices=2, strategy="ddp_fork", use_distributed_sampler=False, default_root_dir=path.parent,
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(task, datamodule=FineData(n=48, batch_size=5, lacking=LACKING))


@pytest.mark.parametrize("accumulate", [pytest.param(1, marks=pytest.mark.full), 2])
def test_two_processes_in_chunks_equal_two_without(tmp_path: Path, accumulate: int) -> None:
    whole, other = fit(tmp_path / "whole", 0, accumulate)
    for found in fit(tmp_path / "cut", 2, accumulate):
        assert found["exchanges"] == whole["exchanges"] == 3
        torch.testing.assert_close(found["loss"], whole["loss"], rtol=1e-6, atol=0)
        for name, value in found["task"].items():
            torch.testing.assert_close(value, whole["task"][name], rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(other["task"][name], whole["task"][name], rtol=0, atol=0)
        for number, moments in found["moments"].items():
            for name, value in moments.items():
                torch.testing.assert_close(value, whole["moments"][number][name], rtol=1e-5, atol=1e-8)
