"""`Tokens`, the narrow waist, and `Features`, what a backbone makes of them."""

from __future__ import annotations

import torch
from torch import Tensor

from polyfm.shared.data import ragged
from polyfm.shared.data.carrier import Carrier


class Edges(Carrier):
    """Who is a neighbour of whom, for backbones that pass messages."""

    index: Tensor
    """(2, E) int64 from, to: which of the packed tokens. Padding does not renumber them."""
    features: Tensor
    """(E, F) int64: categorical features of each edge."""


class Pairs(Carrier):
    """What is known of each two tokens of a sequence, for backbones that carry it through their layers (Uni-Mol).

    Padded, (B, N, N, ...), whichever form the tokens have; what stands at padding means nothing.
    """

    first: Tensor
    """(B, N, N, H) as the embedder made it."""
    last: Tensor
    """(B, N, N, H) after the backbone's layers; the same before them."""
    tokens: Tensor
    """(B, N, D) vectors of the tokens, before the backbone's final norm: some objectives are about their length."""

    def cut(self, size: int) -> Pairs:
        """Of shorter rows.

        Args:
            size: N; what stands behind is padding in all rows.
        """
        return Pairs(first=self.first[:, :size, :size], last=self.last[:, :size, :size], tokens=self.tokens[:, :size])


class Tokens(Carrier):
    """Token vectors of B sequences, padded or packed.

    Padded: ``x (B, N, D)`` with ``mask (B, N)``. Packed: ``x (T, D)`` with ``cu_seqlens (B+1,)``, T = all real tokens
    end to end. A backbone takes both and gives the same numbers (1e-5).
    """

    x: Tensor
    """(B, N, D) or (T, D)."""
    positions: Tensor
    """(B, N, K) or (T, K) float32 or int64: where in K dimensions (1 text, 2 page, 3 volume), in the domain's unit."""
    mask: Tensor | None = None
    """(B, N) bool, True = real; None when packed."""
    cu_seqlens: Tensor | None = None
    """(B+1,) int32; None when padded."""
    modality: Tensor | None = None
    """(B, N) or (T,) int64: which modality a token comes from; None when there is one."""
    prefix: int = 0
    """Leading tokens of each sequence that stand for no item of the input (a [CLS] that the embedder adds)."""
    edges: Edges | None = None
    """Neighbours; None where tokens are no graph."""
    pairs: Pairs | None = None
    """Of each two tokens of a sequence; None for embedders that tell nothing of them."""
    longest: int | None = None
    """No sequence is longer. Optional: where given, padding need not read the lengths (export, no stall of a GPU)."""

    @property
    def packed(self) -> bool:
        """Whether the tokens lie end to end."""
        return self.cu_seqlens is not None

    def __len__(self) -> int:
        """B, the number of sequences."""
        return len(self.x) if self.cu_seqlens is None else len(self.cu_seqlens) - 1

    @property
    def lengths(self) -> Tensor:
        """(B,) real tokens in each sequence."""
        return self.real.sum(-1) if self.cu_seqlens is None else self.cu_seqlens.diff()

    def pack(self) -> Tokens:
        """The same tokens end to end."""
        if self.cu_seqlens is not None:
            return self
        real = self.real.flatten().nonzero()[:, 0]
        return self.replace(
            x=self.x.flatten(0, 1).index_select(0, real),
            positions=self.positions.flatten(0, 1)[real],
            mask=None,
            cu_seqlens=ragged.boundaries(self.lengths),
            modality=None if self.modality is None else self.modality.flatten()[real],
        )

    def pad(self) -> Tokens:
        """The same tokens in rows of the longest length, real tokens first, zeros behind."""
        if self.cu_seqlens is None:
            return self
        lengths, total = self.lengths, len(self.x)
        # One column even without rows, so that there is always a first token to pool.
        longest = max(self.longest if self.longest is not None else int(lengths.max()) if len(lengths) else 1, 1)
        slots = ragged.owners(self.cu_seqlens, total) * longest + ragged.places(self.cu_seqlens, total)

        def spread(flat: Tensor) -> Tensor:
            padded = flat.new_zeros(len(lengths) * longest, *flat.shape[1:]).index_copy(0, slots, flat)
            return padded.view(len(lengths), longest, *flat.shape[1:])

        return self.replace(
            x=spread(self.x),
            positions=spread(self.positions),
            mask=torch.arange(longest, device=lengths.device) < lengths[:, None],
            cu_seqlens=None,
            modality=None if self.modality is None else spread(self.modality),
            pairs=None if self.pairs is None else self.pairs.cut(longest),
        )

    def items(self) -> Tensor:
        """(M, D): the tokens that stand for items of the input, end to end in the input's order (prefix left out)."""
        tokens = self.pack()
        if not self.prefix:
            return tokens.x
        return tokens.x[ragged.places(tokens.boundaries, len(tokens.x)) >= self.prefix]

    def select(self, keep: Tensor) -> Tokens:
        """Some of the sequences, in the form that they have.

        Args:
            keep: (n,) int64 indices of sequences; repeats are allowed.
        """
        edges = self.edges
        if edges is not None:
            chosen, index = ragged.take_edges(self.pack().boundaries, edges.index, keep)
            edges = Edges(index=index, features=edges.features[chosen])
        index, cu_seqlens = (keep, None) if self.cu_seqlens is None else ragged.take(self.cu_seqlens, keep)
        return self.replace(
            x=self.x.index_select(0, index),
            positions=self.positions[index],
            mask=None if self.mask is None else self.mask[index],
            cu_seqlens=cu_seqlens,
            modality=None if self.modality is None else self.modality[index],
            edges=edges,
            pairs=None if self.pairs is None else self.pairs.map(lambda each: each.index_select(0, keep)),
        )

    @property
    def boundaries(self) -> Tensor:
        """(B+1,) int32 ``cu_seqlens`` of packed tokens; padded ones have none and raise."""
        if self.cu_seqlens is None:
            raise ValueError("padded tokens have no boundaries: call pack() first")
        return self.cu_seqlens

    @property
    def real(self) -> Tensor:
        """(B, N) bool ``mask`` of padded tokens; packed ones have none and raise."""
        if self.mask is None:
            raise ValueError("these tokens have no mask: call pad() first")
        return self.mask


class Features(Carrier):
    """What an encoder returns for the B_m rows of one modality."""

    tokens: Tokens
    """Contextual token vectors."""
    pooled: Tensor
    """(B_m, D)."""
    projected: Tensor | None
    """(B_m, d) of unit length, for contrastive losses; None if the encoder has no projection."""
    rows: Tensor
    """(B_m,) int64: which items of the batch these rows belong to."""
    selected: Tensor | None = None
    """(M,) bool, aligned with ``tokens.items()``: inputs that the view's corruption chose; None in a clean view."""
