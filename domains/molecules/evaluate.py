"""What a pre-trained molecule model is worth: retrieval both ways, a map, generated molecules. Metrics and panels."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np
import torch

from polyfm.domains.molecules.data import MoleculeDataModule
from polyfm.domains.molecules.denoising import denoising
from polyfm.domains.molecules.generate import read_properties, write_smiles
from polyfm.domains.molecules.metrics import generation_metrics, r2_per_column
from polyfm.domains.molecules.objectives import ConformerObjective
from polyfm.domains.molecules.render import card
from polyfm.shared.evaluation.report.page import Panel
from polyfm.shared.evaluation.report.panels import map_panel, retrieval_table
from polyfm.shared.evaluation.retrieval import Retrieval, retrieve
from polyfm.shared.objectives.causal import CausalLM, NextValue

GENERATED = 128
MAPPED = 2000


def evaluate(task: Any, data: MoleculeDataModule) -> tuple[dict[str, float], list[Panel]]:
    """Metrics on the test part, and the report's panels.

    Args:
        task: Pre-trained.
        data: Set up.
    """
    panels: list[Panel] = []
    metrics, found = retrieval_metrics(task, data)
    if found:
        panels.append(retrieval_panel(found, [data.table.smiles[i] for i in data.part("test")]))
    kinds = {type(objective) for objective in task.objectives.values()}
    if "properties" in data.modalities and CausalLM in kinds:
        more, panel = generation(task, data)
        metrics |= more
        panels.append(panel)
    if "properties" in data.modalities and NextValue in kinds:
        metrics |= told_properties(task, data)
    if any(isinstance(objective, ConformerObjective) for objective in task.objectives.values()):
        more, panel = denoising(task, data)
        metrics |= more
        panels.append(panel)
    panels.append(embedding_map(task, data))
    return metrics, panels


def retrieval_metrics(task: Any, data: MoleculeDataModule) -> tuple[dict[str, float], dict[str, Retrieval]]:
    """Recall and reciprocal rank between every two modalities that are projected, on the test part.

    Args:
        task: Pre-trained.
        data: Set up.

    Returns:
        Metrics by name, and the retrievals by direction.
    """
    sides = embed_part(task, data, "test").items()
    vectors = {name: side.projected for name, side in sides if side.projected is not None}
    metrics: dict[str, float] = {}
    found: dict[str, Retrieval] = {}
    for a, b in itertools.permutations(vectors, 2):
        result = found[f"{a} → {b}"] = retrieve(vectors[a], vectors[b])
        metrics |= {f"retrieval/{a}-{b}/r@{k}": result.recall(k) for k in (1, 5, 10)}
        metrics[f"retrieval/{a}-{b}/mrr"] = result.mrr
        metrics["retrieval/chance_r@10"] = result.chance(10)
    return metrics, found


class Embedded(NamedTuple):
    """Vectors of the molecules of a part that have a modality."""

    pooled: np.ndarray
    """(n, D)."""
    projected: np.ndarray | None
    """(n, d) of unit length; None if the encoder has no projection."""
    rows: np.ndarray
    """(n,) places within the part."""


@torch.inference_mode()
def embed_part(task: Any, data: MoleculeDataModule, part: str) -> dict[str, Embedded]:
    """Pooled and projected vectors of a part, by modality.

    Args:
        task: Trained.
        data: Set up.
        part: train, valid or test.
    """
    task.eval()
    pooled: dict[str, list[np.ndarray]] = {}
    projected: dict[str, list[np.ndarray]] = {}
    rows: dict[str, list[np.ndarray]] = {}
    start = 0
    for batch in data.loader(part, shuffle=False):
        batch = batch.to(task.device)
        for name, encoder in task.model.encoders.items():
            features = encoder(batch[name])
            pooled.setdefault(name, []).append(features.pooled.float().cpu().numpy())
            rows.setdefault(name, []).append(features.rows.cpu().numpy() + start)
            if features.projected is not None:
                projected.setdefault(name, []).append(features.projected.float().cpu().numpy())
        start += len(batch)
    return {
        name: Embedded(
            pooled=np.concatenate(parts),
            projected=np.concatenate(projected[name]) if name in projected else None,
            rows=np.concatenate(rows[name]),
        )
        for name, parts in pooled.items()
    }


def retrieval_panel(found: dict[str, Retrieval], smiles: list[str], shown: int = 3) -> Panel:
    """Recall table, and for some queries the five best answers, the right one framed.

    Args:
        found: By direction.
        smiles: Of the pool.
        shown: Queries per direction.
    """
    body = retrieval_table(found)
    rng = np.random.default_rng(0)
    for name, result in found.items():
        body += f"<h3>{name}</h3>"
        for query in rng.choice(len(smiles), min(shown, len(smiles)), replace=False):
            answers = "".join(
                card(smiles[i], f"rank {rank + 1}", "right" if i == query else "wrong")
                for rank, i in enumerate(result.top[query])
            )
            asked = card(smiles[query], f"query; right answer at rank {result.ranks[query]:.0f}")
            body += f'<div class="pair">{asked}<span class="arrow">→</span><div class="cards">{answers}</div></div>'
    note = (
        "Each test molecule is looked up by its other modality among all test molecules. Properties have no picture: "
        "the molecule that has them is drawn. Queries are drawn at random; the right answer has a green frame."
    )
    return Panel(title="Retrieval", body=body, note=note, wide=True)


def generation(task: Any, data: MoleculeDataModule) -> tuple[dict[str, float], Panel]:
    """Molecules written for the properties of test molecules, and for a part of them only.

    Args:
        task: Pre-trained.
        data: Set up.
    """
    rows = data.part("test")[:GENERATED]
    wanted = data.descriptors[rows]
    known = [data.table.smiles[i] for i in data.part("train")]
    partial = wanted.copy()
    partial[:, np.random.default_rng(0).permutation(wanted.shape[1])[::2]] = np.nan  # every second property, drawn once
    metrics: dict[str, float] = {}
    texts: dict[str, list[str]] = {}
    measured: dict[str, str] = {}
    for name, asked in (("generation", wanted), ("generation_partial", partial)):
        texts[name] = [beams[0] if beams else "" for beams in write_smiles(task, data, asked)]
        found = generation_metrics(texts[name], asked, known, data.standardiser.scale, isomeric=data.isomeric)
        metrics |= {f"{name}/{metric}": value for metric, value in found.items()}
        measured[name] = ", ".join(f"{metric} {value:.3g}" for metric, value in found.items())
    written = texts["generation"]
    body = "".join(
        f'<div class="pair">{card(data.table.smiles[i], "has the properties")}<span class="arrow">→</span>'
        f"{card(text, 'written for them')}</div>"
        for i, text in zip(rows[:6], written[:6], strict=True)
    )
    note = (
        f"SMILES written by beam search (k = 2) for all 53 properties of {len(rows)} test molecules: "
        f"{measured['generation']}. For half of the properties only: {measured['generation_partial']}."
    )
    return metrics, Panel(title="Generated molecules", body=f'<div class="cards">{body}</div>', note=note, wide=True)


def told_properties(task: Any, data: MoleculeDataModule) -> dict[str, float]:
    """How well the 53 properties are told from SMILES.

    Args:
        task: Pre-trained.
        data: Set up.
    """
    rows = data.part("test")[:GENERATED]
    told = read_properties(task, data, [data.table.smiles[i] for i in rows])
    r2 = r2_per_column(told, data.descriptors[rows])
    return {"properties/mean_r2": float(np.nanmean(r2)), "properties/median_r2": float(np.nanmedian(r2))}


def embedding_map(task: Any, data: MoleculeDataModule, title: str = "Map of molecules") -> Panel:
    """The first modality's vectors in two dimensions, by scaffold and by split.

    Args:
        task: Trained.
        data: Set up.
        title: Of the panel.
    """
    first = next(iter(task.model.encoders))
    parts = [name for name in ("train", "valid", "test") if len(data.part(name))]
    embedded = {name: embed_part(task, data, name)[first] for name in parts}
    vectors = np.concatenate([each.pooled for each in embedded.values()])
    rows = np.concatenate([data.part(name)[each.rows] for name, each in embedded.items()])
    split = np.concatenate([[name] * len(each.rows) for name, each in embedded.items()])
    if len(rows) > MAPPED:
        keep = np.sort(np.random.default_rng(0).choice(len(rows), MAPPED, replace=False))
        vectors, rows, split = vectors[keep], rows[keep], split[keep]
    scaffold = np.array([data.splits.groups[i] or "no ring" for i in rows])
    return map_panel(vectors, {"by scaffold": scaffold, "by split": split}, title=title)
