"""SPMM's two directions: from (part of) a property vector to SMILES, and from SMILES to all properties.

Chang and Ye, Nat. Commun. 2024: k-beam search over SMILES with the properties as context, the learnt "unknown" vector
for every property that is not given; properties one after the other with the SMILES as context.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polyfm.domains.molecules.data import MoleculeDataModule
from polyfm.domains.molecules.descriptors import DESCRIPTORS
from polyfm.domains.molecules.transforms import CLS, SEP
from polyfm.shared.backbones.cache import KeyValueCache
from polyfm.shared.backbones.generation import beam_search
from polyfm.shared.backbones.masks import CAUSAL
from polyfm.shared.backbones.pooling import LastToken
from polyfm.shared.data.batch import TokenIds, Values
from polyfm.shared.data.collate import pack_ids, stack_values
from polyfm.shared.data.progress import Progress
from polyfm.shared.errors import UsageError
from polyfm.shared.objectives.causal import CausalLM, NextValue
from polyfm.shared.objectives.heads import table


def objective_of(task: Any, kind: type, what: str) -> Any:
    """The task's objective of a kind.

    Args:
        task: Pre-trained.
        kind: Class of the objective.
        what: It is needed for, for the message.
    """
    for objective in getattr(task, "objectives", {}).values():
        if isinstance(objective, kind):
            return objective
    raise UsageError(
        f"this run cannot {what}: it was trained without {kind.__name__}", remedy="Use a run of molecules/spmm"
    )


@torch.inference_mode()
def write_smiles(
    task: Any,
    data: MoleculeDataModule,
    properties: np.ndarray,
    *,
    beams: int = 2,
    max_length: int = 100,
    length_penalty: float = 1.0,
    chunk: int = 64,
) -> list[list[str]]:
    """SMILES for given properties.

    Args:
        task: Pre-trained with `CausalLM` on SMILES, conditioned on properties.
        data: With its fitted transforms.
        properties: (n, 53) in the descriptors' own units, NaN where nothing is asked for.
        beams: k of the beam search.
        max_length: Most tokens.
        length_penalty: See `beam_search`; at 0 a model that is not sure writes single atoms, its likeliest strings.
        chunk: Molecules written at a time.

    Returns:
        For each row up to ``beams`` SMILES, valid or not, the likeliest first.
    """
    objective = objective_of(task, CausalLM, "write SMILES")
    task.eval()
    model, device = task.model, task.device
    out: list[list[str]] = []
    with Progress("writing SMILES") as bar:
        for start in range(0, len(properties), chunk):
            rows = list(data.standardiser.apply(properties[start : start + chunk]))
            context = model("properties", stack_values(rows, len(DESCRIPTORS)).to(device)).tokens

            def step(batch: TokenIds, cache: KeyValueCache | None, context: Any = context) -> Tensor:
                tokens = model.encoders["smiles"](batch, CAUSAL, cache=cache).tokens
                fused = model.fuse(tokens, context.select(batch.rows), CAUSAL, cache)
                return objective.head(LastToken()(fused), table(model, "smiles"))  # type: ignore[no-any-return]

            prompt = pack_ids([np.array([CLS])] * len(rows)).to(device)
            found = beam_search(
                step, prompt, end=SEP, max_length=max_length, beams=beams, min_length=1, length_penalty=length_penalty
            )
            out += [[data.tokenizer.decode(ids) for ids in written] for written in found.sequences()]
            bar.update(len(out), len(properties))
    return out


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
