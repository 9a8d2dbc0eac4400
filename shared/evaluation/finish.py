"""What happens when training ends: the best checkpoint is tested, baselines stand beside it, a report is written."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

from polyfm.shared.errors import UsageError
from polyfm.shared.evaluation.intervals import bootstrap
from polyfm.shared.evaluation.report.page import Panel, Report
from polyfm.shared.evaluation.report.panels import (
    baseline_panel,
    by_baseline,
    curves_panel,
    data_panel,
    labels_panel,
    recipe_panel,
    target_panels,
)
from polyfm.shared.training.checkpoint import read_checkpoint
from polyfm.shared.training.finetune import FinetuneTask
from polyfm.shared.training.run_folder import RunFolder
from polyfm.shared.training.targets.target import Target

SHOWN = ("test/", "retrieval/", "generation/", "properties/", "integration/", "proteins/")
"""Metrics that are printed."""
FEW_ROWS = 20
"""Test rows below which the order of methods is said to be open."""


@dataclasses.dataclass(frozen=True)
class Finished:
    """A run that is trained, tested and reported."""

    folder: RunFolder
    """Where it stands."""
    task: Any
    """With its best weights."""
    data: Any
    """Set up."""
    metrics: dict[str, Any]
    """Final ones."""
    panels: list[Panel]
    """Of its report."""


def finish(cli: Any, folder: RunFolder) -> Finished:
    """Test the best checkpoint, run the baselines, write ``metrics.json`` and ``report.html``.

    Args:
        cli: Built, trained. Of an ensemble's member no baselines are run: they stand beside the whole.
        folder: The run.
    """
    task, data = cli.model, cli.datamodule
    content = read_checkpoint(folder.best)
    task.on_load_checkpoint(content)
    task.load_state_dict(content["state_dict"])
    task.eval()
    panels: list[Panel] = [curves_panel(folder.curves)]
    metrics: dict[str, Any] = {}
    has_test = len(data.part("test")) > 0
    target = task.target if isinstance(task, FinetuneTask) else None
    if target is not None and has_test:
        found, shown = judge(target, data, collect(task, data, "test"), baselines=cli.member < 0)
        metrics |= found
        panels = [*shown, *panels]
    elif has_test:
        metrics |= {f"test/{name}": value for name, value in measure(task, data, "test").items()}
        found, shown = data.evaluate(task)
        metrics |= found
        panels = [*shown, *panels]
    folder.write_metrics(metrics)
    panels += [data_panel(data), recipe_panel(folder)]
    Report(title=cli.recipe.name, subtitle=cli.tree.get("title", ""), panels=panels).write(folder.report)
    show(metrics, target)
    return Finished(folder, task, data, folder.metrics(), panels)


def judge(
    target: Target, data: Any, predictions: np.ndarray, *, baselines: bool = True
) -> tuple[dict[str, Any], list[Panel]]:
    """Metrics of predictions and of the baselines on the same test rows, and their panels.

    Args:
        target: What is predicted, with the thresholds of these predictions.
        data: Set up.
        predictions: (n_test, outputs), decoded.
        baselines: Whether to measure them, too.
    """
    rows = data.part("test")
    values = data.target_values(rows)
    metrics: dict[str, Any] = {f"test/{name}": value for name, value in target.metrics(predictions, values).items()}
    interval = bootstrap(target.score, predictions, values)
    if interval is not None:
        metrics |= {f"test/{target.primary}_{end}": value for end, value in zip(("low", "high"), interval, strict=True)}
    metrics["test/rows"] = int((~np.isnan(values)).any(1).sum())
    if baselines:
        metrics |= measure_baselines(target, data)
    labels = [labels_panel(metrics, target, values)] if len(target.names) > 1 else []
    return metrics, [baseline_panel(metrics, target), *labels, *target_panels(target, predictions, values)]


def measure_baselines(target: Target, data: Any) -> dict[str, float]:
    """Test metrics of each baseline, at thresholds chosen as the model's are: on its own predictions of validation.

    Args:
        target: What is predicted.
        data: Set up.
    """
    valid, values = data.part("valid"), data.target_values(data.part("test"))
    metrics: dict[str, float] = {}
    for name, method in data.baselines(target).items():
        print(f"  baseline {name} on the same split …", flush=True)
        own = target.unchosen()
        if own.chooses and len(valid):
            own.choose(method(valid), data.target_values(valid))
        metrics |= {f"baseline/{name}/{key}": value for key, value in own.metrics(method(), values).items()}
    return metrics


@torch.inference_mode()
def collect(task: Any, data: Any, part: str) -> np.ndarray:
    """(n, outputs) decoded predictions of a part, in the order of its rows.

    Args:
        task: Fine-tuned.
        data: Set up.
        part: train, valid or test.
    """
    task.eval()
    return np.concatenate(
        [
            task.predict_step(batch.to(task.device))["predictions"].cpu().numpy()
            for batch in data.loader(part, shuffle=False)
        ]
    )


@torch.inference_mode()
def measure(task: Any, data: Any, part: str) -> dict[str, float]:
    """Metrics of a part: of the labels for a fine-tuned task, the objectives' losses and logs for a pre-trained one.

    Args:
        task: Trained.
        data: Set up.
        part: valid or test.
    """
    if not len(data.part(part)):
        raise UsageError(f"the data of this run have no {part} part", where=data.path)
    task.eval()
    if isinstance(task, FinetuneTask):
        target: Any = task.target
        found: dict[str, float] = target.metrics(collect(task, data, part), data.target_values(data.part(part)))
        return found
    sums: dict[str, float] = {}
    count = 0
    for batch in data.loader(part, shuffle=False):
        batch = batch.to(task.device)
        views = task.held_out(batch, data.seed)
        count += len(batch)
        for name, objective in task.objectives.items():
            output = objective(views, batch)
            for key, value in {"loss": output.loss, **output.logs}.items():
                sums[f"{name}/{key}"] = sums.get(f"{name}/{key}", 0.0) + float(value) * len(batch)
    return {name: value / count for name, value in sums.items()}


def show(metrics: dict[str, Any], target: Target | None = None) -> None:
    """Print what matters most: the model's figures, each baseline's, and who won.

    Args:
        metrics: By name.
        target: What is predicted, by fine-tuned models.
    """
    print()
    for name, value in metrics.items():
        if name.startswith(SHOWN) and name.count("/") <= 2:
            print(f"  {name:<34} {value:.4g}")
    for row, found in by_baseline(metrics).items():
        print(f"  baseline {row:<25} " + ", ".join(f"{key} {value:.4g}" for key, value in list(found.items())[:4]))
    if target is not None and (line := winner(metrics, target)):
        print(f"\n  {line}")


def winner(metrics: dict[str, Any], target: Target) -> str:
    """Who is better by the primary metric, the model or the best baseline; empty where there is nothing to compare.

    Args:
        metrics: By name.
        target: What is predicted.
    """
    name, sign = target.primary, 1 if target.higher_is_better else -1
    ours = metrics.get(f"test/{name}")
    baselines = {
        row: found[name] for row, found in by_baseline(metrics).items() if np.isfinite(found.get(name, np.nan))
    }
    if ours is None or not baselines:
        return ""
    best = max(baselines, key=lambda row: sign * baselines[row])
    model, other = f"this model {ours:.4g}", f"baseline {best} {baselines[best]:.4g}"
    if ours == baselines[best]:
        return f"Test {name}: {model} and {other} are level"
    first, second = (model, other) if sign * ours > sign * baselines[best] else (other, model)
    rows = metrics.get("test/rows", FEW_ROWS)
    doubt = f" ({rows} test rows are too few to tell)" if rows < FEW_ROWS else ""
    return f"Best by test {name}: {first}, before {second}{doubt}"
