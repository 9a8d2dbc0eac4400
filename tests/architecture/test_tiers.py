"""What a run leaves out is counted with its reason, and nothing is skipped: tests/conftest.py on a small suite."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SUITE = """
import pytest

def test_plain(): pass

@pytest.mark.full
def test_long(): pass

@pytest.mark.evidence
@pytest.mark.realdata
def test_three_seeds(): pass

@pytest.mark.realdata
@pytest.mark.parametrize("row", [1, 2])
def test_real(row): pass
"""


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "tests").mkdir()
    for name in ("conftest.py", "ports.py"):
        shutil.copy(ROOT / "tests" / name, tmp_path / "tests")
    (tmp_path / "tests" / "test_suite.py").write_text(SUITE)
    return tmp_path


def run(suite: Path, *options: str, data: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("POLYFM_", "PYTEST_"))}
    if data is not None:
        environment["POLYFM_DATA"] = str(data)
    command = [sys.executable, "-m", "pytest", *options]
    return subprocess.run(command, cwd=suite, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("processes", ["0", "2"])
def test_left_out_tests_are_counted_with_a_reason(suite: Path, processes: str) -> None:
    result = run(suite, "-n", processes)
    assert result.returncode == 0
    assert "1 passed" in result.stdout
    assert "deselected: 2 tests without real data: set POLYFM_DATA" in result.stdout
    assert "deselected: 1 test of another tier: make test-full" in result.stdout
    assert "deselected: 1 test of another tier: make evidence" in result.stdout


def test_real_data_is_used_where_there_is_some(suite: Path) -> None:
    assert "3 passed" in run(suite, data=suite).stdout


def test_longer_tiers_run_their_own_tests(suite: Path) -> None:
    assert "1 passed" in run(suite, "--tier", "full").stdout
    assert "1 passed" in run(suite, "--tier", "evidence", data=suite).stdout


def test_evidence_without_data_stops(suite: Path) -> None:
    result = run(suite, "--tier", "evidence")
    assert result.returncode == 4
    assert "set POLYFM_DATA" in result.stderr


def test_missing_data_folder_stops(suite: Path) -> None:
    assert run(suite, data=suite / "gone").returncode == 4


@pytest.mark.parametrize(
    "body",
    [
        "import pytest\ndef test(): pytest.skip('not today')",
        "import pytest\n@pytest.mark.skip(reason='not today')\ndef test(): pass",
        "import pytest\npytest.importorskip('a_library_that_is_not_there')\ndef test(): pass",
    ],
    ids=["call", "mark", "module"],
)
def test_a_skip_fails_the_run(suite: Path, body: str) -> None:
    (suite / "tests" / "test_skips.py").write_text(body)
    result = run(suite)
    assert result.returncode in (1, 2)
    assert "skipped, which no test may" in result.stdout
