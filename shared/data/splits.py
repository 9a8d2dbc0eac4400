"""Deterministic splits: by group, at random, or as a column of the data says; written beside every run."""

from __future__ import annotations

import csv
import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from polyfm.shared.errors import DataError, UsageError

TRAIN, VALID, TEST = SPLITS = ("train", "valid", "test")
ALIASES = {
    "train": TRAIN, "training": TRAIN,
    "valid": VALID, "val": VALID, "validation": VALID, "dev": VALID,
    "test": TEST, "testing": TEST,
}  # fmt: skip
"""What a split column may say, in any case."""

Fractions = tuple[float, float, float]
Names = NDArray[np.str_]


@dataclass(frozen=True, eq=False)
class Splits:
    """Which split each of n items is in."""

    ids: list[str]
    """n ids, all different."""
    groups: list[str]
    """n groups: what a split should not cut (scaffold, patient, donor …)."""
    names: Names
    """(n,) "train", "valid" or "test"."""

    def __post_init__(self) -> None:
        repeated = [name for name, count in Counter(self.ids).items() if count > 1]
        if repeated:
            raise DataError(f"the id {repeated[0]!r} names several items", remedy="Make ids unique")

    def __len__(self) -> int:
        return len(self.ids)

    def indices(self, name: str) -> NDArray[np.int64]:
        """(m,) ascending positions of the items in one split.

        Args:
            name: "train", "valid" or "test".
        """
        return np.flatnonzero(self.names == name)

    def counts(self) -> dict[str, int]:
        """Items per split, in the order train, valid, test."""
        return {name: int((self.names == name).sum()) for name in SPLITS}

    def cut_groups(self) -> list[str]:
        """Groups that have items in more than one split, sorted; empty after `group_split`."""
        where: dict[str, set[str]] = defaultdict(set)
        for group, name in zip(self.groups, self.names.tolist(), strict=True):
            where[group].add(name)
        return sorted(group for group, names in where.items() if len(names) > 1)

    def to_csv(self, path: str | Path) -> None:
        """Write one line an item: id, group, split.

        Args:
            path: The file, overwritten.
        """
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["id", "group", "split"])
            writer.writerows(zip(self.ids, self.groups, self.names.tolist(), strict=True))

    @classmethod
    def from_csv(cls, path: str | Path) -> Splits:
        """Read what `to_csv` wrote.

        Args:
            path: The file.
        """
        try:
            with open(path, newline="", encoding="utf-8") as file:
                reader = csv.reader(file)
                header, rows = next(reader, []), [row for row in reader if row]
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"the splits cannot be read ({error})", where=path) from error
        if header != ["id", "group", "split"] or any(len(row) != 3 for row in rows):
            raise DataError(
                f"expected a CSV file with the columns id, group, split; its header is {','.join(header)!r}",
                where=path,
                remedy="Pass the splits.csv of a run",
            )
        ids, groups, names = map(list, zip(*rows, strict=True)) if rows else ([], [], [])
        for row, name in enumerate(names, start=1):
            if name not in SPLITS:
                raise DataError(f"row {row} names the split {name!r}; expected {', '.join(SPLITS)}", where=path)
        return cls(ids, groups, np.array(names, dtype=np.str_))

    def select(self, ids: Sequence[str]) -> Splits:
        """The same assignment for other items, so that two runs share a split.

        Args:
            ids: Ids that all have a split.
        """
        position = {name: index for index, name in enumerate(self.ids)}
        unknown = [name for name in ids if name not in position]
        if unknown:
            raise DataError(
                f"{len(unknown)} of {len(ids)} items have no split, for example {unknown[0]!r}",
                remedy="Use the splits of a run over the same data, or split anew",
            )
        keep = [position[name] for name in ids]
        return Splits(list(ids), [self.groups[index] for index in keep], self.names[keep])


def group_split(groups: Sequence[str], fractions: Fractions = (0.8, 0.1, 0.1)) -> Names:
    """Split so that no group is cut: large groups train, rare ones test.

    Groups by falling size fill train, then valid, then test, as MoleculeNet's scaffold split does (Wu et al., Chemical
    Science 9, 513-530, 2018). Groups of equal size stand in the order of their name's sha256: file order, the usual tie
    rule, puts one class alone into the test of sets sorted by label (BACE, BBBP). There is no seed, by intention.

    Args:
        groups: n group names.
        fractions: Shares of train, valid and test.

    Returns:
        (n,) split names.

    Raises:
        DataError: A split that was asked for is empty, for example because one group holds nearly everything.
    """
    _check(fractions)
    members: dict[str, list[int]] = defaultdict(list)
    for index, group in enumerate(groups):
        members[group].append(index)
    order = sorted(members, key=lambda group: (-len(members[group]), hashlib.sha256(group.encode()).digest()))
    train_end, valid_end = fractions[0] * len(groups), (fractions[0] + fractions[1]) * len(groups)
    names = np.full(len(groups), TEST, dtype="<U5")
    num_train = num_valid = 0
    for group in order:
        size = len(members[group])
        if num_train + size <= train_end:
            names[members[group]] = TRAIN
            num_train += size
        elif num_train + num_valid + size <= valid_end:
            names[members[group]] = VALID
            num_valid += size
    largest = len(members[order[0]]) if order else 0
    _refuse_empty(
        names,
        fractions,
        f"{len(members)} groups, the largest of {largest} items",
        "Split each item by itself with --data.split random, change --data.fractions, or use more data",
    )
    return names


def random_split(ids: Sequence[str], fractions: Fractions = (0.8, 0.1, 0.1), *, seed: int) -> Names:
    """Split at random, each item by itself: its split is a pure function of the seed and its id.

    So items keep their split when others are added, and items with the same id stay together. Sizes meet the fractions
    on average only.

    Args:
        ids: n names; pass what identifies the content (canonical SMILES) to keep duplicates on one side.
        fractions: Shares of train, valid and test.
        seed: Another seed, another split.

    Returns:
        (n,) split names.

    Raises:
        DataError: A split that was asked for is empty.
    """
    _check(fractions)
    digests = (hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8] for name in ids)
    draws = np.fromiter((int.from_bytes(digest) for digest in digests), dtype=np.uint64, count=len(ids)) / 2.0**64
    names = np.array(SPLITS)[np.searchsorted(np.cumsum(fractions)[:2], draws, side="right")]
    _refuse_empty(
        names,
        fractions,
        "drawn at random",
        "Use more data, change --data.fractions, or draw with another --seed_everything",
    )
    return names


def column_split(values: Sequence[str]) -> Names:
    """Split as a column of the data says.

    Args:
        values: n entries, each one of `ALIASES` in any case.

    Returns:
        (n,) split names.

    Raises:
        DataError: An entry is something else, or no item is in train or in valid. A test split may be missing.
    """
    read = [ALIASES.get(value.strip().lower()) for value in values]
    for row, (value, name) in enumerate(zip(values, read, strict=True), start=1):
        if name is None:
            raise DataError(
                f"item {row} has the split {value!r}; expected one of {', '.join(ALIASES)}",
                remedy="Correct the entry, or name another column or way: --data.split random",
            )
    names = np.array(read, dtype=np.str_)
    _refuse_empty(
        names,
        (1.0, 1.0, 0.0),
        "as the column says",
        "Mark items of it in the column, or split without one: --data.split random",
    )
    return names


def _check(fractions: Fractions) -> None:
    if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6 or fractions[0] == 0:
        raise UsageError(
            f"split fractions are {tuple(fractions)}; expected three shares of train, valid and test that add up to 1",
            remedy="For example --data.fractions [0.8,0.1,0.1]",
        )


def _refuse_empty(names: Names, wanted: Fractions, how: str, remedy: str) -> None:
    for name, share in zip(SPLITS, wanted, strict=True):
        if share > 0 and not (names == name).any():
            raise DataError(f"the {name} split of {len(names)} items is empty ({how})", remedy=remedy)
