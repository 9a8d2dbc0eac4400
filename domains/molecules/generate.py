"""Writing: SMILES for properties or a description, descriptions of molecules; and telling properties from SMILES.

SPMM (Chang and Ye, Nat. Commun. 2024): k-beam search over SMILES with the properties as context, the learnt "unknown"
vector for every property that is not given; properties one after the other with the SMILES as context. MolFM (Luo et
al., arXiv 2307.09484): descriptions with atoms and neighbours as context, SMILES with the description as context.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from polyfm.domains.molecules.data import MoleculeDataModule
from polyfm.domains.molecules.descriptors import DESCRIPTORS
from polyfm.domains.molecules.sample import MoleculeSample
from polyfm.shared.backbones.masks import CAUSAL
from polyfm.shared.data.batch import Values
from polyfm.shared.data.collate import pack_ids
from polyfm.shared.errors import UsageError
from polyfm.shared.evaluation.writing import write_tokens
from polyfm.shared.objectives.causal import CausalLM, NextValue

WRITERS = {"smiles": ("write SMILES", "molecules/spmm"), "text": ("describe molecules", "molecules/molfm_generation")}
"""By what is written: the words for it, and a recipe that learns it."""


def objective_of(task: Any, kind: type, what: str, recipe: str = "molecules/spmm", modality: str = "") -> Any:
    """The task's objective of a kind.

    Args:
        task: Pre-trained.
        kind: Class of the objective.
        what: It is needed for, for the message.
        recipe: One whose runs have it, for the message.
        modality: That it tells, if there may be several.
    """
    for objective in getattr(task, "objectives", {}).values():
        if isinstance(objective, kind) and (not modality or getattr(objective, "modality", "") == modality):
            return objective
    raise UsageError(f"this run cannot {what}: it was trained without {kind.__name__}", remedy=f"Use a run of {recipe}")


def write(
    task: Any, data: MoleculeDataModule, modality: str, samples: Sequence[MoleculeSample], **search: Any
) -> list[list[str]]:
    """SMILES or descriptions of molecules, from what they were trained to be written from.

    Args:
        task: Pre-trained with `CausalLM` on the modality.
        data: With its fitted transforms.
        modality: ``smiles`` or ``text``.
        samples: n, with what the context is made of.
        search: Options of `write_tokens`. At a ``length_penalty`` of 0 a model that is not sure writes single atoms,
            its likeliest strings.

    Returns:
        For each sample up to ``beams`` texts, valid or not, the likeliest first; none where it lacks the context.
    """
    objective = objective_of(task, CausalLM, *WRITERS[modality], modality=modality)
    tokenizer = data.text_tokenizer if modality == "text" else data.tokenizer
    what = "SMILES" if modality == "smiles" else "descriptions"
    return write_tokens(task, data, objective, tokenizer, samples, what=what, **search)


def write_smiles(task: Any, data: MoleculeDataModule, properties: np.ndarray, **search: Any) -> list[list[str]]:
    """SMILES for given properties; see `write`.

    Args:
        task: Pre-trained with `CausalLM` on SMILES, conditioned on properties.
        data: With its fitted transforms.
        properties: (n, 53) in the descriptors' own units, NaN where nothing is asked for.
        search: Options of `write`.
    """
    wishes = [
        MoleculeSample(id=str(row), group="", row=row, properties=wanted, targets={})
        for row, wanted in enumerate(properties, start=1)
    ]
    return write(task, data, "smiles", wishes, **search)


@torch.inference_mode()
def read_properties(task: Any, data: MoleculeDataModule, smiles: Sequence[str], *, chunk: int = 256) -> np.ndarray:
    """All 53 properties from SMILES, told one after the other.

    Args:
        task: Pre-trained with `NextValue` on properties, conditioned on SMILES.
        data: With its fitted transforms.
        smiles: n, canonical.
        chunk: Molecules at a time.

    Returns:
        (n, 53) in the descriptors' own units.
    """
    objective = objective_of(task, NextValue, "tell properties")
    task.eval()
    model, device = task.model, task.device
    parts = []
    for start in range(0, len(smiles), chunk):
        tokens = pack_ids([data.encode(text) for text in smiles[start : start + chunk]]).to(device)
        context = model("smiles", tokens).tokens
        n = len(tokens.rows)
        # All values start unknown; each one told is known to those after it. Causal masks hide what is not told yet.
        values = torch.zeros(n, len(DESCRIPTORS), device=device)
        known = torch.zeros_like(values, dtype=torch.bool)
        for column in range(len(DESCRIPTORS)):
            told = model("properties", Values(rows=tokens.rows, values=values, known=known), CAUSAL).tokens
            fused = model.fuse(told, context, CAUSAL).pad()
            values[:, column] = objective.head(fused.x[:, column])[:, 0]
            known[:, column] = True
        parts.append(values.cpu().numpy())
    flat = np.concatenate(parts) if parts else np.zeros((0, len(DESCRIPTORS)))
    return data.standardiser.invert(flat)
