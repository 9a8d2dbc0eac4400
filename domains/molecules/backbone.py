"""Message passing over bonds."""

from __future__ import annotations

from polyfm.domains.molecules.atom_graph import field_set
from polyfm.shared.backbones.graph import GIN


class AtomGIN(GIN):
    """GIN whose messages carry the bond's categories (Hu et al., arXiv 1905.12265; MolFM and MoMu use 5 layers of 300).

    Args:
        width: D.
        depth: Layers.
        fields: Feature set, as the data module's and the embedder's.
        dropout: After each layer.
    """

    def __init__(self, width: int, depth: int = 5, fields: str = "full", dropout: float = 0.0) -> None:
        super().__init__(width, depth, [field.size for field in field_set(fields).bonds], dropout=dropout)
