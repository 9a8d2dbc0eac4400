"""A bar for work outside training that takes over two seconds."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

PATIENCE = 2.0
"""Seconds before a bar appears: quick work needs none."""


@contextmanager
def spinner(what: str) -> Iterator[None]:
    """Turns while something is done that cannot be counted; only where a person looks on.

    Args:
        what: Is being done.
    """
    from rich.console import Console

    with Console(stderr=True).status(what):
        yield


class Progress:
    """A bar that appears when the work turns out to be long.

    Args:
        what: Is being done.
    """

    def __init__(self, what: str) -> None:
        self.what, self._start = what, time.monotonic()
        self._bar: Any = None

    def __enter__(self) -> Self:
        return self

    def update(self, done: int, total: int) -> None:
        """Show how far the work is.

        Args:
            done: Items done.
            total: Items to do.
        """
        if self._bar is None and time.monotonic() - self._start < PATIENCE:
            return
        if self._bar is None:
            from rich.console import Console
            from rich.progress import Progress as Bar

            self._bar = Bar(transient=True, console=Console(stderr=True))  # results go to stdout
            self._bar.start()
            self._task = self._bar.add_task(self.what, total=total)
        self._bar.update(self._task, completed=done)

    def over(self, batches: Iterable[Sized], total: int) -> Iterator[Any]:
        """The same batches, while the bar shows how many items have gone by.

        Args:
            batches: Of items.
            total: Items of all of them.
        """
        done = 0
        with self:
            for batch in batches:
                yield batch
                done += len(batch)
                self.update(done, total)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
