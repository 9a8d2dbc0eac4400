"""AdamW with warm-up and cosine decay, layer-wise rates, moving averages, and switches on blocks."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Timer
from torch import Tensor, nn

from polyfm.shared.backbones.backbone import Backbone
from polyfm.shared.backbones.block import Block
from polyfm.shared.errors import RecipeError, require
from polyfm.shared.training.stages import Stage, trainable

BEYOND = 10**9
"""Steps of a run that only its time ends."""


class AdamW:
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101) with linear warm-up, then cosine decay (arXiv 1608.03983).

    Biases, norms and other parameters with fewer than two dimensions are not decayed.

    Args:
        lr: Peak learning rate.
        weight_decay: Of weights with two or more dimensions.
        betas: Decay of the moments.
        warmup: Share of the run's steps that the rate rises linearly.
        floor: Last learning rate, as a share of the peak.
        layer_decay: Rate of a block relative to what is above it, down to the embedder; 1 for equal rates (BEiT, arXiv
            2106.08254, uses 0.65 to 0.9). Heads and the final norm have the full rate.
    """

    def __init__(
        self,
        lr: float = 1e-3,
        weight_decay: float = 0.02,
        betas: tuple[float, float] = (0.9, 0.999),
        warmup: float = 0.05,
        floor: float = 0.1,
        layer_decay: float = 1.0,
    ) -> None:
        here = "model.optimizer"
        require(lr > 0, f"{here}.lr", "more than 0", lr)
        require(weight_decay >= 0, f"{here}.weight_decay", "at least 0", weight_decay)
        require(all(0 <= beta < 1 for beta in betas), f"{here}.betas", "two numbers from 0 to less than 1", betas)
        require(0 <= warmup <= 1, f"{here}.warmup", "a share of the run, from 0 to 1", warmup)
        require(0 <= floor <= 1, f"{here}.floor", "a share of the peak, from 0 to 1", floor)
        require(0 < layer_decay <= 1, f"{here}.layer_decay", "more than 0, at most 1", layer_decay)
        self.lr, self.weight_decay, self.betas = lr, weight_decay, betas
        self.warmup, self.floor, self.layer_decay = warmup, floor, layer_decay

    def __call__(
        self,
        module: nn.Module,
        total_steps: int,
        stages: Mapping[str, Stage] = {},
        clock: Callable[[], float] = lambda: 0.0,
    ) -> dict[str, Any]:
        """Optimiser and schedule in Lightning's form.

        Args:
            module: Whose parameters are optimised.
            total_steps: Of the run, for the schedule.
            stages: May train what is frozen at first, and set rates of their own.
            clock: Share of the run's time that has passed; see `time_passed`.
        """
        groups = self.groups(module, stages)
        optimizer = torch.optim.AdamW(groups, lr=self.lr, betas=self.betas)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, [self.factor(total_steps, clock)] * len(groups))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def factor(self, total_steps: int, clock: Callable[[], float] = lambda: 0.0) -> Callable[[int], float]:
        """Rate at a step, as a share of the peak.

        A run that its time ends has the same curve as one that its steps end: whichever is further along decides.

        Args:
            total_steps: Of the run.
            clock: Share of the run's time that has passed.
        """
        warm = max(round(self.warmup * total_steps), 1)

        def at(step: int) -> float:
            passed = max(step, clock() * total_steps)
            if passed < warm:
                return min((passed + 1) / warm, 1.0)  # the last step of the warm-up has the peak rate
            done = min((passed - warm) / max(total_steps - warm, 1), 1.0)
            return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * done))

        return at

    def groups(self, module: nn.Module, stages: Mapping[str, Stage] = {}) -> list[dict[str, Any]]:
        """Parameter groups: equal decay, depth and rates in every stage.

        Args:
            module: Whose parameters are grouped; frozen ones are left out unless a stage trains them.
            stages: By name.
        """
        below = _below_the_top(module)
        groups: dict[Any, dict[str, Any]] = {}
        for name, parameter in trainable(module):
            if not parameter.requires_grad and not any(stage.trains(name) for stage in stages.values()):
                continue
            decay = self.weight_decay if parameter.ndim >= 2 else 0.0
            rate = self.lr * self.layer_decay ** below.get(name, 0)
            key = (decay, rate, *(stage.rate(name) for stage in stages.values()))
            fresh = {"params": [], "weight_decay": decay, "lr": rate, "base_lr": rate, "example": name}
            groups.setdefault(key, fresh)["params"].append(parameter)
        return list(groups.values())


def total_steps(trainer: L.Trainer) -> int:
    """Optimiser steps of a whole run, for the schedule.

    ``trainer.estimated_stepping_batches`` would make the training loader before a checkpoint's loops are restored, and
    Lightning then never tells it where to go on.

    Args:
        trainer: Of the run, with its data module.
    """
    batches, limit = len(trainer.datamodule.train_dataloader()), trainer.limit_train_batches  # type: ignore[attr-defined]
    batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    epochs = trainer.max_epochs
    if epochs is None or epochs < 0:
        if trainer.max_steps >= 0:
            return trainer.max_steps
        if _timer(trainer) is not None:
            return BEYOND
        raise RecipeError(
            "a schedule needs an end",
            where="trainer",
            remedy="Set trainer.max_epochs, trainer.max_steps or trainer.max_time",
        )
    steps = epochs * math.ceil(batches / trainer.accumulate_grad_batches)
    return steps if trainer.max_steps < 0 else min(steps, trainer.max_steps)


def time_passed(trainer: L.Trainer) -> Callable[[], float]:
    """Makes the clock of a schedule: the share of ``trainer.max_time`` that has passed, 0 where there is none.

    Time before a resume counts.

    Args:
        trainer: Of the run.
    """
    timer = _timer(trainer)
    if timer is None:
        return lambda: 0.0

    def share() -> float:
        elapsed = timer.time_elapsed()
        return elapsed / max(elapsed + (timer.time_remaining() or 0.0), 1e-9)

    return share


def _timer(trainer: L.Trainer) -> Timer | None:
    return next((callback for callback in trainer.callbacks if isinstance(callback, Timer)), None)  # type: ignore[attr-defined]


def _below_the_top(module: nn.Module) -> dict[str, int]:
    """How many steps below the heads a parameter is: 1 the last block of its encoder, …, the embedder one below all."""
    steps: dict[str, int] = {}
    for prefix, part in module.named_modules():
        if isinstance(part, Backbone):
            depth = len(part.blocks)
            owner = prefix.rpartition(".")[0]
            embedder = f"{owner}.embedder." if owner else "embedder."
            steps |= {name: depth + 1 for name, _ in module.named_parameters() if name.startswith(embedder)}
            for i, block in enumerate(part.blocks):
                steps |= {f"{prefix}.blocks.{i}.{name}": depth - i for name, _ in block.named_parameters()}
    return steps


def prepare_blocks(module: nn.Module, *, recompute: bool, compile: bool) -> None:
    """Set switches on every block at once.

    Args:
        module: Holds the blocks.
        recompute: Recompute activations in the backward pass instead of keeping them (less memory, a third slower).
        compile: Compile each block; all blocks of a stack share one compilation.

    Raises:
        RecipeError: No C++ compiler is there to compile with.
    """
    if compile and not any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++", "cl")):
        raise RecipeError(
            "there is no C++ compiler on this machine, which torch.compile needs",
            where="model.compile",
            remedy="Install one (Debian, Ubuntu: apt install g++), or leave model.compile out",
        )
    for part in module.modules():
        if isinstance(part, Backbone):
            part.recompute = recompute
        if compile and isinstance(part, Block):
            part.compile(dynamic=True)


@torch.no_grad()
def move_average(average: nn.Module, module: nn.Module, momentum: float) -> None:
    """Moves: average ← m · average + (1 − m) · module, parameters only; buffers are copied.

    Args:
        average: Moved.
        module: Followed.
        momentum: m.
    """
    ours: list[Tensor] = list(average.parameters())
    theirs: list[Tensor] = list(module.parameters())
    torch._foreach_lerp_(ours, theirs, 1.0 - momentum)
    for buffer, other in zip(average.buffers(), module.buffers(), strict=True):
        buffer.copy_(other)
