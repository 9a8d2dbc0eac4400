"""An AnnData of a session, read as a file is: what is needed of it goes through a file that is gone afterwards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from polyfm.domains.singlecell.read import PROTEIN_KEYS, CellTable
from polyfm.shared.errors import DataError, MissingExtraError, UsageError

try:
    import anndata
    import pandas as pd
    from pandas.api.types import is_object_dtype
except ImportError as error:
    raise MissingExtraError(str(error.name), "singlecell") from error

HERE = "the AnnData"


def read_object(cells: Any, read: Callable[..., Any], protein: str = "") -> CellTable:
    """The table of an AnnData.

    Args:
        cells: An AnnData.
        read: Reads a file; with ``in_memory=True`` it holds the matrices.
        protein: Entry of ``obsm`` that is needed, besides those known by name.

    Raises:
        UsageError: It is a part of one that is not in memory.
        DataError: It cannot be read; as of a file.
    """
    if cells.isbacked:
        if cells.is_view:
            raise UsageError(
                "a part of an AnnData that is not in memory has no file of its own", remedy="Give its .to_memory()"
            )
        table: CellTable = read(Path(cells.filename))
        return table
    wanted = {key for key in cells.obsm if key == protein or key.lower() in PROTEIN_KEYS}
    obs = _plain(cells.obs)
    copy = anndata.AnnData(
        cells.X,
        obs=obs,
        var=_plain(cells.var),
        layers=dict(cells.layers),
        obsm={key: _named(cells.obsm[key], obs.index) for key in wanted},
        uns={"log1p": cells.uns["log1p"]} if "log1p" in cells.uns else {},
    )
    if cells.raw is not None:
        copy.raw = anndata.AnnData(cells.raw.X, obs=copy.obs[[]], var=_plain(cells.raw.var))
    with TemporaryDirectory() as folder:
        path = Path(folder) / "cells.h5ad"
        try:
            copy.write_h5ad(path, convert_strings_to_categoricals=False)
        except (TypeError, ValueError, NotImplementedError) as error:
            short = str(error).partition("\n")[0][:200]
            raise DataError(
                f"its matrices or columns cannot be written ({short})",
                where=HERE,
                remedy="adata.write_h5ad(FILE) says which; drop it, or give FILE",
            ) from error
        try:
            table = read(path, in_memory=True)
        except DataError as error:
            error.where = HERE if str(error.where) == str(path) else error.where
            raise
        for matrix in table.matrices:
            matrix.store.hold()
    return table


def _plain(table: pd.DataFrame) -> pd.DataFrame:
    """Names and mixed columns as text: a file has nothing else."""
    made = table.copy()
    made.index = made.index.astype(str)
    made.columns = made.columns.astype(str)
    for name in [name for name, kind in made.dtypes.items() if is_object_dtype(kind)]:
        made[name] = made[name].map(str, na_action="ignore")
    return made


def _named(values: Any, names: pd.Index) -> Any:
    """A table under the same names as the cells, whatever they were."""
    return _plain(values).set_axis(names) if isinstance(values, pd.DataFrame) else values
