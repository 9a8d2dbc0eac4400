"""One import name for everything: `polyfm`. Who may import whom is checked by `make contracts`."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import polyfm

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def python(code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("name", ["shared", "domains"])
def test_a_notebook_in_the_root_is_told_the_right_name(name: str) -> None:
    run = python(f"import {name}", cwd=ROOT)
    assert run.returncode == 1
    assert f"ImportError: import polyfm.{name}, not {name}" in run.stderr


@pytest.mark.parametrize("name", ["shared", "domains"])
def test_elsewhere_there_is_no_such_package(name: str, tmp_path: Path) -> None:
    assert f"ModuleNotFoundError: No module named '{name}'" in python(f"import {name}", cwd=tmp_path).stderr


@pytest.mark.parametrize("name", ["shared", "domains"])
def test_modules_come_from_the_root_not_through_the_links(name: str, tmp_path: Path) -> None:
    run = python(f"import polyfm.{name}; print(polyfm.{name}.__file__)", cwd=tmp_path)
    assert Path(run.stdout.strip()) == ROOT / name / "__init__.py"


def test_importing_polyfm_is_light(tmp_path: Path) -> None:
    run = python("import sys, polyfm; print(sorted({'torch', 'numpy', 'lightning'} & set(sys.modules)))", cwd=tmp_path)
    assert run.stdout == "[]\n"


def declared() -> set[str]:
    """Distributions that pyproject.toml names, in the spelling of package indices."""
    requirements = [*PROJECT["dependencies"]]
    for extra, needed in PROJECT["optional-dependencies"].items():
        requirements += [] if extra in ("dev", "bench") else needed
    return {normal(re.match(r"[\w.-]+", requirement)[0]) for requirement in requirements}  # type: ignore[index]


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def imported(path: Path) -> set[str]:
    """The top-level names of absolute imports anywhere in a file."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names)


def test_every_import_is_of_a_declared_dependency() -> None:
    """What comes along with another library today may be gone tomorrow."""
    distributions = packages_distributions()
    undeclared = {
        f"{path.relative_to(ROOT)}: {name}"
        for folder in ("src", "shared", "domains")
        for path in (ROOT / folder).rglob("*.py")
        for name in imported(path)
        if not {normal(distribution) for distribution in distributions.get(name, [name])} & declared()
        and name != polyfm.__name__
    }
    assert not undeclared
