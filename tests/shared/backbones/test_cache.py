"""What a cache holds follows its sequences."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from polyfm.shared.backbones.cache import KeyValueCache
from polyfm.shared.tokens.tokens import Tokens


def make(lengths: list[int], seen: list[int]) -> Tokens:
    steps = torch.arange(max(lengths))
    return Tokens(
        x=torch.randn(len(lengths), max(lengths), 4),
        positions=(torch.tensor(seen)[:, None] + steps)[..., None],
        mask=steps < torch.tensor(lengths)[:, None],
    )


def test_lengths_grow_by_sequence() -> None:
    cache, rows = KeyValueCache(), torch.arange(2)
    assert cache.seen(rows).tolist() == [0, 0]
    cache.extend(make([3, 1], [0, 0]))
    cache.extend(make([1, 1], [3, 1]))
    assert cache.seen(rows).tolist() == [4, 2]
    assert cache.tokens.mask.tolist() == [[True] * 4, [True, False, False, True]]
    assert cache.tokens.positions[1, [0, 3], 0].tolist() == [0, 1]


def test_everything_follows_the_beams() -> None:
    cache, module, transformer = KeyValueCache(), nn.Identity(), nn.Identity()
    cache.extend(make([3, 1], [0, 0]))
    k, v = torch.randn(2, 2, 3, 1, 4)
    cache.append(module, k, v)
    context = make([2, 5], [0, 0])
    assert cache.context(transformer, context) is context
    cache.reorder(torch.tensor([1, 1, 0]))
    assert torch.equal(cache[module][0], k[[1, 1, 0]])
    assert cache.seen(torch.arange(3)).tolist() == [1, 1, 3]
    assert cache.context(transformer, context).lengths.tolist() == [5, 5, 2]
    grown, _ = cache.append(module, torch.zeros(3, 1, 1, 4), torch.zeros(3, 1, 1, 4))
    assert grown.shape == (3, 4, 1, 4)


def test_an_empty_cache_says_so() -> None:
    with pytest.raises(ValueError, match="extend"):
        _ = KeyValueCache().tokens
