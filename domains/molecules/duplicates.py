"""Rows of one molecule: find them, and make one label of several measurements.

Left apart, duplicates leak from training into test and count twice. A merged label is the mean over the rows that give
it, as is usual for repeated measurements; where a task holds only 0 and 1, or classes, and the rows disagree it is
unknown, since there is no half-active molecule to learn from.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Conflict(NamedTuple):
    """Rows of one molecule that do not agree."""

    first: int
    """Index of the molecule's first row."""
    task: int
    """Which target."""
    values: tuple[float, ...]
    """What the rows say, in their order."""
    merged: float
    """What is made of it: the mean, or NaN."""


def first_rows(smiles: Sequence[str]) -> NDArray[np.int64]:
    """(n,) index of the first row with the same SMILES; a row's own index if there is none before it.

    Args:
        smiles: n canonical SMILES.
    """
    seen: dict[str, int] = {}
    return np.array([seen.setdefault(text, index) for index, text in enumerate(smiles)], dtype=np.int64)


def merge_labels(
    targets: NDArray[np.float64], first: NDArray[np.int64], *, discrete: bool = False
) -> tuple[NDArray[np.float64], list[Conflict]]:
    """Give every molecule's first row the labels of all its rows.

    Args:
        targets: (n, tasks), NaN where missing.
        first: (n,) from `first_rows`.
        discrete: Whether the targets are indices of classes: what rows disagree on is then unknown.

    Returns:
        (n, tasks) labels, right in first rows and as they were in others; and what was contradictory.
    """
    members: dict[int, list[int]] = defaultdict(list)
    for index, representative in enumerate(first.tolist()):
        members[representative].append(index)
    apart = [discrete or set(np.unique(column[~np.isnan(column)])) <= {0.0, 1.0} for column in targets.T]
    merged, conflicts = targets.copy(), []
    for representative, rows in members.items():
        if len(rows) == 1:
            continue
        for task, has_no_mean in enumerate(apart):
            values = targets[rows, task]
            values = values[~np.isnan(values)]
            if not len(values):
                continue
            label = float(values[0])
            if (values != label).any():
                label = math.nan if has_no_mean else float(values.mean())
                conflicts.append(Conflict(representative, task, tuple(values.tolist()), label))
            merged[representative, task] = label
    return merged, conflicts
