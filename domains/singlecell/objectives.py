"""What expression models are trained on: values that were hidden, told by their token and by the whole cell.

scGPT (Cui et al., Nature Methods 2024), M the hidden genes of a cell, v their values:

    L_GEP  = 1/|M| Σ_{i∈M} (MLP(hᵢ) - vᵢ)²
    L_GEPC = 1/|M| Σ_{i∈M} (σ(W_q gᵢ + b)ᵀ W h_cell - vᵢ)²

hᵢ the output at gene i, gᵢ the gene's own vector, h_cell the pooled cell.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from polyfm.domains.singlecell.sample import SPECIALS, Genes
from polyfm.shared.backbones.encoder import Encoder
from polyfm.shared.data import ragged
from polyfm.shared.data.batch import Batch
from polyfm.shared.errors import RecipeError, require
from polyfm.shared.objectives.masked import value_output
from polyfm.shared.objectives.objective import Objective, ObjectiveOutput, View, Views, inputs_of
from polyfm.shared.tokens.masking import Corruption, Draw

HIDDEN = -1.0
"""What stands for a hidden value; bins and counts begin at 0."""


@dataclasses.dataclass(frozen=True)
class HideValues(Corruption):
    """Values of a share of a cell's genes are hidden; the genes stay."""

    rate: float = 0.4
    """Share of genes."""

    def __call__(self, batch: Genes, keys: Tensor, draw: Draw) -> tuple[Genes, Tensor]:
        """See `Corruption.__call__`. A gene is drawn by its id, wherever it stands; at least one of each cell."""
        owner = ragged.owners(batch.cu_seqlens, len(batch.ids))
        genes = batch.ids >= SPECIALS
        chance = draw.uniform("value", keys[owner], batch.ids).masked_fill(~genes, 2.0)
        lowest = chance.new_full((len(keys),), 2.0).scatter_reduce(0, owner, chance, "amin")
        selected = genes & ((chance < self.rate) | (chance == lowest[owner]))
        return batch.replace(values=batch.values.masked_fill(selected, HIDDEN)), selected


class HiddenExpression(Objective):
    """Base: tell hidden values of genes.

    Args:
        modality: Of genes with values.
        rate: Share of genes that are hidden.
    """

    def __init__(self, modality: str = "genes", rate: float = 0.4) -> None:
        super().__init__()
        require(0 < rate < 1, f"objectives.{type(self).__name__}.rate", "a share between 0 and 1", rate)
        self.modality, self.view = modality, View(modality, HideValues(rate))

    def build(self, encoders: Mapping[str, Encoder]) -> None:
        """See `Objective.build`."""
        encoder = encoders[self.modality]
        if not hasattr(encoder.embedder, "genes"):
            raise RecipeError(
                f"the embedder of {self.modality!r}, {type(encoder.embedder).__name__}, has no values to hide",
                where=f"objectives.{type(self).__name__}",
                remedy="Use GeneTokens, and data.values binned or continuous",
            )

    def needs(self) -> set[View]:
        """See `Objective.needs`."""
        return {self.view}


class MaskedExpression(HiddenExpression):
    """Tell hidden values from the outputs at their genes (scGPT's GEP).

    Args:
        modality: Of genes with values.
        rate: Share of genes that are hidden.
    """

    def build(self, encoders: Mapping[str, Encoder]) -> None:
        """See `Objective.build`."""
        super().build(encoders)
        width = encoders[self.modality].width
        layers = [nn.Linear(width, width), nn.LeakyReLU(), nn.Linear(width, width), nn.LeakyReLU(), nn.Linear(width, 1)]
        self.head = nn.Sequential(*layers)

    def forward(self, views: Views, batch: Batch) -> ObjectiveOutput:
        """See `Objective.forward`."""
        features = views[self.view]
        hidden: Tensor = features.selected  # type: ignore[assignment]
        told = self.head(features.tokens.items()[hidden])[:, 0]
        return value_output(told, inputs_of(features, batch[self.modality]).values[hidden])


class CellExpression(HiddenExpression):
    """Tell hidden values from the pooled cell and the gene alone (scGPT's GEPC): the cell's vector must know its genes.

    Args:
        modality: Of genes with values.
        rate: Share of genes that are hidden; as of `MaskedExpression`, so that both see the same.
    """

    def build(self, encoders: Mapping[str, Encoder]) -> None:
        """See `Objective.build`."""
        super().build(encoders)
        width = encoders[self.modality].width
        self.query, self.cell = nn.Linear(width, width), nn.Linear(width, width, bias=False)

    def forward(self, views: Views, batch: Batch) -> ObjectiveOutput:
        """See `Objective.forward`."""
        features = views[self.view]
        inputs = inputs_of(features, batch[self.modality])
        hidden: Tensor = features.selected  # type: ignore[assignment]
        owner = ragged.owners(inputs.cu_seqlens, len(inputs.ids))[hidden]
        embedder = views.model.encoders[self.modality].embedder
        queries = torch.sigmoid(self.query(embedder.genes(inputs.ids[hidden])))  # type: ignore[union-attr, operator]
        told = (queries * self.cell(features.pooled)[owner]).sum(1)
        return value_output(told, inputs.values[hidden])
