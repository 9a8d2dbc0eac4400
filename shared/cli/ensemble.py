"""`polyfm fit ... --ensemble N`: the same recipe with N seeds on one split, tested alone and together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from polyfm.shared.cli.fit import train
from polyfm.shared.errors import UsageError
from polyfm.shared.evaluation.finish import collect, show
from polyfm.shared.training.recipe import Recipe


def train_ensemble(
    recipe: Recipe, tree: dict[str, Any], flags: list[str], out: Path, *, members: int, init_from: str
) -> dict[str, Any]:
    """Train members that differ only in the seed of weights, order and dropout; the split is the first seed's.

    Args:
        recipe: What is trained.
        tree: Its content at the chosen size.
        flags: The user's.
        out: Folder of the ensemble; members go into ``member_0`` …
        members: How many.
        init_from: Folder of a run whose encoders and transforms are taken over.

    Returns:
        Metrics of the mean prediction, and how well the spread ranks the errors.
    """
    from polyfm.shared.deployment.inference import load
    from polyfm.shared.training.run_folder import RunFolder

    if tree["task"] != "finetune":
        raise UsageError("--ensemble is for fine-tuning recipes")
    folder = RunFolder.create(out)
    predictions = []
    for member in range(members):
        print(f"\nMember {member + 1} of {members}")
        path = out / f"member_{member}"
        train(recipe, tree, flags, path, init_from=init_from, member=member)
        model = load(path)
        model.data.setup("fit")
        predictions.append(collect(model.task, model.data, "test"))
    stack = np.stack(predictions)
    target: Any = model.task.target
    values = model.data.target_values(model.data.part("test"))
    metrics = {f"test/{name}": value for name, value in target.metrics(stack.mean(axis=0), values).items()}
    for member, single in enumerate(predictions):
        metrics |= {f"member_{member}/{k}": v for k, v in target.metrics(single, values).items() if k == target.primary}
    metrics |= {"members": members, "mean_sd": float(stack.std(axis=0, ddof=1).mean())}
    folder.write_metrics(metrics)
    show(metrics)
    print(f"\nNext:    polyfm predict {out} NEW_FILE --out predictions.csv   (mean and sd of {members} members)")
    return metrics
