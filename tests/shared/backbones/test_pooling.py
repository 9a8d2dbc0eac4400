"""Both forms pool alike; an empty sequence pools to zeros."""

from __future__ import annotations

import pytest
import torch

from polyfm.shared.backbones.pooling import FirstToken, LastToken, Mean, Pooling
from polyfm.shared.data import ragged
from polyfm.shared.tokens.tokens import Tokens

LENGTHS = [3, 0, 1, 4, 0]


def make(lengths: list[int]) -> Tokens:
    cu = ragged.boundaries(torch.tensor(lengths, dtype=torch.int64))
    x = torch.randn(sum(lengths), 8, requires_grad=True)
    return Tokens(x=x, positions=ragged.places(cu, len(x))[:, None], cu_seqlens=cu)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    ("pooling", "expected"),
    [(FirstToken(), lambda part: part[0]), (LastToken(), lambda part: part[-1]), (Mean(), lambda part: part.mean(0))],
)
def test_pooling(pooling: Pooling, expected: object, packed: bool) -> None:
    tokens = make(LENGTHS)
    parts = tokens.x.split(LENGTHS)
    by_hand = torch.stack([expected(part) if len(part) else torch.zeros(8) for part in parts])  # type: ignore[operator]
    torch.testing.assert_close(pooling(tokens if packed else tokens.pad()), by_hand)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("pooling", [FirstToken(), LastToken(), Mean()])
@pytest.mark.parametrize("lengths", [[], [0, 0]], ids=["no rows", "empty rows"])
def test_nothing_to_pool(pooling: Pooling, lengths: list[int], packed: bool) -> None:
    tokens = make(lengths)
    pooled = pooling(tokens if packed else tokens.pad())
    assert pooled.shape == (len(lengths), 8)
    pooled.sum().backward()
    assert not pooled.any()
    assert tokens.x.grad is not None


def test_means_of_long_bfloat16_sequences_are_exact_to_its_precision() -> None:
    tokens = make([1000])
    half = tokens.replace(x=tokens.x.detach().bfloat16() + 1)
    for form in (half, half.pad()):
        torch.testing.assert_close(Mean()(form).float(), half.x.float().mean(0, keepdim=True), atol=4e-3, rtol=4e-3)
