"""Random state as a function of where training is, instead of a saved state: what makes resuming exact."""

from __future__ import annotations

import random
from typing import Any

import lightning as L
import numpy as np
import torch


class StepSeed(L.Callback):
    """Seeds torch, numpy and python before each training batch from (seed, epoch, batch, rank).

    Dropout after a resume is then what it would have been, whatever validation or other code drew in between.

    Args:
        seed: Of the run.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seed."""
        entropy = [self.seed, trainer.current_epoch, batch_idx, trainer.global_rank]
        word = int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])
        random.seed(word)
        np.random.seed(word % 2**32)  # noqa: NPY002 - libraries draw from the global state
        torch.manual_seed(word % 2**63)
