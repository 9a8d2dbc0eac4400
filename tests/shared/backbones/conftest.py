"""Small inputs that the tests of backbones share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch

from polyfm.shared.data import ragged
from polyfm.shared.data.batch import TokenIds

LENGTHS = (5, 1, 9, 3, 7, 2, 2, 9, 4)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def ids() -> Callable[..., TokenIds]:
    """Makes sequences of random ids in [1, vocabulary)."""

    def make(lengths: Sequence[int] = LENGTHS, vocabulary: int = 50) -> TokenIds:
        return TokenIds(
            rows=torch.arange(len(lengths)),
            ids=torch.randint(1, vocabulary, (sum(lengths),)),
            cu_seqlens=ragged.boundaries(torch.tensor(lengths, dtype=torch.int64)),
        )

    return make
