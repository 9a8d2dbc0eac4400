"""Rows of cells from every kind of file, in ranges and scattered, in this process and in others."""

from __future__ import annotations

import os
import zlib
from multiprocessing import get_context
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csc_matrix, csr_matrix

from polyfm.domains.singlecell import chunked, store
from polyfm.domains.singlecell.store import CellStore, Rows
from polyfm.shared.errors import DataError

N, G = 300, 40


def counts() -> np.ndarray:
    rng = np.random.default_rng(0)
    dense = rng.poisson(3.0, (N, G)) * (rng.random((N, G)) < 0.3)
    dense[[0, 17, N - 1]] = 0
    return dense.astype(np.float32)


DENSE = counts()


def small_chunks(path: Path, **how: Any) -> Path:
    """CSR as AnnData writes it, in chunks that rows and reads cut through."""
    matrix = csr_matrix(DENSE)
    with h5py.File(path, "w") as file:
        group = file.create_group("X")
        group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": DENSE.shape})
        for name, length in {"data": 50, "indices": 37, "indptr": 64}.items():
            dtype = how.get("dtypes", {}).get(name)
            values = getattr(matrix, name).astype(dtype) if dtype else getattr(matrix, name)
            options = {key: value for key, value in how.items() if key != "dtypes"}
            group.create_dataset(name, data=values, chunks=(length,), **options)
    return path


def tenx(path: Path) -> Path:
    matrix = csc_matrix(DENSE.T.astype(np.int32))
    with h5py.File(path, "w") as file:
        for name in ("data", "indices", "indptr"):
            file[f"matrix/{name}"] = getattr(matrix, name)
        file["matrix/shape"] = np.array(matrix.shape)
    return path


def by_anndata(path: Path, matrix: Any, where: str = "X", **writing: Any) -> Path:
    """Written by AnnData itself, the matrix in the place asked for."""
    settings = {key: writing.pop(key) for key in list(writing) if key.startswith("zarr_")}
    # The strings of pandas 3 are none that AnnData 0.12 can write.
    with pd.option_context("future.infer_string", False), anndata.settings.override(**settings):
        data = anndata.AnnData(csr_matrix((N, G), dtype=np.float32) if where.startswith("layers") else matrix)
        data.obs_names = np.array([f"c{i}" for i in range(N)], object)
        data.var_names = np.array([f"g{i}" for i in range(G)], object)
        if where == "raw/X":
            data.raw = data.copy()
            data.X = csr_matrix((N, G), dtype=np.float32)
        elif where != "X":
            data.layers[where.partition("/")[2]] = matrix
        (data.write_zarr if path.suffix == ".zarr" else data.write_h5ad)(path, **writing)
    return path


KINDS = {
    "gzip": lambda p: (small_chunks(p / "a.h5ad", compression="gzip"), "X"),
    "shuffled gzip": lambda p: (small_chunks(p / "a.h5ad", compression="gzip", shuffle=True), "X"),
    "checked gzip": lambda p: (small_chunks(p / "a.h5ad", compression="gzip", fletcher32=True), "X"),
    "lzf": lambda p: (small_chunks(p / "a.h5ad", compression="lzf"), "X"),
    "plain chunks": lambda p: (small_chunks(p / "a.h5ad"), "X"),
    "other types": lambda p: (
        small_chunks(p / "a.h5ad", compression="gzip", dtypes={"data": ">f8", "indices": "i8", "indptr": "i8"}),
        "X",
    ),
    "short integers": lambda p: (
        small_chunks(p / "a.h5ad", compression="gzip", shuffle=True, dtypes={"data": "u2", "indices": "u4"}),
        "X",
    ),
    "AnnData": lambda p: (by_anndata(p / "a.h5ad", csr_matrix(DENSE)), "X"),
    "AnnData, gzip": lambda p: (by_anndata(p / "a.h5ad", csr_matrix(DENSE), compression="gzip"), "X"),
    "layer": lambda p: (by_anndata(p / "a.h5ad", csr_matrix(DENSE), "layers/counts"), "layers/counts"),
    "raw": lambda p: (by_anndata(p / "a.h5ad", csr_matrix(DENSE), "raw/X"), "raw/X"),
    "by genes": lambda p: (by_anndata(p / "a.h5ad", csc_matrix(DENSE), compression="gzip"), "X"),
    "dense": lambda p: (by_anndata(p / "a.h5ad", DENSE, compression="gzip"), "X"),
    "zarr 2": lambda p: (by_anndata(p / "a.zarr", csr_matrix(DENSE), zarr_write_format=2), "X"),
    "zarr 3": lambda p: (by_anndata(p / "a.zarr", csr_matrix(DENSE), zarr_write_format=3), "X"),
    "zarr, by genes": lambda p: (by_anndata(p / "a.zarr", csc_matrix(DENSE)), "X"),
    "zarr, dense": lambda p: (by_anndata(p / "a.zarr", DENSE), "X"),
    "10x": lambda p: (tenx(p / "a.h5"), "matrix"),
}


def dense(rows: Rows) -> np.ndarray:
    return csr_matrix((rows.values, rows.genes, rows.indptr), shape=(len(rows.indptr) - 1, G)).toarray()


@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_any_file_gives_the_same_rows(kind: str, in_memory: bool, tmp_path: Path) -> None:
    path, where = KINDS[kind](tmp_path)
    cells = CellStore(path, where, in_memory=in_memory)
    assert (cells.num_cells, cells.num_genes, len(cells)) == (N, G, N)
    for start, stop in ((0, N), (0, 1), (16, 19), (40, 40), (123, 250), (N - 1, N)):
        got = cells.read(start, stop)
        assert got.shape == (stop - start, G)
        np.testing.assert_array_equal(got.toarray(), DENSE[start:stop])
    rng = np.random.default_rng(1)
    for share in (0.02, 0.3, 0.9):
        rows = np.flatnonzero(rng.random(N) < share)
        np.testing.assert_array_equal(dense(cells.read_rows(rows)), DENSE[rows])
    sizes = cells.sizes()
    if "dense" not in kind or in_memory:
        assert sizes is not None
        np.testing.assert_array_equal(sizes, (DENSE > 0).sum(1))
    else:
        assert sizes is None
    assert len(cells.read_rows(np.zeros(0, np.int64)).genes) == 0
    with pytest.raises(IndexError):
        cells.read(0, N + 1)


@pytest.mark.parametrize("there", [True, False])
def test_isal_is_used_where_it_is(there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used = []

    def decompressobj() -> Any:
        used.append(1)
        return zlib.decompressobj()

    def find(name: str) -> Any:
        if not there:
            raise ImportError(name)
        assert name == "isal.isal_zlib"
        return SimpleNamespace(decompressobj=decompressobj)

    monkeypatch.setattr(chunked, "import_module", find)
    chunked.inflater.cache_clear()
    try:
        cells = CellStore(small_chunks(tmp_path / "a.h5ad", compression="gzip"))
        np.testing.assert_array_equal(cells.read(5, 200).toarray(), DENSE[5:200])
        assert bool(used) == there
    finally:
        chunked.inflater.cache_clear()


def test_a_chunk_written_without_its_filter_is_read(tmp_path: Path) -> None:
    path = small_chunks(tmp_path / "a.h5ad", compression="gzip")
    with h5py.File(path, "r+") as file:
        chunk = file["X/data"][50:100]
        file["X/data"].id.write_direct_chunk((50,), chunk.tobytes(), filter_mask=1)
    np.testing.assert_array_equal(CellStore(path).read(0, N).toarray(), DENSE)


def test_a_store_travels_as_a_path_and_opens_anew(tmp_path: Path) -> None:
    cells = CellStore(small_chunks(tmp_path / "a.h5ad", compression="gzip"))
    cells.read(0, 3)
    sent = ForkingPickler.dumps(cells)
    assert len(sent) < 500
    np.testing.assert_array_equal(ForkingPickler.loads(sent).read(3, 9).toarray(), DENSE[3:9])


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
def test_a_fork_opens_the_file_for_itself(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    by_anndata(path, csr_matrix(DENSE))
    cells = CellStore(path)
    cells.read(0, 3)
    handle = cells._opened
    with get_context("fork").Pool(2) as pool:
        sums = pool.map(_SumOf(cells), range(0, N, 50))
    np.testing.assert_allclose(sums, [DENSE[start : start + 50].sum() for start in range(0, N, 50)])
    assert cells._source() is handle


class _SumOf:
    def __init__(self, cells: CellStore) -> None:
        self.cells, self.process = cells, os.getpid()

    def __call__(self, start: int) -> float:
        assert os.getpid() != self.process
        return float(self.cells.read(start, start + 50).sum())


def test_a_matrix_in_memory_is_a_store_too() -> None:
    cells = CellStore.of(csr_matrix(DENSE), "cells.mtx")
    np.testing.assert_array_equal(cells.read(7, 30).toarray(), DENSE[7:30])
    there = ForkingPickler.loads(ForkingPickler.dumps(cells))
    np.testing.assert_array_equal(dense(there.read_rows(np.array([3, 4, 200]))), DENSE[[3, 4, 200]])


def test_a_large_matrix_by_genes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = by_anndata(tmp_path / "a.h5ad", csc_matrix(DENSE))
    monkeypatch.setattr(store, "MAX_TURNED", 100)
    with pytest.raises(DataError, match="stored by genes, and .* values are too many") as error:
        CellStore(path).read(0, 1)
    assert "adata.X.tocsr()" in str(error.value)
    assert error.value.where == path


BROKEN = {
    "a gene that is not there": (("X/indices", 20, G + 3), "have values of genes that are not there, of 40"),
    "a negative gene": (("X/indices", 20, -2), "have values of genes that are not there, of 40"),
    "rows that end before they begin": (("X/indptr", 9, 1), "rows end before they begin"),
    "more values than are there": (("X/indptr", N, 10**6), "boundaries for 300 rows"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_damage_is_named(case: str, tmp_path: Path) -> None:
    (name, place, value), message = BROKEN[case]
    path = small_chunks(tmp_path / "a.h5ad")
    with h5py.File(path, "r+") as file:
        file[name][place] = value
    with pytest.raises(DataError, match=message) as error:
        CellStore(path).read(0, N)
    assert error.value.where == path


@pytest.mark.parametrize("raw", [b"no gzip at all", None])
def test_a_damaged_chunk_is_named(raw: bytes | None, tmp_path: Path) -> None:
    path = small_chunks(tmp_path / "a.h5ad", compression="gzip")
    with h5py.File(path, "r+") as file:
        file["X/data"].id.write_direct_chunk((50,), raw or zlib.compress(b"short"))
    with pytest.raises(DataError, match="X cannot be read at cells 0 to 299|a chunk") as error:
        CellStore(path).read(0, N)
    assert error.value.where == path


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    path = small_chunks(tmp_path / "a.h5ad")
    with pytest.raises(DataError, match="layers/counts cannot be read"):
        CellStore(path, "layers/counts").read(0, 1)
    with pytest.raises(DataError, match="X cannot be read"):
        CellStore(tmp_path / "none.h5ad").read(0, 1)
