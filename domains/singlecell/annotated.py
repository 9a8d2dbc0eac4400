"""What a model says of cells, written into their own AnnData: everything that was there stays.

``obsm["X_polyfm"]``, and of a fine-tuned model ``obs["polyfm_label"]`` and ``obs["polyfm_probability"]`` (numbers:
``obs["polyfm_COLUMN"]``) with ``obsm["polyfm_probabilities"]``; where all comes from stands in ``uns["polyfm"]``.
Cells that were left out have NaN, and no label.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyfm.domains.singlecell.read import CellTable
from polyfm.domains.singlecell.tenx import find_mtx
from polyfm.shared.errors import DataError, MissingExtraError
from polyfm.shared.training.recipe import shareable

try:
    import anndata
    import h5py
    import pandas as pd
except ImportError as error:
    raise MissingExtraError(str(error.name), "singlecell") from error

VECTORS, LABEL, PROBABILITY, PROBABILITIES = "X_polyfm", "polyfm_label", "polyfm_probability", "polyfm_probabilities"


@dataclass(frozen=True)
class Annotations:
    """What is added to n cells of a file, in its order."""

    obs: Mapping[str, pd.Categorical | NDArray[Any]]
    """By column: (n,)."""
    obsm: Mapping[str, NDArray[np.float32]]
    """By key: (n, D)."""
    uns: Mapping[str, Any]
    """Where it comes from: texts, and lists of texts."""


def annotate(model: Any, cells: Any, modality: str = "genes", *, projected: bool = False) -> Annotations:
    """What a model says of the cells of one file.

    Args:
        model: A `LoadedModel`.
        cells: An AnnData, the path of a file, or the table of either as of ``model.data.samples_from``.
        modality: Of the vectors.
        projected: As of `LoadedModel.embed`.
    """
    table: CellTable = model.data.samples_from(cells)
    num_cells = table.quarantine.num_read
    said = None
    if projected or getattr(model.task, "target", None) is None:
        vectors = model.embed(table, modality, projected=projected)
    else:
        said = model.predict(table, vectors_of=modality)
        vectors = said.vectors
    whole = np.full((num_cells, vectors.shape[1]), np.nan, np.float32)
    whole[table.rows] = vectors
    environment = model.folder.environment()
    uns: dict[str, Any] = {
        "run": model.folder.path.name,
        "recipe": shareable(model.folder.recipe.read_text()),
        "polyfm": str(environment.get("versions", {}).get("polyfm", "")),
        "commit": str(environment.get("commit", "")),
        "modality": modality,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    obs: dict[str, Any] = {}
    obsm: dict[str, Any] = {VECTORS: whole}
    if said is None:
        return Annotations(obs, obsm, uns)
    values = np.full((num_cells, said.values.shape[1]), np.nan, np.float32)
    values[table.rows] = said.values
    classes = list(getattr(model.task.target, "classes", None) or [])
    uns["label"] = list(model.task.target.names)
    if classes:
        codes = np.full(num_cells, -1, np.int64)
        codes[table.rows] = said.values.argmax(1)
        obs = {LABEL: pd.Categorical.from_codes(codes.tolist(), pd.Index(classes)), PROBABILITY: _highest(values)}
        obsm[PROBABILITIES], uns["classes"] = values, classes
    else:
        obs = {f"polyfm_{name}": values[:, at] for at, name in enumerate(said.names)}
    return Annotations(obs, obsm, uns)


def _highest(values: NDArray[np.float32]) -> NDArray[np.float32]:
    highest: NDArray[np.float32] = values.max(axis=1, initial=-np.inf)
    return np.where(np.isfinite(highest), highest, np.float32(np.nan))


def add(cells: Any, found: Annotations) -> None:
    """Put annotations into an AnnData in memory.

    Args:
        cells: n cells, changed.
        found: Of them.
    """
    for name, column in found.obs.items():
        cells.obs[name] = column
    for name, table in found.obsm.items():
        cells.obsm[name] = table
    cells.uns["polyfm"] = dict(found.uns)


def write_annotated(source: Path, out: Path, found: Annotations) -> None:
    """A file of cells with annotations; of an .h5ad all the rest is a copy, byte by byte, and is never in memory.

    Args:
        source: .h5ad, .zarr, 10x .h5 or 10x folder.
        out: .h5ad, replaced if it exists.
        found: Of its cells.

    Raises:
        DataError: The file cannot be copied or changed.
    """
    part = out.with_name(f"{out.name}.part")
    try:
        if source.suffix == ".h5ad":
            shutil.copyfile(source, part)
        else:
            _as_anndata(source).write_h5ad(part)
        with h5py.File(part, "r+") as file:
            _extend(file, found)
        part.replace(out)
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"annotations cannot be added to a copy of this file ({error})", where=source) from error
    finally:
        part.unlink(missing_ok=True)


def _as_anndata(source: Path) -> Any:
    import scanpy

    if not source.is_dir():
        return scanpy.read_10x_h5(source, gex_only=False)
    found = find_mtx(source)
    if found is None:
        return anndata.read_zarr(source)
    prefix = found.matrix.name.removesuffix(".gz").removesuffix("matrix.mtx")
    return scanpy.read_10x_mtx(source, gex_only=False, prefix=prefix or None)


def _extend(file: Any, found: Annotations) -> None:
    write = anndata.io.write_elem
    obs = file["obs"]
    order = [str(name) for name in obs.attrs.get("column-order", [])]
    for name, column in found.obs.items():
        if isinstance(column, pd.Categorical):  # pandas 3 keeps categories as strings that AnnData cannot write
            categories = np.array(column.categories.tolist(), dtype=object)
            if name in obs:
                del obs[name]
            group = obs.create_group(name)
            group.attrs.update({"encoding-type": "categorical", "encoding-version": "0.2.0", "ordered": False})
            write(group, "codes", np.asarray(column.codes))
            write(group, "categories", categories)
        else:
            write(obs, name, np.asarray(column))
        order = [*[other for other in order if other != name], name]
    obs.attrs["column-order"] = np.array(order, dtype=h5py.string_dtype())
    for key, table in found.obsm.items():
        write(file.require_group("obsm"), key, table)
    told = {
        name: np.array(value, dtype=object) if isinstance(value, list) else value for name, value in found.uns.items()
    }
    write(file.require_group("uns"), "polyfm", told)
