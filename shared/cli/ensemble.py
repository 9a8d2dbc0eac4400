"""`polyfm fit ... --ensemble N`: the same recipe with N seeds on one split, tested alone and together."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from polyfm.shared.cli.fit import train
from polyfm.shared.errors import UsageError
from polyfm.shared.evaluation.finish import Finished, collect, judge, show
from polyfm.shared.evaluation.report.page import Panel, Report
from polyfm.shared.evaluation.report.panels import data_panel, recipe_panel
from polyfm.shared.evaluation.spread import judge_spread
from polyfm.shared.training.init_from import InitFrom
from polyfm.shared.training.recipe import Recipe
from polyfm.shared.training.run_folder import RunFolder


def train_ensemble(
    recipe: Recipe, tree: dict[str, Any], flags: list[str], out: Path, *, members: int, init_from: str | InitFrom
) -> dict[str, Any]:
    """Train members that differ only in the seed of weights, order and dropout; the split is the first seed's.

    The folder gets ``metrics.json`` and ``report.html`` of the mean prediction, with the baselines that members skip,
    and ``target.json``: what is predicted, with thresholds chosen on the mean prediction of the validation part.

    Args:
        recipe: What is trained.
        tree: Its content at the chosen size.
        flags: The user's.
        out: Folder of the ensemble; members go into ``member_0`` …
        members: How many.
        init_from: Folder of a run whose encoders and transforms are taken over.

    Returns:
        Metrics of the mean prediction and of the members; none of a part that is empty.
    """
    if tree["task"] != "finetune":
        raise UsageError("--ensemble is for fine-tuning recipes")
    folder = RunFolder.create(out)
    predictions: dict[str, list[np.ndarray]] = {"valid": [], "test": []}

    def train_member(member: int) -> Finished:
        print(f"\nMember {member + 1} of {members}")
        path = out / f"member_{member}"
        run = train(recipe, tree, [*flags, f"--member={member}"], path, init_from=init_from)
        for part, found in predictions.items():
            if len(run.data.part(part)):
                found.append(collect(run.task, run.data, part))
        return run

    first = train_member(0)
    for member in range(1, members):
        train_member(member)
    data, target = first.data, first.task.target.unchosen()
    if predictions["valid"]:
        target.choose(np.mean(predictions["valid"], axis=0), data.target_values(data.part("valid")))
    metrics: dict[str, Any] = {"members": members}
    panels: list[Panel] = []
    print(f"\nAll {members} together")
    if predictions["test"]:
        stack = np.stack(predictions["test"])
        found, panels = judge(target, data, stack.mean(axis=0))
        spread, panel = judge_spread(target, stack, data.target_values(data.part("test")), found)
        metrics |= found | spread
        panels.append(panel)
    (folder.path / "target.json").write_text(json.dumps(target.state(), indent=2) + "\n")
    folder.write_data(data)
    folder.write_metrics(metrics)
    panels += [data_panel(data), dataclasses.replace(recipe_panel(first.folder), title="Recipe of member_0")]
    title = f"{recipe.name}: {members} members"
    Report(title=title, subtitle=tree.get("title", ""), panels=panels).write(folder.report)
    show(metrics, target)
    print(f"\nReport:  {folder.report}")
    print(f"Next:    polyfm predict {out} NEW_FILE --out predictions.csv   (mean and sd of {members} members)")
    return metrics
