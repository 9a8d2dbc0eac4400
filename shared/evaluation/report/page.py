"""`Report`: panels in one self-contained HTML file."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jinja2

MAX_BYTES = 10 * 2**20
"""A report above this cannot be mailed or opened at ease."""


@dataclasses.dataclass(frozen=True)
class Panel:
    """One part of a report."""

    title: str
    """What it shows."""
    body: str
    """HTML; whoever makes it escapes what comes from data (`figures.text`, `figures.table`)."""
    note: str = ""
    """How to read it, in a sentence or two."""
    wide: bool = False
    """Whether it takes the whole width."""


@dataclasses.dataclass(frozen=True)
class Report:
    """A page of panels."""

    title: str
    """Of the run."""
    subtitle: str
    """One line under it."""
    panels: Sequence[Panel]
    """In order."""
    lead: Sequence[str] = ()
    """Sentences before the panels: what was done and what came out."""

    def html(self) -> str:
        """The page."""
        template = jinja2.Template((Path(__file__).parent / "page.html").read_text(encoding="utf-8"), autoescape=True)
        page: str = template.render(title=self.title, subtitle=self.subtitle, panels=self.panels, lead=self.lead)
        return page

    def write(self, path: Path) -> None:
        """Write the page.

        Args:
            path: Of the file.
        """
        content = self.html().encode()
        if len(content) > MAX_BYTES:
            raise ValueError(
                f"report of {len(content) / 2**20:.1f} MiB is above {MAX_BYTES >> 20} MiB: draw fewer items"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
