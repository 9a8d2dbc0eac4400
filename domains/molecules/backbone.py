"""Message passing over bonds."""

from __future__ import annotations

from torch import nn

from polyfm.domains.molecules.atom_graph import field_set
from polyfm.shared.backbones.graph import GIN


class AtomGIN(GIN):
    """GIN whose messages carry the bond's categories (Hu et al., arXiv 1905.12265; MolFM and MoMu use 5 layers of 300).

    Args:
        width: D.
        depth: Layers.
        fields: Feature set, as the data module's and the embedder's.
        dropout: After each layer.
        size: Width inside, as of the embedder's vectors, from which a linear layer goes to D at the end; 0 for D.
    """

    def __init__(self, width: int, depth: int = 5, fields: str = "full", dropout: float = 0.0, size: int = 0) -> None:
        super().__init__(size or width, depth, [field.size for field in field_set(fields).bonds], dropout=dropout)
        if size:
            self.norm = nn.Linear(size, width)
