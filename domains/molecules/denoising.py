"""What a model that puts moved atoms back is worth, beside leaving everything as it came (Uni-Mol)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from polyfm.domains.molecules.conformers import TYPES, pack_conformers
from polyfm.domains.molecules.data import MoleculeDataModule
from polyfm.domains.molecules.objectives import AtomCoordinates, AtomDistances, MaskedAtoms
from polyfm.shared.evaluation.report.figures import table
from polyfm.shared.evaluation.report.page import Panel
from polyfm.shared.evaluation.report.panels import by_baseline


@torch.inference_mode()
def denoising(task: Any, data: MoleculeDataModule) -> tuple[dict[str, float], Panel]:
    """Errors over all chosen atoms of the test part, and those of the simplest answers.

    Args:
        task: Pre-trained.
        data: Set up.

    Returns:
        ``test/denoising/rmsd`` and ``…/distance_mae`` (Å) and ``…/atom_accuracy``, as far as the recipe trains them;
        ``baseline/as_given/…``: the moved atoms where they are; ``baseline/commonest/…``: the commonest element of the
        training part. And a panel.
    """
    task.eval()
    squares: list[np.ndarray] = []  # (n, 2) Å², as told and as given
    errors: list[np.ndarray] = []  # (n, 2) Å
    types: list[np.ndarray] = []  # (n, 2) told, true
    for batch in data.loader("test", shuffle=False):
        batch = batch.to(task.device)
        views = task.held_out(batch, data.seed)
        for objective in task.objectives.values():
            if isinstance(objective, AtomCoordinates):
                features, true = views[objective.view], batch[objective.modality].coordinates
                given = features.tokens.replace(x=features.tokens.positions).items()
                off = [(where - true)[features.selected] for where in (objective.places(features.tokens), given)]
                squares.append(torch.stack([each.square().sum(-1) for each in off], dim=-1).cpu().numpy())
            if isinstance(objective, AtomDistances):
                told, right, seen = objective.pairs(views[objective.view], batch[objective.modality])
                errors.append((torch.stack([told, seen], dim=-1) - right[:, None]).abs().cpu().numpy())
            if isinstance(objective, MaskedAtoms):
                target = batch[objective.modality].ids[views[objective.view].selected]
                types.append(torch.stack([objective.logits(views).argmax(-1), target], dim=-1).cpu().numpy())
    found: dict[str, float] = {}
    if squares:
        rmsd = np.sqrt(np.concatenate(squares).mean(0)).tolist()
        found["test/denoising/rmsd"], found["baseline/as_given/rmsd"] = rmsd
    if errors:
        mae = np.concatenate(errors).mean(0).tolist()
        found["test/denoising/distance_mae"], found["baseline/as_given/distance_mae"] = mae
    if types:
        told_types, true_types = np.concatenate(types).T
        commonest = _commonest(data)
        found["test/denoising/atom_accuracy"] = float((told_types == true_types).mean())
        found["baseline/commonest/atom_accuracy"] = float((true_types == commonest).mean())
    return found, _panel(found)


def _commonest(data: MoleculeDataModule) -> int:
    """Type of most atoms of the training part."""
    atoms = pack_conformers([data.conformers[i] for i in data.part("train")])
    return int(atoms.ids.bincount(minlength=TYPES).argmax())


def _panel(found: dict[str, float]) -> Panel:
    names = {"rmsd": "place, RMSD (Å)", "distance_mae": "distances, mean error (Å)", "atom_accuracy": "element told"}
    rows = [
        [
            words,
            found[f"test/denoising/{name}"],
            *(other[name] for other in by_baseline(found).values() if name in other),
        ]
        for name, words in names.items()
        if f"test/denoising/{name}" in found
    ]
    body = table(["", "this model", "nothing done"], rows)
    note = (
        "Atoms of test molecules are hidden and moved, the same ones each time. Beside the model: atoms and distances "
        "left as they were given, and the commonest element of the training part."
    )
    return Panel(title="Atoms put back", body=body, note=note)
