"""`BatchSampler`: what is drawn, that it is a pure function of (seed, epoch, rank), and where it goes on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torchdata.stateful_dataloader import StatefulDataLoader

from polyfm.shared.data.sampler import BatchSampler, Key, process_group
from polyfm.shared.errors import DataError

LENGTHS = np.random.default_rng(0).integers(1, 40, 103)


def sampler(lengths: np.ndarray = LENGTHS, **settings: Any) -> BatchSampler:
    return BatchSampler(lengths, **{"batch_size": 8, **settings})


def indices(batches: list[np.ndarray]) -> list[int]:
    return [int(index) for batch in batches for index in batch]


@given(
    n=st.integers(1, 60),
    batch=st.integers(1, 9),
    budget=st.sampled_from([0, 1, 40, 100]),
    world=st.integers(1, 3),
    shuffle=st.booleans(),
    seed=st.integers(0, 5),
    epoch=st.integers(0, 3),
)
@settings(max_examples=200)
def test_every_sample_at_most_once_on_one_rank_in_equal_numbers_of_batches(
    n: int, batch: int, budget: int, world: int, shuffle: bool, seed: int, epoch: int
) -> None:
    lengths = np.random.default_rng(seed).integers(1, 30, n)
    options: dict[str, Any] = {"batch_size": batch, "token_budget": budget, "shuffle": shuffle, "seed": seed}
    try:
        ranks = [BatchSampler(lengths, world=world, rank=rank, **options) for rank in range(world)]
    except DataError:
        assert n < batch * world if shuffle else n < world
        return
    cut = [rank.batches(epoch) for rank in ranks]
    assert len({len(batches) for batches in cut}) == 1
    assert len(cut[0]) == len(ranks[0]) == len(ranks[0].batches(0)) > 0
    seen = [index for batches in cut for index in indices(batches)]
    assert len(seen) == len(set(seen))
    if not shuffle:
        assert sorted(seen) == list(range(n))
    elif not budget:
        assert len(seen) == n // (batch * world) * batch * world
    sizes = [len(one) for batches in cut for one in batches]
    assert min(sizes) > 0
    if shuffle or -(-len(sizes) // world) * world <= n - world:  # else too few to give each process one more
        assert max(sizes) <= batch
        for one in (one for batches in cut for one in batches):
            assert not budget or len(one) == 1 or lengths[one].max() * len(one) <= budget


def test_in_order_the_samples_stand_in_the_file_s_order() -> None:
    assert indices(sampler(shuffle=False).batches(0)) == list(range(103))
    assert [len(batch) for batch in sampler(shuffle=False).batches(0)] == [8] * 12 + [7]


def test_in_order_two_processes_share_every_sample_between_them() -> None:
    # 103 samples are 13 batches of 8: an even number of batches needs one cut in two.
    first, second = (sampler(shuffle=False, world=2, rank=rank).batches(0) for rank in (0, 1))
    assert len(first) == len(second) == 7
    assert sorted(indices(first) + indices(second)) == list(range(103))


def test_order_is_a_pure_function_of_seed_and_epoch() -> None:
    again, asked_backwards = sampler(seed=1), sampler(seed=1)
    asked_backwards.batches(7)
    assert indices(again.batches(3)) == indices(asked_backwards.batches(3))
    assert indices(again.batches(3)) != indices(again.batches(4))
    assert indices(again.batches(3)) != indices(sampler(seed=2).batches(3))


def test_what_does_not_fill_a_batch_is_drawn_anew_in_every_epoch() -> None:
    """Not the longest every time, as when the leftover is cut off after sorting."""
    drawn = sampler()
    left_out = [set(range(103)) - set(indices(drawn.batches(epoch))) for epoch in range(100)]
    assert {len(left) for left in left_out} == {7}
    assert set().union(*left_out) == set(range(103))


def test_batches_hold_samples_of_near_length() -> None:
    padding = [LENGTHS[batch].max() * len(batch) - LENGTHS[batch].sum() for batch in sampler().batches(0)]
    random_order = sampler(pool=1).batches(0)
    unsorted = [LENGTHS[batch].max() * len(batch) - LENGTHS[batch].sum() for batch in random_order]
    assert sum(padding) < 0.2 * sum(unsorted)


def test_batches_of_a_pool_are_shuffled() -> None:
    lengths = [LENGTHS[batch].mean() for batch in sampler().batches(0)]
    assert lengths != sorted(lengths)


def test_token_budget_counts_padding() -> None:
    batches = sampler(np.array([10, 10, 10, 30]), batch_size=4, token_budget=30, shuffle=False).batches(0)
    assert [batch.tolist() for batch in batches] == [[0, 1, 2], [3]]
    # The long one first would make 2 x 30 tokens of two samples.
    batches = sampler(np.array([30, 10, 10, 10]), batch_size=4, token_budget=40, shuffle=False).batches(0)
    assert [batch.tolist() for batch in batches] == [[0], [1, 2, 3]]


def test_a_sample_above_the_budget_stands_alone() -> None:
    batches = sampler(np.array([3, 99, 3]), batch_size=4, token_budget=10, shuffle=False).batches(0)
    assert [batch.tolist() for batch in batches] == [[0], [1], [2]]


def test_too_few_samples_say_so() -> None:
    with pytest.raises(DataError, match="5 samples do not fill one batch of 8 on each of 1 processes") as error:
        sampler(LENGTHS[:5])
    assert "smaller data.batch_size" in str(error.value)
    with pytest.raises(DataError, match="on each of 3 processes"):
        sampler(LENGTHS[:2], shuffle=False, batch_size=1, world=3)


def test_iteration_gives_keys_with_their_epoch_and_then_the_next_epoch() -> None:
    drawn = sampler()
    for epoch in (0, 1, 2):
        keys = list(drawn)
        assert [[key.index for key in batch] for batch in keys] == [b.tolist() for b in drawn.batches(epoch)]
        assert {key.epoch for batch in keys for key in batch} == {epoch}


def test_state_at_the_exact_end_is_the_start_of_the_next_epoch() -> None:
    drawn = sampler()
    for _ in drawn:
        pass
    assert drawn.state_dict() == {"epoch": 0, "position": len(drawn)}
    resumed = sampler()
    resumed.load_state_dict(drawn.state_dict())
    assert resumed.state_dict() == {"epoch": 1, "position": 0}
    assert list(resumed) == list(drawn)


@pytest.mark.parametrize("position", [1, 5, 11])
def test_state_within_an_epoch(position: int) -> None:
    drawn = sampler()
    walk = iter(drawn)
    for _ in range(position):
        next(walk)
    resumed = sampler()
    resumed.load_state_dict(drawn.state_dict())
    assert list(resumed) == list(walk)


class Echo:
    """A data set that gives back what it was asked for."""

    def __len__(self) -> int:
        return len(LENGTHS)

    def __getitem__(self, key: Key) -> Key:
        return key


def loader(workers: int) -> StatefulDataLoader:
    return StatefulDataLoader(
        Echo(), batch_sampler=sampler(), collate_fn=list, num_workers=workers, persistent_workers=workers > 0
    )


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [1, 7, 12])
def test_a_loader_resumes_with_the_same_keys(workers: int, stop: int) -> None:
    """Workers read ahead: what they have fetched but not given is given again."""
    whole = loader(workers)
    told = [*whole, *whole]
    assert len(told) == 24
    first = loader(workers)
    walk = iter(first)
    for _ in range(stop):
        next(walk)
    second = loader(workers)
    second.load_state_dict(first.state_dict())
    rest = list(second)
    expected = told[stop:12] if stop < 12 else told[12:]
    assert rest == expected
    if stop < 12:
        assert list(second) == told[12:]


def test_without_a_process_group_there_is_one_rank() -> None:
    assert process_group() == (0, 1)


class TestPasses:
    """As the trainer asks for them: `set_epoch`, then an iterator."""

    @staticmethod
    def made() -> BatchSampler:
        return BatchSampler(np.ones(12, dtype=int), batch_size=3, seed=1)

    def test_a_pass_that_was_cut_short_is_followed_by_the_next(self) -> None:
        sampler = self.made()
        next(iter(sampler))
        assert next(iter(sampler))[0].epoch == 1

    def test_an_iterator_that_ran_ahead_does_not_move_the_next_one(self) -> None:
        sampler = self.made()
        ahead = iter(sampler)
        next(ahead)
        sampler.set_epoch(0)
        assert [key for batch in sampler for key in batch] == [key for batch in self.made() for key in batch]

    def test_a_loaded_position_survives_being_told_its_own_pass(self) -> None:
        sampler = self.made()
        sampler.load_state_dict({"epoch": 2, "position": 3})
        sampler.set_epoch(2)
        assert len(list(sampler)) == 1
        sampler.set_epoch(3)
        assert len(list(sampler)) == 4

    def test_a_position_in_a_pass_that_is_over_is_the_start_of_the_next(self) -> None:
        sampler = self.made()
        sampler.set_epoch(3)  # the trainer has done three passes, each with part of the batches
        sampler.load_state_dict({"epoch": 2, "position": 2})
        assert sampler.state_dict() == {"epoch": 3, "position": 0}
