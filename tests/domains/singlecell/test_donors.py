"""Whole donors on one side of a test."""

from __future__ import annotations

import pytest

from polyfm.domains.singlecell.donors import donor_split
from polyfm.shared.errors import DataError


def test_no_donor_is_cut() -> None:
    groups = [f"d{i % 10}" for i in range(1000)]
    names, told = donor_split(groups, [str(i) for i in range(1000)], seed=0)
    parts = {group: {name for g, name in zip(groups, names, strict=True) if g == group} for group in set(groups)}
    assert all(len(part) == 1 for part in parts.values())
    assert (names == "test").sum() == (names == "valid").sum() == 100
    assert told.startswith("split by group: d")


def test_another_seed_tests_other_donors_and_the_same_seed_the_same() -> None:
    groups, ids = [f"d{i % 10}" for i in range(100)], [str(i) for i in range(100)]
    splits = [donor_split(groups, ids, seed=seed)[0].tolist() for seed in (0, 0, 1, 2, 3)]
    assert splits[0] == splits[1]
    assert len({tuple(split) for split in splits}) > 1


def test_of_two_donors_one_tests_and_the_other_s_cells_train_and_validate() -> None:
    groups, ids = ["a"] * 300 + ["b"] * 200, [str(i) for i in range(500)]
    names, told = donor_split(groups, ids, seed=0)
    tested = {group for group, name in zip(groups, names, strict=True) if name == "test"}
    assert len(tested) == 1
    rest = names[[group not in tested for group in groups]]
    assert set(rest) == {"train", "valid"}
    assert 0.05 < (rest == "valid").mean() < 0.2
    assert "validation has cells of training groups" in told


def test_one_donor_cannot_be_split() -> None:
    with pytest.raises(DataError, match="all cells are of one group, 'a'. .*--data.split random"):
        donor_split(["a"] * 10, [str(i) for i in range(10)], seed=0)


def test_a_donor_of_nearly_all_cells_trains() -> None:
    groups, ids = ["a"] * 950 + ["b"] * 50, [str(i) for i in range(1000)]
    for seed in range(6):
        names, _ = donor_split(groups, ids, seed=seed)
        assert (names == "test").sum() == 50
        assert (names[:950] != "test").all()
