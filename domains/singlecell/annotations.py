"""Columns of ``obs`` as labels, texts and names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from polyfm.domains.singlecell.cell_files import CellFile
from polyfm.domains.singlecell.ontology import Ontology
from polyfm.shared.data.labels import MISSING
from polyfm.shared.data.manifest import Finding
from polyfm.shared.errors import DataError


def words_of(column: pd.Series[Any]) -> list[str | None]:
    """A column as words, None for nothing.

    Args:
        column: Of ``obs``, of any type.
    """
    empty = column.isna().to_numpy()
    # What one file holds as numbers, with gaps, another may hold as words: 1.0 is "1" in both.
    whole = (
        int(cell) if isinstance(cell, float) and cell.is_integer() else cell for cell in column.to_numpy(dtype=object)
    )
    words = [str(cell).strip() for cell in whole]
    return [None if gone or word.lower() in MISSING else word for gone, word in zip(empty, words, strict=True)]


def texts_of_columns(file: CellFile, columns: Sequence[str], ontology: Ontology | None = None) -> list[str | None]:
    """Descriptions of cells: a column as it stands, or several, each behind its name; terms with their definitions.

    Args:
        file: Of the cells.
        columns: At least one.
        ontology: Of the terms; words stay as they are if None.
    """
    words = [words_of(file.column(name)) for name in columns]
    if ontology is not None:
        words = [ontology.describe(each) for each in words]
    if len(columns) == 1:
        return words[0]
    named = [name.replace("_", " ") for name in columns]
    return [
        ". ".join(f"{name}: {cell.rstrip('.')}" for name, cell in zip(named, cells, strict=True) if cell is not None)
        or None
        for cells in zip(*words, strict=True)
    ]


def encode_labels(
    columns: Mapping[str, Sequence[pd.Series[Any]]], paths: Sequence[Path], keep: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], list[str]]:
    """Labels as numbers.

    A column of words or categories that stands alone names classes, even where the words are numbers, as those of
    clusters are; numbers are values, true and false 1 and 0.

    Args:
        columns: By name, a column of each file.
        paths: Of the files.
        keep: (n,) which cells of all files stay.

    Returns:
        (n', columns), NaN where nothing is known, and the names of the classes, in alphabetical order.

    Raises:
        DataError: Several columns of which one holds words, a class per cell, or an infinite number.
    """
    found: list[NDArray[np.float64]] = []
    classes: list[str] = []
    for name, parts in columns.items():
        if all(pd.api.types.is_numeric_dtype(part.dtype) for part in parts):
            values = np.concatenate([part.to_numpy(dtype=np.float64, na_value=np.nan) for part in parts])[keep]
            if np.isinf(values).any():
                raise DataError(
                    f"obs[{name!r}] holds an infinite number", where=paths[0], remedy="Leave it NaN where unknown"
                )
            found.append(values)
            continue
        words = [word for part in parts for word in words_of(part)]
        words = [words[at] for at in np.flatnonzero(keep)]
        classes = sorted({word for word in words if word is not None})
        if len(columns) > 1:
            raise DataError(
                f"obs[{name!r}] holds words, such as {classes[0] if classes else ''!r}; several labels must be numbers",
                where=paths[0],
                remedy="Name one column of classes",
            )
        if len(classes) > max(len(words) // 2, 1):
            raise DataError(
                f"obs[{name!r}] has {len(classes):,} classes for {len(words):,} cells",
                where=paths[0],
                remedy="Choose another column: this one names cells",
            )
        index = {word: float(number) for number, word in enumerate(classes)}
        found.append(np.array([np.nan if word is None else index[word] for word in words]))
    num_cells = int(keep.sum())
    return np.array(found, dtype=np.float64).reshape(len(found), num_cells).T, classes


def unique_names(
    names: Sequence[list[str]], files: Sequence[CellFile], keep: NDArray[np.bool_]
) -> tuple[list[str], list[Finding]]:
    """Names of all cells that stay, each once.

    Barcodes repeat from one file to the next: then all begin with the file's name. Within a file, a name that was there
    before has its row appended, which is noticed.

    Args:
        names: Per file.
        files: They.
        keep: (n,) which cells of all files stay.
    """
    notices: list[Finding] = []
    unique: list[list[str]] = []
    for file, given in zip(files, names, strict=True):
        repeated = np.flatnonzero(pd.Index(given).duplicated() | (np.array(given, dtype=object) == "")).tolist()
        fresh = list(given)
        for row in repeated:
            fresh[row] = f"{given[row]}#{row + 1}"
            notices.append(
                Finding(file.path.name, row + 1, given[row], "repeated id", f"{given[row]!r} becomes {fresh[row]!r}")
            )
        unique.append(fresh)
    whole = [name for part in unique for name in part]
    if pd.Index(whole).has_duplicates:
        stems = [file.path.name.partition(".")[0] for file in files]
        stems = [f"{stem}{at}" if stems.count(stem) > 1 else stem for at, stem in enumerate(stems)]
        whole = [f"{stem}:{name}" for stem, part in zip(stems, unique, strict=True) for name in part]
    return [whole[at] for at in np.flatnonzero(keep)], notices
