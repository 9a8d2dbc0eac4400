"""Two processes train and validate as one run: same number of steps, same weights, metrics over the whole part."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.multiprocessing as mp

from polyfm.shared.backbones.block import PostNorm
from polyfm.shared.backbones.encoder import Encoder
from polyfm.shared.backbones.transformer import Transformer
from polyfm.shared.data.batch import Batch
from polyfm.shared.data.collate import sample_key, stack_values
from polyfm.shared.data.datamodule import DataModule
from polyfm.shared.data.manifest import Notices, Quarantine
from polyfm.shared.data.sampler import Key
from polyfm.shared.data.splits import Splits
from polyfm.shared.evaluation.finish import measure
from polyfm.shared.tokens.table import ValueTokens
from polyfm.shared.training.callbacks import Checkpoint
from polyfm.shared.training.checkpoint import read_checkpoint
from polyfm.shared.training.finetune import FinetuneTask
from polyfm.shared.training.optim import AdamW
from polyfm.shared.training.seeding import StepSeed


class Tables(DataModule):
    """31 rows of 5 numbers and their sum; 7 for validation, which two processes share unevenly."""

    def read(self) -> Splits:
        self.rows = np.random.default_rng(0).standard_normal((31, 5))
        self.quarantine, self.notices = Quarantine(num_read=31), Notices()
        names = np.array(["train"] * 24 + ["valid"] * 7)
        return Splits([str(i) for i in range(31)], [str(i) for i in range(31)], names)

    def fit_transforms(self, train: np.ndarray) -> None: ...

    def transforms_state(self) -> dict[str, Any]:
        return {}

    def lengths(self) -> np.ndarray:
        return np.full(31, 5)

    def make_samples(self, keys: list[Key]) -> list[int]:
        return [key.index for key in keys]

    def collate(self, samples: Sequence[int]) -> Batch:
        keys = torch.tensor([sample_key(str(i)) for i in samples])
        labels = torch.from_numpy(self.target_values(np.array(samples))).float()
        modalities = {"table": stack_values([self.rows[i] for i in samples], 5)}
        return Batch(
            ids=list(map(str, samples)), keys=keys, modalities=modalities, targets={"labels": labels}, groups=keys
        )

    def target_names(self) -> list[str]:
        return ["sum"]

    def target_values(self, indices: np.ndarray) -> np.ndarray:
        values: np.ndarray = self.rows[indices].sum(1, keepdims=True)
        return values


class Seen(L.Callback):
    """Writes down what each process was given."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int) -> None:
        with open(self.folder / f"train-{trainer.global_rank}", "a") as file:
            file.write(f"{trainer.current_epoch} {batch_idx} {' '.join(batch.ids)}\n")

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        total = sum(float(parameter.detach().double().sum()) for parameter in pl_module.parameters())
        (self.folder / f"weights-{trainer.global_rank}").write_text(repr(total))
        (self.folder / f"score-{trainer.global_rank}").write_text(repr(float(trainer.callback_metrics["valid/rmse"])))


def make() -> tuple[FinetuneTask, Tables]:
    torch.manual_seed(0)
    trunk = partial(Transformer, depth=1, block=partial(PostNorm, heads=2, hidden=16, dropout=0.1))
    encoders = {"table": Encoder(8, partial(ValueTokens, columns=5), trunk)}
    return FinetuneTask(encoders, optimizer=AdamW(lr=1e-2)), Tables("none", batch_size=4)


def train(_: int, folder: Path) -> None:
    task, data = make()
    checkpoint = Checkpoint(monitor="valid/score", mode="max").within(folder)
    trainer = L.Trainer(
        max_epochs=2, accelerator="cpu", devices=2, strategy="ddp_fork", use_distributed_sampler=False,
        callbacks=[StepSeed(0), Seen(folder), checkpoint], default_root_dir=folder, num_sanity_val_steps=0,
        logger=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(task, datamodule=data)


def test_two_processes_are_one_run(tmp_path: Path) -> None:
    mp.spawn(train, args=(tmp_path,))  # type: ignore[no-untyped-call]  # fresh, because it forks
    steps = [(tmp_path / f"train-{rank}").read_text().splitlines() for rank in (0, 1)]
    assert len(steps[0]) == len(steps[1]) == 6  # 24 rows, two processes, batches of 4, two passes
    for epoch in ("0", "1"):
        ids = [line.split()[2:] for process in steps for line in process if line.startswith(epoch)]
        assert sorted(int(id) for batch in ids for id in batch) == list(range(24))
    assert (tmp_path / "weights-0").read_text() == (tmp_path / "weights-1").read_text()
    scores = [float((tmp_path / f"score-{rank}").read_text()) for rank in (0, 1)]
    assert scores[0] == scores[1]

    # One process over the whole part finds the same.
    last = read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")
    task, data = make()
    task.on_load_checkpoint(last)
    task.load_state_dict(last["state_dict"])
    data.setup()
    np.testing.assert_allclose(measure(task, data, "valid")["rmse"], scores[0], rtol=1e-5)
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
