"""What every benchmark does alike: interleaved rounds, medians with intervals, fresh processes, a table per section."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
Section = tuple[str, Callable[[], list[str]]]
"""Title, and what measures it and returns lines of Markdown."""


def race(
    ways: Mapping[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, Values]:
    """Seconds of each way, (rounds,): one run of every way a round, so that each round is a pair.

    The order turns by one from round to round; a first round that fills caches is thrown away.

    Args:
        ways: By name.
        rounds: How often.
        clock: Wall time, or `time.process_time` for CPU-seconds.
    """
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for names in turns(list(ways), rounds + 1):
        for name in names:
            start = clock()
            ways[name]()
            taken[name].append(clock() - start)
    return {name: np.array(times[1:]) for name, times in taken.items()}


def turns(names: Sequence[str], rounds: int) -> list[list[str]]:
    """The names, in an order that turns by one from round to round.

    Args:
        names: Of the ways.
        rounds: How often.
    """
    return [[*names[turn % len(names) :], *names[: turn % len(names)]] for turn in range(rounds)]


def interval(values: Values) -> tuple[float, float, float]:
    """Median and its 95 % bootstrap interval (2,000 resamples)."""
    draws = np.random.default_rng(0).integers(len(values), size=(2_000, len(values)))
    low, high = np.quantile(np.median(values[draws], axis=1), [0.025, 0.975])
    return float(np.median(values)), float(low), float(high)


def ratio(ours: Values, theirs: Values) -> str:
    """Median of the ratios of one round each, with its interval."""
    return "{:.3g} [{:.3g}, {:.3g}]".format(*interval(ours / theirs))


def ratio_of_totals(ours: Values, theirs: Values) -> str:
    """Ratio of the sums over all rounds, with its 95 % bootstrap interval, where rounds differ in their work."""
    draws = np.random.default_rng(0).integers(len(ours), size=(2_000, len(ours)))
    low, high = np.quantile(ours[draws].sum(1) / theirs[draws].sum(1), [0.025, 0.975])
    return f"{ours.sum() / theirs.sum():.3g} [{low:.3g}, {high:.3g}]"


def isolated(measure: str, **arguments: Any) -> dict[str, float]:
    """Run a measurement of the calling script in a fresh process: only so does a peak of memory belong to it.

    Args:
        measure: One of the ``measures`` that the script gives to `main`.
        arguments: Its arguments.
    """
    command = [sys.executable, sys.argv[0], "--measure", measure, "--arguments", json.dumps(arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def peak_memory() -> float:
    """Highest resident memory of this process so far, MB."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def environment(packages: Sequence[str]) -> str:
    """Versions, machine and load, for the head of a section.

    Args:
        packages: Whose versions matter.
    """
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at start"
    return (
        f"Python {platform.python_version()}, {versions}; {machine}. Medians [95 % bootstrap intervals of the ratios]."
    )


def main(
    name: str,
    sections: Mapping[str, Section],
    describe: Callable[[], str],
    measures: Mapping[str, Callable[..., dict[str, float]]] | None = None,
) -> None:
    """Command line of a benchmark: measure sections and write them; those not measured keep what the file has.

    Args:
        name: Of the script and of its results.
        sections: By the name that ``--section`` takes.
        describe: The environment, for the head of a section.
        measures: What `isolated` may call.
    """
    parser = argparse.ArgumentParser(description=f"Measure and write benchmarks/results/{name}.md")
    parser.add_argument("--section", choices=[*sections], action="append", help="default: all")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / f"{name}.md")
    parser.add_argument("--measure", choices=[*(measures or {})], help=argparse.SUPPRESS)
    parser.add_argument("--arguments", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps((measures or {})[options.measure](**options.arguments)))
        return
    written: dict[str, str] = {}
    if options.out.exists():
        parts = options.out.read_text().split("\n## ")[1:]
        written = {title: body.strip() for title, _, body in (part.partition("\n") for part in parts)}
    for key in options.section or sections:
        title, measure = sections[key]
        described = describe()  # before the load is our own
        written[title] = "\n".join([described, "", *measure()])
        print(f"## {title}\n\n{written[title]}\n", flush=True)
        text = f"# {name.capitalize()}\n\nMade by `python benchmarks/{name}.py`; [how to read it](../README.md).\n"
        known = [title for title, _ in sections.values() if title in written]
        text += "".join(f"\n## {title}\n\n{written[title]}\n" for title in known)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text)
