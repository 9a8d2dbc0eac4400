"""Which samples, in which order: a pure function of (seed, epoch, rank), with a position to resume from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch


class Key(NamedTuple):
    """What a data set is asked for."""

    index: int
    """Of the sample."""
    epoch: int
    """Which pass: random transforms are drawn from (seed, epoch, sample), never from a global state."""


class BatchSampler:
    """Batches of sample indices.

    Samples of near length share a batch: each pool of ``pool`` batches is drawn at random, sorted by length, cut, and
    its batches shuffled. So padding is small and the order still random.

    Args:
        lengths: (n,) tokens of each sample.
        batch_size: Samples in a batch, on each rank; with ``token_budget`` the most there may be.
        token_budget: Most tokens in a batch, padding counted; 0 for none.
        shuffle: Whether to draw an order, or keep the file's.
        seed: Of the run.
        drop_last: Whether to leave out samples that do not fill a batch. Otherwise the last batch is smaller.
        rank: Of this process.
        world: Processes. Each global batch is dealt out to them in turn.
        pool: Batches sorted by length together.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        *,
        batch_size: int,
        token_budget: int = 0,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
        rank: int = 0,
        world: int = 1,
        pool: int = 50,
    ) -> None:
        self.lengths = np.asarray(lengths)
        self.batch_size, self.token_budget, self.shuffle, self.seed = batch_size, token_budget, shuffle, seed
        self.drop_last, self.rank, self.world, self.pool = drop_last, rank, world, pool
        self.epoch = self.position = 0
        self._plan: tuple[int, list[np.ndarray]] = (-1, [])
        if not self.batches(0):
            raise ValueError(
                f"{len(self.lengths)} samples do not fill one batch of {batch_size} on each of {world} processes"
            )

    def batches(self, epoch: int) -> list[np.ndarray]:
        """This rank's batches of one epoch.

        Args:
            epoch: Which pass.
        """
        if self._plan[0] != epoch:
            self._plan = (epoch, self._make(epoch))
        return self._plan[1]

    def _make(self, epoch: int) -> list[np.ndarray]:
        n = len(self.lengths)
        if not self.shuffle:
            return self._cut(np.arange(n))[self.rank :: self.world]
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(n)
        batches: list[np.ndarray] = []
        span = self.pool * self.batch_size * self.world
        leftover = order[:0]
        for start in range(0, n, span):
            pool = np.concatenate([leftover, order[start : start + span]])
            pool = pool[np.argsort(self.lengths[pool], kind="stable")]
            cut = self._cut(pool)
            # The longest samples of a pool wait for the next one rather than making a small batch.
            leftover = order[:0]
            if start + span < n and len(cut[-1]) < self.batch_size and not self.token_budget:
                leftover = cut.pop()
            rng.shuffle(cut)
            batches.extend(cut)
        if self.drop_last:
            batches = [batch for batch in batches if self.token_budget or len(batch) == self.batch_size]
        batches = batches[: len(batches) // self.world * self.world] if len(batches) >= self.world else []
        return batches[self.rank :: self.world]

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
        return len(self.batches(self.epoch))

    def __iter__(self) -> Iterator[list[Key]]:
        if self.position >= len(self.batches(self.epoch)):
            self.epoch, self.position = self.epoch + 1, 0
        epoch, batches = self.epoch, self.batches(self.epoch)
        while self.position < len(batches):
            batch = batches[self.position]
            self.position += 1
            yield [Key(index, epoch) for index in batch.tolist()]

    def state_dict(self) -> dict[str, int]:
        """Where the next batch starts."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue there.

        Args:
            state: As made by `state_dict`; an exhausted epoch is the start of the next.
        """
        self.epoch, self.position = state["epoch"], state["position"]
        if self.position >= len(self.batches(self.epoch)):
            self.epoch, self.position = self.epoch + 1, 0


def process_group() -> tuple[int, int]:
    """(rank, world) of this process."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1
