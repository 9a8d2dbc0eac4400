"""The watch itself: what it is there to see, it sees."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable

import pytest
from tests.safety.conftest import Watch

DEEDS: dict[str, Callable[[Watch], object]] = {
    "os.system": lambda watch: os.system("true"),
    "subprocess.Popen": lambda watch: subprocess.run(["true"], check=True),
    "written": lambda watch: watch.canary.with_name("elsewhere").write_text("x"),
    "os.mkdir": lambda watch: watch.canary.with_name("folder").mkdir(),
    "socket.connect": lambda watch: socket.create_connection(watch.server.getsockname()).close(),
}


@pytest.mark.parametrize("deed", DEEDS)
def test_the_watch_sees(watch: Watch, deed: str) -> None:
    watch.on = True
    DEEDS[deed](watch)
    watch.on = False
    assert any(event.startswith(deed) for event in watch.seen)
    assert watch.connected() == (deed == "socket.connect")
    watch.seen.clear()


def test_the_watch_lets_pass_what_is_allowed(watch: Watch) -> None:
    watch.on = True
    (watch.folder / "run").mkdir()
    (watch.folder / "run" / "file").write_text("x")
