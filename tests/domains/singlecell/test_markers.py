"""Markers are those that were planted; attention to genes is that of the layer, gene by gene."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_array

from polyfm.domains.singlecell.data import CellDataModule
from polyfm.domains.singlecell.embedder import GeneTokens
from polyfm.domains.singlecell.markers import attention_to_genes, find_markers, marker_panel
from polyfm.domains.singlecell.sample import SPECIALS
from polyfm.domains.singlecell.synthetic import TYPES, write_synthetic
from polyfm.shared.backbones.block import PostNorm
from polyfm.shared.backbones.encoder import Encoder
from polyfm.shared.backbones.resampler import QueryResampler
from polyfm.shared.backbones.transformer import Transformer
from polyfm.shared.evaluation.attention import watched
from polyfm.shared.training.finetune import FinetuneTask

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def block(width: int) -> PostNorm:
    return PostNorm(width, heads=2, hidden=16)


def reader(width: int) -> Transformer:
    return Transformer(width, depth=1, block=lambda d: PostNorm(d, heads=2, hidden=16, cross=True))


BACKBONES = {
    "transformer": lambda width: Transformer(width, depth=2, block=block),
    "queries": lambda width: QueryResampler(width, lambda d: Transformer(d, depth=1, block=block), reader, queries=3),
}


@pytest.fixture
def data(tmp_path: Path) -> CellDataModule:
    made = CellDataModule(str(write_synthetic(tmp_path, n=90)), label=["cell_type"], max_genes=30, split="random")
    made.setup()
    return made


def task_of(data: CellDataModule, backbone: str) -> FinetuneTask:
    vocabulary = len(data.vocabulary or ()) + SPECIALS
    return FinetuneTask({"genes": Encoder(8, lambda width: GeneTokens(width, vocabulary), BACKBONES[backbone])})


def test_the_genes_of_a_type_are_found() -> None:
    rng = np.random.default_rng(0)
    types = np.repeat([0, 1, 2], 20)
    expression = rng.random((60, 8))
    for kind, genes in enumerate(([5, 1], [3, 7], [0, 2])):
        expression[np.ix_(types == kind, genes)] += [3.0, 2.0]
    assert find_markers(csr_array(expression), types).tolist() == [5, 1, 3, 7, 0, 2]
    assert len(find_markers(csr_array(expression), np.where(types == 2, 1, types), each=1)) == 2


@pytest.mark.parametrize("backbone", BACKBONES)
def test_attention_is_that_of_the_last_layer_over_a_cell_s_mean_gene(data: CellDataModule, backbone: str) -> None:
    data.max_genes = 145  # some cells have fewer genes
    task, cells = task_of(data, backbone), np.arange(40)
    found = attention_to_genes(task, data, cells, np.zeros(40, int), 2)
    assert np.isnan(found[1]).all()
    encoder = task.model.encoders["genes"]
    last = encoder.backbone.blocks[-1]
    ratios: dict[int, list[float]] = {}
    for cell in cells:  # each by itself: nothing is padded
        batch = data.collate(data.table.read([cell]))["genes"]
        with watched(last.cross or last.attention) as weights:
            encoder(batch)
        genes = batch.ids >= SPECIALS
        share = weights[0][0].mean(0)[genes]
        for id, ratio in zip(batch.ids[genes].tolist(), (share / share.mean()).tolist(), strict=True):
            ratios.setdefault(id - SPECIALS, []).append(ratio)
    assert len({int(size) for size in np.diff(data.table.read(cells).indptr)}) > 5
    wanted = np.array([np.mean(ratios.get(gene, [np.nan])) for gene in range(found.shape[1])])
    enough = np.array([len(ratios.get(gene, [])) >= 5 for gene in range(found.shape[1])])
    assert enough.sum() > 50
    np.testing.assert_allclose(found[0][enough], wanted[enough], rtol=1e-4)
    assert np.isnan(found[0][~enough]).all()


def test_the_panel_names_types_and_genes(data: CellDataModule) -> None:
    panel = marker_panel(task_of(data, "queries"), data)
    assert all(kind in panel.body for kind in TYPES)
    assert sum(gene in panel.body for genes, _ in TYPES.values() for gene in genes) >= 5
