"""Panels that every domain's report has: curves, metrics beside baselines, predictions, the data, the recipe."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from polyfm.shared.evaluation.report.figures import COLOURS, figure, plain, svg, table, text
from polyfm.shared.evaluation.report.page import Panel
from polyfm.shared.evaluation.retrieval import Retrieval
from polyfm.shared.training.recipe import shareable
from polyfm.shared.training.targets.multi_class import MultiClass
from polyfm.shared.training.targets.regression import Regression
from polyfm.shared.training.targets.target import Target

MOST_DRAWN = 4
"""Of several labels, how many are drawn; the table has all."""


def curves_panel(path: Path, title: str = "Learning curves") -> Panel:
    """Losses and the validation score by step.

    Args:
        path: metrics.csv of a run.
        title: Of the panel.
    """
    if not path.is_file():
        return Panel(title=title, body="<p>No curves were written.</p>")
    frame = pd.read_csv(path)
    columns = [str(name) for name in frame.columns]
    losses = [name for name in columns if name.startswith("train/") and name.endswith("loss")]
    watched = [
        name for name in columns if name.startswith("valid/") and (name.endswith("loss") or name == "valid/score")
    ]
    drawn, axes = figure(10.5, 3.3, columns=2)
    for ax, names, label in ((axes[0], losses, "training"), (axes[1], watched, "validation")):
        for i, name in enumerate(names):
            series = frame[["step", name]].dropna()
            if series.empty:
                continue
            x, y = series["step"].to_numpy(), series[name].to_numpy()
            colour = COLOURS[i % len(COLOURS)]
            short = name.split("/", 1)[1]
            if label == "training" and len(y) > 40:
                ax.plot(x, y, color=colour, alpha=0.2, linewidth=0.8)
                smooth = series[name].ewm(span=max(len(y) // 20, 2)).mean()
                ax.plot(x, smooth, color=colour, linewidth=1.6, label=short)
            else:
                ax.plot(x, y, color=colour, linewidth=1.6, label=short, marker="." if len(y) < 30 else None)
        ax.set_xlabel("step", fontsize=9)
        ax.set_title(label, fontsize=10, loc="left")
        if ax.get_legend_handles_labels()[0]:
            ax.legend(fontsize=8, frameon=False)
    return Panel(title=title, body=svg(drawn), wide=True)


def by_baseline(metrics: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Metrics of each baseline by its name: ``baseline/NAME/METRIC`` taken apart.

    Args:
        metrics: Final ones.
    """
    found: dict[str, dict[str, float]] = {}
    for key, value in metrics.items():
        if key.startswith("baseline/"):
            _, name, metric = key.split("/", 2)
            found.setdefault(name, {})[metric] = value
    return found


def baseline_panel(metrics: dict[str, Any], target: Target) -> Panel:
    """The model and its baselines on the same test rows; the best row is bold, whoever it is.

    Args:
        metrics: Final ones.
        target: What is predicted.
    """
    ours = {key.removeprefix("test/"): value for key, value in metrics.items() if key.startswith("test/")}
    rows = {"this model": ours, **by_baseline(metrics)}
    columns = [
        name
        for name in rows["this model"]
        if "/" not in name and not name.endswith(("_low", "_high")) and name != "rows"
    ]
    sign = 1 if target.higher_is_better else -1
    ranked = sorted(rows, key=lambda name: -sign * rows[name].get(target.primary, -sign * np.inf))
    classes = [
        f"{'best' if i == 0 else ''} {'ours' if name == 'this model' else ''}".strip() for i, name in enumerate(ranked)
    ]
    cells = [[name, *(float(rows[name].get(column, np.nan)) for column in columns)] for name in ranked]
    low, high = metrics.get(f"test/{target.primary}_low"), metrics.get(f"test/{target.primary}_high")
    note = f"{metrics.get('test/rows', 0):,} test rows, the same for all; sorted by {target.primary}, best first."
    if low is not None and high is not None:
        note += f" This model's {target.primary}: 95 % bootstrap interval {low:.3g} to {high:.3g}."
    title = "Test metrics beside baselines" if len(rows) > 1 else "Test metrics"
    return Panel(title=title, body=table(["", *columns], cells, classes), note=note, wide=True)


def target_panels(target: Target, predictions: np.ndarray, values: np.ndarray) -> list[Panel]:
    """Pictures of predictions against measurements, by kind of label.

    Args:
        target: What is predicted.
        predictions: (n, outputs), decoded.
        values: (n, tasks).
    """
    if isinstance(target, MultiClass):
        return [] if np.isnan(values).all() else [confusion_panel(target.classes, predictions, values[:, 0])]
    draw = measured_panel if isinstance(target, Regression) else reliability_panel
    known = [column for column in range(values.shape[1]) if not np.isnan(values[:, column]).all()]
    panels = [draw(target.names[column], predictions[:, column], values[:, column]) for column in known[:MOST_DRAWN]]
    if len(target.names) == 1:
        return panels
    named = zip(panels, known, strict=False)
    return [dataclasses.replace(panel, title=f"{panel.title}: {target.names[column]}") for panel, column in named]


def labels_panel(metrics: dict[str, Any], target: Target, values: np.ndarray) -> Panel:
    """Each of several labels: how many rows have it, the model's figure, the best baseline's.

    Args:
        metrics: Final ones.
        target: What is predicted.
        values: (n, tasks), NaN where missing.
    """
    metric = "rmse" if isinstance(target, Regression) else target.primary  # in the unit of each
    best = max if target.higher_is_better else min
    rows: list[list[Any]] = []
    for name, column in zip(target.names, values.T, strict=True):
        key = f"{name}/{metric}"
        theirs = [(found[key], other) for other, found in by_baseline(metrics).items() if key in found]
        value, other = best(theirs) if theirs else (np.nan, "")
        rows.append([name, int((~np.isnan(column)).sum()), float(metrics.get(f"test/{key}", np.nan)), value, other])
    note = "Test part. A figure is missing where it is undefined, such as the AUROC of one class."
    if len(rows) > MOST_DRAWN:
        note += f" The first {MOST_DRAWN} are drawn below."
    columns = ["label", "rows with it", f"{metric} of this model", f"{metric} of the best baseline", "which is"]
    return Panel(title="Each label", body=table(columns, rows), note=note, wide=True)


def measured_panel(name: str, predictions: np.ndarray, values: np.ndarray) -> Panel:
    """Predicted against measured.

    Args:
        name: Of the label.
        predictions: (n,) own unit.
        values: (n,) own unit, NaN where missing.
    """
    given = ~np.isnan(values)
    p, y = predictions[given], values[given]
    drawn, ax = figure(5.2, 4.6)
    low, high = min(p.min(), y.min()), max(p.max(), y.max())
    ax.plot([low, high], [low, high], color="#57606a", linewidth=1, linestyle="--")
    ax.scatter(y, p, s=16, alpha=0.6, color=COLOURS[0], linewidths=0, rasterized=len(p) > 2000)
    ax.set_xlabel(f"measured {plain(name)}", fontsize=9)
    ax.set_ylabel(f"predicted {plain(name)}", fontsize=9)
    return Panel(
        title="Predicted against measured", body=svg(drawn), note="Test part. On the dashed line the two agree."
    )


def reliability_panel(name: str, predictions: np.ndarray, values: np.ndarray) -> Panel:
    """Reliability diagram: said probability against observed frequency.

    Args:
        name: Of the label.
        predictions: (n,) probabilities.
        values: (n,) 0 or 1, NaN where missing.
    """
    given = ~np.isnan(values)
    p, y = predictions[given], values[given]
    edges = np.unique(np.quantile(p, np.linspace(0, 1, 11))) if len(p) else np.array([0.0, 1.0])
    owner = np.clip(np.searchsorted(edges, p, side="right") - 1, 0, max(len(edges) - 2, 0))
    said = [p[owner == b].mean() for b in range(len(edges) - 1) if (owner == b).any()]
    seen = [y[owner == b].mean() for b in range(len(edges) - 1) if (owner == b).any()]
    drawn, ax = figure(5.2, 4.6)
    ax.plot([0, 1], [0, 1], color="#57606a", linewidth=1, linestyle="--")
    ax.plot(said, seen, marker="o", color=COLOURS[0])
    ax.set_xlabel(f"predicted probability of {plain(name)}", fontsize=9)
    ax.set_ylabel("observed frequency", fontsize=9)
    return Panel(title="Reliability", body=svg(drawn), note="Test part, ten groups of equal size.")


def confusion_panel(classes: list[str], predictions: np.ndarray, values: np.ndarray) -> Panel:
    """Confusion matrix, rows normalised.

    Args:
        classes: Names.
        predictions: (n, classes) probabilities.
        values: (n,) class indices, NaN where missing; those without a name are left out.
    """
    given = values < len(classes)
    y, said = values[given].astype(int), predictions[given].argmax(-1)
    counts = np.zeros((len(classes), len(classes)))
    np.add.at(counts, (y, said), 1)
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    drawn, ax = figure(5.4, 4.8)
    ax.imshow(share, cmap="Blues", vmin=0, vmax=1)
    ax.grid(visible=False)
    names = [plain(name) for name in classes]
    ax.set_xticks(range(len(classes)), names, rotation=60, ha="right", fontsize=8)
    ax.set_yticks(range(len(classes)), names, fontsize=8)
    ax.set_xlabel("predicted", fontsize=9)
    ax.set_ylabel("true", fontsize=9)
    return Panel(title="Confusion", body=svg(drawn), note="Test part; each row sums to one.")


def spread_panel(
    metric: str, scores: dict[str, float], spread: np.ndarray, error: np.ndarray, spearman: float | None
) -> Panel:
    """An ensemble's members beside their mean, and whether they disagree where the mean is wrong.

    Args:
        metric: The primary one.
        scores: Its value by row of the table.
        spread: (m,) standard deviation over members.
        error: (m,) absolute error of their mean.
        spearman: Correlation of the two; None where it is undefined.
    """
    drawn, ax = figure(5.2, 4.6)
    ax.scatter(spread, error, s=16, alpha=0.6, color=COLOURS[0], linewidths=0, rasterized=len(error) > 2000)
    ax.set_xlabel("standard deviation over members", fontsize=9)
    ax.set_ylabel("absolute error of their mean", fontsize=9)
    note = "Test part. A spread that says how sure the mean is rises with the error."
    if spearman is not None:
        note += f" Spearman correlation of the two: {spearman:.2f} (0: it says nothing)."
    rows = [[name, score] for name, score in scores.items()]
    return Panel(title="Members and their spread", body=table(["", metric], rows) + svg(drawn), note=note)


def retrieval_table(found: dict[str, Retrieval]) -> str:
    """Recall at 1, 5, 10 with intervals, MRR and the chance line, as HTML.

    Args:
        found: By direction.
    """
    rows: list[list[Any]] = []
    for name, result in found.items():
        row: list[Any] = [name, result.pool]
        for k in (1, 5, 10):
            low, high = result.interval(k)
            row.append(f"{result.recall(k):.1%} ({low:.1%} to {high:.1%})")
        low, high = result.mrr_interval()
        rows.append([*row, f"{result.mrr:.1%} ({low:.1%} to {high:.1%})"])
    pool = next(iter(found.values())).pool
    chance = Retrieval(ranks=np.arange(1, pool + 1), top=np.zeros((0, 0), dtype=np.int64), pool=pool)
    rows.append(["chance", pool, *(f"{chance.chance(k):.1%}" for k in (1, 5, 10)), f"{chance.mrr:.1%}"])
    return table(["direction", "pool", "R@1 (95 %)", "R@5 (95 %)", "R@10 (95 %)", "MRR (95 %)"], rows)


def data_panel(data: Any) -> Panel:
    """What was read, dropped and split.

    Args:
        data: Set up.
    """
    lines = "".join(f"<p>{text(line)}</p>" for line in data.summary())
    return Panel(
        title="Data",
        body=lines,
        note="Broken rows stand in quarantine.csv with their reasons, merged duplicates and remarks in notices.csv.",
    )


def recipe_panel(folder: Any) -> Panel:
    """The recipe as it was run; reports are passed on, so the data's path is the file's name.

    Args:
        folder: The run.
    """
    body = f"<details><summary>recipe.yaml</summary><pre>{text(shareable(folder.recipe.read_text()))}</pre></details>"
    resume = f"<p><code>polyfm fit --resume {text(folder.path)}</code> continues this run.</p>"
    return Panel(title="Recipe", body=resume + body, note="Versions, commit and data hashes: environment.json.")
