"""Objectives ask for views; the task answers. The protocol between the two.

An objective declares the views it needs. The task takes the union over all objectives, runs each distinct view once,
and passes a read-only mapping; the objective's code then reads like the paper's equation::

    a, b = views[clean("smiles")].projected, views[clean("properties")].projected
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from polyfm.shared.backbones.encoder import Encoder, MultimodalModel
from polyfm.shared.backbones.masks import FULL, MaskSpec
from polyfm.shared.data.batch import Batch, ModalityBatch
from polyfm.shared.data.carrier import Carrier
from polyfm.shared.tokens.masking import Corruption, Draw
from polyfm.shared.tokens.tokens import Features


@dataclasses.dataclass(frozen=True)
class View:
    """A request: this modality, seen so. Equal requests are run once."""

    modality: str
    """Which encoder; ``a+b`` for the tokens of a and, behind them, b's where the item has it: items are those that have
    a, and a's are the pooled and projected vectors."""
    corruption: Corruption | None = None
    """What is hidden from it. Views of one modality with equal corruptions hide the same items."""
    mask: MaskSpec = FULL
    """Who sees whom, in the encoder and in the fusion."""
    depth: int | None = None
    """Only the first so many blocks."""
    weights: Literal["online", "teacher"] = "online"
    """Trained weights, or their moving average (run without gradient)."""
    context: View | None = None
    """If given, the tokens then go through the fusion, attending to this view's tokens. Rows: those that have both."""

    @property
    def unfused(self) -> View:
        """The same view before the fusion."""
        return dataclasses.replace(self, context=None)

    @property
    def parts(self) -> tuple[View, ...]:
        """The views that stand in this one: itself, unless its modality is a sum."""
        names = self.modality.split("+")
        return tuple(dataclasses.replace(self, modality=name, context=None) for name in names)


def clean(modality: str) -> View:
    """The plain view of a modality."""
    return View(modality)


def teacher(view: View) -> View:
    """The same view, seen by the moving average of the weights."""
    context = None if view.context is None else teacher(view.context)
    return dataclasses.replace(view, weights="teacher", context=context)


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far the run is; for ramps."""

    step: int = 0
    """Optimiser steps done."""
    epoch: float = 0.0
    """Passes over the data done, fractional."""

    def ramp(self, epochs: float) -> float:
        """Rises linearly from 0 to 1 over the first passes.

        Args:
            epochs: How many; 1 from the start if 0.
        """
        return min(1.0, self.epoch / epochs) if epochs > 0 else 1.0


class Views(Mapping[View, Features]):
    """The answers, read only.

    Args:
        features: By view.
        model: Encodes and fuses; for objectives that re-pair rows (matching).
        progress: How far the run is.
        draw: Random numbers of this pass, for objectives that sample (matching's negatives).
        chunks: In how many parts the batch was encoded, equal in all processes; see `piecewise`.
    """

    def __init__(
        self,
        features: Mapping[View, Features],
        model: MultimodalModel,
        progress: Progress,
        draw: Draw = Draw(seed=0, epoch=0),  # noqa: B008 - immutable
        chunks: int = 1,
    ) -> None:
        self._features = features
        self.model = model
        self.progress = progress
        self.draw = draw
        self.chunks = chunks

    def piecewise(self, run: Callable[[Tensor], Tensor], items: Tensor) -> Tensor:
        """What a part of the model gives for items that do not act on one another.

        Of a batch that is too large to be encoded at once, as many items go through at once as of a chunk; of each such
        pass only the result is kept, and it is done anew in the backward pass.

        Args:
            run: From (m,) of the items to (m, ...).
            items: (n,) int64.

        Returns:
            (n, ...).
        """
        if self.chunks == 1:
            return run(items)
        parts = [checkpoint(run, part, use_reentrant=False) for part in items.tensor_split(self.chunks)]
        return torch.cat(parts)

    def __getitem__(self, view: View) -> Features:
        return self._features[view]

    def __iter__(self) -> Iterator[View]:
        return iter(self._features)

    def __len__(self) -> int:
        return len(self._features)


class ObjectiveOutput(Carrier):
    """What an objective returns."""

    loss: Tensor
    """() to be minimised; connected to every view asked for, exactly 0 with zero gradients if no item took part."""
    logs: dict[str, Tensor]
    """() each, detached: what a user wants to see in the curves."""


class Objective(nn.Module):
    """Base of objectives.

    Heads are built in `build`, from the encoders: width and vocabulary stay written once in a recipe.
    """

    coupled: bool = False
    """Whether items of a batch act on one another's loss (contrastive, matching). If not, the loss is one `global_mean`
    over things that stand alone, so that the batch may be seen in chunks."""

    def build(self, encoders: Mapping[str, Encoder]) -> None:
        """Make the heads; called once by the task, before training.

        Args:
            encoders: The model's encoders by modality.
        """

    def needs(self) -> set[View]:
        """The views that `forward` reads."""
        raise TypeError(f"{type(self).__name__} does not say what it needs")

    def forward(self, views: Views, batch: Batch) -> ObjectiveOutput:
        """The loss.

        Args:
            views: Every view asked for.
            batch: What they were made from.
        """
        raise TypeError(f"{type(self).__name__} has no forward")

    def reads_tokens(self) -> set[View]:
        """Of a coupled objective: the views whose tokens it reads; a large batch keeps only the vectors of others."""
        return set()

    def update(self, views: Views) -> None:
        """Change own state (a queue) after the backward pass of a training step.

        Args:
            views: As given to `forward`; of a batch in chunks, those of coupled objectives only.
        """

    def follow(self, model: MultimodalModel, momentum: float) -> None:
        """Move own averaged parts (a teacher's head) whenever the teacher moves.

        Args:
            model: Trained weights.
            momentum: Of the moving average.
        """


def leading(modality: str) -> str:
    """The first of the modalities of a view: whose items, pooled and projected vectors the view has.

    Args:
        modality: As in `View.modality`.
    """
    return modality.partition("+")[0]


def paired(a: Features, b: Features) -> tuple[Tensor, Tensor]:
    """Rows present in both.

    Args:
        a: Features of one modality.
        b: Features of another.

    Returns:
        (n,) indices into ``a`` and (n,) indices into ``b``, of the same items in ascending order.
    """
    index_b = torch.searchsorted(b.rows, a.rows).clamp(max=max(len(b.rows) - 1, 0))
    if not len(b.rows):
        return a.rows[:0], a.rows[:0]
    match = b.rows[index_b] == a.rows
    return match.nonzero()[:, 0], index_b[match]


def inputs_of(features: Features, batch: ModalityBatch) -> Any:
    """The uncorrupted inputs of a view's rows, which may be fewer than the batch's (a fused view needs its context).

    Args:
        features: Of the view.
        batch: Of its modality.
    """
    if len(features.rows) == len(batch.rows):
        return batch
    return batch.select(torch.searchsorted(batch.rows, features.rows))
