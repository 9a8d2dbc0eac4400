"""What a hostile file must not get done: a watch over connections, processes and files written."""

from __future__ import annotations

import dataclasses
import os
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FORBIDDEN = {
    "socket.connect",
    "socket.getaddrinfo",
    "socket.gethostbyname",
    "socket.bind",
    "socket.sendto",
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.fork",
    "os.posix_spawn",
    "urllib.Request",
}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
"""Flags of a file that is opened to be changed."""


@dataclasses.dataclass
class Watch:
    """What happened while it was on."""

    folder: Path
    """Where files may be written."""
    canary: Path
    """Attacks make this file."""
    server: socket.socket
    """Listens on loopback; attacks are told to connect to it."""
    seen: list[str] = dataclasses.field(default_factory=list)
    """Events that must not be."""
    on: bool = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.getsockname()[1]}/payload"

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on or threading.current_thread() is not threading.main_thread():
            return
        if event in FORBIDDEN:
            self.seen.append(f"{event} {arguments!r}"[:300])
        elif event == "open" and isinstance(arguments[0], str | bytes) and (arguments[2] or 0) & WRITING:
            path = Path(os.fsdecode(arguments[0])).absolute()
            if not path.is_relative_to(self.folder) and path.suffix != ".pyc" and path != Path(os.devnull):
                if "__pycache__" not in path.parts:
                    self.seen.append(f"written {path}")
        elif event in ("os.mkdir", "os.rename", "os.remove", "os.symlink", "os.link") and isinstance(arguments[0], str):
            path = Path(arguments[0]).absolute()
            if not path.is_relative_to(self.folder) and "__pycache__" not in path.parts:
                self.seen.append(f"{event} {path}")

    def connected(self) -> bool:
        """Whether anyone has come."""
        try:
            self.server.accept()[0].close()
        except BlockingIOError:
            return False
        return True


watches: list[Watch] = []


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    for watch in watches:
        watch.hear(event, arguments)


sys.addaudithook(_hear)  # for good: Python has no way to take one back, and it does nothing without a watch


@pytest.fixture
def watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    """Turned on with ``watch.on = True``; at the end nothing may have happened."""
    folder = tmp_path / "allowed"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        server.setblocking(False)
        watch = Watch(folder, tmp_path / "canary", server)
        watches.append(watch)
        yield watch
        watches.remove(watch)
        watch.on = False
        assert watch.seen == []
        assert not watch.canary.exists()
        assert not watch.connected()
