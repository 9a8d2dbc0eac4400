"""Data larger than memory: blocks that lie together on disk are read together, and shuffled where they are held.

Reading single items at random from a compressed file opens a whole chunk for each. Here blocks of neighbours are
shuffled, some of them at a time are read as a pool, and the items of a pool are shuffled. So an order is nearly random,
reads are long, and what is held is bounded.

    BlockOrder ──keys of a batch──▶ PooledReads ──read: items of a pool, rising──▶ pool ──take: places──▶ samples
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from polyfm.shared.data.sampler import Key, Passes
from polyfm.shared.errors import DataError, require

Items = NDArray[np.int64]


class Pool(NamedTuple):
    """What is read and held together."""

    lane: int
    """Whose it is."""
    first: int
    """Number of its first batch, which names it."""
    items: Items
    """Indices of its items, in the order in which batches take them."""
    following: int | None
    """Number of the first batch of the lane's next pool; None at the end of an epoch."""


class _Plan(NamedTuple):
    """The order of blocks in one epoch."""

    epoch: int
    blocks: Items
    """Blocks in the order drawn."""
    starts: Items
    """Where each begins when they lie end to end, and where the last ends."""
    ranks: Items
    """Of each block: its place in that order."""


class BlockOrder(Passes):
    """Batches of item indices, from shuffled blocks: a pure function of (seed, epoch, rank), like `BatchSampler`.

    In each epoch every item is there once, on one rank; every rank has the same number of batches, in every epoch the
    same, and their sizes differ by at most one. The blocks are drawn in an order, laid end to end and cut into as many
    parts as there are ranks times lanes; a part is cut into pools, a pool is shuffled and cut into batches.

    Batch i belongs to lane i mod ``lanes``. Pools of different lanes begin at different times, so that they need not be
    read at once. A loader of several processes gives batch i to process i mod their number: where that divides the
    number of lanes, a pool is read by one of them only. The order is the same whoever reads.

    In order (validation, test), batches follow the items, and each is a pool of its own.

    Args:
        num_items: n.
        batch_size: Most items in a batch, on each rank.
        block: Neighbours that are read together.
        pool: Blocks that are held and shuffled together, in each lane.
        lanes: Pools that are drawn from in turn.
        shuffle: Whether to draw an order, or keep that of the items.
        seed: Of the run.
        rank: Of this process.
        world: Processes.

    Raises:
        DataError: There are too few items for one batch on each process.
    """

    def __init__(
        self,
        num_items: int,
        *,
        batch_size: int,
        block: int = 64,
        pool: int = 64,
        lanes: int = 4,
        shuffle: bool = True,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        super().__init__()
        for name, value in {"batch_size": batch_size, "block": block, "pool": pool, "lanes": lanes}.items():
            require(value >= 1, f"data.{name}", "at least 1", value)
        self.num_items, self.batch_size, self.block, self.pool, self.lanes = num_items, batch_size, block, pool, lanes
        self.shuffle, self.seed, self.rank, self.world = shuffle, seed, rank, world
        if num_items < world * (batch_size if shuffle else 1):
            raise DataError(
                f"{num_items} samples do not fill one batch of {batch_size} on each of {world} processes",
                remedy="Use more data, a smaller data.batch_size, or fewer processes",
            )
        # Where one batch more would leave another without an item, some have one item too many instead.
        self._count = min(-(-num_items // (batch_size * world)), num_items // world)
        self._total = self._count * world
        # Batches of a rank are numbered lane by lane: those of lane l begin with this one.
        self._lane_starts = np.cumsum([0] + [len(range(lane, self._count, lanes)) for lane in range(lanes)])
        self._per_pool = max(pool * block // batch_size, 1)
        self._plan: _Plan | None = None
        self._drawn: dict[tuple[int, int], Pool] = {}

    def __len__(self) -> int:
        return self._count

    def __getstate__(self) -> dict[str, Any]:
        """Without what can be drawn again."""
        return {**self.__dict__, "_plan": None, "_drawn": {}}

    def batches(self, epoch: int) -> list[Items]:
        """This rank's batches of one epoch, all at once.

        Args:
            epoch: Which pass.
        """
        return list(self.batches_from(epoch, 0))

    def batches_from(self, epoch: int, position: int) -> Iterator[Items]:
        """See `Passes.batches_from`; each is drawn when it is asked for."""
        for i in range(position, self._count):
            number = self._number(i)
            pool = self._pool(number, epoch)
            offset = self._start(pool.first)
            yield pool.items[self._start(number) - offset : self._start(number + 1) - offset]

    def pool_of(self, item: int, epoch: int) -> Pool:
        """The pool that an item is in.

        Args:
            item: Its index.
            epoch: Which pass.
        """
        place = item
        if self.shuffle:
            plan = self._planned(epoch)
            place = int(plan.starts[plan.ranks[item // self.block]]) + item % self.block
        return self._pool(((place + 1) * self._total - 1) // self.num_items, epoch)

    def pool_after(self, pool: Pool, epoch: int) -> Pool | None:
        """The next pool of its lane, if the epoch has another.

        Args:
            pool: One of that epoch.
            epoch: Which pass.
        """
        return None if pool.following is None else self._pool(pool.following, epoch)

    def _number(self, i: int) -> int:
        """Of this rank's batch i: its place when all batches lie end to end."""
        if not self.shuffle:
            return i * self.world + self.rank
        return self.rank * self._count + int(self._lane_starts[i % self.lanes]) + i // self.lanes

    def _start(self, number: int) -> int:
        """Where a batch begins when all items lie end to end."""
        return number * self.num_items // self._total

    def _pool(self, number: int, epoch: int) -> Pool:
        """The pool of a batch."""
        if not self.shuffle:
            lane, following = number // self.world % self.lanes, number + self.lanes * self.world
            items = np.arange(self._start(number), self._start(number + 1))
            return Pool(lane, number, items, following if following < self._total else None)
        rank, place = divmod(number, self._count)
        lane = int(np.searchsorted(self._lane_starts, place, side="right")) - 1
        opened, closed = (rank * self._count + int(self._lane_starts[lane + end]) for end in (0, 1))
        shift = self._per_pool * lane // self.lanes
        begin = (number - opened + shift) // self._per_pool * self._per_pool + opened - shift
        first, last = max(begin, opened), min(begin + self._per_pool, closed)
        if (epoch, first) not in self._drawn:
            items = self._items(self._start(first), self._start(last), epoch)
            np.random.default_rng([self.seed, epoch, first]).shuffle(items)
            if len(self._drawn) == 2 * self.lanes:  # in each the one that is used, and the next
                del self._drawn[next(iter(self._drawn))]
            self._drawn[epoch, first] = Pool(lane, first, items, last if last < closed else None)
        return self._drawn[epoch, first]

    def _items(self, start: int, stop: int, epoch: int) -> Items:
        """What lies there when the blocks drawn lie end to end."""
        plan = self._planned(epoch)
        one, last = np.searchsorted(plan.starts, [start, stop - 1], side="right") - 1
        blocks = plan.blocks[one : last + 1]
        begins = blocks * self.block
        ends = np.minimum(begins + self.block, self.num_items)
        begins[0] += start - plan.starts[one]
        ends[-1] -= plan.starts[last + 1] - stop
        sizes = ends - begins
        items: Items = np.arange(stop - start) + np.repeat(begins - (np.cumsum(sizes) - sizes), sizes)
        return items

    def _planned(self, epoch: int) -> _Plan:
        if self._plan is None or self._plan.epoch != epoch:
            number = -(-self.num_items // self.block)
            blocks = np.random.default_rng([self.seed, epoch]).permutation(number)
            sizes = np.minimum(self.block, self.num_items - blocks * self.block)
            ranks = np.empty_like(blocks)
            ranks[blocks] = np.arange(number)
            self._plan = _Plan(epoch, blocks, np.append(0, np.cumsum(sizes)), ranks)
        return self._plan


class _Held(NamedTuple):
    """A pool that is read, or being read."""

    name: tuple[int, int]
    """Epoch and first batch."""
    items: Items
    """Rising."""
    content: Callable[[], Any]
    """Waits until it is read."""


class PooledReads(Dataset[Any]):
    """The data set of a `BlockOrder`: reads pools, holds one of each lane that it is asked for, and hands out items.

    With readers, threads read a lane's next pool while the second half of this one is handed out. Where reading is
    decompressing, which needs no interpreter, threads are quicker than a loader's processes: to send a batch to another
    process costs as much as to make it of a pool, and all processes stand still whenever one of them reads.

    It opens nothing by itself and holds nothing when it is sent to another process; ``read`` should open its files when
    it is called, in the process that calls it.

    Args:
        order: By which batches are drawn; it says what belongs together.
        read: From (m,) rising indices of items to what is held of them.
        take: From what is held, the places of a batch's items in it, and their keys, to the samples of the batch.
        readers: Threads that read ahead; 0 reads a pool when its first batch is asked for.
    """

    def __init__(
        self,
        order: BlockOrder,
        read: Callable[[Items], Any],
        take: Callable[[Any, Items, list[Key]], Any],
        readers: int = 0,
    ) -> None:
        self.order, self.read, self.take, self.readers = order, read, take, readers
        self._held: dict[int, _Held] = {}
        self._ahead: dict[int, _Held] = {}
        self._threads: ThreadPoolExecutor | None = None

    def __len__(self) -> int:
        return self.order.num_items

    def __getstate__(self) -> dict[str, Any]:
        """Without the pools."""
        return {**self.__dict__, "_held": {}, "_ahead": {}, "_threads": None}

    def __getitem__(self, key: Key) -> Any:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: list[Key]) -> Any:
        """The samples of a batch, in the order of its keys."""
        wanted = np.array([key.index for key in keys], np.int64)
        pool = self.order.pool_of(int(wanted[0]), keys[0].epoch)
        items, held = self._pool(pool, keys[0].epoch)
        self._read_ahead(pool, keys[0].epoch, int(np.argmax(pool.items == wanted[0])) + len(keys))
        places = np.minimum(np.searchsorted(items, wanted), len(items) - 1)
        if not np.array_equal(items[places], wanted):  # no batch of the order
            items, places = np.unique(wanted, return_inverse=True)
            held = self.read(items)
        return self.take(held, places, keys)

    def _pool(self, pool: Pool, epoch: int) -> tuple[Items, Any]:
        lane, name = pool.lane, (epoch, pool.first)
        if lane not in self._held or self._held[lane].name != name:
            self._held.pop(lane, None)  # first: where nothing is read ahead, two pools of a lane are never held at once
            ahead = self._ahead.pop(lane, None)
            self._held[lane] = ahead if ahead is not None and ahead.name == name else self._begin(pool, epoch)
        return self._held[lane].items, self._held[lane].content()

    def _read_ahead(self, pool: Pool, epoch: int, taken: int) -> None:
        # From the middle on: lanes are at different places, so that not all of them hold two pools at once.
        if self.readers and pool.lane not in self._ahead and 2 * taken >= len(pool.items):
            following = self.order.pool_after(pool, epoch)
            if following is not None:
                self._ahead[pool.lane] = self._begin(following, epoch)

    def _begin(self, pool: Pool, epoch: int) -> _Held:
        items = np.sort(pool.items)
        if self.readers:
            self._threads = self._threads or ThreadPoolExecutor(self.readers, "reader")
            return _Held((epoch, pool.first), items, self._threads.submit(self.read, items).result)
        held = self.read(items)
        return _Held((epoch, pool.first), items, lambda: held)
