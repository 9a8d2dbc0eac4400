from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path

import pytest

from polyfm.shared.data.manifest import Finding, Notices, Quarantine, SourceFile, manifest
from polyfm.shared.errors import DataError

BROKEN = (
    Finding("a.csv", 3, "X(", "unreadable", "syntax error"),
    Finding("a.csv", 7, "", "empty", ""),
    Finding("a.csv", 9, "Y(", "unreadable", "syntax error"),
)


def test_counts_and_summary() -> None:
    quarantine = Quarantine(BROKEN, 20)
    assert quarantine.counts() == {"unreadable": 2, "empty": 1}
    assert quarantine.summary() == "2 x unreadable (first in row 3); 1 x empty (first in row 7)"
    assert Notices().summary() == ""


def test_a_summary_stays_short() -> None:
    kinds = tuple(Finding("a", row, "", f"kind {row}") for row in range(8))
    assert Notices(kinds).summary().endswith("kind 4 (first in row 4); 3 more kinds")


def test_csv_survives_quotes_newlines_and_long_items(tmp_path: Path) -> None:
    findings = (Finding("a.csv", 1, 'say "x",\ny', "k", "d"), Finding("a.csv", 2, "C" * 10_000, "k", "d"))
    Quarantine(findings, 2).to_csv(tmp_path / "q.csv")
    with open(tmp_path / "q.csv", newline="", encoding="utf-8") as file:
        header, first, second = csv.reader(file)
    assert header == ["source", "row", "kind", "detail", "item"]
    assert first == ["a.csv", "1", "k", "d", 'say "x",\ny']
    assert len(second[4]) == 500


def test_nothing_found_writes_the_header(tmp_path: Path) -> None:
    Notices().to_csv(tmp_path / "n.csv")
    assert (tmp_path / "n.csv").read_text() == "source,row,kind,detail,item\n"


def test_check_accepts_the_limit_and_refuses_more() -> None:
    Quarantine(BROKEN, 6).check(0.5)
    Quarantine((), 6).check(0.0)
    with pytest.raises(DataError, match=r"3 of 6 rows are broken, more than the allowed 40%.*row 3: 'X\('"):
        Quarantine(BROKEN, 6).check(0.4)


def test_check_refuses_when_nothing_is_left_whatever_the_limit() -> None:
    with pytest.raises(DataError, match="none of the 3 rows can be used: 2 x unreadable"):
        Quarantine(BROKEN, 3).check(1.0)
    with pytest.raises(DataError, match="no rows"):
        Quarantine((), 0).check(1.0)


def test_files_add_up() -> None:
    total = Quarantine(BROKEN, 20) + Quarantine(BROKEN[:1], 5)
    assert (len(total), total.num_read) == (4, 25)
    assert isinstance(Notices(BROKEN) + Notices(BROKEN), Notices)


def test_manifest_is_json_without_folders(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_bytes(b"smiles\nC\n")
    source = SourceFile.of(path)
    assert source == SourceFile("data.csv", 9, hashlib.sha256(b"smiles\nC\n").hexdigest())
    said = json.loads(json.dumps(manifest([source], Quarantine(BROKEN, 20), Notices())))
    assert said["sources"][0]["name"] == "data.csv"
    assert (said["num_read"], said["num_broken"], said["notices"]) == (20, 3, {})
    assert str(tmp_path) not in json.dumps(said)
