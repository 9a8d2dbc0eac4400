"""Molecules to tokens: SMILES, descriptors, fingerprint, atom graph, atoms in space."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyfm.domains.molecules.atom_graph import field_set
from polyfm.domains.molecules.conformers import TYPES, ConformerBatch
from polyfm.domains.molecules.descriptors import DESCRIPTORS, DESCRIPTORS_2D
from polyfm.domains.molecules.vectors import FINGERPRINT
from polyfm.shared.tokens.dropout import Dropout
from polyfm.shared.tokens.embedder import Embedder
from polyfm.shared.tokens.graph import GraphTokens
from polyfm.shared.tokens.positions import AbsolutePositions, Positions
from polyfm.shared.tokens.table import ValueTokens, VectorToken
from polyfm.shared.tokens.text import TextTokens
from polyfm.shared.tokens.tokens import Pairs, Tokens


class SmilesTokens(TextTokens):
    """SMILES tokens as text.

    Args:
        width: D.
        vocabulary: V, as of the data module's tokenizer.
        positions: Given the width; adds positions to the vectors.
        dropout: After the LayerNorm.
        packed: Tokens end to end instead of padded rows.
    """

    def __init__(
        self,
        width: int,
        vocabulary: int = 300,
        positions: Callable[[int], Positions] = AbsolutePositions,
        dropout: float = 0.1,
        packed: bool = False,
    ) -> None:
        super().__init__(width, vocabulary, positions=positions, dropout=dropout, packed=packed)


class PropertyVector(ValueTokens):
    """SPMM's 53 descriptors, one token each.

    Args:
        width: D.
        dropout: After the LayerNorm.
    """

    def __init__(self, width: int, dropout: float = 0.1) -> None:
        super().__init__(width, columns=len(DESCRIPTORS), dropout=dropout)


class DescriptorVector(VectorToken):
    """All of RDKit's 2-D descriptors as one token.

    Args:
        width: D.
        hidden: Inner width; 0 for D.
        dropout: On the row, and on what is inside.
    """

    def __init__(self, width: int, hidden: int = 0, dropout: float = 0.1) -> None:
        super().__init__(width, len(DESCRIPTORS_2D), hidden, dropout)


class FingerprintVector(VectorToken):
    """An ECFP4 fingerprint as one token.

    Args:
        width: D.
        hidden: Inner width; 0 for D.
        dropout: On the row, and on what is inside.
    """

    def __init__(self, width: int, hidden: int = 0, dropout: float = 0.1) -> None:
        super().__init__(width, FINGERPRINT, hidden, dropout)


class FeatureVector(VectorToken):
    """An ECFP4 fingerprint and all of RDKit's 2-D descriptors as one token.

    Args:
        width: D.
        hidden: Inner width; 0 for D.
        dropout: On the row, and on what is inside.
    """

    def __init__(self, width: int, hidden: int = 0, dropout: float = 0.1) -> None:
        super().__init__(width, FINGERPRINT + len(DESCRIPTORS_2D), hidden, dropout)


class WordVector(VectorToken):
    """The words of a description as one token.

    Args:
        width: D.
        vocabulary: V, as the data module's ``text_vocabulary``.
        hidden: Inner width; 0 for D.
        dropout: On the row, and on what is inside.
    """

    def __init__(self, width: int, vocabulary: int = 4000, hidden: int = 0, dropout: float = 0.1) -> None:
        super().__init__(width, vocabulary, hidden, dropout)


class AtomTokens(GraphTokens):
    """One packed token per atom, from its categories; bonds go along for `AtomGIN`.

    Args:
        width: D.
        fields: Feature set, as the data module's: ``gin`` (atomic number, chirality; GraphMVP, MolFM) or ``full``.
        dropout: On the vectors.
        size: Of the vectors, as the backbone's; 0 for D.
    """

    def __init__(self, width: int, fields: str = "full", dropout: float = 0.0, size: int = 0) -> None:
        super().__init__(size or width, [field.size for field in field_set(fields, "AtomTokens.fields").atoms], dropout)


class ConformerTokens(Embedder):
    """One padded token per atom, from its element; [CLS] first, at the centroid. Distances go along as pairs (Uni-Mol).

    A vector says what an atom is and a pair how far two stand apart, so that nothing changes when the molecule is
    turned or moved. Positions are the coordinates (Å), for heads that move atoms.

    Args:
        width: D.
        heads: H, as the backbone's: numbers that are told of each pair.
        kernels: K, Gaussians that a distance is seen through.
        dropout: After the LayerNorm.
    """

    def __init__(self, width: int, heads: int, kernels: int = 128, dropout: float = 0.1) -> None:
        super().__init__()
        self.heads = heads
        self.table = nn.Embedding(TYPES, width)
        nn.init.normal_(self.table.weight, std=0.02)
        self.distances = DistanceKernels(heads, kernels)
        self.norm = nn.LayerNorm(width)
        self.dropout = Dropout(dropout)

    def forward(self, batch: ConformerBatch) -> Tokens:
        """See `Embedder.forward`."""
        ids, places, mask = batch.framed()
        x = self.dropout(self.norm(self.table(ids)))
        pairs = self.distances(ids, distances(places))
        return Tokens(x=x, positions=places, mask=mask, prefix=1, pairs=Pairs(first=pairs, last=pairs, tokens=x))


class DistanceKernels(nn.Module):
    """Distances through Gaussians, after an affine map of its own for each ordered pair of elements (Uni-Mol, 2.1).

    p_ij = W₂ gelu(W₁ g(a_{t_i t_j} d_ij + b_{t_i t_j})), g_k the density of a normal distribution, (μ_k, σ_k) learned.

    Args:
        heads: H.
        kernels: K.
    """

    def __init__(self, heads: int, kernels: int) -> None:
        super().__init__()
        self.scale = nn.Embedding(TYPES * TYPES, 1)
        self.shift = nn.Embedding(TYPES * TYPES, 1)
        nn.init.ones_(self.scale.weight)
        nn.init.zeros_(self.shift.weight)
        self.mean = nn.Parameter(torch.empty(kernels).uniform_(0, 3))
        self.spread = nn.Parameter(torch.empty(kernels).uniform_(0, 3))
        self.inner = nn.Linear(kernels, kernels)
        self.outer = nn.Linear(kernels, heads)

    def forward(self, ids: Tensor, distance: Tensor) -> Tensor:
        """(B, N, N, H).

        Args:
            ids: (B, N) types.
            distance: (B, N, N) Å.
        """
        kind = ids[:, :, None] * TYPES + ids[:, None]
        seen = self.scale(kind) * distance[..., None] + self.shift(kind)
        spread = self.spread.abs() + 1e-5
        kernels = torch.exp(-0.5 * ((seen - self.mean) / spread).square()) / (math.sqrt(2 * math.pi) * spread)
        pairs: Tensor = self.outer(F.gelu(self.inner(kernels)))
        return pairs


def distances(places: Tensor) -> Tensor:
    """(B, N, N) Å between points of a row.

    Args:
        places: (B, N, 3) Å.
    """
    return (places[:, :, None] - places[:, None]).square().sum(-1).sqrt()
