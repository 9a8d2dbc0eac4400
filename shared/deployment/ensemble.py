"""Several runs that differ only in their seed: their mean predicts, their spread says how sure it is."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from polyfm.shared.data.datamodule import DataModule
from polyfm.shared.deployment.inference import load
from polyfm.shared.errors import UsageError
from polyfm.shared.training.run_folder import RunFolder
from polyfm.shared.training.targets.kinds import target_from_state


@dataclasses.dataclass(frozen=True)
class EnsemblePredictions:
    """Predictions for items, in their order."""

    ids: list[str]
    """n ids."""
    names: list[str]
    """Of the columns: labels, or classes."""
    values: np.ndarray
    """(n, columns) mean over members, in the labels' own unit, or probabilities."""
    spread: np.ndarray | None
    """(n, columns) standard deviation over members; None for a single run."""
    answers: dict[str, np.ndarray]
    """(n,) classes by column, at the thresholds chosen for the mean; none for numbers."""
    data: DataModule
    """That read the items: its summary and quarantine say what was announced and left out."""


def members(run: str | Path) -> list[Path]:
    """Folders of an ensemble's members; the run itself if it is no ensemble.

    Args:
        run: Folder of a run or of an ensemble.

    Raises:
        UsageError: Not all members are trained.
    """
    folder = RunFolder(run)
    found = [member.path for member in folder.members]
    if found and not folder.metrics_path.is_file():
        raise UsageError(
            f"this ensemble stopped before its {folder.plan()['members']} members were trained",
            where=run,
            remedy=f"Continue it with `polyfm fit --resume {run}`",
        )
    return found or [Path(run)]


def predict(run: str | Path, items: Any, **reading: Any) -> EnsemblePredictions:
    """Predictions of a run, or of an ensemble's members together.

    Args:
        run: Folder of a run or of an ensemble.
        items: A path, or the domain's own items.
        reading: How a file is read; see `LoadedModel.embed`.
    """
    values = []
    for folder in members(run):
        model = load(folder)
        found = model.predict(items, **reading)
        values.append(found.values)
    stack, stored = np.stack(values), RunFolder(run).ensemble_target
    mean, answers = stack.mean(axis=0), found.answers
    if stored.is_file():
        answers = target_from_state(json.loads(stored.read_text())).answers(mean)
    return EnsemblePredictions(
        ids=found.ids,
        names=found.names,
        values=mean,
        answers=answers,
        spread=stack.std(axis=0, ddof=1) if len(stack) > 1 else None,
        data=model.data,
    )
