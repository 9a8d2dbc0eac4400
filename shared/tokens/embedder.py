"""`Embedder`: from a modality's batch to tokens. The first arrow of the shared part of the flow."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from polyfm.shared.tokens.tokens import Tokens


class Embedder(nn.Module):
    """Base. Subclasses take the width first, so that an encoder can give it to them."""

    extent: int = 0
    """Tokens that it tells apart, or columns that it reads; 0 if any number will do."""
    is_table: bool = False
    """Whether it reads columns, of which there must be exactly so many."""

    def forward(self, batch: Any) -> Tokens:
        """Embed.

        Args:
            batch: The modality's rows; zero rows are normal.
        """
        raise TypeError(f"{type(self).__name__} has no forward")

    def continued(self, batch: Any, seen: Tensor) -> Tokens:
        """Embed tokens that follow earlier ones (generation); padded.

        Args:
            batch: The new tokens of each sequence.
            seen: (B,) int64 tokens before them.
        """
        raise TypeError(f"{type(self).__name__} cannot generate")
