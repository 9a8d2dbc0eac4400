"""Build the sdist and, from it, the wheel; then use the wheel as a stranger would.

The clean environment holds the wheel and links to the installed files of exactly the libraries that its metadata names:
no checkout, no editable install, nothing of the `dev` extra. So an undeclared import fails here, and torch is not
downloaded again.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "dist"
SHIPPED = ("shared", "domains", "recipes", "data_cards")
CAP = 20e6  # bytes; what ships is text, tables and one small checkpoint

IMPORT_EVERYTHING = """
import importlib, pathlib, pkgutil, polyfm, sys
inside = pathlib.Path(sys.prefix)
names = [module.name for module in pkgutil.walk_packages(polyfm.__path__, "polyfm.") if "__main__" not in module.name]
files = [pathlib.Path(importlib.import_module(name).__file__) for name in names]
assert all(file.is_relative_to(inside) for file in files), [str(file) for file in files if inside not in file.parents]
print(len(names), "modules")
"""
FIND_RECIPES = """
from importlib.resources import files
names = [f"{folder.name}/{file.name}" for folder in files("polyfm").joinpath("recipes").iterdir() if folder.is_dir()
         for file in folder.iterdir() if file.name.endswith(".yaml")]
assert names, "no recipe in the wheel"
print(len(names), "found")
"""


def main() -> None:
    """Run all checks; the first that fails says what it expected."""
    shutil.rmtree(DIST, ignore_errors=True)
    # The sdist from the checkout and the wheel from that sdist: what is missing in the one is missing in the other.
    subprocess.run([sys.executable, "-m", "build", "--outdir", str(DIST), str(ROOT)], check=True)
    (sdist,), (wheel,) = DIST.glob("*.tar.gz"), DIST.glob("*.whl")
    check_sdist(sdist)
    check_wheel(wheel)
    with tempfile.TemporaryDirectory(prefix="polyfm-package-") as folder:
        check_clean_environment(wheel, Path(folder))
    print(f"OK: {sdist.name} ({sdist.stat().st_size / 1e6:.2f} MB), {wheel.name} ({wheel.stat().st_size / 1e6:.2f} MB)")


def check_sdist(path: Path) -> None:
    """The sdist holds real files only and nothing that a working tree collects."""
    with tarfile.open(path) as archive:
        members = archive.getmembers()
    names = [member.name.split("/", 1)[-1] for member in members]
    expect(all(member.isfile() for member in members), "the sdist holds links or folders")
    expect({"pyproject.toml", "constraints.txt", "Makefile", ".ci/run"} <= set(names), "the sdist lacks what builds it")
    expect(not [name for name in names if "__pycache__" in name or name.startswith((".venv", "runs/"))], "stray files")
    expect(path.stat().st_size < CAP, f"the sdist is larger than {CAP:.0f} bytes")


def check_wheel(path: Path) -> None:
    """One top-level package, and in it everything that ships."""
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
    top = {name.split("/")[0] for name in names}
    expect(top == {"polyfm", next((name for name in top if name.endswith(".dist-info")), "")}, f"top level: {top}")
    wanted = {f"polyfm/{file.relative_to(ROOT).as_posix()}" for folder in SHIPPED for file in shipped_files(folder)}
    wanted |= {"polyfm/__init__.py", "polyfm/__main__.py", "polyfm/py.typed"}
    expect(wanted <= names, f"missing from the wheel: {sorted(wanted - names)}")
    expect(path.stat().st_size < CAP, f"the wheel is larger than {CAP:.0f} bytes")


def shipped_files(folder: str) -> Iterator[Path]:
    """Files of the checkout under a folder, caches left out."""
    return (file for file in (ROOT / folder).rglob("*") if file.is_file() and "__pycache__" not in file.parts)


def check_clean_environment(wheel: Path, folder: Path) -> None:
    """Install the wheel beside its declared dependencies only, and use it from a folder that is no checkout."""
    environment, elsewhere = folder / "environment", folder / "elsewhere"
    elsewhere.mkdir()
    venv.create(environment, with_pip=False)
    python = environment / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", str(wheel)]
    subprocess.run(install, check=True)
    (site_packages,) = environment.glob("lib/python*/site-packages")

    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}

    def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, cwd=elsewhere, env=clean, capture_output=True, text=True, check=False)

    def works(title: str, *command: str | Path) -> None:
        result = run(*command)
        expect(result.returncode == 0, f"{title} failed:\n{result.stdout}{result.stderr}")
        print(f"ok: {title}: {(result.stdout.strip().splitlines() or ['(no output)'])[-1]}")

    link_dependencies(Requirement("polyfm"), site_packages)
    for name in ("shared", "domains"):
        expect("ModuleNotFoundError" in run(python, "-c", f"import {name}").stderr, f"`import {name}` works")
    works("recipes", python, "-c", FIND_RECIPES)
    works("polyfm --help", environment / "bin" / "polyfm", "--help")
    works("polyfm list", environment / "bin" / "polyfm", "list")
    link_dependencies(Requirement("polyfm[all]"), site_packages)
    works("imports", python, "-c", IMPORT_EVERYTHING)


def link_dependencies(requirement: Requirement, site_packages: Path) -> None:
    """Link what a requirement needs, and what that needs, from this environment into another.

    Args:
        requirement: What to start from; it is not linked itself.
        site_packages: Folder of the other environment.
    """
    pending, done = [requirement], set()
    while pending:
        need = pending.pop()
        found = distribution(need.name)
        for extra in ("", *need.extras):
            if (canonicalize_name(need.name), extra) in done:
                continue
            done.add((canonicalize_name(need.name), extra))
            requirements = [Requirement(text) for text in found.requires or []]
            pending += [each for each in requirements if each.marker is None or each.marker.evaluate({"extra": extra})]
        if canonicalize_name(need.name) != "polyfm":
            for top in {file.parts[0] for file in found.files or [] if file.parts[0] not in ("..", "__pycache__")}:
                link = site_packages / top
                if not link.exists():
                    link.symlink_to(Path(str(found.locate_file(top))))


def expect(condition: bool, otherwise: str) -> None:
    """Stop with a reason unless a condition holds."""
    if not condition:
        sys.exit(f"make package: {otherwise}")


if __name__ == "__main__":
    main()
