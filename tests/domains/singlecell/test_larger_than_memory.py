"""From a file to tokens through the loader: every cell once, the same with any number of workers, resumed exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from torchdata.stateful_dataloader import StatefulDataLoader

from polyfm.domains.singlecell.binning import bin_counts
from polyfm.domains.singlecell.blocks import cell_keys, take_cells
from polyfm.domains.singlecell.store import CellStore, Rows
from polyfm.shared.data.sampler import Key
from polyfm.shared.data.streaming import BlockOrder, PooledReads

N, G = 230, 50


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import h5py

    rng = np.random.default_rng(0)
    matrix = csr_matrix(rng.poisson(2.0, (N, G)) * (rng.random((N, G)) < 0.4), dtype=np.float32)
    file = tmp_path_factory.mktemp("cells") / "cells.h5ad"
    with h5py.File(file, "w") as opened:
        group = opened.create_group("X")
        group.attrs.update({"encoding-type": "csr_matrix", "shape": matrix.shape})
        for name in ("data", "indices", "indptr"):
            group.create_dataset(name, data=getattr(matrix, name), chunks=(97,), compression="gzip")
    return file


def tokens(held: Rows, places: np.ndarray, keys: list[Key]) -> list[tuple[int, list[int], list[int]]]:
    """(cell, genes, bins) of each cell of a batch."""
    cells = np.array([key.index for key in keys])
    indptr, taken = take_cells(held.indptr, places)
    genes, values = held.genes[taken], held.values[taken]
    bins = bin_counts(indptr, genes, values, cell_keys(0, keys[0].epoch, cells))
    cuts = indptr.tolist()
    return [
        (int(cell), genes[a:b].tolist(), bins[a:b].tolist())
        for cell, a, b in zip(cells, cuts[:-1], cuts[1:], strict=True)
    ]


def loader(path: Path, workers: int = 0, readers: int = 0) -> StatefulDataLoader:
    cells = CellStore(path)
    order = BlockOrder(cells.num_cells, batch_size=16, block=8, pool=5, lanes=4, seed=1)
    bin_counts(np.array([0, 1]), np.zeros(1), np.ones(1, np.float32), np.zeros(1, np.uint32))  # compiled before forks
    data = PooledReads(order, cells.read_rows, tokens, readers)
    return StatefulDataLoader(data, batch_sampler=order, collate_fn=list, num_workers=workers)


@pytest.fixture(scope="module")
def told(path: Path) -> list[Any]:
    made = loader(path)
    return [*made, *made]


def test_every_cell_once_an_epoch_with_its_own_genes(path: Path, told: list[Any]) -> None:
    matrix = CellStore(path).read(0, N).toarray()
    for epoch in (told[: len(told) // 2], told[len(told) // 2 :]):
        cells = [cell for batch in epoch for cell in batch]
        assert sorted(cell for cell, _, _ in cells) == list(range(N))
        for cell, genes, bins in cells:
            assert genes == np.flatnonzero(matrix[cell]).tolist()
            assert min(bins) >= 1
    # Bins of ties are drawn anew in each pass.
    passes = (told[: len(told) // 2], told[len(told) // 2 :])
    first, second = ({cell: bins for batch in one for cell, _, bins in batch} for one in passes)
    assert sum(first[cell] != second[cell] for cell in range(N)) > N / 2


@pytest.mark.parametrize(("workers", "readers"), [(2, 0), (4, 0), (0, 1), (0, 4)])
def test_any_number_of_workers_or_readers_gives_the_same(
    path: Path, told: list[Any], workers: int, readers: int
) -> None:
    made = loader(path, workers, readers)
    assert [*made, *made] == told


@pytest.mark.parametrize(("workers", "readers"), [(0, 0), (2, 0), (0, 2)])
@pytest.mark.parametrize("stop", [4, 15])
def test_resumed_is_uninterrupted(path: Path, told: list[Any], workers: int, readers: int, stop: int) -> None:
    first = loader(path, workers, readers)
    assert len(first) == 15
    walk = iter(first)
    for _ in range(stop):
        next(walk)
    second = loader(path, workers)  # with readers or without: the order is the same
    second.load_state_dict(first.state_dict())
    rest = [*second, *second]
    assert rest[: len(told) - stop] == told[stop:]
