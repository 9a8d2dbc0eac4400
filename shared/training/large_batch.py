"""Batches larger than what memory holds activations for, exactly: GradCache (Gao et al., arXiv 2101.06983).

The loss L of a batch depends on the weights θ only through the vectors v of its views, so

    ∂L/∂θ = Σ over chunks of (∂v/∂θ)ᵀ g,   g = ∂L/∂v

and a step goes over the chunks of its batch twice. First without gradient, keeping only vectors: on those of the whole
batch the coupled objectives take their losses, which gives g. Then with gradient, one chunk after another: activations
of a chunk are freed before the next. A loss whose items stand alone is a mean over the batch: the first time tells over
how many things, the second time each chunk brings its share. So memory grows with the chunk, and with the batch only by
the vectors (and by the tokens of the views in which matching mines partners). It costs a forward pass more.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from lightning.pytorch.overrides.distributed import prepare_for_backward
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from polyfm.shared.data import ragged
from polyfm.shared.data.batch import Batch
from polyfm.shared.errors import RecipeError
from polyfm.shared.objectives.gather import Ranks, sums
from polyfm.shared.objectives.objective import Objective, ObjectiveOutput, View, Views
from polyfm.shared.tokens.tokens import Features, Tokens

Answer = Callable[[Iterable[View], Batch, Callable[[View], AbstractContextManager[Any]]], Views]
"""Runs views of items, each within what the last argument makes of it."""
Ends = list[tuple[Tensor, Tensor]]
"""Where a backward pass starts: tensors, and the gradients there."""


def chunks_of(batch: Batch, size: int) -> list[Batch]:
    """A batch in chunks, as many as in every other process; the last ones may be smaller, or empty.

    Args:
        batch: This process's.
        size: Items of a chunk; 0 for all.
    """
    if not size:
        return [batch]
    number = max(math.ceil(max(Ranks.of(batch.keys).counts) / size), 1)
    return [batch] if number == 1 else [batch.slice(i * size, (i + 1) * size) for i in range(number)]


class LargeBatch:
    """One step over a batch in chunks: `outputs`, then `backward`.

    Dropout and the like draw the same numbers both times: each view of each chunk has a seed of its own.

    Args:
        batch: The whole.
        chunks: Its items in order.
        objectives: By name.
        answer: Runs views.
    """

    def __init__(
        self, batch: Batch, chunks: Sequence[Batch], objectives: Mapping[str, Objective], answer: Answer
    ) -> None:
        self.batch, self.chunks, self.answer = batch, chunks, answer
        self.coupled = {name: objective for name, objective in objectives.items() if objective.coupled}
        self.separable = {name: objective for name, objective in objectives.items() if not objective.coupled}
        with_tokens = _union(objective.reads_tokens() for objective in self.coupled.values())
        self.kept = {view: _Kept(view, view in with_tokens) for view in sorted(_needs(self.coupled), key=repr)}
        self.means = {name: _Mean(name) for name in self.separable}
        self.seed = int(torch.randint(2**62, ()))

    def outputs(self) -> tuple[dict[str, ObjectiveOutput], Views]:
        """The first time: what the objectives say of the whole batch, and the views that the coupled ones saw.

        The losses rest on the vectors that were kept, or are leaves: no encoder is behind them.
        """
        start = 0
        for number, chunk in enumerate(self.chunks):
            with torch.no_grad():
                views = self._views(number, {*self.kept, *_needs(self.separable)})
                for view, kept in self.kept.items():
                    kept.add(views[view], start)
                for name, mean in self.means.items():
                    mean.add(*self._sum(number, name, views))
            start += len(chunk)
        # Older autocasts keep weights that they cast without gradient, and matching uses some of them again.
        torch.clear_autocast_cache()
        joined = {view: kept.join() for view, kept in self.kept.items()}
        whole = Views(joined, views.model, views.progress, views.draw, chunks=len(self.chunks))
        found = {name: objective(whole, self.batch) for name, objective in self.coupled.items()}
        return found | {name: mean.join() for name, mean in self.means.items()}, whole

    def backward(self, loss: Tensor, forward: Callable[[Callable[[], Ends]], Ends] = lambda run: run()) -> None:
        """The second time: add the gradient of a loss to those of the weights.

        Args:
            loss: () made of the losses of `outputs`.
            forward: Runs a forward pass (under autocast, with weights gathered).
        """
        loss.backward()
        for number in range(len(self.chunks)):
            # What is frozen wants no gradient; all may be.
            ends = [end for end in forward(partial(self._ends, number)) if end[0].requires_grad]
            torch.autograd.backward([tensor for tensor, _ in ends], [gradient for _, gradient in ends])

    def _ends(self, number: int) -> Ends:
        """Of a chunk, seen again, the tensors to go back from, and the gradients that have come to them."""
        acting = {view: kept for view, kept in self.kept.items() if kept.acts}
        views = self._views(number, {*acting, *_needs(self.separable)})
        ends = [end for view, kept in acting.items() for end in kept.ends(number, views[view])]
        return ends + [(self._sum(number, name, views)[0].loss, mean.weight) for name, mean in self.means.items()]

    def _views(self, number: int, needs: set[View]) -> Views:
        return self.answer(needs, self.chunks[number], lambda view: self._draws(number, repr(view)))

    def _sum(self, number: int, name: str, views: Views) -> tuple[ObjectiveOutput, int]:
        """What a separable objective says of a chunk, with a sum for a mean, and over how many things it is."""
        with sums() as numbers, self._draws(number, name):
            output = self.separable[name](views, self.chunks[number])
        if len(numbers) != 1:
            raise RecipeError(
                f"the loss of {name!r} is not one mean over things that stand alone, so it cannot be had in chunks",
                where="model.chunk",
                remedy="Leave it out, and set trainer.accumulate_grad_batches instead",
            )
        return output, numbers[0]

    @contextmanager
    def _draws(self, number: int, what: str) -> Iterator[None]:
        """Random numbers that are the same both times."""
        device = self.batch.keys.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(self.seed ^ zlib.crc32(f"{number}/{what}".encode()))
            yield


class _Kept:
    """Of a view, the vectors of all chunks: with them the coupled losses begin, and end their backward pass."""

    def __init__(self, view: View, with_tokens: bool) -> None:
        self.trained, self.with_tokens = view.weights == "online", with_tokens
        self.parts: list[Features] = []
        self.leaves: dict[str, Tensor] = {}
        self.sizes: dict[str, list[int]] = {}

    def add(self, features: Features, start: int) -> None:
        """Keep a chunk's, whose first item is number ``start`` of the batch."""
        tokens: Any = features.tokens.replace(edges=None, pairs=None) if self.with_tokens else None
        self.parts.append(features.replace(tokens=tokens, rows=features.rows + start))

    def join(self) -> Features:
        """Those of the whole batch, as leaves."""
        vectors = [self._vectors(part) for part in self.parts]
        for name in vectors[0]:
            self.sizes[name] = [len(part[name]) for part in vectors]
            self.leaves[name] = torch.cat([part[name] for part in vectors]).requires_grad_(self.trained)
        joined = Features(
            tokens=self._tokens() if self.with_tokens else None,  # type: ignore[arg-type]  # to read it is an error
            pooled=self.leaves["pooled"],
            projected=self.leaves.get("projected"),
            rows=torch.cat([part.rows for part in self.parts]),
        )
        self.parts = []
        return joined

    @property
    def acts(self) -> bool:
        """Whether a gradient has come to the vectors."""
        return any(leaf.grad is not None for leaf in self.leaves.values())

    def ends(self, number: int, features: Features) -> Ends:
        """Vectors of a chunk, seen again, and the gradients that came to them."""
        return [
            (vector, leaf.grad.split(self.sizes[name])[number])
            for name, vector in self._vectors(features).items()
            if (leaf := self.leaves[name]).grad is not None
        ]

    def _vectors(self, features: Features) -> dict[str, Tensor]:
        found = {"pooled": features.pooled, "projected": features.projected}
        if self.with_tokens:
            found["tokens"] = features.tokens.pack().x
        return {name: vectors for name, vectors in found.items() if vectors is not None}

    def _tokens(self) -> Tokens:
        packed = [part.tokens.pack() for part in self.parts]
        kinds = [part.modality for part in packed if part.modality is not None]
        whole = packed[0].replace(
            x=self.leaves["tokens"],
            positions=torch.cat([part.positions for part in packed]),
            cu_seqlens=ragged.boundaries(torch.cat([part.lengths.long() for part in packed])),
            modality=torch.cat(kinds) if kinds else None,
            longest=None,
        )
        return whole if self.parts[0].tokens.packed else whole.pad()


class _Mean:
    """The loss of a separable objective: a mean over things of all chunks and processes."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.outputs: list[ObjectiveOutput] = []
        self.numbers: list[int] = []

    def add(self, output: ObjectiveOutput, number: int) -> None:
        """Take in a chunk's sum."""
        self.outputs.append(output)
        self.numbers.append(number)

    def join(self) -> ObjectiveOutput:
        """The mean, as a leaf, and the chunks' logs, each counting as much as it has things."""
        total = torch.stack([output.loss for output in self.outputs]).sum()
        ranks = Ranks.of(total.expand(sum(self.numbers)))
        self.scale = len(ranks.counts) / max(ranks.total, 1)
        self.leaf = (total * self.scale).requires_grad_()
        shares = total.new_tensor(self.numbers) / max(sum(self.numbers), 1)
        logs = {
            key: (shares * torch.stack([output.logs[key] for output in self.outputs])).sum()
            for key in self.outputs[0].logs
        }
        return ObjectiveOutput(loss=self.leaf, logs=logs)

    @property
    def weight(self) -> Tensor:
        """() what a chunk's sum counts in the loss of which the gradient came."""
        gradient = torch.zeros_like(self.leaf) if self.leaf.grad is None else self.leaf.grad
        return gradient * self.scale


class Held:
    """Keeps `DistributedDataParallel` from exchanging gradients until all backward passes of a step have added theirs.

    It counts on one backward pass after its forward pass, which must touch each weight once.

    Args:
        model: As the strategy has wrapped it, inside whose forward pass this is.
    """

    def __init__(self, model: nn.Module | None) -> None:
        # Where gradients accumulate over batches, it does not wait for a backward pass anyway.
        self.model = model if isinstance(model, DistributedDataParallel) and model.require_backward_grad_sync else None
        if self.model is not None:
            self.model.require_backward_grad_sync = False

    def release(self) -> None:
        """Exchange."""
        if self.model is None:
            return
        self.model.require_backward_grad_sync = True
        prepare_for_backward(self.model, None)
        weights = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        torch.autograd.backward(weights, [weight.new_zeros(()).expand_as(weight) for weight in weights])


def _needs(objectives: Mapping[str, Objective]) -> set[View]:
    return _union(objective.needs() for objective in objectives.values())


def _union(sets: Iterable[set[View]]) -> set[View]:
    return set().union(*sets)
