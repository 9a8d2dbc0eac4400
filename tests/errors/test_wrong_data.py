"""Files that are not what they should be: one message each, with the remedy; the exit code as designed; no traceback."""

from __future__ import annotations

import gzip
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import pytest

from polyfm.shared.cli.main import main
from polyfm.shared.data import tabular
from polyfm.shared.errors import DataError


def table(labels: Sequence[object], header: str = "smiles,y") -> bytes:
    """A CSV of alkanes and their labels."""
    return "\n".join([header, *(f"{'C' * (i + 1)},{label}" for i, label in enumerate(labels)), ""]).encode()


ROWS = 40
GOOD = table(range(ROWS))
Y = ("--data.targets", "y")
PARTS = "\n".join(["smiles,y,part", *(f"{'C' * (i + 1)},{i},{{}}" for i in range(ROWS)), ""])

USAGE, DATA = 2, 3
# What is wrong: name of the file, its bytes (None: a folder, "": nothing there), options, exit code, problem, remedy.
WRONG_DATA: dict[str, tuple[str, bytes | str | None, Sequence[str], int, str, str]] = {
    "no file": ("a.csv", "", Y, DATA, "there is no such file", "Check the path"),
    "folder for a file": ("a.csv", None, Y, DATA, "this is a folder; expected a file", "Name the file inside it"),
    "empty file": ("a.csv", b"", Y, DATA, "the file is empty", "Write or fetch it again"),
    "blank lines only": ("a.csv", b"\n\n", Y, DATA, "begins with a blank line", "A header is expected"),
    "header only": ("a.csv", b"smiles,y\n", Y, DATA, "there are no rows", "Check that this is the right file"),
    "no header": ("a.csv", GOOD.partition(b"\n")[2], Y, DATA, "no column is named like SMILES", "the first line must name the columns"),
    "Latin-1": ("a.csv", GOOD + "CCO,é\n".encode("latin1"), Y, DATA, "the text is not UTF-8 (byte 0xe9)", "iconv -f LATIN1 -t UTF-8"),
    "Latin-1 far below": ("a.csv", GOOD * 300 + "CCO,é\n".encode("latin1"), Y, DATA, "the text is not UTF-8 (byte 0xe9)", "iconv -f LATIN1 -t UTF-8"),
    "UTF-16": ("a.csv", GOOD.decode().encode("utf-16"), Y, DATA, "this is UTF-16 text", "Save it as UTF-8 CSV"),
    "UTF-16 without its mark": ("a.csv", GOOD.decode().encode("utf-16-le"), Y, DATA, "this is binary, not text", "the right file"),
    "binary named .csv": ("a.csv", bytes(range(256)) * 20, Y, DATA, "this is binary, not text", "Check that this is the right file"),
    "picture named .csv": ("a.csv", b"\x89PNG\r\n\x1a\n" + bytes(100), Y, DATA, "this is binary, not text", "Check that this is the right file"),
    "binary named .smi": ("a.smi", bytes(range(256)) * 20, Y, DATA, "this is binary, not text", "Check that this is the right file"),
    "binary in gzip": ("a.csv.gz", gzip.compress(bytes(range(256)) * 20), Y, DATA, "this is binary, not text", "Check that this is the right file"),
    "Excel named .csv": ("a.csv", b"PK\x03\x04rest of a workbook", Y, DATA, "this is a zip or Excel file", "Save it as UTF-8 CSV"),
    "Parquet named .csv": ("a.csv", b"PAR1rest of a file", Y, DATA, "this is a Parquet file", "Save it as UTF-8 CSV"),
    "CSV named .parquet": ("a.parquet", GOOD, Y, DATA, "this is no Parquet file, or a damaged one", "give it the ending of what it holds"),
    "damaged gzip": ("a.csv.gz", gzip.compress(GOOD * 100)[:-20], Y, DATA, "the gzip file is damaged", "Fetch it again"),
    "unknown ending": ("a.docx", GOOD, Y, DATA, "files that end in '.docx' are not read; expected .csv", "Rename or convert the file"),
    "no ending": ("a", GOOD, Y, DATA, "files that end in 'nothing' are not read", "Rename or convert the file"),
    "commas in a .tsv": ("a.tsv", GOOD, Y, DATA, "no column is named like SMILES; the columns are 'smiles,y'", "separated by ',', not by tabs: let the file's name end in .csv"),
    "missing label column": ("a.csv", table(range(ROWS), "smiles,measured"), ("--data.targets", "mesured"), DATA, "there is no column 'mesured'; the columns are 'smiles', 'measured'", "Did you mean 'measured'?"),
    "missing SMILES column": ("a.csv", table(range(ROWS), "compound,y"), Y, DATA, "no column is named like SMILES; the columns are 'compound', 'y'", "--data.smiles COLUMN"),
    "wrong SMILES column": ("a.csv", GOOD, (*Y, "--data.smiles", "smile"), DATA, "there is no column 'smile'", "Did you mean 'smiles'?"),
    "two columns of one name": ("a.csv", table(range(ROWS), "smiles,smiles"), Y, DATA, "several columns are named 'smiles'", "Rename all but one"),
    "quote not closed": ("a.csv", b'smiles,y\n"' + b"C" * ((1 << 24) + 1), Y, DATA, "line 2 is not valid CSV", "Look for a quote that is not closed"),
    "cells too many": ("a.csv", table(["1,2"] * ROWS), Y, DATA, f"none of the {ROWS} rows can be used: {ROWS} x malformed row", "the right file and column"),
    "no molecule in any row": ("a.csv", b"smiles,y\n" + b"Q(,1\n" * ROWS, Y, DATA, f"none of the {ROWS} rows can be used: {ROWS} x unreadable structure", "the right file and column"),
    "a word for a label": ("a.csv", table([*range(ROWS - 1), "high"]), Y, DATA, f"row {ROWS}, column 'y' holds 'high'; expected a number", "leave it empty where the value is unknown"),
    "an infinite label": ("a.csv", table([*range(ROWS - 1), "inf"]), Y, DATA, f"row {ROWS}, column 'y' holds 'inf'; expected a number", "leave it empty where the value is unknown"),
    "decimal commas": ("a.csv", table(['"1,5"'] * ROWS), Y, DATA, "row 1, column 'y' holds '1,5' and 39 more like it", "Correct the cell"),
    "all labels NaN": ("a.csv", table(["nan"] * ROWS), Y, DATA, "column 'y' has no label among the training rows", "Choose another column"),
    "no label given": ("a.csv", table([""] * ROWS), Y, DATA, "column 'y' has no label among the training rows", "Choose another column"),
    "labels of one class": ("a.csv", table([1] * ROWS), Y, DATA, "column 'y' has only one class among its", "or choose another column"),
    "numbers for yes and no": ("a.csv", GOOD, (*Y, "--model.kind", "binary"), DATA, "in column 'y' is neither 0 nor 1", "Use --model.kind regression"),
    "the structure as label": ("a.csv", GOOD, ("--data.targets", "smiles"), DATA, "row 1, column 'smiles' holds 'C' and ", "Correct the cell"),
    "labels of a .smi": ("a.smi", b"C a\nCC b\n", Y, DATA, "holds molecules and their names, but no labels", "columns of a table (.csv, .tsv, .parquet)"),
    "labels of an .sdf without": ("a.sdf", b"not a molecule\n$$$$\n", Y, DATA, "holds molecules and their names, but no labels", "properties of an SDF"),
    "one row": ("a.csv", table([1]), Y, DATA, "split of 1 items is empty", "Use more data"),
    "one molecule over and over": ("a.csv", b"smiles,y\n" + b"C,1\n" * ROWS, Y, DATA, "split of 1 items is empty", "Use more data"),
    "missing split column": ("a.csv", GOOD, (*Y, "--data.split", "part"), DATA, "there is no column 'part'", "Name one of these columns"),
    "unknown words in the split": ("a.csv", PARTS.format(*["fold"] * ROWS).encode(), (*Y, "--data.split", "part"), DATA, "has the split 'fold'; expected one of train", "Correct the entry"),
    "a split without training": ("a.csv", PARTS.format(*["test"] * ROWS).encode(), (*Y, "--data.split", "part"), DATA, "the train split of 40 items is empty (as the column says)", "split without one: --data.split random"),
    "no label named": ("a.csv", GOOD, (), DATA, "no label column is given", "Name one: --data.targets COLUMN"),
    "option misspelt": ("a.csv", GOOD, ("--data.target", "y"), USAGE, "there is no option --data.target", "Did you mean --data.targets?"),
    "option without value": ("a.csv", GOOD, ("--data.targets",), USAGE, "--data.targets needs a value", "`polyfm fit --help` shows how"),
    "no such modality": ("a.csv", GOOD, (*Y, "--data.modalities", "smile"), USAGE, "molecules have no modality 'smile'", "Choose from: smiles"),
}  # fmt: skip


def words(path: Path, options: Sequence[str]) -> list[str]:
    """A run of the property recipe, as short as can be."""
    split = () if "--data.split" in options else ("--data.split", "random")
    short = ("--size", "small", "--trainer.max_epochs", "1", "--out", str(path.parent / "run"))
    return ["fit", "molecules/property", *short, "--data.path", str(path), *split, *options]


def test_size_of_the_corpus_of_wrong_data() -> None:
    print(f"{len(WRONG_DATA)} wrong files")
    assert len(WRONG_DATA) == 47


@pytest.mark.parametrize(
    ("name", "content", "options", "code", "problem", "remedy"), WRONG_DATA.values(), ids=WRONG_DATA
)
def test_wrong_data_is_one_message_with_the_remedy(
    name: str,
    content: bytes | str | None,
    options: Sequence[str],
    code: int,
    problem: str,
    remedy: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / name
    if content is None:
        path.mkdir()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    assert main(words(path, options)) == code
    said = capsys.readouterr().err
    assert said.startswith("polyfm: ")
    assert said.count("\n") == 1, "one message"
    assert problem in said
    assert remedy in said
    assert said.index(problem) <= said.index(remedy)


@pytest.mark.parametrize("name", ["a.csv", "a.smi", "a.sdf", "a.parquet"])
def test_a_file_that_may_not_be_read(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The superuser may read all files: that this one is refused is feigned."""
    path = tmp_path / name
    path.write_bytes(GOOD)
    path.chmod(0)

    def refuse(file: Any, *rest: Any) -> IO[Any]:
        if file == path:
            raise PermissionError(13, "Permission denied", str(path))
        return open(file, *rest)

    monkeypatch.setattr(tabular, "open", refuse, raising=False)
    assert main(words(path, Y)) == DATA
    said = capsys.readouterr().err
    assert said == (
        f"polyfm: {path}: the file cannot be opened (Permission denied). "
        "Let yourself read it (chmod u+r FILE), or ask its owner\n"
    )


def test_only_debug_shows_the_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "polyfm", *words(tmp_path / "a.csv", Y)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (DATA, "")
    assert ran.stderr == f"polyfm: {tmp_path / 'a.csv'}: there is no such file. Check the path\n"
    with pytest.raises(DataError, match="there is no such file"):
        main([*words(tmp_path / "a.csv", Y), "--debug"])
