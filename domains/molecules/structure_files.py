"""Files of molecules as streams of records: tables with a SMILES column, SMI and SDF, each also gzipped."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from polyfm.shared.data.tabular import Table, check_file, open_table, open_text, suffix
from polyfm.shared.errors import DataError

SMILES_COLUMNS = (
    "smiles", "canonical_smiles", "isomeric_smiles", "isosmiles", "rdkit_smiles", "compound_smiles", "smi",
    "structure", "mol", "molecule",
)  # fmt: skip
"""Names under which a table's SMILES column is found, in this order; case, blanks and hyphens aside."""

TITLE = "_Name"
"""The name behind a SMILES in an SMI file, or the title line of an SDF record, as a column."""

TABLES = (".csv", ".tsv", ".tab", ".parquet")
"""Endings of files that have columns."""
_SMI = (".smi", ".smiles", ".ism")
_SDF = (".sdf", ".sd")
_PROPERTY = re.compile(r"^>.*?<(.+?)>")


class Record(NamedTuple):
    """One molecule as it stands in a file."""

    number: int
    """Which record, from 1; header and blank lines are not counted."""
    structure: str
    """SMILES or mol block."""
    cells: tuple[str, ...]
    """One text per column of the file, empty where there is nothing."""
    problem: str = ""
    """Why the record is malformed; empty if it is well-formed."""


@dataclass(frozen=True)
class StructureFile:
    """A file of molecules: its columns now, its records one after the other."""

    table: Table
    """Path and columns; its rows are read through `records` only."""
    records: Callable[[], Iterator[Record]]
    """Reads the records; each call starts anew."""
    smiles_column: str | None
    """The column that holds the SMILES, for a table."""
    mol_blocks: bool = False
    """Structures are mol blocks, not SMILES."""


def open_structures(path: str | Path, smiles: str | None = None) -> StructureFile:
    """Look at a file of molecules.

    Args:
        path: A .csv, .tsv, .tab, .parquet, .smi, .smiles, .ism, .sdf or .sd file; all but Parquet may be gzipped (.gz).
        smiles: For a table, the column with the SMILES; guessed from `SMILES_COLUMNS` unless given.

    Raises:
        DataError: The file cannot be read as what its name says, or has no such column.
    """
    path = Path(path)
    check_file(path)
    kind = suffix(path)
    if kind in TABLES:
        return _table(open_table(path), smiles)
    if kind in _SMI:
        with open_text(path):  # says at once what is wrong with the file
            return StructureFile(Table(path, (TITLE,), None), lambda: _smi_records(path), None)
    if kind in _SDF:
        columns = _sdf_columns(path)
        return StructureFile(Table(path, columns, None), lambda: _sdf_records(path, columns), None, mol_blocks=True)
    raise DataError(
        f"files that end in {kind or 'nothing'!r} are not read; expected {', '.join(TABLES + _SMI + _SDF)}",
        where=path,
        remedy="Rename or convert the file",
    )


def columns_of(path: str | Path) -> tuple[str, ...]:
    """Of a file of any format; of a table whatever its SMILES column is called.

    Args:
        path: As of `open_structures`.
    """
    return (open_table(path) if suffix(Path(path)) in TABLES else open_structures(path).table).columns


def _table(table: Table, smiles: str | None) -> StructureFile:
    column = smiles if smiles is not None else table.guess(SMILES_COLUMNS)
    if column is None:
        raise DataError(
            f"no column is named like SMILES; the columns are {', '.join(map(repr, table.columns))}",
            where=table.path,
            remedy=table.misread
            or "Say which one it is with --data.smiles COLUMN; the first line must name the columns",
        )
    at = table.column(column)

    def records() -> Iterator[Record]:
        for row in table.rows():
            # Of a malformed row no cell can be trusted to be the SMILES: all of it is shown.
            structure = " | ".join(row.cells) if row.problem else row.cells[at]
            yield Record(row.number, structure, row.cells, row.problem)

    return StructureFile(table, records, column)


def _smi_records(path: Path) -> Iterator[Record]:
    number = 0
    with open_text(path) as file:
        for line in file:
            # A SMILES holds neither blanks nor commas; what follows the first is the name.
            parts = re.split(r"[\s,]+", line.strip(), maxsplit=1)
            if not parts[0] or parts[0].startswith("#"):
                continue
            if number == 0 and parts[0].lower() in SMILES_COLUMNS:
                continue
            number += 1
            yield Record(number, parts[0], (parts[1] if len(parts) > 1 else "",))


def _sdf_records(path: Path, columns: tuple[str, ...]) -> Iterator[Record]:
    for number, lines in enumerate(_sdf_texts(path), start=1):
        values = _sdf_values(lines)
        block = lines[: next((at + 1 for at, line in enumerate(lines) if line.startswith("M  END")), len(lines))]
        yield Record(number, "\n".join(block) + "\n", tuple(values.get(column, "") for column in columns))


def _sdf_columns(path: Path) -> tuple[str, ...]:
    return tuple(dict.fromkeys([TITLE] + [column for lines in _sdf_texts(path) for column in _sdf_values(lines)]))


def _sdf_texts(path: Path) -> Iterator[list[str]]:
    """The lines of each record, without the $$$$ that ends it."""
    lines: list[str] = []
    with open_text(path) as file:
        for line in file:
            line = line.rstrip("\r\n")
            if line.startswith("$$$$"):
                yield lines
                lines = []
            else:
                lines.append(line)
    if any(line.strip() for line in lines):
        yield lines


def _sdf_values(lines: list[str]) -> dict[str, str]:
    """The properties of an SDF record, several lines of one joined by newlines."""
    values = {TITLE: lines[0].strip() if lines else ""}
    name: str | None = None
    for line in lines:
        if line.startswith(">") and (match := _PROPERTY.match(line)):
            name = match[1]
            values[name] = ""
        elif not line.strip():
            name = None
        elif name is not None:
            values[name] = f"{values[name]}\n{line}" if values[name] else line
    return values
