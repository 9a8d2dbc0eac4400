"""What expression models are trained on: values that were hidden, told by their token and by the whole cell.

scGPT (Cui et al., Nature Methods 2024), M the hidden genes of a cell, v their values:

    L_GEP  = 1/|M| Σ_{i∈M} (MLP(hᵢ) - vᵢ)²
    L_GEPC = 1/|M| Σ_{i∈M} (σ(W_q gᵢ + b)ᵀ W h_cell - vᵢ)²

hᵢ the output at gene i, gᵢ the gene's own vector, h_cell the pooled cell.

Proteins with scores s from the RNA of their cell, p the protein's own vector, in the same way:

    L_protein = 1/|P| Σ_{i∈P} (σ(W_q pᵢ + b)ᵀ W h_RNA - sᵢ)²

A cell from its description (after scMMGPT, Shi et al., arXiv 2503.09427), over its genes and as many that it lacks:

    L_cell = 1/|G| Σ_{i∈G} (MLP(h_text)ᵀ gᵢ + bᵢ - vᵢ)²,   vᵢ = 0 for those that it lacks
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyfm.domains.singlecell.sample import SPECIALS, Genes
from polyfm.shared.backbones.encoder import Encoder, MultimodalModel
from polyfm.shared.data import ragged
from polyfm.shared.data.batch import Batch
from polyfm.shared.errors import DataError, RecipeError, require
from polyfm.shared.objectives.gather import global_mean
from polyfm.shared.objectives.masked import value_output
from polyfm.shared.objectives.objective import Objective, ObjectiveOutput, View, Views
from polyfm.shared.tokens.masking import Corruption, Draw

HIDDEN = -10.0
"""What stands for a hidden value: bins and counts begin at 0, scores of proteins end at -9."""


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


def _require_values(encoders: Mapping[str, Encoder], modality: str, where: str) -> None:
    embedder = encoders[modality].embedder
    if not hasattr(embedder, "genes"):
        raise RecipeError(
            f"the embedder of {modality!r}, {type(embedder).__name__}, reads no values",
            where=where,
            remedy="Use GeneTokens, and data.values binned or continuous",
        )


class HiddenExpression(Objective):
    """Base: tell hidden values of genes.

    Args:
        modality: Of genes with values.
        rate: Share of them that are hidden.
    """

    def __init__(self, modality: str = "genes", rate: float = 0.4) -> None:
        super().__init__()
        require(0 < rate <= 1, f"{type(self).__name__}.rate", "a share above 0", rate)
        self.modality, self.view = modality, View(modality, HideValues(rate))

    def build(self, encoders: Mapping[str, Encoder]) -> None:
        """See `Objective.build`."""
        _require_values(encoders, self.modality, type(self).__name__)

    def needs(self) -> set[View]:
        """See `Objective.needs`."""
        return {self.view}


class MaskedExpression(HiddenExpression):
    """Tell hidden values from the outputs at their genes (scGPT's GEP).

    Args:
        modality: Of genes with values.
        rate: Share of them that are hidden.
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
        return value_output(told, batch[self.modality].values[hidden])


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
        self.head = CellHead(width, width)

    def forward(self, views: Views, batch: Batch) -> ObjectiveOutput:
        """See `Objective.forward`."""
        features = views[self.view]
        inputs = batch[self.modality]
        hidden: Tensor = features.selected  # type: ignore[assignment]
        owner = ragged.owners(inputs.cu_seqlens, len(inputs.ids))[hidden]
        embedder = views.model.encoders[self.modality].embedder
        told = self.head(features.pooled, owner, embedder.genes(inputs.ids[hidden]))  # type: ignore[union-attr, operator]
        return value_output(told, inputs.values[hidden])


class CellHead(nn.Module):
    """A value from a pooled cell and what is asked for: σ(W_q g + b)ᵀ W h, as in scGPT's GEPC.

    Args:
        width: D, of pooled cells.
        asked: Of the vectors of genes or proteins.
    """

    def __init__(self, width: int, asked: int) -> None:
        super().__init__()
        self.query, self.cell = nn.Linear(asked, width), nn.Linear(width, width, bias=False)

    def forward(self, pooled: Tensor, owner: Tensor, vectors: Tensor) -> Tensor:
        """(n,) values.

        Args:
            pooled: (B, D) cells.
            owner: (n,) int64 which cell.
            vectors: (n, asked) of what is asked for.
        """
        told: Tensor = (torch.sigmoid(self.query(vectors)) * self.cell(pooled)[owner]).sum(1)
        return told


class ToldProteins(Objective):
    """Tell each protein from the pooled RNA of its cell: what is told of cells whose proteins were not measured.

    Args:
        modality: Of proteins with scores.
        cell: Whose pooled vector tells.
    """

    def __init__(self, modality: str = "proteins", cell: str = "genes") -> None:
        super().__init__()
        self.modality, self.cell, self.view = modality, cell, View(cell)

    def build(self, encoders: Mapping[str, Encoder]) -> None:
        """See `Objective.build`."""
        _require_values(encoders, self.modality, "ToldProteins")
        self.head = CellHead(encoders[self.cell].width, encoders[self.modality].width)

    def needs(self) -> set[View]:
        """See `Objective.needs`."""
        return {self.view}

    def forward(self, views: Views, batch: Batch) -> ObjectiveOutput:
        """See `Objective.forward`. Cells without RNA, or without proteins, add nothing."""
        rna, proteins = views[self.view], batch[self.modality]
        proteins = proteins.select(torch.isin(proteins.rows, rna.rows).nonzero()[:, 0])
        owner = torch.searchsorted(rna.rows, proteins.rows)[ragged.owners(proteins.cu_seqlens, len(proteins.ids))]
        there = proteins.ids >= SPECIALS
        told = self.scores(views.model, rna.pooled, owner[there], proteins.ids[there])
        return value_output(told, proteins.values[there])

    def scores(self, model: MultimodalModel, pooled: Tensor, owner: Tensor, ids: Tensor) -> Tensor:
        """(n,) scores of proteins.

        Args:
            model: Whose embedder knows the proteins.
            pooled: (B, D) RNA of cells.
            owner: (n,) int64 which cell.
            ids: (n,) int64 which protein.
        """
        told: Tensor = self.head(pooled, owner, model.encoders[self.modality].embedder.genes(ids))  # type: ignore[union-attr, operator]
        return told


class BatchAdversary(Objective):
    """The cell's vector must not tell its batch: a classifier learns to, and its gradient is turned on the way back.

    Ganin et al., JMLR 17, 1-35, 2016; in scGPT as DAB (domain adaptation by reverse backpropagation).

    Args:
        batches: Most batches that are told apart; data with more are refused.
        weight: λ, by which the turned gradient is scaled.
        modality: Of cells.
    """

    def __init__(self, batches: int = 256, weight: float = 1.0, modality: str = "genes") -> None:
        super().__init__()
        require(batches >= 2, "BatchAdversary.batches", "at least 2", batches)
        require(weight > 0, "BatchAdversary.weight", "above 0", weight)
        self.batches, self.weight, self.modality, self.view = batches, weight, modality, View(modality)

    def build(self, encoders: Mapping[str, Encoder]) -> None:
        """See `Objective.build`."""
        width = encoders[self.modality].width
        self.head = nn.Sequential(
            nn.Linear(width, width), nn.LeakyReLU(), nn.LayerNorm(width), nn.Linear(width, self.batches)
        )

    def needs(self) -> set[View]:
        """See `Objective.needs`."""
        return {self.view}

    def forward(self, views: Views, batch: Batch) -> ObjectiveOutput:
        """See `Objective.forward`. Cells of a batch that training did not know add nothing."""
        features = views[self.view]
        if "batch" not in batch.targets:
            raise DataError(
                "no batches are known, which this objective is about",
                remedy="Name their column: --data.group COLUMN, and data.batches true in the recipe",
            )
        which = batch.targets["batch"][features.rows]
        known = ~which.isnan()
        if bool((which[known] >= self.batches).any()):
            raise RecipeError(
                f"the data have more batches than {self.batches}",
                where="BatchAdversary.batches",
                remedy="Raise it",
            )
        turned = _Turn.apply(features.pooled, self.weight)  # type: ignore[no-untyped-call]
        logits = self.head(turned[known]).float()
        losses = F.cross_entropy(logits, which[known].long(), reduction="none")
        right = (logits.argmax(-1) == which[known]).float().sum() / max(len(losses), 1)
        return ObjectiveOutput(loss=global_mean(losses), logs={"accuracy": right})


class _Turn(torch.autograd.Function):
    """The identity, whose gradient is turned around."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: float) -> Tensor:
        ctx.weight = weight
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return -ctx.weight * grad, None


class PseudoCell(Objective):
    """Tell how much of each gene a cell has from its description alone.

    Genes that a cell lacks are drawn from all that the embedder knows, one for each that it has: without them all
    generated cells would have all genes.

    Args:
        text: The modality of descriptions.
        genes: Of genes with values.
    """

    def __init__(self, text: str = "text", genes: str = "genes") -> None:
        super().__init__()
        self.text, self.genes = text, genes
        self.view = View(text)

    def build(self, encoders: Mapping[str, Encoder]) -> None:
        """See `Objective.build`."""
        _require_values(encoders, self.genes, "PseudoCell")
        embedder, width = encoders[self.genes].embedder, encoders[self.text].width
        size = int(embedder.extent)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, encoders[self.genes].width))
        self.typical = nn.Embedding(size, 1)
        nn.init.zeros_(self.typical.weight)

    def needs(self) -> set[View]:
        """See `Objective.needs`."""
        return {self.view}

    def forward(self, views: Views, batch: Batch) -> ObjectiveOutput:
        """See `Objective.forward`."""
        told = views[self.view]
        cells = batch[self.genes].select(torch.searchsorted(batch[self.genes].rows, told.rows))
        there = cells.ids >= SPECIALS
        owner = ragged.owners(cells.cu_seqlens, len(cells.ids))[there]
        ids, values = cells.ids[there], cells.values[there]
        keys = batch.keys[told.rows][owner]
        size = self.typical.num_embeddings
        drawn = SPECIALS + (views.draw.uniform("lacking", keys, ids) * (size - SPECIALS)).long()
        # A drawn gene that the cell has is no lack: it is left out.
        has = torch.isin(owner * size + drawn, owner * size + ids)
        owner, ids = torch.cat([owner, owner[~has]]), torch.cat([ids, drawn[~has]])
        wanted = torch.cat([values, values.new_zeros(len(ids) - len(values))])
        return value_output(self.expression(views.model, told.pooled, owner, ids), wanted)

    def expression(self, model: MultimodalModel, pooled: Tensor, owner: Tensor, ids: Tensor) -> Tensor:
        """(n,) values of genes.

        Args:
            model: Whose embedder knows the genes.
            pooled: (B, D) of descriptions.
            owner: (n,) int64 which description.
            ids: (n,) int64 which gene.
        """
        vectors = model.encoders[self.genes].embedder.genes(ids)  # type: ignore[union-attr, operator]
        told: Tensor = (self.mlp(pooled)[owner] * vectors).sum(1) + self.typical(ids)[:, 0]
        return told
