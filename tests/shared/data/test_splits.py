from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyfm.shared.data.splits import SPLITS, Splits, column_split, group_split, random_split
from polyfm.shared.errors import DataError, UsageError


def test_large_groups_train_and_small_ones_test() -> None:
    groups = ["a"] * 6 + ["b"] * 2 + ["c"] + ["d"]
    names = group_split(groups, (0.8, 0.1, 0.1))
    small = sorted("cd", key=lambda group: hashlib.sha256(group.encode()).digest())
    assert set(names[:8]) == {"train"}
    assert names[8 + "cd".index(small[0])] == "valid"
    assert names[8 + "cd".index(small[1])] == "test"


def test_a_group_that_does_not_fit_moves_on_as_in_moleculenet() -> None:
    # Train takes 5 items, train and valid together 8: the first group of 3 trains, the second validates, then the
    # first group of 2 still fits train, and the second fits nowhere but in the test.
    groups = ["a"] * 3 + ["b"] * 3 + ["c"] * 2 + ["d"] * 2
    names = group_split(groups, (0.5, 0.3, 0.2))
    by_hash = {group: hashlib.sha256(group.encode()).digest() for group in "abcd"}
    first, second = sorted("ab", key=by_hash.__getitem__)
    third, fourth = sorted("cd", key=by_hash.__getitem__)
    where = dict(zip(groups, names.tolist(), strict=True))
    assert where == {first: "train", second: "valid", third: "train", fourth: "test"}


def test_file_order_does_not_matter() -> None:
    groups = [f"g{index % 37}" for index in range(300)]
    order = np.random.default_rng(0).permutation(300)
    assert (group_split(groups)[order] == group_split([groups[index] for index in order])).all()


def test_ties_do_not_follow_the_labels_of_a_sorted_file() -> None:
    # 200 single groups, all positives first: file order would put negatives alone into the test.
    labels = np.repeat([1, 0], 100)
    test = labels[group_split([f"scaffold {index}" for index in range(200)]) == "test"]
    assert 0.2 < test.mean() < 0.8


@given(
    st.lists(st.integers(0, 30), min_size=60, max_size=200),
    st.sampled_from([(0.8, 0.1, 0.1), (0.6, 0.2, 0.2), (0.5, 0.5, 0.0)]),
)
def test_no_group_is_cut_and_train_does_not_overflow(numbers: list[int], fractions: tuple[float, float, float]) -> None:
    groups = [str(number) for number in numbers]
    try:
        names = group_split(groups, fractions)
    except DataError:
        return  # a split stayed empty, and said so
    splits = Splits([str(index) for index in range(len(groups))], groups, names)
    assert splits.cut_groups() == []
    counts = splits.counts()
    assert sum(counts.values()) == len(groups)
    assert counts["train"] <= fractions[0] * len(groups)


def test_one_group_that_holds_everything_is_refused() -> None:
    with pytest.raises(DataError, match=r"the train split of 10 items is empty \(1 groups, the largest of 10 items\)"):
        group_split([""] * 10)
    with pytest.raises(DataError, match="empty"):
        group_split([])


@pytest.mark.parametrize(
    ("split", "remedy"),
    [
        (lambda: group_split(["a"] * 9), "Split each item by itself with --data.split random, change --data.fractions"),
        (lambda: random_split(["a"], seed=0), "change --data.fractions, or draw with another --seed_everything"),
        (lambda: column_split(["test"]), "Mark items of it in the column, or split without one: --data.split random"),
    ],
)
def test_an_empty_split_is_told_with_the_option_that_helps(split: Callable[[], object], remedy: str) -> None:
    with pytest.raises(DataError) as error:
        split()
    assert remedy in str(error.value)


@pytest.mark.parametrize("fractions", [(0.8, 0.1, 0.2), (0.0, 0.5, 0.5), (1.2, -0.1, -0.1)])
def test_fractions_must_add_up(fractions: tuple[float, float, float]) -> None:
    with pytest.raises(UsageError, match="add up to 1"):
        group_split(["a", "b"], fractions)
    with pytest.raises(UsageError, match="add up to 1"):
        random_split(["a", "b"], fractions, seed=0)


def test_a_random_split_is_a_function_of_seed_and_id_alone() -> None:
    ids = [f"m{index}" for index in range(1000)]
    names = random_split(ids, seed=0)
    assert (random_split(ids[::-1], seed=0)[::-1] == names).all()
    assert (random_split(ids + ["new"] * 50, seed=0)[:1000] == names).all()
    assert (random_split(ids, seed=1) != names).any()
    # The first 8 bytes of sha256("0:m0") as a share of 2^64, by hand.
    draw = int(hashlib.sha256(b"0:m0").hexdigest()[:16], 16) / 2**64
    assert names[0] == ("train" if draw < 0.8 else "valid" if draw < 0.9 else "test")


def test_a_random_split_meets_its_fractions() -> None:
    names = random_split([str(index) for index in range(20_000)], (0.7, 0.2, 0.1), seed=3)
    assert [(names == name).mean() for name in SPLITS] == pytest.approx([0.7, 0.2, 0.1], abs=0.01)


def test_a_random_split_of_almost_nothing_is_refused() -> None:
    with pytest.raises(DataError, match="split of 2 items is empty"):
        random_split(["a", "b"], seed=0)
    assert set(random_split(["a", "b"], (1.0, 0.0, 0.0), seed=0)) == {"train"}


def test_columns_may_use_other_words() -> None:
    assert column_split(["Train", " val", "DEV", "validation", "test", "training"]).tolist() == [
        "train", "valid", "valid", "valid", "test", "train",
    ]  # fmt: skip


def test_a_column_needs_train_and_valid_but_not_test() -> None:
    assert set(column_split(["train", "valid"])) == {"train", "valid"}
    with pytest.raises(DataError, match="the valid split of 2 items is empty"):
        column_split(["train", "test"])


@pytest.mark.parametrize("value", ["", "fold 3", "1"])
def test_an_unknown_word_is_named_with_its_row(value: str) -> None:
    with pytest.raises(DataError, match="item 2 has the split"):
        column_split(["train", value, "valid"])


def test_csv_round_trip(tmp_path: Path) -> None:
    splits = Splits(["a,b", "c"], ["", 'x"y'], np.array(["train", "test"]))
    splits.to_csv(tmp_path / "splits.csv")
    back = Splits.from_csv(tmp_path / "splits.csv")
    assert (back.ids, back.groups, back.names.tolist()) == (splits.ids, splits.groups, ["train", "test"])
    assert back.indices("test").tolist() == [1]
    assert len(back) == 2


def test_a_split_is_carried_over_by_id() -> None:
    splits = Splits(["a", "b", "c"], ["x", "y", "z"], np.array(["train", "valid", "test"]))
    part = splits.select(["c", "a"])
    assert (part.names.tolist(), part.groups) == (["test", "train"], ["z", "x"])
    with pytest.raises(DataError, match="1 of 2 items have no split, for example 'd'"):
        splits.select(["a", "d"])


def test_repeated_ids_are_refused() -> None:
    with pytest.raises(DataError, match="'a' names several items"):
        Splits(["a", "a"], ["", ""], np.array(["train", "test"]))


def test_cut_groups_are_named() -> None:
    splits = Splits(["1", "2", "3"], ["g", "g", "h"], np.array(["train", "test", "test"]))
    assert splits.cut_groups() == ["g"]


@pytest.mark.parametrize(
    ("text", "said"),
    [("id,split\na,train\n", "id,split"), ("id,group,split\na,g,dev\n", "'dev'"), ("id,group,split\na,g\n", "columns")],
)
def test_other_files_are_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "s.csv").write_text(text)
    with pytest.raises(DataError, match=said):
        Splits.from_csv(tmp_path / "s.csv")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.csv"):
        Splits.from_csv(tmp_path / "none.csv")
