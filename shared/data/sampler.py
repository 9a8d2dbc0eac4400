"""Which samples, in which order: a pure function of (seed, epoch, rank), with a position to resume from."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch

from polyfm.shared.errors import DataError


class Key(NamedTuple):
    """What a data set is asked for."""

    index: int  # type: ignore[assignment]
    """Of the sample."""
    epoch: int
    """Which pass: random transforms are drawn from (seed, epoch, sample), never from a global state."""


def some_of(indices: np.ndarray, most: int, seed: int) -> np.ndarray:
    """As they stand, or so many of them, drawn at random, in their order.

    Args:
        indices: (n,).
        most: How many.
        seed: Of the draw.
    """
    if len(indices) <= most:
        return indices
    return indices[np.sort(np.random.default_rng(seed).choice(len(indices), most, replace=False))]


class Passes:
    """Base of samplers: where a pass starts, and where to go on after a stop.

    A sampler says how many batches an epoch has and which they are, as a pure function of (seed, epoch, rank); the rest
    is the same for all.
    """

    def __init__(self) -> None:
        self.epoch = self.position = 0
        self._next = (0, 0)
        """Epoch and position at which the next pass starts."""

    @abstractmethod
    def __len__(self) -> int:
        """Batches of an epoch, the same in every epoch and on every process."""

    @abstractmethod
    def batches_from(self, epoch: int, position: int) -> Iterable[np.ndarray]:
        """This rank's batches, indices of samples.

        Args:
            epoch: Which pass.
            position: Of the first batch that is wanted.
        """

    @property
    def sampler(self) -> Passes:
        """Where Lightning looks for `set_epoch`, which it calls ahead of every pass."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """The next pass, unless it is the one that a loaded state continues.

        Args:
            epoch: Which.
        """
        if epoch != self._next[0]:
            self._next = (epoch, 0)

    def __iter__(self) -> Iterator[list[Key]]:
        # Where this pass starts is settled now: workers fetch ahead of what is trained on, and draw when they like.
        return self._pass(*self._next)

    def _pass(self, epoch: int, position: int) -> Iterator[list[Key]]:
        for done, batch in enumerate(self.batches_from(epoch, position), start=position + 1):
            self.epoch, self.position, self._next = epoch, done, (epoch + 1, 0)
            yield [Key(index, epoch) for index in batch.tolist()]

    def state_dict(self) -> dict[str, int]:
        """Where the next batch starts."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue there.

        Args:
            state: As made by `state_dict`; of a pass that is over, also before its last batch, it is the start of the
                next.
        """
        epoch, position = state["epoch"], state["position"]
        if position >= len(self):
            epoch, position = epoch + 1, 0
        self._next = max((epoch, position), (self._next[0], 0))
        self.epoch, self.position = self._next


class BatchSampler(Passes):
    """Batches of sample indices. Every epoch has the same number of batches, on every process.

    Shuffled (training), samples of near length share a batch: each pool of ``pool`` batches is drawn at random, sorted
    by length, cut, and its batches shuffled. So padding is small and the order still random. What does not fill a
    batch is left out, drawn anew in each epoch. In order (validation, test), every sample is there once.

    Args:
        lengths: (n,) tokens of each sample.
        batch_size: Samples in a batch, on each rank; with ``token_budget`` the most there may be.
        token_budget: Most tokens in a batch, padding counted; 0 for none. A sample above it stands alone.
        shuffle: Whether to draw an order, or keep the file's.
        seed: Of the run.
        rank: Of this process.
        world: Processes. Batches are dealt out to them in turn.
        pool: Batches sorted by length together.

    Raises:
        DataError: There are too few samples for one batch on each process.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        *,
        batch_size: int,
        token_budget: int = 0,
        shuffle: bool = True,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        pool: int = 50,
    ) -> None:
        self.lengths = np.asarray(lengths)
        self.batch_size, self.token_budget, self.shuffle, self.seed = batch_size, token_budget, shuffle, seed
        self.rank, self.world, self.pool = rank, world, pool
        super().__init__()
        self._plan: tuple[int, list[np.ndarray]] = (-1, [])
        self._count = len(self._cut_epoch(0)) // world * world if len(self.lengths) >= world else 0
        if not self._count:
            raise DataError(
                f"{len(self.lengths)} samples do not fill one batch of {batch_size} on each of {world} processes",
                remedy="Use more data, a smaller data.batch_size, or fewer processes",
            )

    def batches(self, epoch: int) -> list[np.ndarray]:
        """This rank's batches of one epoch.

        Args:
            epoch: Which pass.
        """
        if self._plan[0] != epoch:
            # With a token budget epochs differ by a few batches; the trainer counts on as many as the first has.
            batches = self._cut_epoch(epoch)[: self._count]
            while len(batches) < self._count:
                _halve_largest(batches)
            self._plan = (epoch, batches[self.rank :: self.world])
        return self._plan[1]

    def batches_from(self, epoch: int, position: int) -> list[np.ndarray]:
        """See `Passes.batches_from`."""
        return self.batches(epoch)[position:]

    def _cut_epoch(self, epoch: int) -> list[np.ndarray]:
        n = len(self.lengths)
        if not self.shuffle:
            batches = self._cut(np.arange(n))
            count = -(-len(batches) // self.world) * self.world
            if count > n:  # too few samples to give each process one more: some batches have one too many
                return np.array_split(np.arange(n), count - self.world)
            while len(batches) < count:
                _halve_largest(batches)
            return batches
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(n)
        if not self.token_budget:
            # Before sorting by length: otherwise the longest would be left out every time.
            order = order[: n - n % (self.batch_size * self.world)]
        batches = []
        span = self.pool * self.batch_size * self.world
        for start in range(0, len(order), span):
            drawn = order[start : start + span]
            cut = self._cut(drawn[np.argsort(self.lengths[drawn], kind="stable")])
            rng.shuffle(cut)
            batches.extend(cut)
        return batches

    def _cut(self, order: np.ndarray) -> list[np.ndarray]:
        if not self.token_budget:
            return [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]
        cuts, start, longest = [0], 0, 0
        for i, length in enumerate(self.lengths[order].tolist()):
            longest = max(longest, length)
            if i > start and (longest * (i + 1 - start) > self.token_budget or i - start == self.batch_size):
                cuts.append(i)
                start, longest = i, length
        return np.split(order, cuts[1:]) if len(order) else []

    def __len__(self) -> int:
        return self._count // self.world


def _halve_largest(batches: list[np.ndarray]) -> None:
    """Two batches in the place of the largest: one more, and none above a budget."""
    largest = int(np.argmax([len(batch) for batch in batches]))
    batches[largest : largest + 1] = np.array_split(batches[largest], 2)


def process_group() -> tuple[int, int]:
    """(rank, world) of this process."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1
