"""`Progress`: a bar only for work that turns out to be long."""

from __future__ import annotations

from typing import Any

import pytest

from polyfm.shared.data import progress
from polyfm.shared.data.progress import Progress


class Recorder:
    """Stands for rich's bar."""

    made: list[Recorder] = []

    def __init__(self, *, console: Any, transient: bool) -> None:
        self.console, self.calls = console, [f"transient={transient}"]
        self.made.append(self)

    def start(self) -> None:
        self.calls.append("start")

    def add_task(self, what: str, total: int) -> int:
        self.calls.append(f"{what} of {total}")
        return 7

    def update(self, task: int, completed: int) -> None:
        self.calls.append(f"{completed} of task {task}")

    def stop(self) -> None:
        self.calls.append("stop")


@pytest.fixture(autouse=True)
def bars(monkeypatch: pytest.MonkeyPatch) -> list[Recorder]:
    monkeypatch.setattr(Recorder, "made", [])
    monkeypatch.setattr("rich.progress.Progress", Recorder)
    return Recorder.made


def test_quick_work_shows_no_bar(bars: list[Recorder]) -> None:
    with Progress("descriptors") as bar:
        bar.update(1, 2)
        bar.update(2, 2)
    assert not bars


def test_long_work_shows_one_beside_the_results(bars: list[Recorder], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    with Progress("descriptors") as bar:
        bar.update(1, 4)
        bar.update(4, 4)
    assert [bar.calls for bar in bars] == [
        ["transient=True", "start", "descriptors of 4", "1 of task 7", "4 of task 7", "stop"]
    ]
    assert bars[0].console.stderr


def test_a_bar_is_closed_when_the_work_fails(bars: list[Recorder], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    bar = Progress("descriptors")
    with pytest.raises(ZeroDivisionError), bar:
        bar.update(1, 4)
        1 / 0  # noqa: B018
    assert bars[0].calls[-1] == "stop"
