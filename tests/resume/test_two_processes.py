"""A signal to one of two processes stops both at the same step."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch.multiprocessing as mp
from tests.distributed.test_training import Seen, Tables
from torch.multiprocessing.spawn import ProcessExitedException

from polyfm.shared.backbones.block import PostNorm
from polyfm.shared.backbones.encoder import Encoder
from polyfm.shared.backbones.transformer import Transformer
from polyfm.shared.tokens.table import ValueTokens
from polyfm.shared.training.callbacks import Checkpoint
from polyfm.shared.training.checkpoint import read_checkpoint
from polyfm.shared.training.finetune import FinetuneTask
from polyfm.shared.training.optim import AdamW
from polyfm.shared.training.seeding import StepSeed
from polyfm.shared.training.signals import Signals


class SignalTheSecond(Seen):
    """Sends SIGTERM to the second process in the second step."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_rank == 1 and batch_idx == 1:
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_to_one_stops_both_after_the_same_step(tmp_path: Path) -> None:
    mp.spawn(train, args=(tmp_path,))  # type: ignore[no-untyped-call]  # fresh, because it forks
    assert [len((tmp_path / f"train-{rank}").read_text().splitlines()) for rank in (0, 1)] == [2, 2]
    assert read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")["global_step"] == 2


def train(_: int, folder: Path) -> None:
    trunk = partial(Transformer, depth=1, block=partial(PostNorm, heads=2, hidden=16))
    task = FinetuneTask({"table": Encoder(8, partial(ValueTokens, columns=5), trunk)}, optimizer=AdamW(lr=1e-2))
    with Signals() as signals:
        checkpoint = Checkpoint(monitor="valid/score", mode="max").within(folder, signals)
        trainer = L.Trainer(
            max_epochs=2, accelerator="cpu", devices=2, strategy="ddp_fork", use_distributed_sampler=False,
            callbacks=[StepSeed(0), SignalTheSecond(folder), checkpoint], default_root_dir=folder, logger=False,
            num_sanity_val_steps=0, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        with pytest.raises(ProcessExitedException) as ended:
            trainer.fit(task, datamodule=Tables("none", batch_size=4))
    assert ended.value.exit_code == 143
