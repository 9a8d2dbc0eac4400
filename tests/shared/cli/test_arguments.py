"""Our own words of the command line."""

from __future__ import annotations

import pytest
import torch

from polyfm.shared.cli.arguments import Arguments, choose_size, reading_options
from polyfm.shared.data.datamodule import DataModule
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


def test_an_unknown_option_is_told_the_nearest(parser: Arguments) -> None:
    with pytest.raises(
        UsageError, match=r"unknown words: --uot=x. Did you mean --out\? `polyfm embed --help` shows how"
    ):
        parser.parse(["a", "--uot=x"])


@pytest.mark.parametrize(
    "words",
    [
        ["a", "--data.smiles", "col", "--out", "x", "--data.max=3"],
        ["--data.smiles=col", "--data.max", "3", "a", "--out=x"],
    ],
)
def test_words_about_reading_stand_apart_wherever_they_stand(parser: Arguments, words: list[str]) -> None:
    ours, reading = parser.parse_reading(words)
    assert (ours.run, ours.out) == ("a", "x")
    assert reading == {"smiles": "col", "max": "3"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a", "--data.smiles"], "--data.smiles needs a value"),
        (["a", "--data.smiles="], "--data.smiles needs a value"),
        (["a", "--data.smiles", "--out", "x"], "--data.smiles needs a value"),
        (
            ["a", "--smiles", "x"],
            "unknown words: --smiles x. How a file is read is said with --data.KEY VALUE; `polyfm",
        ),
        (["--data.smiles", "x"], "the following arguments are required: run"),
    ],
)
def test_mistakes_about_reading(parser: Arguments, words: list[str], message: str) -> None:
    with pytest.raises(UsageError) as error:
        parser.parse_reading(words)
    assert message in str(error.value)


class Readable(DataModule):
    """Says which of its arguments are about reading."""

    READING = ("column", "rows", "share")

    def __init__(self, path: str, column: str = "", rows: int = 0, share: float = 0.5, width: int = 3) -> None: ...


def test_options_about_reading_have_the_types_of_the_data_module() -> None:
    given = {"column": "7", "rows": "7", "share": "1e-1"}
    assert reading_options(given, Readable) == {"column": "7", "rows": 7, "share": 0.1}
    assert reading_options({}, Readable) == {}


@pytest.mark.parametrize(("name", "expected"), [("rows", "a whole number"), ("share", "a number")])
def test_words_for_numbers_are_refused(name: str, expected: str) -> None:
    with pytest.raises(UsageError, match=f"--data.{name}: expected {expected}, not 'half'"):
        reading_options({name: "half"}, Readable)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("colum", "there is no option --data.colum. Did you mean --data.column?"),
        (
            "width",
            "--data.width stays as the run was trained. Options about reading a file: --data.column, --data.rows, --data.share",
        ),
        (
            "xyz",
            "there is no option --data.xyz. Options about reading a file: --data.column, --data.rows, --data.share",
        ),
    ],
)
def test_other_options_are_refused_with_the_nearest(name: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        reading_options({name: "x"}, Readable)
    assert str(error.value) == message
