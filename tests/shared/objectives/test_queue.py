from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polyfm.shared.objectives.queue import FeatureQueue


@given(sizes=st.lists(st.integers(0, 9), max_size=8))
@settings(max_examples=60, deadline=None)
def test_the_ring_holds_the_last_features(sizes: list[int]) -> None:
    queue = FeatureQueue(5, 1)
    pushed: list[float] = []
    for size in sizes:
        new = torch.arange(len(pushed), len(pushed) + size).float()
        queue.push(new[:, None], new.long() * 10)
        pushed += new.tolist()
    features, groups = queue.valid()
    assert sorted(features[:, 0].tolist()) == pushed[-5:]
    assert groups.tolist() == [int(value) * 10 for value in features[:, 0].tolist()]


def test_only_pushed_entries_count_before_it_is_full() -> None:
    queue = FeatureQueue(5, 2)
    assert len(queue.valid()[0]) == 0
    queue.push(torch.ones(3, 2), torch.tensor([4, 5, 6]))
    assert queue.valid()[1].tolist() == [4, 5, 6]
    assert len(queue) == 3


def test_it_is_part_of_the_checkpoint() -> None:
    queue, other = FeatureQueue(3, 2), FeatureQueue(3, 2)
    queue.push(torch.rand(4, 2), torch.arange(4))
    other.load_state_dict(queue.state_dict())
    queue.push(torch.ones(1, 2), torch.tensor([9]))
    other.push(torch.ones(1, 2), torch.tensor([9]))
    assert torch.equal(queue.features, other.features)
    assert torch.equal(queue.groups, other.groups)
