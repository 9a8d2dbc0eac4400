"""Label cells: numbers, flags, classes named by words; mistakes are told together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from polyfm.shared.data.labels import parse_labels
from polyfm.shared.errors import DataError

PATH = Path("assay.csv")


def parse(**columns: list[str]) -> tuple[list[list[float]], list[str]]:
    rows = range(1, len(next(iter(columns.values()))) + 1)
    values, classes = parse_labels(columns, list(rows), PATH)
    return np.nan_to_num(values, nan=-9).tolist(), classes


def test_numbers_flags_and_nothing() -> None:
    assert parse(a=["1.5", " TRUE", "no", "", "N/A"], b=["0", "1", "yes", "-2e3", "nan"]) == (
        [[1.5, 0], [1, 1], [0, 1], [-9, -2000], [-9, -9]],
        [],
    )


def test_words_of_a_single_column_are_classes_in_alphabetical_order() -> None:
    assert parse(phase=["solid", "gas ", "", "liquid", "gas", "solid", "gas"]) == (
        [[2], [0], [-9], [1], [0], [2], [0]],
        ["gas", "liquid", "solid"],
    )


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"a": ["1", ">10", "3", "5,2"]}, "row 2, column 'a' holds '>10' and 1 more like it (rows 4)"),
        ({"a": ["1,5", "2,5", "1,5", "2,5"]}, "row 1, column 'a' holds '1,5' and 3 more like it"),
        ({"a": [">10", "<1", ">10", "<1"]}, "column 'a' holds '>10'"),
        ({"a": ["1", "inf"]}, "row 2, column 'a' holds 'inf'"),
        ({"a": ["x", "y", "x"], "b": ["1", "2", "3"]}, "column 'a' holds 'x' and 2 more like it (rows 2, 3)"),
        ({"a": ["each", "of", "them", "is", "different", "!"]}, "(rows 2, 3, 4, 5, 6); expected a number"),
        ({"a": ["1", *"abcdefghij"]}, "(rows 3, 4, 5, 6, 7 …)"),
    ],
)
def test_words_beside_numbers_are_told_at_once(columns: dict[str, list[str]], message: str) -> None:
    with pytest.raises(DataError) as error:
        parse(**columns)
    assert message in str(error.value)
    assert "fill a single label column and repeat" in str(error.value)


def test_no_columns() -> None:
    assert parse_labels({}, [1, 2], PATH)[0].shape == (2, 0)
