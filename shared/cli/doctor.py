"""`polyfm doctor`: what is installed, missing or too old on this machine, each with the command that mends it.

Built on the standard library, so that it runs where everything else is missing.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

from polyfm.shared.cli.arguments import Arguments
from polyfm.shared.errors import PolyfmError

PACKAGES = Path(__file__).resolve().parents[2] / "packages.txt"
"""System packages, how to tell that each is there, and why; stands in a checkout only."""
COLLECTIONS = ("all", "dev", "bench")
"""Extras that hold other extras, or what only contributors need."""
FREE = 2 << 30
"""Bytes that a run and the cache should find free."""
OK, NOTE, PROBLEM = "ok", "note", "problem"

_REQUIREMENT = re.compile(r"([\w.-]+)(?:\[.*?\])?\s*(?:>=\s*([\w.]+))?")
_EXTRA = re.compile(r"""extra\s*==\s*['"]([\w-]+)['"]""")
_PLATFORM = re.compile(r"""sys_platform\s*([!=])=\s*['"](\w+)['"]""")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    state: str
    """`OK`; `NOTE` for what may be missing; `PROBLEM` for what must be mended."""
    what: str
    """A library, a package, a device …"""
    found: str
    """What was found, and what is asked for."""
    command: str = ""
    """What mends it; empty if nothing needs to be."""


def run(words: Sequence[str]) -> None:
    """Run the verb.

    Args:
        words: After ``doctor``.

    Raises:
        PolyfmError: Something that is required is missing; exit code 1.
    """
    Arguments(
        "doctor", "Versions, extras, system libraries, GPU and disk of this machine; what is wrong, with its remedy."
    ).parse(words)
    problems = 0
    for title, findings in SECTIONS.items():
        print(title)
        for finding in findings():
            problems += finding.state == PROBLEM
            print(f"  {finding.state:<8}{finding.what:<14}{finding.found}")
            if finding.command:
                print(f"  {'':<8}{'':<14}→ {finding.command}")
    if problems:
        raise PolyfmError(
            f"{problems} {'problem' if problems == 1 else 'problems'}",
            remedy="Run what stands behind each →, then `polyfm doctor` again",
        )
    print("\nAll that is required is there.")


def python() -> Iterator[Finding]:
    """The interpreter, against what the package asks for."""
    asked = distribution("polyfm").metadata["Requires-Python"] or ""
    found = f"{platform.python_version()} (needs {asked})"
    if _release(platform.python_version()) >= _release(asked):
        yield Finding(OK, "python", found)
    else:
        newer = f"make .venv PYTHON=python{asked.lstrip('>=')}"
        yield Finding(PROBLEM, "python", found, newer)


def libraries() -> Iterator[Finding]:
    """What polyfm cannot run without, against the floors."""
    for name, floor in _requirements()[""]:
        yield _library(name, floor)


def extras() -> Iterator[Finding]:
    """What each domain or feature needs beside that: it may be missing, but not too old."""
    for extra, needs in _requirements().items():
        if not extra or extra in COLLECTIONS:
            continue
        findings = [_library(name, floor) for name, floor in needs]
        lacking = [finding.what for finding in findings if finding.found.startswith("missing")]
        if lacking:
            command = _pip(f"polyfm[{extra}]")
            yield Finding(NOTE, extra, f"without {', '.join(lacking)}", command)
        else:
            state = PROBLEM if any(finding.state == PROBLEM for finding in findings) else OK
            found = ", ".join(f"{finding.what} {finding.found}" for finding in findings)
            yield Finding(state, extra, found, "; ".join(finding.command for finding in findings if finding.command))


def system() -> Iterator[Finding]:
    """Shared libraries that wheels do not bring."""
    if sys.platform != "linux":
        yield Finding(OK, "libraries", "brought by the wheels")
        return
    if not PACKAGES.is_file():
        yield Finding(OK, "libraries", "not looked at: packages.txt of the source names them")
        return
    for line in PACKAGES.read_text(encoding="utf-8").splitlines():
        package, _, rest = line.partition(" ")
        probe, _, why = rest.strip().partition(" ")
        kind, _, library = probe.partition(":")
        if kind != "library" or package.startswith("#"):
            continue
        if _loads(library):
            yield Finding(OK, package, library)
        else:
            yield Finding(PROBLEM, package, f"no {library}: {why.strip()}", f"sudo apt-get install -y {package}")


def devices() -> Iterator[Finding]:
    """The GPU, and whether it computes in bf16; the threads on the CPU."""
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a shared library of torch is missing
        if _version("torch"):
            reason = str(error).strip().partition("\n")[0]
            yield Finding(PROBLEM, "torch", f"cannot be imported: {reason}", _pip("torch", "--force-reinstall"))
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            device = torch.cuda.get_device_properties(index)
            bf16 = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no bf16: float32 is used"
            yield Finding(OK, f"gpu {index}", f"{device.name}, {device.total_memory / 2**30:.0f} GiB, {bf16}")
    elif shutil.which("nvidia-smi"):
        build = (
            f"torch {torch.__version__} is built for CUDA {torch.version.cuda}"
            if torch.version.cuda
            else (f"torch {torch.__version__} is built for CPUs")
        )
        mend = "nvidia-smi" if torch.version.cuda else _pip("torch", "--force-reinstall")
        yield Finding(NOTE, "gpu", f"there is one, but torch cannot use it: {build}", mend)
    else:
        yield Finding(OK, "gpu", "none: use --size small")
    threads = torch.get_num_threads()
    if threads > cores:
        yield Finding(NOTE, "threads", f"{threads} on {cores} cores slow each other", f"export OMP_NUM_THREADS={cores}")
    elif threads < cores and os.environ.get("OMP_NUM_THREADS"):
        yield Finding(NOTE, "threads", f"{threads} of {cores} cores (OMP_NUM_THREADS)", "unset OMP_NUM_THREADS")
    else:
        yield Finding(OK, "threads", f"{threads} on {cores} cores")


def disk() -> Iterator[Finding]:
    """Room for runs (here), for cached results, and for temporary files."""
    import tempfile

    cache = os.environ.get("POLYFM_CACHE")
    places = {
        "runs": (Path.cwd(), "polyfm fit RECIPE --out FOLDER_ON_ANOTHER_DISK"),
        "cache": (Path(cache) if cache else Path.home() / ".cache" / "polyfm", "export POLYFM_CACHE=FOLDER"),
        "temporary": (Path(tempfile.gettempdir()), "export TMPDIR=FOLDER"),
    }
    for what, (folder, command) in places.items():
        there = next(place for place in (folder, *folder.parents) if place.is_dir())
        free = shutil.disk_usage(there).free
        found = f"{free / 2**30:.1f} GiB free in {folder}"
        if not os.access(there, os.W_OK):
            yield Finding(PROBLEM, what, f"{folder} cannot be written to", command)
        elif free < FREE:
            yield Finding(PROBLEM, what, f"{found}, {FREE / 2**30:.0f} needed", command)
        else:
            yield Finding(OK, what, found)


SECTIONS = {
    "Python": python,
    "Libraries": libraries,
    "Extras": extras,
    "System": system,
    "Devices": devices,
    "Disk": disk,
}


def _requirements() -> dict[str, list[tuple[str, str]]]:
    """By extra ("" for what is always needed): libraries and their lowest versions, as the package itself says."""
    found: dict[str, list[tuple[str, str]]] = {"": []}
    for text in distribution("polyfm").requires or ():
        asked, _, marker = text.partition(";")
        extra, where, match = _EXTRA.search(marker), _PLATFORM.search(marker), _REQUIREMENT.match(asked)
        elsewhere = where is not None and (where[2] == sys.platform) != (where[1] == "=")
        if match is not None and not elsewhere:
            found.setdefault(extra[1] if extra else "", []).append((match[1], match[2] or "0"))
    return found


def _library(name: str, floor: str) -> Finding:
    found = _version(name)
    if not found:
        return Finding(PROBLEM, name, f"missing (needs {floor})", _pip(f"{name}>={floor}"))
    if _release(found) < _release(floor):
        return Finding(PROBLEM, name, f"{found} is too old (needs {floor})", _pip(f"{name}>={floor}"))
    return Finding(OK, name, f"{found} (needs {floor})")


def _version(name: str) -> str:
    """Of an installed library; empty if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _release(text: str) -> tuple[int, ...]:
    """Numbers of a version, trailing zeros aside: (2, 12) of 2.12.0+cpu and of >=2.12."""
    match = re.search(r"\d+(?:\.\d+)*", text)
    numbers = [int(number) for number in match[0].split(".")] if match else []
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)


def _pip(requirement: str, *options: str) -> str:
    """For the very environment that this runs in."""
    return shlex.join([sys.executable, "-m", "pip", "install", *options, requirement])


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
