"""What a pre-trained molecule model is worth: retrieval both ways, a map, generated molecules. Metrics and panels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from polyfm.domains.molecules.baselines import nearest_structures, nearest_texts, text_vectors
from polyfm.domains.molecules.data import MoleculeDataModule
from polyfm.domains.molecules.denoising import denoising
from polyfm.domains.molecules.generate import read_properties, write, write_smiles
from polyfm.domains.molecules.metrics import generation_metrics, r2_per_column, translation_metrics
from polyfm.domains.molecules.objectives import ConformerObjective
from polyfm.domains.molecules.render import card, text_card
from polyfm.domains.molecules.sample import MoleculeSample
from polyfm.shared.data.sampler import Key
from polyfm.shared.evaluation.embedding import embed_part, embed_sample, found_by
from polyfm.shared.evaluation.report.maps import MAPPED, map_panel
from polyfm.shared.evaluation.report.page import Panel
from polyfm.shared.evaluation.report.panels import retrieval_table
from polyfm.shared.evaluation.reranking import best_alpha, candidates
from polyfm.shared.evaluation.retrieval import Retrieval, retrieve
from polyfm.shared.evaluation.text import text_metrics
from polyfm.shared.objectives.causal import CausalLM, NextValue
from polyfm.shared.objectives.hinge import MaxOfHinges
from polyfm.shared.objectives.matching import Matching
from polyfm.shared.objectives.objective import leading

GENERATED = 128
OF_DESCRIPTIONS = {"text", "words"}
"""Modalities made of a description."""


def evaluate(task: Any, data: MoleculeDataModule) -> tuple[dict[str, float], list[Panel]]:
    """Metrics on the test part, and the report's panels.

    Args:
        task: Pre-trained.
        data: Set up.
    """
    panels: list[Panel] = []
    metrics, found, pool = retrieval_metrics(task, data)
    if found:
        rows = data.part("test")[pool]
        texts = None if data.table.text is None else [data.table.text[i] for i in rows]
        panels.append(retrieval_panel(found, [data.table.smiles[i] for i in rows], texts))
    for objective in task.objectives.values():
        if isinstance(objective, CausalLM) and objective.view.context is not None:
            kind = objective.modality, leading(objective.view.context.modality)
            if kind in WRITTEN:
                more, panel = WRITTEN[kind](task, data)
                metrics |= more
                panels.append(panel)
        if isinstance(objective, NextValue):
            metrics |= told_properties(task, data)
    if any(isinstance(objective, ConformerObjective) for objective in task.objectives.values()):
        more, panel = denoising(task, data)
        metrics |= more
        panels.append(panel)
    panels.append(embedding_map(task, data))
    return metrics, panels


def retrieval_metrics(task: Any, data: MoleculeDataModule) -> tuple[dict[str, float], dict[str, Retrieval], np.ndarray]:
    """Recall and reciprocal rank between every two modalities that are projected.

    A model that was trained with margins is one for retrieval: its answers are also re-ranked by its matching head.
    Beside texts stands the linear baseline, trained on the same pairs.

    Args:
        task: Pre-trained.
        data: Set up.

    Returns:
        Metrics by name, the retrievals by direction, and the pool: rows of the test part that have all the modalities.
    """
    found, pool = found_by(embed_part(task, data, "test"))
    if not found:
        return {}, {}, pool
    kinds = {type(objective): objective for objective in task.objectives.values()}
    if MaxOfHinges in kinds and Matching in kinds:
        found |= reranked(task, data, kinds[Matching])
    metrics = {f"retrieval/{key}": value for name, one in found.items() for key, value in one.measured(name).items()}
    metrics["retrieval/chance_r@10"] = next(iter(found.values())).chance(10)
    if not OF_DESCRIPTIONS.isdisjoint(task.model.encoders):
        linear = text_baseline(data, data.part("test")[pool])
        for name, one in linear.items():
            metrics |= {f"baseline/tfidf_ridge/{key}": value for key, value in one.measured(name).items()}
        found |= {f"{name}, words to ECFP4 by ridge": one for name, one in linear.items()}
    return metrics, found, pool


def reranked(task: Any, data: MoleculeDataModule, head: Matching) -> dict[str, Retrieval]:
    """Answers re-ranked by the matching head, at the share of the cosine that is best on the validation part.

    Args:
        task: Pre-trained.
        data: Set up. Without a validation part nothing is re-ranked: the share would be chosen on the test part.
        head: Of the task.
    """
    if not len(data.part("valid")):
        return {}
    valid, test = (candidates(task, head, data.loader(part, shuffle=False)) for part in ("valid", "test"))
    alpha = best_alpha(valid)
    a, b = leading(head.a), leading(head.b)
    names = (f"{a} → {b}, re-ranked", f"{b} → {a}, re-ranked")
    return {name: one.at(alpha) for name, one in zip(names, test, strict=True)}


def text_baseline(data: MoleculeDataModule, pool: np.ndarray) -> dict[str, Retrieval]:
    """Texts and molecules found by a linear map from words to substructures; see `text_vectors`.

    Args:
        data: Set up.
        pool: Indices of molecules, all with a text, of the test part.
    """
    texts, train = [text or "" for text in data.table.text or []], _train_with_text(data)
    if len(train) < 2:
        return {}
    said, drawn = text_vectors(data.table.smiles, texts, train, pool, data.seed)
    return {"molecule → text": retrieve(drawn, said), "text → molecule": retrieve(said, drawn)}


def retrieval_panel(
    found: dict[str, Retrieval], smiles: list[str], texts: list[str | None] | None = None, shown: int = 3
) -> Panel:
    """Recall table, and for some queries the five best answers, the right one framed.

    Args:
        found: By direction.
        smiles: Of the pool.
        texts: Of the pool; shown in the place of the picture where texts are asked or answer.
        shown: Queries per direction.
    """
    body = retrieval_table(found)
    rng = np.random.default_rng(0)

    def side(name: str, item: int, caption: str, kind: str = "") -> str:
        said = texts[item] if texts is not None and name in OF_DESCRIPTIONS else None
        return card(smiles[item], caption, kind) if said is None else text_card(said, caption, kind)

    for name, result in found.items():
        asking, answering = name.partition(",")[0].split(" → ")
        body += f"<h3>{name}</h3>"
        for query in rng.choice(len(smiles), min(shown, len(smiles)), replace=False):
            answers = "".join(
                side(answering, i, f"rank {rank + 1}", "right" if i == query else "wrong")
                for rank, i in enumerate(result.top[query])
            )
            asked = side(asking, query, f"query; right answer at rank {result.ranks[query]:.0f}")
            body += f'<div class="pair">{asked}<span class="arrow">→</span><div class="cards">{answers}</div></div>'
    has_properties = any("properties" in name for name in found)
    undrawn = "Properties have no picture: the molecule that has them is drawn. " if has_properties else ""
    note = (
        "Each test molecule is looked up by its other modality among all test molecules that have both. "
        f"{undrawn}Queries are drawn at random; the right answer has a green frame. "
        f"Highest mean reciprocal rank: {max(found, key=lambda name: found[name].mrr)}."
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
        texts[name] = _likeliest(write_smiles(task, data, asked))
        found = generation_metrics(texts[name], asked, known, data.standardiser.scale, isomeric=data.isomeric)
        metrics |= {f"{name}/{metric}": value for metric, value in found.items()}
        measured[name] = _listed(found)
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


def described(task: Any, data: MoleculeDataModule) -> tuple[dict[str, float], Panel]:
    """Descriptions written for test molecules.

    Args:
        task: Pre-trained.
        data: Set up.
    """
    samples, wanted, chosen = _with_text(data)
    written = _likeliest(write(task, data, "text", samples, max_length=data.max_text_tokens))
    texts, train = data.table.text or [], _train_with_text(data)
    copied = [texts[i] or "" for i in nearest_structures(data.table.smiles, train, chosen)]
    metrics, other = text_metrics(written, wanted), text_metrics(copied, wanted)
    body = "".join(
        f'<div class="pair">{card(data.table.smiles[i], "described")}<span class="arrow">→</span>'
        f"{text_card(said, 'written', letters=600)}{text_card(right, 'wanted', 'right', letters=600)}</div>"
        for i, said, right in zip(chosen[:6], written[:6], wanted[:6], strict=True)
    )
    note = (
        f"Written by beam search (k = 2) for {len(written)} test molecules: {_listed(metrics)}. The description of the "
        f"training molecule nearest in structure, copied: {_listed(other)}."
    )
    found = _beside("text", metrics, "nearest_structure", other)
    return found, Panel(title="Written descriptions", body=body, note=note, wide=True)


def translated(task: Any, data: MoleculeDataModule) -> tuple[dict[str, float], Panel]:
    """Molecules written for descriptions of test molecules.

    Args:
        task: Pre-trained.
        data: Set up.
    """
    samples, texts, chosen = _with_text(data)
    wanted = [data.table.smiles[i] for i in chosen]
    written = _likeliest(write(task, data, "smiles", samples, max_length=data.max_tokens))
    nearest = nearest_texts([text or "" for text in data.table.text or []], _train_with_text(data), chosen)
    copied = [data.table.smiles[i] for i in nearest]
    metrics, other = translation_metrics(written, wanted), translation_metrics(copied, wanted)
    body = "".join(
        f'<div class="pair">{text_card(said, "asked", letters=400)}<span class="arrow">→</span>'
        f"{card(text, 'written')}{card(right, 'wanted', 'right')}</div>"
        for said, text, right in zip(texts[:6], written[:6], wanted[:6], strict=True)
    )
    note = (
        f"Written by beam search (k = 2) for {len(written)} test descriptions: {_listed(metrics)}. The training "
        f"molecule whose description is nearest in words, copied: {_listed(other)}."
    )
    found = _beside("smiles", metrics, "nearest_text", other)
    return found, Panel(title="Molecules written for descriptions", body=body, note=note, wide=True)


def _beside(what: str, metrics: dict[str, float], baseline: str, other: dict[str, float]) -> dict[str, float]:
    ours = {f"generation/{what}/{name}": value for name, value in metrics.items()}
    return ours | {f"baseline/{baseline}/{what}/{name}": value for name, value in other.items()}


def _train_with_text(data: MoleculeDataModule) -> np.ndarray:
    """Indices of training molecules that have a description."""
    texts = data.table.text or []
    return np.array([i for i in data.part("train") if texts[i]], dtype=np.int64)


def _with_text(data: MoleculeDataModule) -> tuple[list[MoleculeSample], list[str], np.ndarray]:
    """Test molecules that have a description: samples, descriptions, and which of all molecules they are."""
    texts = data.table.text or [None] * len(data.table)
    chosen = np.array([i for i in data.part("test") if texts[i]][:GENERATED], dtype=np.int64)
    samples: list[MoleculeSample] = data.make_samples([Key(int(i), 0) for i in chosen])
    return samples, [texts[i] or "" for i in chosen], chosen


def _likeliest(beams: list[list[str]]) -> list[str]:
    return [written[0] if written else "" for written in beams]


def _listed(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in metrics.items())


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
    embedded = {name: each[first] for name, each in embed_sample(task, data, MAPPED).items()}
    vectors = np.concatenate([each.pooled for each in embedded.values()])
    rows = np.concatenate([data.part(name)[each.rows] for name, each in embedded.items()])
    split = np.concatenate([[name] * len(each.rows) for name, each in embedded.items()])
    scaffold = np.array([data.splits.groups[i] or "no ring" for i in rows])
    return map_panel(vectors, {"by scaffold": scaffold, "by split": split}, title=title)


WRITTEN: dict[tuple[str, str], Callable[[Any, MoleculeDataModule], tuple[dict[str, float], Panel]]] = {
    ("smiles", "properties"): generation,
    ("text", "graph"): described,
    ("smiles", "text"): translated,
}
"""By what a `CausalLM` writes and what from: metrics and a panel."""
