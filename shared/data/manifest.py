"""What reading found: broken items (quarantined), noteworthy items, and which files were read."""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from polyfm.shared.errors import DataError

_LONGEST_ITEM = 500
_SHOWN_KINDS = 5


@dataclass(frozen=True, slots=True)
class Finding:
    """One item that reading has something to say about."""

    source: str
    """Name of the file."""
    row: int
    """Which record of the file, from 1; a header is not counted."""
    item: str
    """The item as it stands in the file."""
    kind: str
    """What is the matter, in a few words that many findings share."""
    detail: str = ""
    """What is the matter with this one."""


@dataclass(frozen=True)
class Findings:
    """Findings in the order of the files, countable and written as CSV."""

    items: tuple[Finding, ...] = ()
    """The findings."""

    def __len__(self) -> int:
        return len(self.items)

    def counts(self) -> dict[str, int]:
        """Findings per kind, most frequent first."""
        return dict(Counter(finding.kind for finding in self.items).most_common())

    def summary(self) -> str:
        """One line: how many of which kind, with the row of the first; empty if there are none."""
        first: dict[str, Finding] = {}
        for finding in self.items:
            first.setdefault(finding.kind, finding)
        parts = [f"{count} x {kind} (first in row {first[kind].row})" for kind, count in self.counts().items()]
        more = len(parts) - _SHOWN_KINDS
        return "; ".join(parts[:_SHOWN_KINDS]) + (f"; {more} more kinds" if more > 0 else "")

    def to_csv(self, path: str | Path) -> None:
        """Write all findings, one a line; the header alone if there are none.

        Args:
            path: The file, overwritten.
        """
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["source", "row", "kind", "detail", "item"])
            for finding in self.items:
                item = finding.item if len(finding.item) <= _LONGEST_ITEM else finding.item[: _LONGEST_ITEM - 1] + "…"
                writer.writerow([finding.source, finding.row, finding.kind, finding.detail, item])

    def __add__(self, other: Self) -> Self:
        return type(self)(self.items + other.items)


class Notices(Findings):
    """What a careful reader wants to know of items that are not broken: salts, colliding stereoisomers, merged rows."""


@dataclass(frozen=True)
class Quarantine(Findings):
    """Items that are left out because they are broken."""

    num_read: int = 0
    """All items of the files, broken ones included."""

    def check(self, max_broken: float) -> None:
        """Refuse data of which too much is broken.

        Args:
            max_broken: Largest share of broken items to accept, 0 to 1.

        Raises:
            DataError: Nothing is left, or the share is larger.
        """
        where = self.items[0].source if self.items else None
        if len(self) == self.num_read:
            message = f"none of the {self.num_read} rows can be used: {self.summary()}" if self else "there are no rows"
            raise DataError(message, where=where, remedy="Check that this is the right file and column")
        if len(self) > max_broken * self.num_read:
            example = self.items[0]
            raise DataError(
                f"{len(self)} of {self.num_read} rows are broken, more than the allowed {max_broken:.0%}: "
                f"{self.summary()}; row {example.row}: {example.item[:80]!r} ({example.detail or example.kind})",
                where=where,
                remedy="Check that this is the right file and column",
            )

    def __add__(self, other: Self) -> Self:
        return type(self)(self.items + other.items, self.num_read + other.num_read)


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file that data came from, as the run's manifest records it."""

    name: str
    """File name, within the folder that was read if it was one: manifests travel between machines."""
    num_bytes: int
    """Size, bytes."""
    sha256: str
    """Hexadecimal digest of the bytes."""

    @classmethod
    def of(cls, path: str | Path, name: str = "") -> SourceFile:
        """Digest a file.

        Args:
            path: An existing file.
            name: By which it is known; its own if empty.
        """
        path = Path(path)
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return cls(name or path.name, path.stat().st_size, digest)


def manifest(sources: Iterable[SourceFile], quarantine: Quarantine, notices: Notices) -> dict[str, Any]:
    """What a run folder's ``environment.json`` says about its data, ready for JSON.

    Args:
        sources: The files read.
        quarantine: What was left out.
        notices: What is noteworthy.
    """
    return {
        "sources": [asdict(source) for source in sources],
        "num_read": quarantine.num_read,
        "num_broken": len(quarantine),
        "broken": quarantine.counts(),
        "notices": notices.counts(),
    }
