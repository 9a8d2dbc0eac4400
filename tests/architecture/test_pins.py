"""What is installed is what constraints.txt pins, and nothing is below the floors of pyproject.toml."""

from __future__ import annotations

import re
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
PINS = {
    canonicalize_name(name): Version(version)
    for name, version in re.findall(
        r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), flags=re.MULTILINE
    )
}
# torch itself pins them, to the release.
CUDA = re.compile(r"(nvidia|cuda)-|triton$")


def installed() -> dict[str, list[Requirement]]:
    """Every distribution that polyfm[dev] needs here, with the requirements that ask for it."""
    asked: dict[str, list[Requirement]] = {}
    pending, done = [Requirement("polyfm[dev]")], set()
    while pending:
        requirement = pending.pop()
        name = canonicalize_name(requirement.name)
        asked.setdefault(name, []).append(requirement)
        for extra in ("", *requirement.extras):
            if (name, extra) not in done:
                done.add((name, extra))
                needs = [Requirement(text) for text in distribution(name).requires or []]
                pending += [need for need in needs if need.marker is None or need.marker.evaluate({"extra": extra})]
    del asked["polyfm"]
    return asked


def test_everything_needed_is_pinned() -> None:
    assert {name for name in installed() if not CUDA.match(name)} - set(PINS) == set()


def test_installed_versions_are_the_pinned_ones() -> None:
    """The build of torch (+cpu, +cu130) is the user's choice and not compared."""
    versions = {name: Version(distribution(name).version).public for name in installed() if name in PINS}
    assert versions == {name: str(PINS[name]) for name in versions}


def test_installed_versions_satisfy_the_floors() -> None:
    wrong = [
        str(requirement)
        for name, requirements in installed().items()
        for requirement in requirements
        if not requirement.specifier.contains(distribution(name).version, prereleases=True)
    ]
    assert not wrong


def test_every_floor_is_stated() -> None:
    direct = [Requirement(text) for text in distribution("polyfm").requires or []]
    floorless = {canonicalize_name(need.name) for need in direct if not need.specifier} - {"polyfm"}
    assert floorless <= {"pandas-stubs", "types-pyyaml"}, "stubs follow what they describe; all else has a lower bound"


def test_torch_is_pinned_without_a_build() -> None:
    assert PINS["torch"].local is None
