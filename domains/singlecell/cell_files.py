"""Files of cells: what a file says of its cells and genes, and where its matrices lie, without reading the matrices.

Every file is checked (`polyfm.domains.singlecell.hdf5`, `polyfm.domains.singlecell.zarr_folder`) before it is opened.
Of ``obs`` only the columns that are asked for are read.
"""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from polyfm.domains.singlecell.genes import ENSEMBL_COLUMNS, SYMBOL_COLUMNS, GeneNames
from polyfm.domains.singlecell.hdf5 import check_hdf5
from polyfm.domains.singlecell.zarr_folder import check_zarr, is_zarr
from polyfm.shared.data.tabular import check_file
from polyfm.shared.errors import DataError, MissingExtraError

try:
    import h5py
    import zarr
    from anndata.io import read_elem

    from polyfm.domains.singlecell import anndata_strings
except ImportError as error:
    raise MissingExtraError(str(error.name), "singlecell") from error

anndata_strings.register()

GENE = "Gene Expression"
"""The feature type of 10x that counts as expression."""
PROTEIN = "Antibody Capture"
ENDINGS = (".h5ad", ".zarr", ".h5")
MAX_CELLS, MAX_GENES = 1 << 33, 1 << 24

_FOREIGN = {
    ".loom": "anndata.io.read_loom(FILE).write_h5ad(NEW)",
    ".csv": "anndata.io.read_csv(FILE).write_h5ad(NEW), with .T where rows are genes",
    ".txt": "anndata.io.read_text(FILE).write_h5ad(NEW), with .T where rows are genes",
    ".tsv": "anndata.io.read_text(FILE).write_h5ad(NEW), with .T where rows are genes",
    ".rds": "in R, sceasy or zellkonverter write .h5ad",
    ".rdata": "in R, sceasy or zellkonverter write .h5ad",
    ".zip": "unzip FILE",
    ".gz": "gunzip FILE",
    ".tar": "tar -xf FILE",
    ".h5mu": "take one modality: mudata.read(FILE)['rna'].write_h5ad(NEW)",
    ".parquet": "Write the matrix as AnnData: anndata.AnnData(TABLE).write_h5ad(NEW)",
}


@dataclass(frozen=True)
class Proteins:
    """Surface proteins of the cells of a file."""

    values: NDArray[np.float32]
    """(n, P) counts."""
    names: list[str]
    """P names."""


@dataclass(frozen=True)
class Features:
    """The columns of a matrix."""

    genes: GeneNames
    """Of those that are genes."""
    is_gene: NDArray[np.bool_]
    """(G,) whether a column is one."""
    types: list[str]
    """G feature types."""
    names: list[str]
    """G names as they stand."""


@dataclass(frozen=True)
class CellFile(ABC):
    """A file of cells, opened for what stands beside its matrices."""

    path: Path
    """The file or folder."""
    format: ClassVar[str]
    """What it is, for messages."""

    @property
    @abstractmethod
    def cell_names(self) -> list[str]:
        """Names of the n cells, as they stand."""

    @property
    @abstractmethod
    def matrices(self) -> dict[str, tuple[int, int]]:
        """By place ("X", "raw/X", "layers/NAME", or the one of 10x): cells and genes."""

    @abstractmethod
    def features(self, where: str) -> tuple[list[str], dict[str, list[str]]]:
        """Names of a matrix's genes, and the columns that may hold other names or feature types.

        Args:
            where: One of `matrices`.
        """

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of ``obs``."""
        return ()

    def series(self, name: str) -> pd.Series[Any]:
        """A column of ``obs``, which must be there."""
        raise KeyError(name)

    @property
    def protein_keys(self) -> tuple[str, ...]:
        """Entries of ``obsm`` that may hold proteins."""
        return ()

    def proteins(self, key: str) -> Proteins:
        """An entry of ``obsm`` as proteins."""
        raise KeyError(key)

    @property
    def logarithm(self) -> str | None:
        """Which logarithm the file says was taken, as `polyfm.domains.singlecell.layers.UNDO` calls it."""
        return None

    def column(self, wanted: str) -> pd.Series[Any]:
        """A column of ``obs``.

        Args:
            wanted: Its exact name.

        Raises:
            DataError: There is none; the message names the nearest.
        """
        if wanted in self.columns:
            with self.reading(f"obs[{wanted!r}]"):
                found = self.series(wanted)
                if len(found) != len(self.cell_names):
                    raise ValueError(f"{len(found):,} values for {len(self.cell_names):,} cells")
                return found
        lower = {name.lower(): name for name in reversed(self.columns)}
        near = [lower[name] for name in difflib.get_close_matches(wanted.lower(), lower, n=3, cutoff=0.5)]
        there = f"the columns are {', '.join(map(repr, self.columns))}" if self.columns else "there are none"
        bare = f"Annotations come with .h5ad and .zarr; a {self.format} file holds barcodes only"
        raise DataError(
            f"obs has no column {wanted!r}; {there}",
            where=self.path,
            remedy=f"Did you mean {' or '.join(map(repr, near))}?"
            if near
            else ("Name one of these columns" if self.columns else bare),
        )

    def described(self, where: str) -> Features:
        """What the columns of a matrix are: genes, which have names, and antibodies or peaks, which count for nothing.

        Args:
            where: One of `matrices`.
        """
        with self.reading("var"):
            names, columns = self.features(where)
        types = columns.pop("feature_types", None) or [GENE] * len(names)
        is_gene = np.array([kind == GENE for kind in types], dtype=bool)
        if len(names) and not is_gene.any():
            raise DataError(
                f"none of the {len(names):,} features is called {GENE!r}, but {', '.join(sorted(set(types))[:4])}",
                where=self.path,
                remedy="Choose a file that holds gene expression",
            )
        keep = np.flatnonzero(is_gene)
        only = {column: [cells[at] for at in keep] for column, cells in columns.items()}
        return Features(GeneNames.of([names[at] for at in keep], only, self.path), is_gene, types, names)

    @contextmanager
    def reading(self, what: str) -> Iterator[None]:
        """Turn what libraries raise on broken files into one message."""
        try:
            yield
        except DataError:
            raise
        except Exception as error:
            short = str(error).strip("'\"").partition("\n")[0][:200] or type(error).__name__
            raise DataError(
                f"{what} cannot be read ({short})",
                where=self.path,
                remedy="Copy or fetch the file again, or write it anew with a current AnnData",
            ) from error


@dataclass(frozen=True)
class AnnDataFile(CellFile):
    """An ``.h5ad`` file or a ``.zarr`` folder, as AnnData writes them from 0.7 on."""

    open: Callable[[], Any] = field(repr=False)
    """Opens the root group; of HDF5 it must be closed again."""
    format: ClassVar[str] = "AnnData"

    @contextmanager
    def root(self) -> Iterator[Any]:
        """The root group."""
        root = self.open()
        try:
            yield root
        finally:
            if isinstance(root, h5py.File):
                root.close()

    def check(self) -> None:
        """Refuse what is no AnnData, or one from before 0.7.

        Raises:
            DataError: As said.
        """
        with self.reading("the file"), self.root() as root:
            missing = [name for name in ("obs", "var") if name not in root]
            if missing:
                there = ", ".join(sorted(root)[:6]) or "nothing"
                raise DataError(
                    f"this is no AnnData: it has no {' and no '.join(missing)}, but {there}",
                    where=self.path,
                    remedy="Write it with adata.write_h5ad or adata.write_zarr",
                )
            if isinstance(root["obs"], h5py.Dataset) or isinstance(root["var"], h5py.Dataset):
                raise DataError(
                    "this was written by an AnnData older than 0.7",
                    where=self.path,
                    remedy="Write it anew: anndata.read_h5ad(OLD).write_h5ad(NEW)",
                )
        if not any(where in ("X", "raw/X") or where.startswith("layers/") for where in self.matrices):
            raise DataError("there is no matrix: X is empty", where=self.path, remedy="Choose a file with counts")
        cells = len(self.cell_names)
        for where, (rows, genes) in self.matrices.items():
            if rows != cells or rows > MAX_CELLS or genes > MAX_GENES:
                raise DataError(
                    f"{where} has {rows:,} rows of {genes:,} genes, but obs has {cells:,} cells",
                    where=self.path,
                    remedy="Copy or fetch the file again",
                )

    @cached_property
    def cell_names(self) -> list[str]:
        """As `CellFile.cell_names`."""
        with self.reading("obs"), self.root() as root:
            return texts_of(_index(root["obs"]))

    @cached_property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """As `CellFile.matrices`."""
        with self.reading("the matrices"), self.root() as root:
            found = {"X": _shape(root["X"])} if "X" in root else {}
            if "layers" in root:
                found |= {f"layers/{name}": _shape(root["layers"][name]) for name in root["layers"]}
            if "raw" in root and "X" in root["raw"]:
                found["raw/X"] = _shape(root["raw/X"])
            return {where: shape for where, shape in found.items() if shape is not None}

    def features(self, where: str) -> tuple[list[str], dict[str, list[str]]]:
        """As `CellFile.features`."""
        with self.root() as root:
            var = root["raw/var" if where == "raw/X" else "var"]
            wanted = {*SYMBOL_COLUMNS, *ENSEMBL_COLUMNS, "feature_types"}
            near = [name for name in _columns(var) if name.strip().lower().replace(" ", "_") in wanted]
            columns = {name: texts_of(_column(var, name)) for name in near}
            return texts_of(_index(var)), columns

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """As `CellFile.columns`."""
        with self.reading("obs"), self.root() as root:
            return _columns(root["obs"])

    def series(self, name: str) -> pd.Series[Any]:
        """As `CellFile.series`."""
        with self.root() as root:
            return pd.Series(_column(root["obs"], name))

    @cached_property
    def protein_keys(self) -> tuple[str, ...]:
        """As `CellFile.protein_keys`."""
        with self.reading("obsm"), self.root() as root:
            return tuple(root["obsm"]) if "obsm" in root else ()

    def proteins(self, key: str) -> Proteins:
        """As `CellFile.proteins`; names are the table's columns, or those of ``uns["protein_names"]``."""
        if key not in self.protein_keys:
            raise DataError(
                f"obsm has no {key!r}; there are {', '.join(map(repr, self.protein_keys)) or 'none'}",
                where=self.path,
                remedy="Name one of these",
            )
        with self.reading(f"obsm[{key!r}]"), self.root() as root:
            found = read_elem(root["obsm"][key])
            names = list(map(str, found.columns)) if isinstance(found, pd.DataFrame) else []
            if not names and "uns" in root and "protein_names" in root["uns"]:
                names = texts_of(read_elem(root["uns"]["protein_names"]))
            dense = found.toarray() if hasattr(found, "toarray") else np.asarray(found)
            values = np.ascontiguousarray(dense, dtype=np.float32)
        if values.ndim != 2 or np.isinf(values).any() or (values < 0).any():
            raise DataError(
                f"obsm[{key!r}] holds negative or infinite numbers; expected counts of proteins",
                where=self.path,
                remedy="Let it hold counts, not values that are normalised across cells",
            )
        if len(names) != values.shape[1]:
            names = [f"protein{index}" for index in range(values.shape[1])]
        return Proteins(values, names)

    @cached_property
    def logarithm(self) -> str | None:
        """As `CellFile.logarithm`, from ``uns["log1p"]["base"]``, which scanpy writes."""
        with self.root() as root:
            base = root.get("uns/log1p/base") if isinstance(root, h5py.Group) else None
            if not isinstance(base, h5py.Dataset) or base.shape != ():
                return None
            try:
                return {2.0: "log2(1 + x)", 10.0: "log10(1 + x)"}.get(float(base[()]))
            except (TypeError, ValueError):
                return None


def open_cells(path: str | Path) -> CellFile:
    """Look at a file or folder of cells.

    Args:
        path: An .h5ad file, a .zarr folder, a 10x .h5 file, or a 10x folder with matrix.mtx (or that file).

    Raises:
        DataError: It cannot be read as what it is, or is hostile.
    """
    from polyfm.domains.singlecell.tenx import find_mtx, open_mtx, open_tenx_h5

    path = Path(path)
    if path.is_dir():
        if is_zarr(path):
            check_zarr(path)
            return _checked(AnnDataFile(path, lambda: zarr.open_group(path, mode="r")))
        if find_mtx(path) is not None:
            return open_mtx(path)
        raise DataError(_no_cells(path), where=path, remedy=_inside(path))
    check_file(path)
    if path.name.lower().endswith((".mtx", ".mtx.gz")):
        return open_mtx(path.parent)
    ending = path.suffix.lower()
    if ending not in (".h5ad", ".h5", ".hdf5"):
        raise DataError(
            f"files that end in {ending or 'nothing'!r} are not read; expected {', '.join(ENDINGS)} or a folder with "
            "matrix.mtx",
            where=path,
            remedy=f"Convert it: {_FOREIGN[ending]}" if ending in _FOREIGN else "Rename or convert the file",
        )
    check_hdf5(path)
    with h5py.File(path, "r") as file:
        is_anndata = "obs" in file or "var" in file or ending == ".h5ad"
    return _checked(AnnDataFile(path, lambda: h5py.File(path, "r"))) if is_anndata else open_tenx_h5(path)


def _checked(file: AnnDataFile) -> AnnDataFile:
    file.check()
    return file


def _no_cells(path: Path) -> str:
    return "the folder is no zarr store (no .zgroup, no zarr.json) and no 10x folder (no matrix.mtx)"


def _inside(path: Path) -> str:
    """What of a folder the user may have meant."""
    from polyfm.domains.singlecell.tenx import is_tenx

    found = sorted(child.name for child in path.iterdir() if child.suffix.lower() in ENDINGS or is_tenx(child))
    return f"Name what is inside: {', '.join(found[:4])}" if found else "Name a file or folder that holds cells"


def _shape(element: Any) -> tuple[int, int] | None:
    """Cells and genes of a matrix, dense or sparse; None if it is neither."""
    shape = (
        element.attrs.get("shape", element.attrs.get("h5sparse_shape")) if hasattr(element, "keys") else element.shape
    )
    return (int(shape[0]), int(shape[1])) if shape is not None and len(shape) == 2 else None


def _columns(table: Any) -> tuple[str, ...]:
    order = table.attrs.get("column-order")
    index = str(table.attrs.get("_index", "_index"))
    names = texts_of(order) if order is not None else [name for name in table if name not in (index, "__categories")]
    return tuple(name for name in names if name in table)


def _index(table: Any) -> Any:
    name = str(table.attrs.get("_index", "_index"))
    return read_elem(table[name])


def _column(table: Any, name: str) -> Any:
    # Before AnnData 0.8 a column's categories stood elsewhere, and only the whole table could be put together.
    return read_elem(table)[name].array if "__categories" in table else read_elem(table[name])


def texts_of(values: Sequence[Any] | Any) -> list[str]:
    """Strings of whatever a file holds, "" for nothing."""
    array = np.asarray(values, dtype=object)
    return [
        ""
        if item is None or item is pd.NA
        else item.decode("utf-8", "replace")
        if isinstance(item, bytes)
        else str(item)
        for item in array.ravel()
    ]
