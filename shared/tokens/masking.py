"""Corruptions: what a view hides from the encoder. Drawn from (seed, epoch, sample, view), never from a global state.

A draw is a hash (SplitMix64) of integers, so a sample is corrupted alike in whatever batch, process or resumed run it
stands in, on any device, and whole batches are drawn at once.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from polyfm.shared.data import ragged
from polyfm.shared.data.batch import ModalityBatch, TokenIds, Values
from polyfm.shared.tokens.embedder import Embedder
from polyfm.shared.tokens.tokens import Tokens


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser on int64 (Steele et al., OOPSLA 2014); shifts are made logical by masking."""
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * -4658895280553007687
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * -7723592293110705685
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


@dataclasses.dataclass(frozen=True)
class Draw:
    """Random numbers for one pass over the data.

    Args:
        seed: Of the run.
        epoch: Which pass; validation uses a fixed one, so that its losses can be compared.
    """

    seed: int
    epoch: int

    def uniform(self, salt: str, *keys: Tensor) -> Tensor:
        """Uniform numbers in [0, 1), a pure function of everything given.

        Args:
            salt: Tells draws of different purpose apart.
            keys: Integer tensors of one shape (sample key, position …).
        """
        state = torch.full_like(keys[0], zlib.crc32(f"{self.seed}/{self.epoch}/{salt}".encode()), dtype=torch.int64)
        for key in keys:
            state = _mix(state * 6364136223846793005 + key.long() + 1442695040888963407)
        return ((state >> 11) & 0x1FFFFFFFFFFFFF).double().mul(2.0**-53).float().clamp(max=1 - 2.0**-24)


class Corruption:
    """Base of corruptions: frozen, hashable, so that views can ask for them."""

    def __call__(self, batch: Any, keys: Tensor, draw: Draw) -> tuple[ModalityBatch, Tensor]:
        """Corrupt.

        Args:
            batch: The modality's rows.
            keys: (B_m,) int64 key of each row's sample.
            draw: Random numbers.

        Returns:
            The corrupted rows, and (M,) bool over the input's items: which were chosen.
        """
        raise TypeError(f"{type(self).__name__} has no __call__")


@dataclasses.dataclass(frozen=True)
class MaskTokens(Corruption):
    """BERT's masking (Devlin et al., arXiv 1810.04805, 3.1): of the chosen, 80 % [MASK], 10 % random, 10 % kept."""

    mask_id: int
    """Id of [MASK]."""
    vocabulary: int
    """V; random replacements are drawn from ids at or above ``specials``."""
    specials: int
    """Ids below are special tokens: never chosen, never drawn."""
    rate: float = 0.15
    """Share of tokens chosen."""
    masked: float = 0.8
    """Of the chosen, replaced by [MASK]."""
    randomised: float = 0.1
    """Of the chosen, replaced by a random token; the rest is kept."""

    def __call__(self, batch: TokenIds, keys: Tensor, draw: Draw) -> tuple[TokenIds, Tensor]:
        """See `Corruption.__call__`. A sequence with maskable tokens always has at least one chosen."""
        owner = ragged.owners(batch.cu_seqlens, len(batch.ids))
        place = ragged.places(batch.cu_seqlens, len(batch.ids))
        key = keys[owner]
        maskable = batch.ids >= self.specials
        chance = draw.uniform("choose", key, place).masked_fill(~maskable, 2.0)
        lowest = chance.new_full((len(keys),), 2.0).scatter_reduce(0, owner, chance, "amin")
        selected = maskable & ((chance < self.rate) | (chance == lowest[owner]))
        how = draw.uniform("how", key, place)
        other = self.specials + (draw.uniform("other", key, place) * (self.vocabulary - self.specials)).long()
        ids = torch.where(selected & (how < self.masked), self.mask_id, batch.ids)
        swap = selected & (how >= self.masked) & (how < self.masked + self.randomised)
        return batch.replace(ids=torch.where(swap, other, ids)), selected


@dataclasses.dataclass(frozen=True)
class MaskValues(Corruption):
    """Each known value is hidden with a probability (SPMM: Bernoulli(0.5) per property)."""

    rate: float = 0.5
    """Share of values hidden."""

    def __call__(self, batch: Values, keys: Tensor, draw: Draw) -> tuple[Values, Tensor]:
        """See `Corruption.__call__`."""
        column = torch.arange(batch.values.shape[1], device=keys.device).expand_as(batch.values)
        chance = draw.uniform("hide", keys[:, None].expand_as(column), column)
        selected = batch.known & (chance < self.rate)
        return batch.replace(values=batch.values * ~selected, known=batch.known & ~selected), selected.flatten()


class TokenDropout(Embedder):
    """Drops a share of the tokens of each sequence while training (FLIP, Li et al., arXiv 2212.00794; patch dropout).

    Like `nn.Dropout` it draws from torch's global generator. Not for objectives that ask for every item's vector.

    Args:
        width: D.
        embedder: Whose tokens are dropped.
        rate: Share of the items dropped, exactly: ⌊rate · n⌋ of n, so that the work per step is known.
    """

    def __init__(self, width: int, embedder: Callable[[int], Embedder], rate: float = 0.5) -> None:
        super().__init__()
        self.embedder = embedder(width)
        self.rate = rate

    def forward(self, batch: Any) -> Tokens:
        """See `Embedder.forward`. The prefix ([CLS]) always stays."""
        tokens: Tokens = self.embedder(batch)
        if not self.training or self.rate == 0:
            return tokens
        if tokens.edges is not None or tokens.pairs is not None:
            raise ValueError("tokens of a graph or with pairs cannot be dropped: these would hang in the air")
        packed, prefix = tokens.pack(), tokens.prefix
        total = len(packed.x)
        owner = ragged.owners(packed.boundaries, total)
        place = ragged.places(packed.boundaries, total)
        lengths = packed.lengths.long()
        # 1e-9: 0.3 * 10 must be 3, whichever side of it the product falls.
        kept = lengths - ((lengths - prefix).clamp(min=0).double() * self.rate + 1e-9).floor().long()
        # A random order within each sequence, the prefix first; the front of it stays.
        chance = torch.rand(total, device=owner.device).masked_fill(place < prefix, -1.0)
        order = torch.argsort(chance)
        order = order[torch.argsort(owner[order], stable=True)]
        keep = torch.empty_like(place, dtype=torch.bool)
        keep[order] = place < kept[owner]
        dropped = packed.replace(
            x=packed.x[keep],
            positions=packed.positions[keep],
            cu_seqlens=ragged.boundaries(kept),
            modality=None if packed.modality is None else packed.modality[keep],
            longest=None,
        )
        return dropped if tokens.packed else dropped.pad()
