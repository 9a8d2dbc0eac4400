from __future__ import annotations

import torch
from torch.nn import functional as F

from polyfm.shared.data.batch import TokenIds
from polyfm.shared.tokens.entities import EntityTokens


def test_a_token_is_the_unit_vector_of_its_entity_widened() -> None:
    torch.manual_seed(0)
    embedder = EntityTokens(6, entities=5, size=3)
    with torch.no_grad():
        embedder.entities.weight *= torch.arange(1, 6)[:, None]  # length does not matter
    batch = TokenIds(
        rows=torch.tensor([0, 2]), ids=torch.tensor([4, 1, 4]), cu_seqlens=torch.tensor([0, 2, 3], dtype=torch.int32)
    )
    tokens = embedder(batch)
    unit = embedder.entities.weight / embedder.entities.weight.norm(dim=1, keepdim=True)
    expected = F.linear(unit[[4, 1, 4]], embedder.linear.weight, embedder.linear.bias)
    torch.testing.assert_close(tokens.x, expected)
    assert tokens.packed
    assert len(tokens) == 2
    torch.testing.assert_close(embedder.vectors(torch.arange(5)).norm(dim=1), torch.ones(5))


def test_no_entity_at_all_is_no_token_yet_part_of_the_graph() -> None:
    embedder = EntityTokens(6, entities=5, size=3)
    none = torch.zeros(0, dtype=torch.int64)
    tokens = embedder(TokenIds(rows=none, ids=none, cu_seqlens=torch.zeros(1, dtype=torch.int32)))
    assert tokens.x.shape == (0, 6)
    tokens.x.sum().backward()
    assert (embedder.entities.weight.grad == 0).all()
