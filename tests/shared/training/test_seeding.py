"""`StepSeed`: random numbers of a step are a function of where training is."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from polyfm.shared.training.seeding import StepSeed


def drawn(seed: int = 0, epoch: int = 0, batch: int = 0, rank: int = 0) -> tuple[float, float, float]:
    trainer: Any = SimpleNamespace(current_epoch=epoch, global_rank=rank)
    StepSeed(seed).on_train_batch_start(trainer, None, None, batch)  # type: ignore[arg-type]
    return random.random(), float(np.random.random()), float(torch.rand(()))


def test_the_same_point_draws_the_same_whatever_was_drawn_before() -> None:
    first = drawn(epoch=2, batch=3)
    torch.rand(17), random.random(), np.random.random()
    assert drawn(epoch=2, batch=3) == first


def test_every_point_draws_its_own() -> None:
    points = [drawn(), drawn(seed=1), drawn(epoch=1), drawn(batch=1), drawn(rank=1)]
    for library in zip(*points, strict=True):
        assert len(set(library)) == 5
