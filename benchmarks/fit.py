"""What a training step of `polyfm fit` spends its time on beside the model's arithmetic. See benchmarks/README.md.

python benchmarks/fit.py [--section spmm|molfm] [--out benchmarks/results/fit.md]
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import lightning as L
import numpy as np
import torch
from lightning.pytorch.loops import fetchers

from polyfm.shared.training.build import RecipeParser, quiet_libraries
from polyfm.shared.training.callbacks import Bar, Throughput
from polyfm.shared.training.recipe import find_recipe
from polyfm.shared.training.seeding import StepSeed

ROUNDS, STEPS = 5, 40


class Clock(L.Callback):
    """CPU-seconds of the parts of a step, between the first and the last step of a run."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = defaultdict(float)
        self.total = self._start = 0.0
        self._inside: list[str] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Warm-up is not counted: the run has made its loader and its optimiser."""
        self.spent.clear()
        self._start = time.process_time()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """All steps are done."""
        self.total = time.process_time() - self._start

    def watch(self, owner: Any, method: str, part: str) -> None:
        """Count the time in a method; time in another one that it calls counts there only.

        Args:
            owner: An object, or a class.
            method: Its name.
            part: Of a step.
        """
        run: Callable[..., Any] = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            outer = self._inside[-1] if self._inside else None
            self._inside.append(part)
            start = time.process_time()
            try:
                return run(*args, **kwargs)
            finally:
                taken = time.process_time() - start
                self._inside.pop()
                self.spent[part] += taken
                if outer is not None:
                    self.spent[outer] -= taken

        setattr(owner, method, timed)


def profile(recipe_name: str, path: Path) -> dict[str, float]:
    """Share of a run's CPU time by part.

    Args:
        recipe_name: Trained at small size, in one process, on one thread.
        path: Of the data.
    """
    quiet_libraries()
    recipe = find_recipe(recipe_name)
    flags = [f"--data.path={path}", f"--trainer.max_steps={STEPS}", "--trainer.max_epochs=-1"]
    cli = RecipeParser(recipe, recipe.sized("small"), flags)
    task, clock = cli.model, Clock()
    cli.datamodule.setup("fit")
    with tempfile.TemporaryDirectory() as folder:
        callbacks: list[L.Callback] = [StepSeed(0), clock, Bar(Throughput())]
        trainer = cli.make_trainer(Path(folder), callbacks, enable_model_summary=False, limit_val_batches=0)
        fetch = fetchers._PrefetchDataFetcher.__next__
        clock.watch(fetchers._PrefetchDataFetcher, "__next__", "waiting for data")
        clock.watch(task, "optimizer_step", "clipping, optimiser, teacher")
        clock.watch(task, "training_step", "forward")
        clock.watch(task, "log_dict", "logging")
        clock.watch(task, "log", "logging")
        clock.watch(task, "backward", "backward")
        try:
            trainer.fit(task, datamodule=cli.datamodule)
        finally:
            fetchers._PrefetchDataFetcher.__next__ = fetch  # type: ignore[method-assign]
    shares = {part: seconds / clock.total for part, seconds in clock.spent.items()}
    return {**shares, "everything else": 1 - sum(shares.values())}


def table(recipe: str, path: Path) -> list[str]:
    """Medians over rounds, as Markdown."""
    torch.set_num_threads(1)
    profile(recipe, path)  # fills caches
    rounds = [profile(recipe, path) for _ in range(ROUNDS)]
    lines = [
        f"`{recipe}` at small size on {path.name}, {STEPS} steps, one thread, no workers: share of CPU-seconds,",
        f"{ROUNDS} rounds.",
        "",
        "| part | share |",
        "|---|---|",
    ]
    for part in rounds[0]:
        middle, low, high = harness.interval(np.array([shares[part] for shares in rounds]))
        lines.append(f"| {part} | {middle:.1%} [{low:.1%}, {high:.1%}] |")
    overhead = np.array([shares["logging"] + shares["everything else"] for shares in rounds])
    middle, low, high = harness.interval(overhead)
    return [*lines, f"| **overhead: logging and everything else** | **{middle:.1%}** [{low:.1%}, {high:.1%}] |"]


def spmm() -> list[str]:
    """SPMM on the compounds of the demo."""
    from rdkit import RDConfig

    return table("molecules/spmm", Path(RDConfig.RDDataDir) / "NCI" / "first_5K.smi")


def molfm() -> list[str]:
    """MolFM on ChEBI-20's pairs."""
    return table("molecules/molfm", Path(os.environ["POLYFM_DATA"]) / "molecules" / "chebi20_validation.tsv.gz")


SECTIONS: dict[str, harness.Section] = {
    "spmm": ("A step of SPMM", spmm),
    "molfm": ("A step of MolFM", molfm),
}

if __name__ == "__main__":
    if "POLYFM_DATA" not in os.environ and "--section" not in sys.argv:
        sys.argv += ["--section", "spmm"]  # MolFM's table stays as it was measured
    harness.main("fit", SECTIONS, lambda: harness.environment(["torch", "lightning"]))
