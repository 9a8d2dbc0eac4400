"""`Report`: one file that loads nothing from elsewhere and runs nothing."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from polyfm.shared.evaluation.report import page
from polyfm.shared.evaluation.report.maps import map_panel
from polyfm.shared.evaluation.report.page import Panel, Report


class Loads(HTMLParser):
    """Collects what a browser would fetch or run, and whether tags are closed."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.run: list[str] = []
        self.policy = ""
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        if tag not in ("meta", "br", "img", "link", "hr", "input"):
            self.open.append(tag)
        if tag == "meta" and named.get("http-equiv") == "Content-Security-Policy":
            self.policy = named["content"] or ""
        if tag in ("script", "iframe", "object", "embed", "link", "base"):
            self.run.append(tag)
        for name, value in named.items():
            if name.startswith("on"):
                self.run.append(f"{tag} {name}")
            if (
                name in ("src", "href", "xlink:href", "srcset", "action")
                and value
                and not value.startswith(("#", "data:"))
            ):
                self.fetched.append(value)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1:] == [tag], f"</{tag}> closes <{self.open[-1:]}>"
        self.open.pop()


def read(html: str) -> Loads:
    loads = Loads()
    loads.feed(html)
    return loads


def report(**changes: str) -> Report:
    vectors = np.random.default_rng(0).standard_normal((40, 8))
    labels = np.array(["<script>alert(1)</script>", "b"] * 20)
    panels = [Panel(title="One", body="<p>x</p>", **changes), map_panel(vectors, {"by": labels}, title="Map")]
    return Report(title="run", subtitle="what it is", panels=panels, lead=["It was done.", "<b>safely</b>"])


def test_a_page_loads_nothing_and_runs_nothing() -> None:
    loads = read(report().html())
    assert loads.fetched == []
    assert loads.run == []
    assert loads.open == []
    assert "default-src 'none'" in loads.policy
    assert "script-src" not in loads.policy


@pytest.mark.parametrize(
    "attack", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "{{ 7*7 }}", "</style>"]
)
def test_titles_notes_and_sentences_are_escaped(attack: str) -> None:
    panels = [Panel(title=attack, body="", note=attack)]
    html = Report(title=attack, subtitle=attack, panels=panels, lead=[attack]).html()
    loads = read(html)
    assert (loads.run, loads.fetched) == ([], [])
    body = html[html.index("<body>") :]
    assert attack not in body or attack == "{{ 7*7 }}"
    assert "49" not in body


def test_panels_stand_in_order_and_wide_ones_are_wide() -> None:
    html = Report("t", "s", [Panel("First", "<p>1</p>"), Panel("Second", "<p>2</p>", wide=True)]).html()
    assert html.index("First") < html.index("Second")
    assert html.count('<section class="wide">') == 1


def test_a_page_is_written_with_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "a" / "report.html"
    report().write(path)
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert path.stat().st_size < page.MAX_BYTES


def test_a_page_that_is_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "MAX_BYTES", 1000)
    with pytest.raises(ValueError, match="draw fewer items"):
        report().write(tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()
