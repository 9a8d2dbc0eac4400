"""`polyfm fit ... --ensemble N`: the same recipe with N seeds on one split, tested alone and together."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from polyfm.shared.cli.fit import resume, train
from polyfm.shared.errors import UsageError
from polyfm.shared.evaluation.finish import Finished, collect, judge, show
from polyfm.shared.evaluation.report.page import Panel, Report
from polyfm.shared.evaluation.report.panels import data_panel, recipe_panel
from polyfm.shared.evaluation.spread import judge_spread
from polyfm.shared.training.init_from import InitFrom
from polyfm.shared.training.recipe import Recipe, read_yaml
from polyfm.shared.training.run_folder import RunFolder
from polyfm.shared.training.signals import NotFirst, is_requeued, job


def train_ensemble(
    recipe: Recipe, tree: dict[str, Any], flags: list[str], out: Path, *, members: int, init_from: str | InitFrom
) -> dict[str, Any]:
    """Train members that differ only in the seed of weights, order and dropout; the split is the first seed's.

    The folder gets ``metrics.json`` and ``report.html`` of the mean prediction, with the baselines that members skip,
    ``target.json``: what is predicted, with thresholds chosen on the mean prediction of the validation part, and
    ``ensemble.json``: what `resume_ensemble` must know.

    Args:
        recipe: What is trained.
        tree: Its content at the chosen size.
        flags: The user's.
        out: Folder of the ensemble; members go into ``member_0`` …
        members: How many.
        init_from: What encoders, and of a run the transforms, are taken from.

    Returns:
        Metrics of the mean prediction and of the members; none of a part that is empty.
    """
    if tree["task"] != "finetune":
        raise UsageError("--ensemble is for fine-tuning recipes")
    if is_requeued() and RunFolder(out).is_of_job(job()):
        return resume_ensemble(out)
    folder = RunFolder.create(out)
    folder.write_environment({})
    folder.write_plan(members, InitFrom.of(init_from).to_dict() if init_from else {})

    def member(number: int) -> Finished:
        return train(recipe, tree, [*flags, f"--member={number}"], _path(out, number), init_from=init_from)

    return _together(folder, recipe.name, tree.get("title", ""), members, member)


def resume_ensemble(out: Path) -> dict[str, Any]:
    """Continue an ensemble that stopped: the member that was in training, then those that were not begun.

    Args:
        out: Its folder.

    Returns:
        See `train_ensemble`.
    """
    folder = RunFolder(out)
    plan = folder.plan()
    first = folder.members[0].recipe
    tree = read_yaml(first)
    init_from = InitFrom.from_dict(plan["init_from"]) if plan["init_from"] else ""

    def member(number: int) -> Finished:
        run = RunFolder(_path(out, number))
        if run.is_used:
            return resume(run.path)
        recipe = Recipe(name=run.path.name, path=first, tree={**tree, "member": number})
        return train(recipe, recipe.tree, [], run.path, init_from=init_from)

    return _together(folder, out.name, tree.get("title", ""), plan["members"], member)


def _path(out: Path, member: int) -> Path:
    return out / f"member_{member}"


def _together(
    folder: RunFolder, name: str, title: str, members: int, train_member: Callable[[int], Finished]
) -> dict[str, Any]:
    """Train what is left of the members, then measure and report their mean."""
    predictions: dict[str, list[np.ndarray]] = {"valid": [], "test": []}
    first: Finished | None = None
    with folder.locked():
        for member in range(members):
            print(f"\nMember {member + 1} of {members}")
            try:
                run = train_member(member)
            except NotFirst:
                continue
            first = first or run
            for part, each in predictions.items():
                if len(run.data.part(part)):
                    each.append(collect(run.task, run.data, part))
        if first is None:
            raise NotFirst(0)
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
        folder.ensemble_target.write_text(json.dumps(target.state(), indent=2) + "\n")
        folder.write_data(data)
        panels += [data_panel(data), dataclasses.replace(recipe_panel(first.folder), title="Recipe of member_0")]
        Report(title=f"{name}: {members} members", subtitle=title, panels=panels).write(folder.report)
        folder.write_metrics(metrics)
    show(metrics, target)
    print(f"\nReport:  {folder.report}")
    print(f"Next:    polyfm predict {folder.path} NEW_FILE --out predictions.csv   (mean and sd of {members} members)")
    return metrics
