"""What users give that is not what it should be: one message each, with the remedy. The table that the tests read."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from polyfm.domains.singlecell.genes import GeneVocabulary
from polyfm.domains.singlecell.synthetic import synthetic_cells, write_synthetic

ERROR, REMARK, QUARANTINE, NOTICE = "error", "remark", "quarantine", "notice"
HUMAN = GeneVocabulary(synthetic_cells(1).var_names.tolist(), [""] * 300, "human")


@dataclass(frozen=True)
class Wrong:
    """One wrong input."""

    make: Callable[[Path], Path]
    """Writes it into a folder and says where."""
    says: str
    """What the message holds."""
    remedy: str = ""
    """What it tells to do; "" for what is accepted."""
    outcome: str = ERROR
    options: dict[str, Any] = field(default_factory=dict)


def cells(change: Callable[[AnnData], AnnData | None] = lambda data: None, n: int = 60) -> Callable[[Path], Path]:
    """Invented cells, changed, as .h5ad."""

    def make(folder: Path) -> Path:
        data = synthetic_cells(n)
        changed = change(data)
        data = data if changed is None else changed
        data.write_h5ad(folder / "cells.h5ad")
        return folder / "cells.h5ad"

    return make


def values(change: Callable[[np.ndarray], np.ndarray | None], dense: bool = False) -> Callable[[Path], Path]:
    """The same with other values in X."""

    def edit(data: AnnData) -> None:
        matrix = data.X.toarray()
        changed = change(matrix)
        matrix = matrix if changed is None else changed
        data.X = matrix if dense else sp.csr_matrix(matrix)

    return cells(edit)


def put(row: int, column: int, value: float) -> Callable[[Path], Path]:
    return values(lambda matrix: matrix.__setitem__((row, column), value))


def content(name: str, data: bytes) -> Callable[[Path], Path]:
    """A file of some bytes."""

    def make(folder: Path) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return make


def hdf5(name: str = "cells.h5ad", **groups: Any) -> Callable[[Path], Path]:
    """An HDF5 file of some data sets."""

    def make(folder: Path) -> Path:
        with h5py.File(folder / name, "w") as file:
            for key, data in groups.items():
                file[key.replace("__", "/")] = data
        return folder / name

    return make


def edited(change: Callable[[h5py.File], None], kind: str = "h5ad") -> Callable[[Path], Path]:
    """A valid file, changed as HDF5."""

    def make(folder: Path) -> Path:
        path = write_synthetic(folder, kind=kind, n=60)
        with h5py.File(path, "r+") as file:
            change(file)
        return path

    return make


def folder_with(**files: str) -> Callable[[Path], Path]:
    """A folder of texts; "__" stands for a dot."""

    def make(folder: Path) -> Path:
        (folder / "cells").mkdir()
        for name, text in files.items():
            (folder / "cells" / name.replace("__", ".")).write_text(text)
        return folder / "cells"

    return make


def tenx(change: Callable[[Path], object], kind: str = "mtx") -> Callable[[Path], Path]:
    """A 10x folder, changed."""

    def make(folder: Path) -> Path:
        path = write_synthetic(folder, kind=kind, n=60)
        change(path)
        return path

    return make


def cut(kind: str, share: float) -> Callable[[Path], Path]:
    """A valid file without its end."""

    def make(folder: Path) -> Path:
        path = write_synthetic(folder, kind=kind, n=60)
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
        return path

    return make


def scaled(data: AnnData) -> None:
    matrix = np.log1p(data.X.toarray())
    data.X = (matrix - matrix.mean(0)) / (matrix.std(0) + 1e-6)


def renamed(names: Callable[[list[str]], list[str]]) -> Callable[[Path], Path]:
    """Other var_names, and no other column that names genes."""

    def edit(data: AnnData) -> None:
        data.var = pd.DataFrame(index=pd.Index(names(data.var_names.tolist())))

    return cells(edit)


def truncate_body(path: Path) -> None:
    lines = (path / "matrix.mtx").read_text().splitlines(keepends=True)
    (path / "matrix.mtx").write_text("".join(lines[: len(lines) // 3]))


def transpose_header(path: Path) -> None:
    text = (path / "matrix.mtx").read_text().replace("\n300 60 ", "\n60 300 ", 1)
    (path / "matrix.mtx").write_text(text)


def drop(path: Path, name: str) -> None:
    (path / name).unlink()


def delete(key: str) -> Callable[[h5py.File], None]:
    return lambda file: file.__delitem__(key)


def outside(file: h5py.File) -> None:
    file["X/indices"][5] = 1_000_000


def shorten(file: h5py.File) -> None:
    indptr = file["X/indptr"][:-5]
    del file["X/indptr"]
    file["X/indptr"] = indptr


def link_out(file: h5py.File) -> None:
    del file["X"]
    file["X"] = h5py.ExternalLink("/etc/passwd", "/")


def two_genomes(file: h5py.File) -> None:
    file.copy("matrix", "mm10")


WRONG = {
    # ---- what X holds
    "dense X with counts": Wrong(values(lambda matrix: None, dense=True), "X is dense, and holds counts", outcome=REMARK),
    "log-normalised X": Wrong(values(lambda m: np.log1p(m / m.sum(1, keepdims=True) * 1e4)), "X is log-normalised; counts are recovered from it", outcome=REMARK),
    "scaled X without raw": Wrong(cells(scaled), "X is scaled, and counts are neither in layers nor in raw", "Use the file from before sc.pp.scale"),
    "corrected counts": Wrong(values(lambda m: np.where(m > 0, m * 7.3 + np.random.default_rng(0).uniform(0, 3, m.shape), 0)), "X is normalised without a logarithm, and no counts can be recovered", "round them: adata.X = np.rint(adata.X)"),
    "negative values": Wrong(put(3, 5, -2), "X, row 4: there are negative counts, down to -2", "Counts are 0 or more"),
    "NaN": Wrong(put(3, 5, np.nan), "X, row 4: some values are NaN", "np.nan_to_num"),
    "infinity": Wrong(put(3, 5, np.inf), "X, row 4: some values are infinite: an overflow", "Write the file anew from the counts"),
    "overflow of integers": Wrong(put(3, 5, 4294967295), "a count is 4,294,967,296, which no cell can have", "overflow of integers"),
    "overflow of signed integers": Wrong(put(3, 5, -2147483648), "X, row 4: there are negative counts, down to -2.14748e+09", "an overflow of integers"),
    "X is empty": Wrong(edited(delete("X")), "there is no matrix: X is empty", "Choose a file with counts"),
    "a layer that is not there": Wrong(cells(), "there is no layer 'counts'; there are 'X'", "Name one of these", options={"layer": "counts"}),
    # ---- cells
    "empty cells": Wrong(values(lambda m: m.__setitem__(slice(2, 4), 0)), "2 x empty cell (first in row 3)", outcome=QUARANTINE),
    "all cells empty": Wrong(values(lambda m: m * 0), "none of the 60 rows can be used: 60 x empty cell", "Check that this is the right file"),
    "no cells": Wrong(cells(lambda data: data[:0].copy()), "there are no cells", "Check that this is the right file"),
    "obs names that repeat": Wrong(cells(lambda data: setattr(data, "obs_names", ["a"] * 3 + list(data.obs_names[3:]))), "2 x repeated id (first in row 2)", outcome=NOTICE),
    "limits that no cell passes": Wrong(cells(), "none of the 60 rows can be used: 60 x few genes", "Check that this is the right file", options={"min_genes": 10_000}),
    # ---- genes
    "mouse genes for a human model": Wrong(renamed(lambda names: [name.capitalize() for name in names]), "the genes are named as in mouse (Cd3d, Cd3e, Il7r), those of the model or of the other files as in human", "translate the genes to its orthologs", options={"genes": HUMAN}),
    "genes that a model does not know": Wrong(renamed(lambda names: [f"X{name}" for name in names]), "0.0% of the genes overlap: 0 of the file's 300, 0 of the vocabulary's 300; at least 50% is expected", "give a table of two columns, alias and gene", options={"genes": HUMAN}),
    "no var names": Wrong(renamed(lambda names: [str(at) for at in range(len(names))]), "the genes have no names: they are called 0, 1, 2, …", "adata.var_names = SYMBOLS"),
    "var names that are numbers": Wrong(renamed(lambda names: [str(7 * at + 100) for at in range(len(names))]), "the genes are called by numbers (100, 107, 114, 121, …), such as Entrez ids", "adata.var_names = SYMBOLS"),
    "var names that are empty": Wrong(renamed(lambda names: [""] * len(names)), "the genes have no names", "adata.var_names = SYMBOLS"),
    "no genes": Wrong(cells(lambda data: data[:, :0].copy()), "there are no genes", "Check that this is the right file"),
    "blanks around names": Wrong(renamed(lambda names: [f"{name} " for name in names]), "300 gene names have blanks around them, which are left out", outcome=REMARK),
    "genes that repeat": Wrong(renamed(lambda names: ["CD3E", *names[1:]]), "1 genes stand in several columns, which are summed: CD3E", outcome=REMARK),
    # ---- annotations
    "missing obs column": Wrong(cells(), "obs has no column 'celltype'; the columns are 'cell_type', 'donor'", "Did you mean 'cell_type'?", options={"label": "celltype"}),
    "missing group column": Wrong(cells(), "obs has no column 'zzz'", "Name one of these columns", options={"group": "zzz"}),
    "labels of a 10x folder": Wrong(tenx(lambda path: None), "obs has no column 'cell_type'; there are none", "a 10x file holds barcodes only", options={"label": "cell_type"}),
    "a label per cell": Wrong(cells(lambda data: data.obs.__setitem__("name", list(data.obs_names))), "obs['name'] has 60 classes for 60 cells", "Choose another column", options={"label": "name"}),
    "several labels of words": Wrong(cells(), "obs['cell_type'] holds words, such as 'B cell'; several labels must be numbers", "Name one column of classes", options={"label": ["cell_type", "donor"]}),
    "infinite label": Wrong(cells(lambda data: data.obs.__setitem__("age", [np.inf] * 60)), "obs['age'] holds an infinite number", "Leave it NaN", options={"label": "age"}),
    "proteins that are not there": Wrong(cells(), "obsm has no 'adt'; there are 'protein_expression'", "Name one of these", options={"protein": "adt"}),
    "proteins that are normalised": Wrong(cells(lambda data: data.obsm.__setitem__("protein_expression", np.full((60, 2), -1.0))), "obsm['protein_expression'] holds negative or infinite numbers", "Let it hold counts"),
    # ---- files
    "no file": Wrong(lambda folder: folder / "no.h5ad", "there is no such file", "Check the path"),
    "empty file": Wrong(content("cells.h5ad", b""), "the file is empty", "Write or fetch it again"),
    "text named .h5ad": Wrong(content("cells.h5ad", b"gene,cell\n" * 50), "this is no HDF5 file", "Give it the ending of what it holds"),
    "truncated HDF5": Wrong(cut("h5ad", 0.6), "the HDF5 file is cut short: it holds ", "Copy or fetch it again"),
    "HDF5 that is no AnnData": Wrong(hdf5(a=[1], b=[2]), "this is no AnnData: it has no obs and no var, but a, b", "Write it with adata.write_h5ad"),
    "HDF5 that is neither AnnData nor 10x": Wrong(hdf5("cells.h5", a=[1]), "this HDF5 file is neither AnnData nor 10x: it holds a", "Cell Ranger's group 'matrix'"),
    "an AnnData from before 0.7": Wrong(hdf5(X=np.ones((2, 2)), obs=np.zeros(2, dtype=[("index", "S2")]), var=np.zeros(2, dtype=[("index", "S2")])), "written by an AnnData older than 0.7", "anndata.read_h5ad(OLD).write_h5ad(NEW)"),
    "obs of another length": Wrong(edited(shorten), "cannot be read", "Copy or fetch the file again"),
    "gene indices outside": Wrong(edited(outside), "values of genes that are not there", "Copy or fetch the file again"),
    "a link out of the file": Wrong(edited(link_out), "/X is a link to another file, '/etc/passwd'; it was not read", "Do not trust the file"),
    "two genomes": Wrong(edited(two_genomes, "h5"), "there are counts of 2 genomes: matrix, mm10", "genome=NAME"),
    "a loom file": Wrong(content("cells.loom", b"x"), "files that end in '.loom' are not read; expected .h5ad, .zarr, .h5", "Convert it: anndata.io.read_loom(FILE)"),
    "a table of counts": Wrong(content("cells.csv", b"gene,c1\nA,1\n"), "files that end in '.csv' are not read", "Convert it: anndata.io.read_csv(FILE)"),
    "a gzipped h5ad": Wrong(content("cells.h5ad.gz", gzip.compress(b"x")), "files that end in '.gz' are not read", "gunzip FILE"),
    # ---- folders
    "a folder that is no zarr": Wrong(folder_with(notes__txt="x"), "the folder is no zarr store (no .zgroup, no zarr.json) and no 10x folder (no matrix.mtx)", "Name a file or folder that holds cells"),
    "a folder around the file": Wrong(folder_with(brain__h5ad="x"), "the folder is no zarr store", "Name what is inside: brain.h5ad"),
    "a zarr that is no AnnData": Wrong(folder_with(zarr__json='{"zarr_format": 3, "node_type": "group", "attributes": {}}'), "this is no AnnData: it has no obs and no var, but nothing", "adata.write_zarr"),
    "a 10x folder without barcodes": Wrong(tenx(lambda path: drop(path, "barcodes.tsv")), "beside matrix.mtx there is no barcodes.tsv", "Fetch all three files"),
    "a 10x folder without genes": Wrong(tenx(lambda path: drop(path, "genes.tsv")), "beside matrix.mtx there is no features.tsv or genes.tsv", "Fetch all three files"),
    "a 10x folder of two runs": Wrong(tenx(lambda path: (path / "barcodes.tsv").write_text("AAAC-1\n")), "the matrix is 300 × 60, but there are 300 features and 1 barcodes", "three files of one run"),
    "a transposed 10x folder": Wrong(tenx(transpose_header), "the matrix is 60 × 300, but there are 300 features and 60 barcodes", "It is transposed"),
    "a 10x folder that is cut short": Wrong(tenx(truncate_body), "matrix", "Copy or fetch it again"),
    "a damaged gzip in a 10x folder": Wrong(tenx(lambda path: (path / "features.tsv.gz").write_bytes((path / "features.tsv.gz").read_bytes()[:-30]), "mtx.gz"), "the gzip file is damaged", "Fetch it again"),
    "no Matrix Market": Wrong(tenx(lambda path: (path / "matrix.mtx").write_text("a,b\n1,2\n")), "this is no Matrix Market file of coordinates", "Expected matrix.mtx as Cell Ranger writes it"),
}  # fmt: skip
