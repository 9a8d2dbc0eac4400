"""`polyfm doctor` on this machine, and on machines that lack something: what it says, how it is mended, how it ends."""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from polyfm.shared.cli import doctor

Polyfm = Callable[..., Any]
Usage = namedtuple("Usage", "total used free")
PIP = f"{sys.executable} -m pip install"


def lines_about(text: str, what: str) -> list[str]:
    """The line of a finding, and that of its command if there is one."""
    lines = [line.strip() for line in text.splitlines()]
    at = next(i for i, line in enumerate(lines) if line.split()[1:2] == [what] or line.split()[1:3] == what.split())
    return lines[at : at + 2 if lines[at + 1 :] and lines[at + 1].startswith("→") else at + 1]


@pytest.fixture
def versions(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Versions that differ from what is installed; an empty one: not installed."""
    feigned: dict[str, str] = {}

    def look(name: str) -> str:
        found = feigned.get(name)
        if found == "":
            raise PackageNotFoundError(name)
        return found or version(name)

    monkeypatch.setattr(doctor, "version", look)
    return feigned


def test_this_machine_has_all_that_is_required(polyfm: Polyfm) -> None:
    shown = polyfm("doctor")
    assert (shown.code, shown.err) == (0, "")
    assert shown.out.endswith("\nAll that is required is there.\n")
    assert [line for line in shown.out.splitlines() if line and line[0] != " "][:-1] == list(doctor.SECTIONS)
    assert lines_about(shown.out, "torch") == [f"ok      torch         {version('torch')} (needs 2.12)"]
    for what in ("python", "lightning", "molecules", "text", "libxrender1", "gpu", "threads", "runs", "cache"):
        assert lines_about(shown.out, what if what != "gpu" or "gpu 0" not in shown.out else "gpu 0")


def test_it_takes_less_than_eight_seconds(tmp_path: Path) -> None:
    """Of processor time: what the clock says depends on what else the machine does."""

    def spent() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    before = spent()
    command = [sys.executable, "-m", "polyfm", "doctor"]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert spent() - before < 8


@pytest.mark.parametrize(
    ("found", "said"), [("", "missing (needs 2.6.6)"), ("2.6.5.post1", "2.6.5.post1 is too old (needs 2.6.6)")]
)
def test_a_library_that_is_required(polyfm: Polyfm, versions: dict[str, str], found: str, said: str) -> None:
    versions["lightning"] = found
    shown = polyfm("doctor")
    assert shown.code == 1
    assert lines_about(shown.out, "lightning") == [f"problem lightning     {said}", f"→ {PIP} 'lightning>=2.6.6'"]
    assert shown.err == "polyfm: 1 problem. Run what stands behind each →, then `polyfm doctor` again\n"
    assert "All that is required" not in shown.out


def test_an_extra_may_be_missing_but_not_too_old(polyfm: Polyfm, versions: dict[str, str]) -> None:
    versions["rdkit"] = ""
    shown = polyfm("doctor")
    assert shown.code == 0
    assert lines_about(shown.out, "molecules") == [
        "note    molecules     without rdkit",
        f"→ {PIP} 'polyfm[molecules]'",
    ]
    versions["rdkit"] = "2024.9.1"
    shown = polyfm("doctor")
    assert shown.code == 1
    assert lines_about(shown.out, "molecules") == [
        "problem molecules     rdkit 2024.9.1 is too old (needs 2025.3.1)",
        f"→ {PIP} 'rdkit>=2025.3.1'",
    ]


def test_everything_may_be_missing_and_it_still_runs(tmp_path: Path) -> None:
    """No library can be imported: doctor stands on Python alone."""
    code = f"""
import importlib.metadata, sys
for name in {["torch", "lightning", "numpy", "yaml", "rich", "packaging", "jsonargparse"]!r}:
    sys.modules[name] = None
from polyfm.shared.cli import doctor, main
def missing(name): raise importlib.metadata.PackageNotFoundError(name)
doctor.version = missing
sys.exit(main.main(["doctor"]))
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    asked = doctor._requirements()[""]
    assert ran.returncode == 1
    assert ran.stderr.startswith(f"polyfm: {len(asked)} problems.")
    assert all(f"pip install '{name}>={floor}'" in ran.stdout for name, floor in asked)


def test_floors_and_extras_are_those_of_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ["torch>=2.12", "jsonargparse[signatures]>=4.53", "pandas-stubs; extra == 'dev'"]
    here, there = sys.platform, "another"
    asked += [f"{name}>=1; sys_platform {how} '{here}' and extra == 'x'" for name, how in (("a", "=="), ("b", "!="))]
    asked += [f"c>=1; sys_platform == '{there}' and extra == 'x'", 'd>=1; extra == "x"']
    monkeypatch.setattr(doctor, "distribution", lambda _: SimpleNamespace(requires=asked))
    assert doctor._requirements() == {
        "": [("torch", "2.12"), ("jsonargparse", "4.53")],
        "dev": [("pandas-stubs", "0")],
        "x": [("a", "1"), ("d", "1")],
    }


@pytest.mark.parametrize(
    ("lower", "higher"), [("2.9", "2.12"), ("2.12", "2.12.1"), ("2.6.6rc1", "2.6.7"), ("3", "3.0.1"), ("0.9", "1")]
)
def test_versions_are_compared_by_number(lower: str, higher: str) -> None:
    assert doctor._release(lower) < doctor._release(higher)
    assert doctor._release("2.12.0+cpu") == doctor._release("2.12") == doctor._release(">=2.12")


def test_a_python_that_is_too_old(polyfm: Polyfm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.platform, "python_version", lambda: "3.10.4")
    shown = polyfm("doctor")
    assert shown.code == 1
    assert lines_about(shown.out, "python") == [
        "problem python        3.10.4 (needs >=3.11)",
        "→ make .venv PYTHON=python3.11",
    ]


def test_a_system_library_that_is_missing(polyfm: Polyfm, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    packages = tmp_path / "packages.txt"
    packages.write_text("# text\nmake  command:make  targets\nliblost1   library:liblost.so.1   something draws\n")
    monkeypatch.setattr(doctor, "PACKAGES", packages)
    monkeypatch.setattr(doctor.sys, "platform", "linux")
    shown = polyfm("doctor")
    assert shown.code == 1
    assert lines_about(shown.out, "liblost1") == [
        "problem liblost1      no liblost.so.1: something draws",
        "→ sudo apt-get install -y liblost1",
    ]
    monkeypatch.setattr(ctypes, "CDLL", lambda name: name)
    assert lines_about(polyfm("doctor").out, "liblost1") == ["ok      liblost1      liblost.so.1"]


def test_outside_a_checkout_system_libraries_are_not_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "PACKAGES", tmp_path / "none")
    monkeypatch.setattr(doctor.sys, "platform", "linux")
    assert [finding.state for finding in doctor.system()] == [doctor.OK]
    monkeypatch.setattr(doctor.sys, "platform", "darwin")
    assert [finding.found for finding in doctor.system()] == ["brought by the wheels"]


class TestDevices:
    @pytest.fixture
    def torch(self, monkeypatch: pytest.MonkeyPatch) -> Any:
        """A torch that says what a test wants."""
        gpu = SimpleNamespace(name="H100", total_memory=80 << 30)
        cuda = SimpleNamespace(
            is_available=lambda: True,
            device_count=lambda: 1,
            get_device_properties=lambda _: gpu,
            is_bf16_supported=lambda including_emulation: not including_emulation,
        )
        made = SimpleNamespace(
            __version__="2.13.0", version=SimpleNamespace(cuda="13.0"), cuda=cuda, get_num_threads=lambda: 2
        )
        monkeypatch.setitem(sys.modules, "torch", made)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        return made

    def test_a_gpu(self, torch: Any) -> None:
        assert [f"{f.state} {f.what} {f.found}" for f in doctor.devices()] == [
            "ok gpu 0 H100, 80 GiB, bf16",
            "ok threads 2 on 2 cores",
        ]
        torch.cuda.is_bf16_supported = lambda including_emulation: False
        assert next(doctor.devices()).found == "H100, 80 GiB, no bf16: float32 is used"

    @pytest.mark.parametrize(
        ("cuda", "said", "command"),
        [
            (None, "torch 2.13.0 is built for CPUs", f"{PIP} --force-reinstall torch"),
            ("13.0", "torch 2.13.0 is built for CUDA 13.0", "nvidia-smi"),
        ],
    )
    def test_a_gpu_that_torch_cannot_use(
        self, torch: Any, monkeypatch: pytest.MonkeyPatch, cuda: str | None, said: str, command: str
    ) -> None:
        torch.cuda.is_available, torch.version.cuda = lambda: False, cuda
        monkeypatch.setattr(shutil, "which", lambda _: "/usr/bin/nvidia-smi")
        found = next(doctor.devices())
        assert (found.state, found.command) == (doctor.NOTE, command)
        assert found.found == f"there is one, but torch cannot use it: {said}"

    @pytest.mark.parametrize(
        ("threads", "variable", "command"), [(8, "8", "export OMP_NUM_THREADS=2"), (1, "1", "unset OMP_NUM_THREADS")]
    )
    def test_threads(
        self, torch: Any, monkeypatch: pytest.MonkeyPatch, threads: int, variable: str, command: str
    ) -> None:
        torch.get_num_threads = lambda: threads
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
        *_, found = doctor.devices()
        assert (found.what, found.state, found.command) == ("threads", doctor.NOTE, command)

    def test_a_torch_that_does_not_load(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "torch", None)
        (found,) = doctor.devices()
        assert (found.state, found.command) == (doctor.PROBLEM, f"{PIP} --force-reinstall torch")
        assert found.found.startswith("cannot be imported: ")


def test_a_full_disk(polyfm: Polyfm, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: Usage(1 << 40, 1 << 40, 1 << 29))
    shown = polyfm("doctor")
    assert shown.code == 1
    assert lines_about(shown.out, "runs") == [
        f"problem runs          0.5 GiB free in {tmp_path}, 2 needed",
        "→ polyfm fit RECIPE --out FOLDER_ON_ANOTHER_DISK",
    ]
    assert lines_about(shown.out, "cache")[1] == "→ export POLYFM_CACHE=FOLDER"
    monkeypatch.setattr(doctor.os, "access", lambda *_: False)
    assert lines_about(polyfm("doctor").out, "runs")[0] == f"problem runs          {tmp_path} cannot be written to"


def test_a_stray_word_is_refused(polyfm: Polyfm) -> None:
    assert polyfm("doctor", "molecules").code == 2
