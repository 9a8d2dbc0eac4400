"""Molecules to tokens: SMILES, 53 descriptors, atom graph."""

from __future__ import annotations

from collections.abc import Callable

from polyfm.domains.molecules.atom_graph import field_set
from polyfm.domains.molecules.descriptors import DESCRIPTORS
from polyfm.shared.tokens.graph import GraphTokens
from polyfm.shared.tokens.positions import AbsolutePositions, Positions
from polyfm.shared.tokens.table import ValueTokens
from polyfm.shared.tokens.text import TextTokens


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


class AtomTokens(GraphTokens):
    """One packed token per atom, from its categories; bonds go along for `AtomGIN`.

    Args:
        width: D.
        fields: Feature set, as the data module's: ``gin`` (atomic number, chirality; GraphMVP, MolFM) or ``full``.
        dropout: On the vectors.
        size: Of the vectors, as the backbone's; 0 for D.
    """

    def __init__(self, width: int, fields: str = "full", dropout: float = 0.0, size: int = 0) -> None:
        super().__init__(size or width, [field.size for field in field_set(fields).atoms], dropout)
