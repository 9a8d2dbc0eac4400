"""What happens when training ends: the best checkpoint is tested, baselines stand beside it, a report is written."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

from polyfm.shared.errors import UsageError
from polyfm.shared.evaluation.intervals import bootstrap
from polyfm.shared.evaluation.report.page import Panel, Report
from polyfm.shared.evaluation.report.panels import baseline_panel, curves_panel, data_panel, recipe_panel, target_panels
from polyfm.shared.training.checkpoint import read_checkpoint
from polyfm.shared.training.finetune import FinetuneTask
from polyfm.shared.training.run_folder import RunFolder


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
        cli: Built, trained.
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
    if isinstance(task, FinetuneTask) and has_test:
        found, shown = finish_finetune(task, data)
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
    show(metrics)
    return Finished(folder, task, data, folder.metrics(), panels)


def finish_finetune(task: FinetuneTask, data: Any) -> tuple[dict[str, Any], list[Any]]:
    """Metrics of the model and of the baselines on the same test rows, and their panels.

    Args:
        task: With its best weights.
        data: Set up.
    """
    target: Any = task.target
    rows = data.part("test")
    values = data.target_values(rows)
    predictions = collect(task, data, "test")
    metrics: dict[str, Any] = {f"test/{name}": value for name, value in target.metrics(predictions, values).items()}
    interval = bootstrap(target.score, predictions, values)
    if interval is not None:
        metrics |= {f"test/{target.primary}_{end}": value for end, value in zip(("low", "high"), interval, strict=True)}
    metrics["test/rows"] = len(rows)
    for name, method in data.baselines(target).items():
        print(f"  baseline {name} on the same split …", flush=True)
        found = target.metrics(method(), values)
        metrics |= {f"baseline/{name}/{key}": value for key, value in found.items()}
    panels = [baseline_panel(metrics, target), *target_panels(target, predictions, values)]
    return metrics, panels


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


def show(metrics: dict[str, Any]) -> None:
    """Print what matters most: the model's figures, and each baseline's.

    Args:
        metrics: By name.
    """
    print()
    for name, value in metrics.items():
        if name.startswith(("test/", "retrieval/", "generation/", "properties/")) and name.count("/") <= 2:
            print(f"  {name:<34} {value:.4g}")
    rows = dict.fromkeys(name.split("/")[1] for name in metrics if name.startswith("baseline/"))
    for row in rows:
        found = {key.split("/", 2)[2]: value for key, value in metrics.items() if key.startswith(f"baseline/{row}/")}
        print(f"  baseline {row:<25} " + ", ".join(f"{key} {value:.4g}" for key, value in list(found.items())[:4]))
