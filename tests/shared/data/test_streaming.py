"""`BlockOrder` and `PooledReads`: every item once, bounded reads, and the same order however it is loaded or resumed."""

from __future__ import annotations

import threading
from collections import Counter
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torchdata.stateful_dataloader import StatefulDataLoader

from polyfm.shared.data.sampler import Key
from polyfm.shared.data.streaming import BlockOrder, PooledReads
from polyfm.shared.errors import DataError, RecipeError

N = 203


def order(n: int = N, **settings: Any) -> BlockOrder:
    return BlockOrder(n, **{"batch_size": 8, "block": 4, "pool": 6, "lanes": 2, **settings})


def flat(batches: list[np.ndarray]) -> list[int]:
    return [int(item) for batch in batches for item in batch]


@given(
    n=st.integers(1, 200),
    batch=st.integers(1, 9),
    block=st.integers(1, 12),
    pool=st.integers(1, 6),
    lanes=st.integers(1, 5),
    world=st.integers(1, 3),
    shuffle=st.booleans(),
    seed=st.integers(0, 5),
    epoch=st.integers(0, 3),
)
@settings(max_examples=200, deadline=None)
def test_every_item_once_on_one_rank_in_equal_numbers_of_batches(
    n: int, batch: int, block: int, pool: int, lanes: int, world: int, shuffle: bool, seed: int, epoch: int
) -> None:
    options: dict[str, Any] = {
        "batch_size": batch, "block": block, "pool": pool, "lanes": lanes, "world": world, "shuffle": shuffle, "seed": seed,
    }  # fmt: skip
    try:
        ranks = [BlockOrder(n, rank=rank, **options) for rank in range(world)]
    except DataError:
        assert n < (batch * world if shuffle else world)
        return
    cut = [rank.batches(epoch) for rank in ranks]
    assert {len(batches) for batches in cut} == {len(ranks[0])}
    assert sorted(item for batches in cut for item in flat(batches)) == list(range(n))
    sizes = [len(one) for batches in cut for one in batches]
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) > 0
    assert max(sizes) <= batch or len(sizes) > n - world
    for rank, batches in zip(ranks, cut, strict=True):
        for i, one in enumerate(batches):
            pools = [rank.pool_of(int(item), epoch) for item in one]
            assert len({(pool.lane, pool.first) for pool in pools}) == 1
            assert pools[0].lane == i % lanes
            assert set(one.tolist()) <= set(pools[0].items.tolist())
            if shuffle:  # what is held is bounded: a pool has no more than it should, or one batch
                assert len(pools[0].items) <= max(pool * block, max(sizes))
                # and its reads are few: one for each whole block, and at most three for blocks that were cut
                runs = 1 + int((np.diff(np.sort(pools[0].items)) > 1).sum())
                assert runs <= len(pools[0].items) // block + 3


@given(stop=st.integers(0, 26), epoch=st.integers(0, 3), rank=st.integers(0, 1), shuffle=st.booleans())
@settings(max_examples=60, deadline=None)
def test_resumed_is_uninterrupted(stop: int, epoch: int, rank: int, shuffle: bool) -> None:
    options: dict[str, Any] = {"world": 2, "rank": rank, "shuffle": shuffle, "seed": 3}
    whole = order(**options)
    stop = min(stop, len(whole))
    whole.set_epoch(epoch)
    told = [*whole, *whole]
    first = order(**options)
    first.set_epoch(epoch)
    walk = iter(first)
    for _ in range(stop):
        next(walk)
    second = ForkingPickler.loads(ForkingPickler.dumps(order(**options)))
    if stop:  # before the first batch nothing is known but the epoch
        second.load_state_dict(first.state_dict())
    else:
        second.set_epoch(epoch)
    assert [*second, *second][: len(told) - stop] == told[stop:] if stop < len(whole) else told[len(whole) :]


def test_the_order_is_a_pure_function_of_seed_and_epoch() -> None:
    again, asked_backwards = order(seed=1), order(seed=1)
    asked_backwards.batches(7)
    assert flat(again.batches(3)) == flat(asked_backwards.batches(3))
    assert flat(again.batches(3)) != flat(again.batches(4))
    assert flat(again.batches(3)) != flat(order(seed=2).batches(3))


def test_a_batch_mixes_blocks_that_lie_far_apart() -> None:
    drawn = order(4096, block=16, pool=16, batch_size=32).batches(0)
    blocks = [len(np.unique(batch // 16)) for batch in drawn]
    assert np.median(blocks) > 10
    # Correlation of what follows what: none, as in a random order.
    items = np.concatenate(drawn)
    assert abs(np.corrcoef(items[:-1], items[1:])[0, 1]) < 0.2


def test_in_order_the_items_stand_in_order_and_two_processes_share_them() -> None:
    assert flat(order(shuffle=False).batches(5)) == list(range(N))
    first, second = (order(shuffle=False, world=2, rank=rank).batches(0) for rank in (0, 1))
    assert len(first) == len(second)
    assert flat([batch for pair in zip(first, second, strict=True) for batch in pair]) == list(range(N))


def test_lanes_do_not_begin_their_pools_together() -> None:
    drawn = order(2000, batch_size=8, block=8, pool=8, lanes=4)
    begins: dict[int, list[int]] = {}
    for i, batch in enumerate(drawn.batches(0)):
        pool = drawn.pool_of(int(batch[0]), 0)
        if pool.first not in begins.setdefault(pool.lane, []):
            begins[pool.lane].append(pool.first)
            last = i
    assert last > 0
    sizes = [begins[lane][1] - begins[lane][0] for lane in range(4)]
    assert sizes == [8, 6, 4, 2]


def test_too_few_and_wrong_sizes_say_so() -> None:
    with pytest.raises(DataError, match="5 samples do not fill one batch of 8 on each of 1 processes"):
        order(5)
    with pytest.raises(DataError, match="on each of 3 processes"):
        order(2, shuffle=False, world=3)
    with pytest.raises(RecipeError, match="at least 1, not 0") as error:
        order(pool=0)
    assert error.value.where == "data.pool"


class TestPasses:
    """As the trainer asks for them: `set_epoch`, then an iterator. The same contract as `BatchSampler`."""

    def test_iteration_gives_keys_with_their_epoch_and_then_the_next_epoch(self) -> None:
        drawn = order()
        for epoch in (0, 1, 2):
            keys = list(drawn)
            assert [[key.index for key in batch] for batch in keys] == [b.tolist() for b in drawn.batches(epoch)]
            assert {key.epoch for batch in keys for key in batch} == {epoch}

    def test_state_at_the_exact_end_is_the_start_of_the_next_epoch(self) -> None:
        drawn = order()
        assert len(list(drawn)) == len(drawn)
        assert drawn.state_dict() == {"epoch": 0, "position": len(drawn)}
        resumed = order()
        resumed.load_state_dict(drawn.state_dict())
        assert resumed.state_dict() == {"epoch": 1, "position": 0}
        assert list(resumed) == list(drawn)

    def test_a_loaded_position_survives_being_told_its_own_pass(self) -> None:
        drawn = order()
        drawn.load_state_dict({"epoch": 2, "position": 3})
        drawn.sampler.set_epoch(2)
        assert len(list(drawn)) == len(drawn) - 3
        drawn.set_epoch(3)
        assert len(list(drawn)) == len(drawn)

    def test_a_pass_that_was_cut_short_is_followed_by_the_next(self) -> None:
        drawn = order()
        next(iter(drawn))
        assert next(iter(drawn))[0].epoch == 1


def read(items: np.ndarray) -> np.ndarray:
    assert (np.diff(items) > 0).all()
    return items * 10


def take(held: np.ndarray, places: np.ndarray, keys: list[Key]) -> list[tuple[int, int]]:
    return [(int(value), key.epoch) for value, key in zip(held[places], keys, strict=True)]


def loader(workers: int, readers: int = 0, **settings: Any) -> StatefulDataLoader:
    drawn = order(lanes=4, **settings)
    return StatefulDataLoader(
        PooledReads(drawn, read, take, readers),
        batch_sampler=drawn,
        collate_fn=list,
        num_workers=workers,
        persistent_workers=workers > 0,
    )


def expected(epochs: int) -> list[list[tuple[int, int]]]:
    drawn = order(lanes=4)
    return [[(key.index * 10, key.epoch) for key in batch] for _ in range(epochs) for batch in drawn]


@pytest.mark.parametrize("workers", [0, 1, 2, 3, 4])
def test_what_is_loaded_does_not_depend_on_the_number_of_workers(workers: int) -> None:
    made = loader(workers)
    assert [*made, *made] == expected(2)


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("readers", [1, 3, 8])
def test_what_is_loaded_does_not_depend_on_the_number_of_readers(readers: int, shuffle: bool) -> None:
    ahead, plain = loader(0, readers, shuffle=shuffle), loader(0, shuffle=shuffle)
    assert [*ahead, *ahead] == [*plain, *plain]


@pytest.mark.parametrize(("workers", "readers"), [(0, 0), (0, 2), (2, 0), (2, 1)])
@pytest.mark.parametrize("stop", [1, 13, 26])
def test_a_loader_resumes_with_the_same_samples(workers: int, readers: int, stop: int) -> None:
    first = loader(workers, readers)
    length = len(first)
    assert length == 26
    walk = iter(first)
    for _ in range(stop):
        next(walk)
    second = loader(workers)
    second.load_state_dict(first.state_dict())
    told = expected(2)
    assert list(second) == (told[stop:length] if stop < length else told[length:])
    if stop < length:
        assert list(second) == told[length:]


class Counting:
    """How often each item was read, and how many reads there were."""

    def __init__(self) -> None:
        self.items: Counter[int] = Counter()
        self.reads = 0

    def __call__(self, items: np.ndarray) -> np.ndarray:
        self.items.update(items.tolist())
        self.reads += 1
        return read(items)


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_every_pool_is_read_once_by_one_worker(workers: int) -> None:
    drawn = order(lanes=4)
    reads = [Counting() for _ in range(workers)]
    sets = [PooledReads(drawn, one, take) for one in reads]
    for i, keys in enumerate(drawn):
        assert sets[i % workers].__getitems__(keys) == [(key.index * 10, 0) for key in keys]
        assert all(len(one._held) <= max(4 // workers, 1) for one in sets)
    assert sum((one.items for one in reads), Counter()) == Counter(range(N))
    assert sum(one.reads for one in reads) < len(drawn)


@pytest.mark.parametrize("readers", [1, 3])
def test_readers_read_every_pool_once_and_the_next_one_at_most(readers: int) -> None:
    drawn = order(lanes=4)
    counted = Counting()
    made = PooledReads(drawn, counted, take, readers)
    for keys in drawn:
        assert made.__getitems__(keys) == [(key.index * 10, 0) for key in keys]
        assert len(made._held) <= 4
        assert len(made._ahead) <= 4
    assert counted.items == Counter(range(N))
    assert not made._ahead, "at the end of an epoch nobody knows whether there is another"


def test_readers_read_while_batches_are_handed_out() -> None:
    drawn = order()
    second = threading.Event()
    first = drawn.pool_of(next(iter(drawn))[0].index, 0)
    following = drawn.pool_after(first, 0)
    assert following is not None

    def reading(items: np.ndarray) -> np.ndarray:
        if set(items) == set(following.items):
            second.set()
        return read(items)

    made = PooledReads(drawn, reading, take, readers=1)
    batches = [keys for keys in order() if drawn.pool_of(keys[0].index, 0) == first]
    for keys in batches[:-1]:
        made.__getitems__(keys)
    assert second.wait(10)


def test_what_a_reader_stumbles_over_is_told() -> None:
    drawn = order()
    bad = drawn.pool_of(50, 0).items

    def reading(items: np.ndarray) -> np.ndarray:
        if set(items) == set(bad):
            raise DataError("a chunk is damaged")
        return read(items)

    made = PooledReads(drawn, reading, take, readers=2)
    with pytest.raises(DataError, match="a chunk is damaged"):
        [made.__getitems__(keys) for keys in drawn]


def test_any_items_can_be_asked_for() -> None:
    made = PooledReads(order(), read, take)
    keys = [Key(index, 1) for index in (200, 3, 3, 77)]
    assert made.__getitems__(keys) == [(2000, 1), (30, 1), (30, 1), (770, 1)]
    assert made[Key(5, 0)] == (50, 0)
    assert len(made) == N


def test_what_travels_to_a_worker_holds_no_pool() -> None:
    drawn = order()
    made = PooledReads(drawn, read, take, readers=1)
    keys = next(iter(drawn))
    told = made.__getitems__(keys)
    sent = ForkingPickler.loads(ForkingPickler.dumps(made))
    assert not sent._held
    assert not sent._ahead
    assert sent.order._plan is None
    assert sent.__getitems__(keys) == told
