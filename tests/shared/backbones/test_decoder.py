"""The cache changes the cost of a step, not its result."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch

from polyfm.shared.backbones.block import Block, Llama, PostNorm, PreNorm
from polyfm.shared.backbones.cache import KeyValueCache
from polyfm.shared.backbones.decoder import CausalDecoder
from polyfm.shared.backbones.transformer import Transformer
from polyfm.shared.data.batch import TokenIds
from polyfm.shared.tokens.positions import RelativePositions
from polyfm.shared.tokens.text import TextTokens


@pytest.mark.parametrize(
    "block",
    [
        partial(Llama, heads=4, kv_heads=2),
        partial(PreNorm, heads=2),
        partial(PostNorm, heads=2, positions=partial(RelativePositions, heads=2, buckets=8, farthest=6)),
    ],
    ids=["llama", "pre", "relative"],
)
@pytest.mark.parametrize("pieces", [[1] * 9, [4, 5], [2, 1, 6]])
def test_piece_by_piece_is_all_at_once(
    ids: Callable[..., TokenIds], block: Callable[[int], Block], pieces: list[int]
) -> None:
    """Sequences of unequal length fed in unequal pieces: holes in the cache are never seen."""
    model = CausalDecoder(
        16, partial(TextTokens, vocabulary=50, dropout=0.0), partial(Transformer, depth=2, block=block)
    )
    model.eval()
    lengths = [9, 5, 1, 7]
    batch = ids(lengths)
    expected = model(batch).pack().x.split(lengths)
    sequences = batch.ids.split(lengths)
    cache, start, found = KeyValueCache(), 0, [[] for _ in lengths]
    for piece in pieces:
        parts = [sequence[start : start + piece] for sequence in sequences]
        cu = torch.tensor([0, *(len(part) for part in parts)]).cumsum(0).int()
        new = TokenIds(rows=batch.rows, ids=torch.cat(parts), cu_seqlens=cu)
        tokens = model(new, cache)
        for row, part in enumerate(parts):
            found[row].append(tokens.x[row, : len(part)])
        start += piece
    for row, reference in enumerate(expected):
        torch.testing.assert_close(torch.cat(found[row]), reference, atol=1e-5, rtol=1e-5)
    assert cache.seen(batch.rows).tolist() == lengths


def test_tied_tables_are_one() -> None:
    parts = (partial(TextTokens, vocabulary=50), partial(Transformer, depth=1, block=partial(PreNorm, heads=2)))
    tied, free = CausalDecoder(16, *parts), CausalDecoder(16, *parts, tied=False)
    assert tied.head.weight is tied.embedder.table.weight
    assert free.head.weight is not free.embedder.table.weight
