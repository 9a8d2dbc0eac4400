"""Tables on disk as a stream of rows: CSV and TSV (also .gz) and Parquet, in little memory, with clear errors."""

from __future__ import annotations

import csv
import difflib
import gzip
import io
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from polyfm.shared.errors import DataError

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

_GZIP_MAGIC = b"\x1f\x8b"
_FOREIGN = {
    b"PK\x03\x04": "a zip or Excel file",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
    b"PAR1": "a Parquet file",
}
_LARGEST_FIELD = 1 << 24
_BATCH_ROWS = 8192
_LOOK = 1024
"""Bytes at the beginning that tell whether a file is text."""


@dataclass(frozen=True, slots=True)
class Row:
    """One record of a table."""

    number: int
    """Which record, from 1; header and blank lines are not counted."""
    cells: tuple[str, ...]
    """One text per column, empty where there is nothing; more or fewer if the record is malformed."""
    problem: str = ""
    """Why the record is malformed; empty if it is well-formed."""


@dataclass(frozen=True)
class Table:
    """A table on disk: its columns now, its rows one after the other."""

    path: Path
    """The file."""
    columns: tuple[str, ...]
    """Column names."""
    delimiter: str | None
    """Between cells of a text file; None for Parquet."""

    def rows(self) -> Iterator[Row]:
        """Read the rows; each call starts anew."""
        return self._parquet_rows() if self.delimiter is None else self._text_rows(self.delimiter)

    def column(self, wanted: str) -> int:
        """The position of a column.

        Args:
            wanted: Its exact name.

        Raises:
            DataError: There is none; the message names the nearest.
        """
        if wanted in self.columns:
            return self.columns.index(wanted)
        lower = {name.lower(): name for name in reversed(self.columns)}
        near = [lower[name] for name in difflib.get_close_matches(wanted.lower(), lower, n=3, cutoff=0.5)]
        several = [part.strip() for part in wanted.split(",")]
        if len(several) > 1 and set(several) <= set(self.columns):
            raise DataError(
                f"there is no column {wanted!r}", where=self.path, remedy=f"Several are written [{','.join(several)}]"
            )
        raise DataError(
            f"there is no column {wanted!r}; the columns are {', '.join(map(repr, self.columns))}",
            where=self.path,
            remedy=f"Did you mean {' or '.join(map(repr, near))}?"
            if near
            else self.misread or "Name one of these columns",
        )

    @property
    def misread(self) -> str:
        """What to do if the header was not cut at what separates its cells; empty if it was."""
        whole = self.columns[0] if len(self.columns) == 1 else ""
        apart = next((separator for separator in ",;" if separator in whole), "")
        return f"The cells are separated by {apart!r}, not by tabs: let the file's name end in .csv" if apart else ""

    def guess(self, candidates: Sequence[str]) -> str | None:
        """The first candidate that is a column, whatever its case and whether it has blanks, hyphens or underscores.

        Args:
            candidates: Names in lower case with underscores, most likely first.
        """
        plain = {name.strip().lower().replace(" ", "_").replace("-", "_"): name for name in reversed(self.columns)}
        return next((plain[name] for name in candidates if name in plain), None)

    def _text_rows(self, delimiter: str) -> Iterator[Row]:
        width, number = len(self.columns), 0
        with open_text(self.path) as file:
            lines = _parsed(file, delimiter, self.path)
            next(lines)
            for cells in lines:
                if not cells:
                    continue
                number += 1
                problem = "" if len(cells) == width else f"{len(cells)} cells where the header has {width}"
                yield Row(number, tuple(cells), problem)

    def _parquet_rows(self) -> Iterator[Row]:
        number = 0
        with _open_parquet(self.path) as file:
            for batch in file.iter_batches(batch_size=_BATCH_ROWS):
                for cells in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                    number += 1
                    yield Row(number, tuple("" if cell is None else str(cell) for cell in cells))


def open_table(path: str | Path) -> Table:
    """Look at a table's header.

    Args:
        path: A file whose name ends in .csv, .tsv, .tab (each also .gz) or .parquet. A .csv may be separated by commas,
            semicolons or tabs.

    Raises:
        DataError: The file is missing, empty, a folder, not text in UTF-8, or has two columns of one name.
    """
    path = Path(path)
    kind = suffix(path)
    if kind == ".parquet":
        return Table(path, _parquet_columns(path), None)
    with open_text(path) as file:
        first = file.readline()
        if not first.strip():
            raise DataError("the file is empty or begins with a blank line", where=path, remedy="A header is expected")
    delimiter = "\t" if kind in (".tsv", ".tab") else max(",;\t", key=first.count)
    with open_text(path) as file:
        columns = tuple(name.strip() for name in next(_parsed(file, delimiter, path)))
    _refuse_repeated(columns, path)
    return Table(path, columns, delimiter)


def suffix(path: Path) -> str:
    """The lower-case ending that says what a file holds; .gz is looked through.

    Args:
        path: A file name.
    """
    return Path(path.stem).suffix.lower() if path.suffix.lower() == ".gz" else path.suffix.lower()


def check_file(path: Path) -> None:
    """Refuse a path that is no readable file with content.

    Args:
        path: The file.
    """
    if path.is_dir():
        raise DataError("this is a folder; expected a file", where=path, remedy="Name the file inside it")
    try:
        with open(path, "rb") as file:
            if not file.read(1):
                raise DataError(
                    "the file is empty", where=path, remedy="Was it written to its end? Write or fetch it again"
                )
    except FileNotFoundError as error:
        raise DataError("there is no such file", where=path, remedy="Check the path") from error
    except OSError as error:
        raise DataError(
            f"the file cannot be opened ({error.strerror})",
            where=path,
            remedy="Let yourself read it (chmod u+r FILE), or ask its owner",
        ) from error


@contextmanager
def open_text(path: Path) -> Iterator[IO[str]]:
    """Open a UTF-8 text file, gzipped or not, and turn what goes wrong while reading it into a `DataError`.

    Args:
        path: The file.
    """
    check_file(path)
    with open(path, "rb") as raw:
        head = raw.read(4)
        raw.seek(0)
        for magic, what in _FOREIGN.items():
            if head.startswith(magic):
                raise DataError(f"this is {what}, not UTF-8 text", where=path, remedy="Save it as UTF-8 CSV")
        stream = gzip.GzipFile(fileobj=raw) if head.startswith(_GZIP_MAGIC) else raw
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
        try:
            if b"\0" in stream.peek(_LOOK)[:_LOOK]:
                raise DataError("this is binary, not text", where=path, remedy="Check that this is the right file")
            yield text
        except UnicodeDecodeError as error:
            raise DataError(
                f"the text is not UTF-8 (byte {error.object[error.start]:#04x})",
                where=path,
                remedy="Convert it, for example: iconv -f LATIN1 -t UTF-8 OLD > NEW",
            ) from error
        except (gzip.BadGzipFile, zlib.error, EOFError) as error:
            raise DataError(f"the gzip file is damaged ({error})", where=path, remedy="Fetch it again") from error


def _parsed(file: IO[str], delimiter: str, path: Path) -> Iterator[list[str]]:
    reader = csv.reader(file, delimiter=delimiter)
    before = csv.field_size_limit(_LARGEST_FIELD)
    try:
        yield from reader
    except csv.Error as error:
        raise DataError(
            f"line {reader.line_num} is not valid CSV ({error})",
            where=path,
            remedy="Look for a quote that is not closed",
        ) from error
    finally:
        csv.field_size_limit(before)


@contextmanager
def _open_parquet(path: Path) -> Iterator[ParquetFile]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    check_file(path)
    try:
        with ParquetFile(path) as file:
            yield file
    except (ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise DataError(
            f"this is no Parquet file, or a damaged one ({reason})",
            where=path,
            remedy="Write it again, or give it the ending of what it holds (.csv, .tsv)",
        ) from error


def _parquet_columns(path: Path) -> tuple[str, ...]:
    with _open_parquet(path) as file:
        columns = tuple(file.schema_arrow.names)
    _refuse_repeated(columns, path)
    return columns


def _refuse_repeated(columns: tuple[str, ...], path: Path) -> None:
    repeated = sorted({name for name in columns if columns.count(name) > 1})
    if repeated:
        raise DataError(f"several columns are named {repeated[0]!r}", where=path, remedy="Rename all but one")
