"""`polyfm`: help, verbs, exit codes, and that nothing heavy is imported before it is needed."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from polyfm.shared.cli import main as module
from polyfm.shared.cli.main import VERBS, main
from polyfm.shared.errors import DataError, RecipeError, UsageError

Polyfm = Callable[..., Any]
HEAVY = ("torch", "lightning", "numpy", "pandas", "rdkit", "sklearn", "matplotlib", "jsonargparse")


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["help"]])
def test_help_fits_a_screen(polyfm: Polyfm, words: list[str]) -> None:
    shown = polyfm(*words)
    assert shown.code == 0
    assert len(shown.out.splitlines()) <= 40
    assert max(len(line) for line in shown.out.splitlines()) <= 100
    assert all(f"polyfm {verb}" in shown.out for verb in VERBS)
    assert "Exit codes: 2 usage, 3 data, 4 recipe" in shown.out


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_of_at_most_60_lines(polyfm: Polyfm, verb: str) -> None:
    shown = polyfm(verb, "--help")
    assert shown.code == 0
    assert shown.out.startswith(f"usage: polyfm {verb}")
    assert len(shown.out.splitlines()) <= 60


@pytest.mark.parametrize(
    "words", [["--help"], ["--version"], ["fit", "--help"], ["fti"], ["embed", "--help"], ["list"]]
)
def test_nothing_heavy_is_imported_for_it(words: list[str], tmp_path: Path) -> None:
    code = (
        "import sys, contextlib\nfrom polyfm.shared.cli.main import main\n"
        f"with contextlib.suppress(SystemExit): main({words!r})\n"
        f"print('loaded', sorted(set({HEAVY!r}) & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert ran.stdout.splitlines()[-1] == "loaded []"


def test_without_words_usage_is_shown_and_it_is_an_error(polyfm: Polyfm) -> None:
    assert polyfm().code == 2


def test_version(polyfm: Polyfm) -> None:
    assert polyfm("--version").out.strip() == version("polyfm")


def test_a_wrong_verb_is_told_the_nearest(polyfm: Polyfm) -> None:
    shown = polyfm("fti", "molecules/spmm")
    assert (shown.code, shown.err) == (2, "polyfm: there is no verb 'fti'. Did you mean `polyfm fit`?\n")
    assert "Verbs: demo, list" in polyfm("zzz").err


@pytest.mark.parametrize(("kind", "code"), [(UsageError, 2), (DataError, 3), (RecipeError, 4)])
def test_errors_have_exit_codes_and_no_traceback(
    polyfm: Polyfm, monkeypatch: pytest.MonkeyPatch, kind: type[Exception], code: int
) -> None:
    def fail(_: str) -> Any:
        raise kind("it is wrong", where="file.csv:3", remedy="Mend it")  # type: ignore[call-arg]

    monkeypatch.setattr(module.importlib, "import_module", fail)
    shown = polyfm("list")
    assert (shown.code, shown.out, shown.err) == (code, "", "polyfm: file.csv:3: it is wrong. Mend it\n")
    with pytest.raises(kind):
        main(["list", "--debug"])


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt, 130), (BrokenPipeError, 0)])
def test_being_stopped_is_no_traceback(
    polyfm: Polyfm, monkeypatch: pytest.MonkeyPatch, error: type[BaseException], code: int
) -> None:
    def stop(_: str) -> Any:
        raise error

    monkeypatch.setattr(module.importlib, "import_module", stop)
    assert polyfm("list").code == code


def test_the_command_and_the_module_are_the_same(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "polyfm", "fti"]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "Traceback" not in ran.stderr


def test_what_nobody_foresaw_is_one_line(polyfm: Polyfm, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: str) -> Any:
        raise RuntimeError("mat1 and mat2\ndo not fit")

    monkeypatch.setattr(module.importlib, "import_module", fail)
    shown = polyfm("list")
    assert (shown.code, shown.err.count("\n")) == (1, 1)
    assert shown.err.startswith("polyfm: RuntimeError: mat1 and mat2 do not fit. This was not foreseen: with --debug")
    with pytest.raises(RuntimeError):
        main(["list", "--debug"])


def test_a_folder_that_cannot_be_made_is_one_line(polyfm: Polyfm, runs: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for verb in (["embed", runs.spmm, runs.data, "--out", tmp_path / "file" / "v.npz"], ["fit", "molecules/spmm", "--size", "small", "--data.path", runs.data, "--out", tmp_path / "file" / "run"]):  # fmt: skip
        shown = polyfm(*verb)
        assert shown.code == 1
        assert str(tmp_path / "file") in shown.err
        assert shown.err.count("\n") == 1


def test_a_full_disk_is_one_line(polyfm: Polyfm, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(_: str) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device", "metrics.csv")

    monkeypatch.setattr(module.importlib, "import_module", fill)
    shown = polyfm("list")
    assert (shown.code, shown.err) == (1, "polyfm: metrics.csv: the disk is full. Free some space, then try again\n")
