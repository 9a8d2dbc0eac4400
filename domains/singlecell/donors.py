"""Splits by donor or batch: few groups of many cells, of which none may be on both sides of a test."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

import numpy as np

from polyfm.shared.data.splits import TEST, TRAIN, VALID, Fractions, Names, random_split
from polyfm.shared.errors import DataError

MOST_OVER = 1.5
"""Times the cells that a part should have, above which a group is too large for it."""


def donor_split(
    groups: Sequence[str], ids: Sequence[str], fractions: Fractions = (0.8, 0.1, 0.1), *, seed: int
) -> tuple[Names, str]:
    """Split whole groups: some test, some validate, the rest trains.

    Groups are drawn in an order that is a pure function of the seed and their names, until the test part has its share
    of cells, then the validation part. Where that would leave less than one for training, the validation part is drawn
    from cells of training groups, which is said: it then tells when to stop, not how well new donors are done.

    Args:
        groups: n donors or batches.
        ids: n cells, all different.
        fractions: Shares of train, valid and test.
        seed: Another seed, other groups.

    Returns:
        (n,) split names, and one line that says what was done.

    Raises:
        DataError: There is only one group.
    """
    sizes = Counter(groups)
    if len(sizes) < 2:
        raise DataError(
            f"all cells are of one group, {next(iter(sizes), '')!r}",
            remedy="Split cells by themselves with --data.split random, or name another column: --data.group COLUMN",
        )
    order = sorted(sizes, key=lambda group: hashlib.sha256(f"{seed}:{group}".encode()).digest())
    test = _taken(order, sizes, fractions[2] * len(groups), most=len(order) - 1)
    left = [group for group in order if group not in test]
    valid = _taken(left, sizes, fractions[1] * len(groups), most=len(left) - 1) if len(left) > 2 else []
    part = {group: TEST for group in test} | {group: VALID for group in valid}
    names = np.array([part.get(group, TRAIN) for group in groups], dtype="<U5")
    told = f"split by group: {_few(test)} test, {_few(valid) or 'none'} validate, {len(left) - len(valid)} train"
    if fractions[1] and not valid:
        train = np.flatnonzero(names == TRAIN)
        share = fractions[1] / (fractions[0] + fractions[1])
        names[train] = random_split([ids[int(cell)] for cell in train], (1 - share, share, 0.0), seed=seed)
        told += "; groups are few, so validation has cells of training groups"
    return names, told


def _taken(order: Sequence[str], sizes: Counter[str], wanted: float, most: int) -> list[str]:
    """The first groups that together have about as many cells as wanted; the smallest, if all have more."""
    taken: list[str] = []
    cells = 0
    for group in order:
        if cells >= wanted or len(taken) == most:
            break
        if cells + sizes[group] <= MOST_OVER * wanted:
            taken.append(group)
            cells += sizes[group]
    if not taken and wanted > 0 and most > 0:
        taken = [min(order, key=lambda group: sizes[group])]
    return taken


def _few(groups: Sequence[str]) -> str:
    return ", ".join(groups[:3]) + (f" and {len(groups) - 3} others" if len(groups) > 3 else "")
