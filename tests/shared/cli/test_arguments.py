"""Our own words of the command line."""

from __future__ import annotations

import pytest
import torch

from polyfm.shared.cli.arguments import Arguments, choose_size
from polyfm.shared.errors import UsageError


@pytest.fixture
def parser() -> Arguments:
    made = Arguments("embed", "Vectors.")
    made.add_argument("run")
    made.add_argument("--out", default="")
    return made


def test_our_words_and_the_recipe_s(parser: Arguments) -> None:
    ours, rest = parser.parse_some(["runs/a", "--out=x", "--data.path", "f.csv", "--model.kind=binary"])
    assert (ours.run, ours.out) == ("runs/a", "x")
    assert rest == ["--data.path", "f.csv", "--model.kind=binary"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the following arguments are required: run"),
        (["a", "--ou", "x"], "unknown words: --ou x"),  # no abbreviations
        (["a", "b"], "unknown words: b"),
        (["a", "--out"], "argument --out: expected one argument"),
    ],
)
def test_mistakes_are_one_line_with_what_to_do(parser: Arguments, words: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        parser.parse(words)
    assert str(error.value).endswith("`polyfm embed --help` shows how")


def test_on_a_cpu_the_size_must_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_size("small") == "small"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="without a GPU the size must be chosen. Add --size small"):
        choose_size("")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_size("") == "paper"
