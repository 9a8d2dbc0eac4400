"""What Cell Ranger writes: a folder with matrix.mtx, features.tsv (genes.tsv) and barcodes.tsv, or one .h5 file."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

import scipy.io
import scipy.sparse as sp

from polyfm.domains.singlecell.cell_files import MAX_CELLS, MAX_GENES, CellFile, texts_of
from polyfm.domains.singlecell.hdf5 import MAX_RATIO
from polyfm.shared.data.tabular import check_file, open_text
from polyfm.shared.errors import DataError, MissingExtraError

try:
    import h5py
except ImportError as error:
    raise MissingExtraError("h5py", "singlecell") from error

MATRICES = ("matrix.mtx", "matrix.mtx.gz")
"""How the names of matrices end; those of GEO have a prefix."""
_BANNER = "%%matrixmarket matrix coordinate"
_SHORTEST_LINE = 6
"""Bytes of ``1 1 1`` and its end."""
_HEADER_LINES = 1000
_PARTS = ("barcodes", "data", "indices", "indptr", "shape")


class MtxFiles(NamedTuple):
    """The three files of a 10x folder."""

    matrix: Path
    features: Path
    barcodes: Path


@dataclass(frozen=True)
class TenxFile(CellFile):
    """Counts of 10x: genes × cells, with names and nothing else."""

    where: str
    """The group of the matrix in the .h5 file; "matrix" of a folder."""
    barcodes: list[str]
    """n barcodes."""
    genes: tuple[str, ...]
    """G names."""
    others: dict[str, tuple[str, ...]]
    """By column: what else is said of the genes."""
    format: ClassVar[str] = "10x"

    @property
    def cell_names(self) -> list[str]:
        """As `CellFile.cell_names`."""
        return self.barcodes

    @property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """As `CellFile.matrices`."""
        return {self.where: (len(self.barcodes), len(self.genes))}

    def features(self, where: str) -> tuple[list[str], dict[str, list[str]]]:
        """As `CellFile.features`."""
        return list(self.genes), {name: list(cells) for name, cells in self.others.items()}


def is_tenx(path: Path) -> bool:
    """Whether this is a folder with a matrix in it.

    Args:
        path: Anything.
    """
    return path.is_dir() and any(child.name.lower().endswith(MATRICES) for child in path.iterdir())


def find_mtx(folder: Path) -> MtxFiles | None:
    """The files of a 10x folder; those of GEO have a prefix in common.

    Args:
        folder: Any folder.

    Raises:
        DataError: A matrix is there, but not what belongs to it, or several are.
    """
    found = sorted(child for child in folder.iterdir() if child.name.lower().endswith(MATRICES))
    if not found:
        return None
    plain = [path for path in found if path.name.lower().removesuffix(".gz") == "matrix.mtx"]
    chosen = plain or found
    if len({path.name.removesuffix(".gz") for path in chosen}) > 1:
        raise DataError(
            f"the folder holds {len(chosen)} matrices: {', '.join(path.name for path in chosen[:4])}",
            where=folder,
            remedy="Put each into a folder of its own, with its barcodes and features",
        )
    prefix = chosen[0].name[: chosen[0].name.lower().index("matrix.mtx")]
    parts = []
    for names in (("features", "genes"), ("barcodes",)):
        files = [folder / f"{prefix}{name}.tsv{gz}" for name in names for gz in ("", ".gz")]
        there = next((file for file in files if file.is_file()), None)
        if there is None:
            raise DataError(
                f"beside {chosen[0].name} there is no {' or '.join(f'{prefix}{name}.tsv' for name in names)}",
                where=folder,
                remedy="Fetch all three files: matrix.mtx, features.tsv (or genes.tsv), barcodes.tsv; each may be .gz",
            )
        parts.append(there)
    return MtxFiles(chosen[0], *parts)


def open_mtx(folder: Path) -> TenxFile:
    """Look at a 10x folder; the matrix itself is not read but for its first lines.

    Args:
        folder: With the three files, gzipped or not.

    Raises:
        DataError: A file is missing or broken, or they do not belong together.
    """
    files = find_mtx(folder)
    if files is None:
        raise DataError("there is no matrix.mtx", where=folder, remedy="Name the folder that holds it")
    features = _lines(files.features)
    barcodes = [cells[0] for cells in _lines(files.barcodes)]
    rows, columns, entries = _header(files.matrix)
    if (rows, columns) != (len(features), len(barcodes)):
        turned = (columns, rows) == (len(features), len(barcodes))
        raise DataError(
            f"the matrix is {rows:,} × {columns:,}, but there are {len(features):,} features and {len(barcodes):,} "
            "barcodes",
            where=files.matrix,
            remedy="It is transposed: write genes as rows" if turned else "Use three files of one run of Cell Ranger",
        )
    size = files.matrix.stat().st_size * (MAX_RATIO if files.matrix.name.lower().endswith(".gz") else 1)
    if rows > MAX_GENES or columns > MAX_CELLS or entries * _SHORTEST_LINE > size + _SHORTEST_LINE:
        raise DataError(
            f"the matrix claims {entries:,} entries, more than fit into the file",
            where=files.matrix,
            remedy="Copy or fetch it again: it is cut short",
        )
    width = min(len(cells) for cells in features)
    ids, names = [cells[0] for cells in features], [cells[min(1, width - 1)] for cells in features]
    others = {"gene_ids": tuple(ids)} if width > 1 else {}
    if width > 2:
        others["feature_types"] = tuple(cells[2] for cells in features)
    return TenxFile(folder, "matrix", barcodes, tuple(names), others)


def read_mtx(folder: Path) -> sp.csr_array:
    """The matrix of a 10x folder as cells × genes.

    Args:
        folder: That `open_mtx` passed.

    Raises:
        DataError: The file is damaged.
    """
    files = find_mtx(folder)
    if files is None:
        raise DataError("there is no matrix.mtx", where=folder, remedy="Name the folder that holds it")
    try:
        return sp.csr_array(scipy.io.mmread(files.matrix).T)
    except (ValueError, EOFError, OSError, OverflowError, zlib.error) as error:
        short = str(error).partition("\n")[0][:200]
        raise DataError(
            f"the matrix is damaged ({short})", where=files.matrix, remedy="Copy or fetch it again"
        ) from error


def open_tenx_h5(path: Path) -> TenxFile:
    """Look at Cell Ranger's .h5 file, of version 3 on (one group ``matrix``) or before (a group per genome).

    Args:
        path: A file that `check_hdf5` passed.

    Raises:
        DataError: It is none, or holds several genomes.
    """
    with h5py.File(path, "r") as file:
        groups = [name for name, group in file.items() if isinstance(group, h5py.Group) and set(_PARTS) <= set(group)]
        if not groups:
            raise DataError(
                f"this HDF5 file is neither AnnData nor 10x: it holds {', '.join(sorted(file)[:6]) or 'nothing'}",
                where=path,
                remedy="Expected obs and var as adata.write_h5ad writes them, or Cell Ranger's group 'matrix'",
            )
        if len(groups) > 1:
            raise DataError(
                f"there are counts of {len(groups)} genomes: {', '.join(groups)}",
                where=path,
                remedy="Write one: scanpy.read_10x_h5(FILE, genome=NAME).write_h5ad(NEW)",
            )
        group = file[groups[0]]
        try:
            inside = group["features"] if "features" in group else {"id": group["genes"], "name": group["gene_names"]}
            ids, names = tuple(texts_of(inside["id"][:])), tuple(texts_of(inside["name"][:]))
            others = {"gene_ids": ids}
            if "feature_type" in inside:
                others["feature_types"] = tuple(texts_of(inside["feature_type"][:]))
            barcodes = texts_of(group["barcodes"][:])
            shape = tuple(int(length) for length in group["shape"][:])
        except (KeyError, OSError, TypeError, ValueError) as error:
            raise DataError(
                f"the group {groups[0]!r} is not as Cell Ranger writes it ({error})",
                where=path,
                remedy="Copy or fetch the file again",
            ) from error
    if shape != (len(names), len(barcodes)) or any(len(cells) != len(names) for cells in others.values()):
        raise DataError(
            f"the matrix is {' × '.join(f'{length:,}' for length in shape)}, but there are {len(names):,} features and "
            f"{len(barcodes):,} barcodes",
            where=path,
            remedy="Copy or fetch the file again",
        )
    return TenxFile(path, groups[0], barcodes, names, others)


def _lines(path: Path) -> list[list[str]]:
    """Cells of a table without header, separated by tabs."""
    with open_text(path) as file:
        lines = [line.rstrip("\r\n").split("\t") for line in file]
    while lines and lines[-1] == [""]:
        lines.pop()
    return lines


def _header(path: Path) -> tuple[int, int, int]:
    """Rows, columns and entries as the first lines of a Matrix Market file say."""
    check_file(path)
    broken = DataError(
        "this is no Matrix Market file of coordinates",
        where=path,
        remedy="Expected matrix.mtx as Cell Ranger writes it",
    )
    opened = gzip.open if path.name.lower().endswith(".gz") else open
    try:
        with opened(path, "rt", encoding="utf-8", errors="replace") as file:
            if not file.readline(_HEADER_LINES).lower().startswith(_BANNER):
                raise broken
            for _ in range(_HEADER_LINES):
                line = file.readline(_HEADER_LINES * 100)
                if not line.startswith("%"):
                    rows, columns, entries = (int(word) for word in line.split())
                    return rows, columns, entries
    except (ValueError, EOFError, OSError, zlib.error) as error:
        raise broken from error
    raise broken
