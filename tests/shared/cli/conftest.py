"""The command line in this process: what it returned, what it printed where."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from polyfm.shared.cli.main import main


@dataclasses.dataclass(frozen=True)
class Result:
    """What a call left."""

    code: int
    out: str
    err: str


@pytest.fixture
def polyfm(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Runs ``polyfm WORDS``."""

    def call(*words: object) -> Result:
        capsys.readouterr()
        try:
            code = main([str(word) for word in words])
        except SystemExit as stop:  # --help and --print_config
            code = int(stop.code or 0)
        return Result(code, *capsys.readouterr())

    return call
