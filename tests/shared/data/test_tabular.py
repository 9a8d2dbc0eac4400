from __future__ import annotations

import gzip
from pathlib import Path

import pandas as pd
import pytest

from polyfm.shared.data.tabular import open_table
from polyfm.shared.errors import DataError


def cells(path: Path) -> list[tuple[str, ...]]:
    return [row.cells for row in open_table(path).rows()]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("packed", [False, True])
def test_separators_and_gzip(tmp_path: Path, separator: str, packed: bool) -> None:
    content = f"a{separator}b\n1{separator}x\n\n2{separator}\n".encode()
    path = tmp_path / ("t.csv.gz" if packed else "t.csv")
    path.write_bytes(gzip.compress(content) if packed else content)
    table = open_table(path)
    assert table.columns == ("a", "b")
    assert [(row.number, row.cells) for row in table.rows()] == [(1, ("1", "x")), (2, ("2", ""))]
    assert len(list(table.rows())) == 2, "each call starts anew"


def test_a_tsv_may_hold_commas(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text("a,b\tc\n1,2\t3\n")
    assert cells(tmp_path / "t.tsv") == [("1,2", "3")]


def test_excel_marks_and_line_ends(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b'\xef\xbb\xbfa,b\r\n"x,\r\ny",2\r\n')
    assert open_table(tmp_path / "t.csv").columns == ("a", "b")
    assert cells(tmp_path / "t.csv") == [("x,\r\ny", "2")]


def test_a_ragged_row_is_marked_and_numbered(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b\n1,2\n3\n4,5\n")
    rows = list(open_table(tmp_path / "t.csv").rows())
    assert [row.number for row in rows] == [1, 2, 3]
    assert rows[1].cells == ("3",)
    assert [row.problem for row in rows] == ["", "1 cells where the header has 2", ""]


def test_parquet_gives_the_same_texts(tmp_path: Path) -> None:
    frame = pd.DataFrame({"s": ["C", None], "y": [0.1, float("nan")], "n": [1, 2]})
    frame.to_parquet(tmp_path / "t.parquet")
    assert open_table(tmp_path / "t.parquet").columns == ("s", "y", "n")
    assert cells(tmp_path / "t.parquet")[0] == ("C", "0.1", "1")
    assert cells(tmp_path / "t.parquet")[1][0] == ""


def test_the_nearest_column_is_suggested(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("SMILES,p_np\nC,1\n")
    table = open_table(tmp_path / "t.csv")
    assert table.column("p_np") == 1
    with pytest.raises(DataError, match=r"no column 'smile'.*'SMILES', 'p_np'.*Did you mean 'SMILES'"):
        table.column("smile")
    with pytest.raises(DataError, match="Name one of these columns"):
        table.column("zzzzzz")


def test_a_header_that_was_not_cut_is_told_by_its_separator(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text("a;b\n1;2\n")
    with pytest.raises(DataError, match=r"separated by ';', not by tabs: let the file's name end in .csv"):
        open_table(tmp_path / "t.tsv").column("y")
    (tmp_path / "t.tsv").write_text("a\n1\n")
    assert open_table(tmp_path / "t.tsv").misread == ""


def test_guesses_look_past_case_and_blanks(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("Compound ID,Canonical-SMILES\nx,C\n")
    table = open_table(tmp_path / "t.csv")
    assert table.guess(("smiles", "canonical_smiles")) == "Canonical-SMILES"
    assert table.guess(("compound_id",)) == "Compound ID"
    assert table.guess(("y",)) is None


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("t.csv", b"", "the file is empty"),
        ("t.csv", b"\n\n", "begins with a blank line"),
        ("t.csv", b"a,b\n\xe9,1\n", "not UTF-8 .byte 0xe9.*iconv"),
        ("t.csv", "a,b\n1,2\n".encode("utf-16"), "UTF-16"),
        ("t.csv", b"PK\x03\x04rest of an xlsx", "Excel"),
        ("t.csv", b"a,b\n\0,1\n", "this is binary, not text"),
        ("t.csv.gz", gzip.compress(b"a,b\n\0,1\n"), "this is binary, not text"),
        ("t.csv", b"a,a\n1,2\n", "several columns are named 'a'"),
        ("t.csv.gz", gzip.compress(b"a,b\n" + bytes(range(65, 91)) * 1000)[:-20], "gzip file is damaged"),
        ("t.parquet", b"no parquet at all", "no Parquet file, or a damaged one"),
        ("t.csv", b'a,b\n"' + b"x" * (1 << 24) + b"x\n", "line 2 is not valid CSV.*quote"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said) as caught:
        cells(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_missing_files_and_folders(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="no such file"):
        open_table(tmp_path / name)
    (tmp_path / name).mkdir()
    with pytest.raises(DataError, match="this is a folder"):
        open_table(tmp_path / name)


def test_a_parquet_file_damaged_inside_is_said(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pd.DataFrame({"s": [f"C{index}" for index in range(100)]}).to_parquet(path, compression=None)
    content = bytearray(path.read_bytes())
    content[4:40] = b"\xff" * 36
    path.write_bytes(content)
    with pytest.raises(DataError, match="damaged"):
        cells(path)
