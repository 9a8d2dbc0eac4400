"""Cells of label columns to numbers: as they stand, true and false, or the classes that words name."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from polyfm.shared.errors import DataError

MISSING = frozenset({"", "na", "n/a", "nan", "null", "none"})
FLAGS = {"true": 1.0, "false": 0.0, "yes": 1.0, "no": 0.0}
_MOST_CLASSES = 100
_LIKE_A_NUMBER = re.compile(r"[<>=~≤≥+-]*\s*(\d|inf)", re.IGNORECASE)
"""``>10``, ``1,5``, ``-inf``: no class is called so."""
_SHOWN = 5


def parse_labels(
    columns: Mapping[str, Sequence[str]], rows: Sequence[int], path: Path
) -> tuple[NDArray[np.float64], list[str]]:
    """Labels as numbers.

    A column that stands alone and holds words throughout names classes: its labels are their indices, in alphabetical
    order. Words beside numbers are mistakes, all of which are told at once.

    Args:
        columns: By name, n cells each.
        rows: (n,) which record of the file each is, for messages.
        path: Of the file.

    Returns:
        (n, columns), NaN where a cell is empty, and the names of the classes, if there are any.
    """
    values = {name: [_number(cell) for cell in cells] for name, cells in columns.items()}
    for name, numbers in values.items():
        wrong = [index for index, value in enumerate(numbers) if math.isinf(value)]
        if not wrong:
            continue
        words = [columns[name][index].strip() for index in wrong]
        classes = sorted(set(words))
        only_words = len(wrong) == sum(not math.isnan(value) for value in numbers)
        no_numbers = not any(_LIKE_A_NUMBER.match(word) for word in classes)
        few = len(classes) <= min(_MOST_CLASSES, max(len(words) // 2, 1))
        if len(columns) == 1 and only_words and no_numbers and few:
            index = {word: float(number) for number, word in enumerate(classes)}
            found = [index.get(cell.strip(), math.nan) for cell in columns[name]]
            return np.array(found, dtype=np.float64)[:, None], classes
        more = [rows[index] for index in wrong[1:]]
        others = f" and {len(more)} more like it (rows {_listed(more)})" if more else ""
        raise DataError(
            f"row {rows[wrong[0]]}, column {name!r} holds {_short(columns[name][wrong[0]])!r}{others}; expected a "
            "number, true or false, yes or no, or nothing",
            where=path,
            remedy="Correct the cell, or leave it empty where the value is unknown; words are classes where they fill "
            "a single label column and repeat",
        )
    return np.array(list(values.values()), dtype=np.float64).reshape(len(values), len(rows)).T, []


def _number(cell: str) -> float:
    """NaN for nothing, infinity for what is no number."""
    text = cell.strip().lower()
    if text in MISSING:
        return math.nan
    try:
        return FLAGS[text] if text in FLAGS else float(text)
    except ValueError:
        return math.inf


def _short(cell: str) -> str:
    return cell if len(cell) <= 40 else f"{cell[:39]}…"


def _listed(rows: Sequence[int]) -> str:
    return ", ".join(map(str, rows[:_SHOWN])) + (" …" if len(rows) > _SHOWN else "")
