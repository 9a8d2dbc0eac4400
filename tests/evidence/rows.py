"""How evidence is made: runs that go on where they stopped, their CPU time, rows that are measured once, paired intervals.

Runs and predictions stay in runs/evidence (git ignores it), rows in benchmarks/results. A row that stands there is not
measured again: delete it to repeat it. Several processes may work at once (`pytest -n 2`): each run has a lock.
"""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import yaml
from filelock import FileLock

import polyfm
from polyfm.shared.evaluation.finish import collect
from polyfm.shared.evaluation.intervals import paired
from polyfm.shared.training.recipe import find_recipe
from polyfm.shared.training.run_folder import RunFolder
from polyfm.shared.training.targets.target import Target

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
RUNS = ROOT / "runs" / "evidence"
SEEDS = (0, 1, 2)


class Rows:
    """A table of results.

    Args:
        name: Of the file in benchmarks/results.
        keys: Columns that say what a row is about; one row for each combination, sorted by them.
        others: Further columns.
    """

    def __init__(self, name: str, keys: Sequence[str], others: Sequence[str]) -> None:
        self.path, self.keys, self.fields = RESULTS / name, list(keys), [*keys, *others]

    def read(self, **about: Any) -> list[dict[str, str]]:
        """Rows about something."""
        if not self.path.is_file():
            return []
        with self.path.open(newline="") as file:
            asked = {name: str(value) for name, value in about.items()}
            return [row for row in csv.DictReader(file) if asked.items() <= row.items()]

    def put(self, rows: Iterable[dict[str, Any]]) -> None:
        """Add rows, in the place of those about the same."""
        RUNS.mkdir(parents=True, exist_ok=True)
        with FileLock(RUNS / f"{self.path.name}.lock"):
            known = {tuple(row[key] for key in self.keys): row for row in self.read()}
            known |= {tuple(str(row[key]) for key in self.keys): row for row in rows}
            with replaced(self.path) as file:
                writer = csv.DictWriter(file, self.fields, lineterminator="\n")
                writer.writeheader()
                writer.writerows(known[key] for key in sorted(known))


@contextmanager
def replaced(path: Path) -> Iterator[TextIO]:
    """A new text file in the place of another, all of it or nothing."""
    part = path.with_name(f"{path.name}.part{os.getpid()}")
    with part.open("w", newline="", encoding="utf-8") as file:
        yield file
    part.replace(path)


def fit(name: str, *words: str) -> tuple[RunFolder, float]:
    """A finished run of `polyfm fit`, on one thread; made, or gone on with, if it is not there.

    What is there but was made by other words, or of another recipe, is not taken for it: AssertionError.

    Args:
        name: Of its folder in runs/evidence.
        words: Of the command, without ``--out``: recipe, ``--size=…``, flags.

    Returns:
        The run, and the CPU-minutes that it took.
    """
    out = RUNS / name
    out.parent.mkdir(parents=True, exist_ok=True)
    spent = out.with_name(out.name + ".cpu")  # seconds
    made_by = out.with_name(out.name + ".words")
    tree = find_recipe(words[0]).sized(words[1].removeprefix("--size="))
    asked = yaml.safe_dump([*words[1:], tree], sort_keys=False).replace(str(ROOT), "")
    with FileLock(str(out) + ".lock"):
        if out.exists():
            assert made_by.read_text() == asked, f"{out} was made by other words or of another recipe: delete it first"
        made_by.write_text(asked)
        if not (out / "report.html").is_file():
            started = (out / "checkpoints" / "last.ckpt").exists()
            if out.exists() and not started:
                shutil.rmtree(out)
            given = ["--resume", str(out)] if started else [*words, "--out", str(out)]
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
            with (out.parent / f"{out.name}.log").open("ab") as log:
                command = [sys.executable, "-m", "polyfm", "fit", *given]
                process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=ROOT)
                _, status, usage = os.wait4(process.pid, 0)
            before = float(spent.read_text()) if spent.is_file() else 0.0
            spent.write_text(f"{before + usage.ru_utime + usage.ru_stime:.1f}\n")
            assert status == 0, f"polyfm fit {' '.join(given)}: see {out}.log"
        return RunFolder.open(out), float(spent.read_text()) / 60


def answers(run: RunFolder, method: str) -> tuple[Any, Target, dict[str, Callable[[], np.ndarray]]]:
    """What a fine-tuned run and its baselines say of the test part.

    Args:
        run: It.
        method: What the run is called.

    Returns:
        Its data, set up; its target; and by name what makes (n, outputs) predictions when it is called.
    """
    model = polyfm.load(run.path)
    module: Any = model.data
    module.setup()
    target: Target = model.task.target
    return module, target, {method: lambda: collect(model.task, module, "test"), **module.baselines(target)}


def write_ledger(recipe: str, sentence: str) -> None:
    """Put what was measured into the ledger's row of a recipe, in the place of what evidence said before.

    Args:
        recipe: Its name.
        sentence: Follows "Evidence:".
    """
    path = ROOT / "recipes" / "ledger.csv"
    with FileLock(RUNS / "ledger.lock"), path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        rows, fields = list(reader), list(reader.fieldnames or [])
    mine = [row for row in rows if row["recipe_or_component"] == recipe]
    assert mine, f"the ledger has no row of {recipe}"
    for row in mine:
        before = row["measured"].partition("Evidence:")[0].strip()
        row["measured"] = f"{before} Evidence: {sentence}".strip()
    with replaced(path) as file:
        writer = csv.DictWriter(file, fields, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def keep(path: Path, numbers: np.ndarray) -> None:
    """Write predictions or ranks, for intervals over all seeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, numbers)


def kept(path: Path) -> np.ndarray:
    """What `keep` wrote."""
    numbers: np.ndarray = np.load(path, allow_pickle=False)  # noqa: TID251 - numbers only
    return numbers


def interval(
    metric: Any, higher_is_better: bool, ours: np.ndarray, theirs: np.ndarray, values: np.ndarray
) -> dict[str, Any]:
    """Cells of a row: how much one method gains over another on the same items; positive is better.

    Args:
        metric: As of `paired`.
        higher_is_better: Of the metric.
        ours: (seeds, n, outputs) predictions.
        theirs: The same.
        values: (n, tasks) labels.
    """
    found = paired(metric, ours, theirs, values)
    assert found is not None
    whole, low, high = found if higher_is_better else (-found[0], -found[2], -found[1])
    verdict = "better" if low > 0 else "worse" if high < 0 else "open"
    return {"gain": f"{whole:.4f}", "low": f"{low:.4f}", "high": f"{high:.4f}", "verdict": verdict}
