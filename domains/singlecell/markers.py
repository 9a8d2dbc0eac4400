"""Genes that tell types apart, and how much a model looks at them: two pictures with the same rows and columns."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from polyfm.domains.singlecell.data import CellDataModule
from polyfm.domains.singlecell.sample import SPECIALS
from polyfm.shared.backbones.resampler import QueryResampler
from polyfm.shared.data.sampler import some_of
from polyfm.shared.evaluation.attention import watched
from polyfm.shared.evaluation.report.figures import figure, plain, svg
from polyfm.shared.evaluation.report.page import Panel

MOST, AT_ONCE = 5000, 64
FEWEST = 5
"""Cells of a type with a gene, from which on their attention to it is drawn."""


def find_markers(expression: Any, types: np.ndarray, each: int = 2) -> np.ndarray:
    """Genes that are higher in a type than in all other cells (t-test, as by scanpy's ``rank_genes_groups``).

    Args:
        expression: (n, G) sparse log1p of counts per 10,000.
        types: (n,) indices of types; those of fewer than two cells have none.
        each: So many of each type; one that is another's already is not repeated.

    Returns:
        (k,) genes, type by type.
    """
    import pandas as pd
    import scanpy
    from anndata import AnnData
    from scipy.sparse import csr_matrix

    kinds, counts = np.unique(types, return_counts=True)
    names = [str(kind) for kind in kinds[counts > 1]]
    cells = AnnData(csr_matrix(expression), obs=pd.DataFrame({"type": pd.Categorical(types.astype(str))}))
    cells.obs_names, cells.var_names = (list(map(str, range(size))) for size in cells.shape)
    scanpy.tl.rank_genes_groups(cells, "type", groups=names, method="t-test_overestim_var")
    ranked = cells.uns["rank_genes_groups"]["names"]
    found: list[int] = []
    for name in names:
        mine = [int(gene) for gene in ranked[name] if int(gene) not in found]
        found += mine[:each]
    return np.array(found)


@torch.inference_mode()
def attention_to_genes(
    task: Any, data: CellDataModule, cells: np.ndarray, types: np.ndarray, number: int
) -> np.ndarray:
    """(types, G) how much more than at a cell's average gene a model looks at a gene; NaN where few cells have it.

    The last layer that reads genes is watched: mean of its heads and of what asks (queries, or the cell's tokens).

    Args:
        task: Trained; its encoder of genes reads padded tokens.
        data: With its fitted transforms.
        cells: (n,) indices, rising.
        types: (n,) index of each cell's type.
        number: Types.
    """
    encoder = task.model.encoders["genes"].eval()
    backbone = encoder.backbone
    last: Any = backbone.blocks[-1]
    by_queries = isinstance(backbone, QueryResampler)
    attention = last.cross if by_queries else last.attention
    sums, counts = np.zeros((2, number, len(data.vocabulary or ())))
    for start in range(0, len(cells), AT_ONCE):
        batch = data.collate(data.table.read(cells[start : start + AT_ONCE]))["genes"].to(task.device)
        with watched(attention) as found:
            encoder(batch)
        weights, lengths = found[0].float(), batch.lengths
        there = torch.arange(weights.shape[2], device=weights.device) < lengths[:, None]
        asking = torch.ones_like(weights[..., 0], dtype=torch.bool) if by_queries else there
        looked = ((weights * asking[..., None]).sum(1) / asking.sum(1, keepdim=True))[there]
        genes = batch.ids >= SPECIALS
        cell = torch.arange(len(lengths), device=weights.device).repeat_interleave(lengths)[genes]
        share = looked[genes]
        mean = torch.zeros_like(lengths, dtype=share.dtype).scatter_reduce(0, cell, share, "mean", include_self=False)
        place = types[start : start + AT_ONCE][cell.cpu().numpy()], (batch.ids[genes] - SPECIALS).cpu().numpy()
        np.add.at(sums, place, (share / mean[cell]).cpu().numpy())
        np.add.at(counts, place, 1)
    return np.where(counts >= FEWEST, sums / np.maximum(counts, 1), np.nan)


def marker_panel(task: Any, data: CellDataModule, title: str = "Marker genes, and where the model looks") -> Panel:
    """Dot plot of marker genes of the training part, beside the model's attention to them.

    Args:
        task: Fine-tuned to classes of cells.
        data: Set up.
        title: Of the panel.
    """
    cells = data.part("train")
    cells = some_of(cells[~np.isnan(data.table.targets[cells, 0])], MOST, data.seed)
    types, classes = data.table.targets[cells, 0].astype(int), data.table.classes
    expression = data.expression(cells)
    shown = find_markers(expression, types)
    looked = attention_to_genes(task, data, cells, types, len(classes))[:, shown]
    few, there = expression[:, shown].toarray(), [types == kind for kind in range(len(classes))]
    share, height = (
        np.stack([values[mine].sum(0) / max(mine.sum(), 1) for mine in there]) for values in (few > 0, few)
    )
    drawn, (left, right) = figure(4.4 + 0.44 * len(shown), 1.6 + 0.3 * len(classes), columns=2)
    x, y = np.meshgrid(np.arange(len(shown)), np.arange(len(classes)))
    dots = left.scatter(x, y, s=3 + 90 * share, c=height, cmap="Reds", edgecolors="#57606a", linewidths=0.3)
    drawn.colorbar(dots, ax=left, shrink=0.7, label="mean log1p per 10,000")
    squares = right.imshow(np.log2(looked), cmap="RdBu_r", vmin=-2, vmax=2, aspect="auto")
    drawn.colorbar(squares, ax=right, shrink=0.7, label="attention, log2 over a cell's mean")
    symbols = [plain((data.vocabulary or data.table.vocabulary).symbols[gene]) for gene in shown]
    for ax, name in ((left, "expression"), (right, "attention of the last layer")):
        ax.grid(visible=False)
        ax.set_title(name, fontsize=10, loc="left")
        ax.set_xticks(range(len(shown)), symbols, rotation=90, fontsize=7)
        ax.set_yticks(range(len(classes)), [plain(kind) for kind in classes] if ax is left else [], fontsize=7)
    left.invert_yaxis()
    note = (
        f"Two genes of each type, by t-test over {len(cells):,} training cells. Size: share of cells with the gene. "
        "Attention is where a model reads, not why it answers; white squares: hardly a cell of the type has the gene."
    )
    return Panel(title=title, body=svg(drawn), note=note, wide=True)
