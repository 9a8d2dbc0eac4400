"""What a user reads: one line that says where, what and what to do."""

from __future__ import annotations

import pytest

from polyfm.shared.errors import MissingExtraError, PolyfmError


@pytest.mark.parametrize(
    ("message", "where", "remedy", "line"),
    [
        ("it is empty", None, None, "it is empty"),
        ("it is empty", "x.csv", None, "x.csv: it is empty"),
        ("it is empty", "x.csv", "Fill it", "x.csv: it is empty. Fill it"),
        ("it is empty.", None, "Fill it", "it is empty. Fill it"),
        ("which recipe?", None, "Name one", "which recipe? Name one"),
        ("stop!", None, "Go home", "stop! Go home"),
    ],
)
def test_one_line_of_clean_sentences(message: str, where: str | None, remedy: str | None, line: str) -> None:
    assert str(PolyfmError(message, where=where, remedy=remedy)) == line


def test_a_missing_library_is_told_its_extra() -> None:
    assert str(MissingExtraError("rdkit", "molecules")).endswith("Install it with: pip install 'polyfm[molecules]'")
