"""What all kinds share."""

from __future__ import annotations

from polyfm.shared.training.targets.target import average_columns


def test_columns_are_averaged_where_they_have_the_metric() -> None:
    assert average_columns({"a": {"x": 1.0}}) == {"x": 1.0}
    assert average_columns({"a": {"x": 1.0, "y": 4.0}, "b": {"x": 3.0}}) == {
        "x": 2.0, "y": 4.0, "a/x": 1.0, "a/y": 4.0, "b/x": 3.0,
    }  # fmt: skip
