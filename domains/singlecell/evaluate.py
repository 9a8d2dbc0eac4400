"""What a pre-trained model of cells is worth: found by text, described, drawn from text, mixed over batches, mapped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.decomposition import TruncatedSVD

from polyfm.domains.singlecell.data import CellDataModule
from polyfm.domains.singlecell.metrics import integration_metrics
from polyfm.domains.singlecell.objectives import PseudoCell, ToldProteins
from polyfm.domains.singlecell.sample import SPECIALS
from polyfm.shared.data.collate import pack_ids
from polyfm.shared.data.sampler import some_of
from polyfm.shared.evaluation.embedding import Embedded, embed_part, embed_sample, found_by
from polyfm.shared.evaluation.report.figures import table
from polyfm.shared.evaluation.report.maps import map_panel
from polyfm.shared.evaluation.report.page import Panel
from polyfm.shared.evaluation.report.panels import retrieval_table
from polyfm.shared.evaluation.retrieval import Retrieval
from polyfm.shared.evaluation.text import text_metrics
from polyfm.shared.evaluation.writing import write_tokens
from polyfm.shared.objectives.causal import CausalLM

DESCRIBED, FOUND = 128, 10
COMPONENTS, NEIGHBOURS, FEWEST, AT_ONCE = 50, 15, 3, 256
MOST = 20_000
"""Cells that are looked at where a sample tells as much as all: neighbours, batches, maps, what linear models learn."""
FEWEST_MIXED = 300
"""Cells below which the neighbours that integration is measured on would be most of all cells."""


def evaluate(task: Any, data: CellDataModule) -> tuple[dict[str, float], list[Panel]]:
    """Metrics on the test part, and the report's panels.

    Args:
        task: Pre-trained.
        data: Set up.
    """
    first = next(iter(task.model.encoders))
    everything = {part: embedded[first] for part, embedded in embed_sample(task, data, MOST).items()}
    test = embed_part(task, data, "test")
    found = [retrieval(test, data), integration(everything, data), paired(test)]
    for objective in task.objectives.values():
        if isinstance(objective, CausalLM) and objective.modality == "text":
            found.append(described(task, data, objective))
        if isinstance(objective, ToldProteins):
            found.append(told_proteins(task, data, objective))
        if isinstance(objective, PseudoCell):
            found.append(drawn(task, data, objective))
    metrics = {name: value for more, _ in found for name, value in more.items()}
    return metrics, [*(panel for _, panel in found if panel is not None), cell_map(everything, data)]


def _texts(data: CellDataModule, cells: np.ndarray) -> list[str]:
    """Descriptions of cells, empty where there is none."""
    known = data.table.text
    return [known[i] or "" if known is not None else "" for i in cells]


def retrieval(embedded: dict[str, Embedded], data: CellDataModule) -> tuple[dict[str, float], Panel | None]:
    """Texts of cells and cells of texts. Many cells have one text: each text is one candidate, all its cells are right.

    Args:
        embedded: Of the test part, by modality.
        data: Set up.
    """
    cells, said = embedded.get("genes"), embedded.get("text")
    if cells is None or said is None or cells.projected is None or said.projected is None or not len(said.rows):
        return {}, None
    texts = np.array(_texts(data, data.part("test")))
    unique, first, kind = np.unique(texts[said.rows], return_index=True, return_inverse=True)
    asked, answers = cells.projected[np.isin(cells.rows, said.rows)], said.projected[first]
    ranks, top = _ranks(asked, answers, kind)
    found = Retrieval(ranks=ranks, top=top, pool=len(unique))
    best = np.stack([np.argsort(-asked @ answer, kind="stable")[:FOUND] for answer in answers])
    right = (kind[best] == np.arange(len(unique))[:, None]).mean(1)
    share = np.bincount(kind) / len(kind)
    metrics = {f"retrieval/{key}": value for key, value in found.measured("genes → text").items()}
    metrics |= {f"retrieval/text-genes/precision@{FOUND}": float(right.mean()), "retrieval/texts": float(len(unique))}
    metrics["retrieval/text-genes/chance"] = float(share.mean())
    told = [(ranks[kind == i] == 1).mean() for i in range(len(unique))]
    rows = [
        [text[:90], int((kind == i).sum()), f"{told[i]:.0%}", f"{right[i]:.0%}", f"{share[i]:.0%}"]
        for i, text in enumerate(unique)
    ]
    header = ["text", "test cells", "of these, told it first", f"right among its {FOUND} nearest cells", "by chance"]
    note = (
        f"{len(kind):,} test cells have {len(unique)} different texts. A cell's own text comes first for "
        f"{found.recall(1):.1%} of them (chance {1 / len(unique):.1%})."
    )
    body = retrieval_table({"genes → text": found}) + table(header, rows)
    return metrics, Panel(title="Cells and texts", body=body, note=note, wide=True)


def _ranks(asked: np.ndarray, answers: np.ndarray, kind: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rank of each query's own answer (of ties the mean), and its five best; some queries at a time."""
    ranks, top = [], []
    for start in range(0, len(asked), AT_ONCE):
        scores = asked[start : start + AT_ONCE] @ answers.T
        own = scores[np.arange(len(scores)), kind[start : start + AT_ONCE]][:, None]
        ranks.append(1 + (scores > own).sum(1) + ((scores == own).sum(1) - 1) / 2)
        top.append(np.argsort(-scores, 1, kind="stable")[:, :5])
    return np.concatenate(ranks), np.concatenate(top)


def paired(embedded: dict[str, Embedded]) -> tuple[dict[str, float], Panel | None]:
    """A cell's RNA by its proteins, and the other way round.

    Args:
        embedded: Of the test part, by modality.
    """
    found, pool = found_by({name: embedded[name] for name in ("genes", "proteins") if name in embedded})
    if not found:
        return {}, None
    metrics = {f"retrieval/{key}": value for name, one in found.items() for key, value in one.measured(name).items()}
    metrics["retrieval/chance_r@10"] = found["genes → proteins"].chance(10)
    note = f"Each of {len(pool):,} test cells with proteins is looked up by its other modality among all of them."
    return metrics, Panel(title="RNA and proteins", body=retrieval_table(found), note=note)


@torch.inference_mode()
def told_proteins(task: Any, data: CellDataModule, objective: ToldProteins) -> tuple[dict[str, float], Panel | None]:
    """All proteins of test cells told from their RNA, beside ridge regression on 50 principal components of the genes.

    Args:
        task: Pre-trained.
        data: Set up.
        objective: That tells proteins from genes.
    """
    known: Any = data.table.proteins
    measured = ~np.isnan(known).all(1)
    test, train = (data.part(part)[measured[data.part(part)]] for part in ("test", "train"))
    train = some_of(train, MOST, data.seed)
    if min(len(test), len(train)) < FEWEST:
        return {}, None
    wanted = data.proteins.apply(known[test])
    told = tell_proteins(task, data, objective, test)
    scores = data.proteins.apply(known[train])
    linear = _linear(data.expression(train), scores, data.seed)
    beside = np.concatenate([linear(data.expression(some)) for some in np.split(test, range(MOST, len(test), MOST))])
    methods = {"this model": told, "ridge on PCA": beside}
    columns = range(wanted.shape[1])
    r = {name: [_correlation(said[:, i], wanted[:, i]) for i in columns] for name, said in methods.items()}
    metrics = {"proteins/mean_r": float(np.nanmean(r["this model"])), "proteins/cells": float(len(test))}
    metrics["baseline/ridge_pca/proteins/mean_r"] = float(np.nanmean(r["ridge on PCA"]))
    rows = [[name, *(r[method][i] for method in methods)] for i, name in enumerate(data.proteins.names)]
    body = table(["protein", *methods], [["mean", *(float(np.nanmean(r[method])) for method in methods)], *rows])
    note = f"Correlation (Pearson) over {len(test):,} test cells of what is told from RNA alone with what was measured."
    return metrics, Panel(title="Proteins from RNA", body=body, note=note)


@torch.inference_mode()
def tell_proteins(task: Any, data: CellDataModule, objective: ToldProteins, cells: np.ndarray) -> np.ndarray:
    """(n, P) scores of all proteins from RNA alone.

    Args:
        task: Pre-trained with the objective.
        data: With its fitted transforms.
        objective: Of the task.
        cells: (n,) indices of the table, rising.
    """
    task.eval()
    ids = torch.arange(len(data.proteins.names), device=task.device) + SPECIALS
    parts = []
    for start in range(0, len(cells), AT_ONCE):
        batch = data.collate(data.table.read(cells[start : start + AT_ONCE])).to(task.device)
        pooled = task.model.encoders[objective.cell](batch[objective.cell]).pooled
        owner = torch.arange(len(pooled), device=task.device).repeat_interleave(len(ids))
        parts.append(objective.scores(task.model, pooled, owner, ids.repeat(len(pooled))).float().cpu())
    told: np.ndarray = torch.cat(parts).view(len(cells), -1).numpy()
    return told


def _linear(x: Any, y: np.ndarray, seed: int) -> Callable[[Any], np.ndarray]:
    """Ridge regression on principal components; NaN for columns that too few cells have."""
    from sklearn.linear_model import Ridge

    parts = TruncatedSVD(min(COMPONENTS, x.shape[0] - 1, x.shape[1] - 1), random_state=seed).fit(x)
    known, given = parts.transform(x), ~np.isnan(y)
    models = [
        Ridge().fit(known[there], column[there]) if there.sum() >= FEWEST else None
        for column, there in zip(y.T, given.T, strict=True)
    ]

    def tell(asked: Any) -> np.ndarray:
        reduced = parts.transform(asked)
        told = [np.full(len(reduced), np.nan) if model is None else model.predict(reduced) for model in models]
        return np.stack(told, axis=1)

    return tell


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    both = ~(np.isnan(a) | np.isnan(b))
    if both.sum() < FEWEST or np.ptp(a[both]) == 0 or np.ptp(b[both]) == 0:
        return float("nan")
    return float(np.corrcoef(a[both], b[both])[0, 1])


def integration(everything: dict[str, Embedded], data: CellDataModule) -> tuple[dict[str, float], Panel | None]:
    """How batches mix in the space of the cells, and types part where they are known. No label was trained on.

    Args:
        everything: Of the first modality, by part.
        data: Set up.
    """
    known = data.table.text if "text" in data.modalities else None
    if data.table.groups == data.table.ids:
        return {}, None
    rows = np.concatenate([data.part(part)[each.rows] for part, each in everything.items()])
    vectors = np.concatenate([each.pooled for each in everything.values()])
    kinds = None
    if data.table.classes or known:
        types = np.array([(known[i] or "") if known else str(data.table.targets[i, 0]) for i in rows])
        labelled = ~np.isin(types, ("", "nan"))
        kinds = np.unique(types[labelled], return_inverse=True)[1]
        if 1 < len(np.unique(kinds)) < len(kinds) / 4:
            rows, vectors = rows[labelled], vectors[labelled]
        else:
            kinds = None
    places = np.unique([data.table.groups[i] for i in rows], return_inverse=True)[1]
    if len(rows) < FEWEST_MIXED or len(np.unique(places)) < 2:
        return {}, None
    found = integration_metrics(vectors, kinds, places, seed=data.seed)
    expressed = data.expression(rows)
    size = min(COMPONENTS, len(rows) - 1, expressed.shape[1] - 1)
    plain = TruncatedSVD(size, random_state=data.seed).fit_transform(expressed)
    other = integration_metrics(plain, kinds, places, seed=data.seed)
    lines = [[name.replace("_", " "), value, other[name]] for name, value in found.items()]
    what, about = " with a type", "types stay apart, batches mix (scIB's scales)."
    if kinds is None:
        what, about = "", "batches mix (scIB's scales). For whether types stay apart, name them: --data.label COLUMN."
    note = f"Of {len(rows):,} cells{what}. Each from 0 to 1, more is better: {about}"
    panel = Panel(title="Integration", body=table(["measure", "this model", "PCA"], lines), note=note)
    metrics = {f"integration/{name}": value for name, value in found.items()}
    return metrics | {f"baseline/pca/integration/{name}": value for name, value in other.items()}, panel


def described(task: Any, data: CellDataModule, objective: CausalLM) -> tuple[dict[str, float], Panel | None]:
    """Descriptions written for test cells, beside that of the nearest training cell.

    Args:
        task: Pre-trained.
        data: Set up.
        objective: That writes.
    """
    rows, train = data.part("test")[:DESCRIBED], some_of(data.part("train"), MOST, data.seed)
    wanted = _texts(data, rows)
    asked, length = data.table.read(rows), data.max_text_tokens
    beams = write_tokens(task, data, objective, data.text_tokenizer, asked, what="descriptions", max_length=length)
    written = [texts[0] if texts else "" for texts in beams]
    known = _texts(data, train)
    near = nearest(data.expression(train), data.expression(rows), 1, data.seed)[:, 0]
    methods = {"this model": written, "nearest training cell": [known[i] for i in near]}
    found = {name: text_metrics(said, wanted) for name, said in methods.items()}
    metrics = {f"generation/text/{key}": value for key, value in found["this model"].items()}
    metrics |= {f"baseline/nearest_cell/text/{key}": value for key, value in found["nearest training cell"].items()}
    figures = table(["", *found["this model"]], [[name, *values.values()] for name, values in found.items()])
    examples = table(["written", "wanted"], [[a[:300], b[:300]] for a, b in zip(written[:6], wanted[:6], strict=True)])
    note = f"Written by beam search (k = 2) for {len(written)} test cells; exact: word by word."
    return metrics, Panel(title="Written descriptions", body=figures + examples, note=note, wide=True)


def drawn(task: Any, data: CellDataModule, objective: PseudoCell) -> tuple[dict[str, float], Panel | None]:
    """Pseudo-cells of texts: whether their nearest cells, of the training part, are of the text.

    Args:
        task: Pre-trained.
        data: Set up.
        objective: That tells expression.
    """
    train = some_of(data.part("train"), MOST, data.seed)
    known = np.array(_texts(data, train))
    texts = sorted((set(_texts(data, data.part("test"))) & set(known)) - {""})
    if not texts:
        return {}, None
    expressed = pseudo_cells(task, data, objective, texts)
    near = nearest(data.expression(train), expressed, NEIGHBOURS, data.seed)
    right = [float((known[row] == text).mean()) for row, text in zip(near, texts, strict=True)]
    chance = float(np.mean([(known == text).mean() for text in texts]))
    metrics = {"generation/cells/knn_accuracy": float(np.mean(right)), "generation/cells/chance": chance}
    body = table(
        ["text", f"of its {NEIGHBOURS} nearest training cells, of this text"],
        [[text[:120], f"{share:.0%}"] for text, share in zip(texts, right, strict=True)],
    )
    note = (
        f"Expression of all genes is told from each of {len(texts)} texts: {np.mean(right):.1%} of the nearest "
        f"training cells are of it (chance {chance:.1%})."
    )
    return metrics, Panel(title="Pseudo-cells", body=body, note=note, wide=True)


@torch.inference_mode()
def pseudo_cells(task: Any, data: CellDataModule, objective: PseudoCell, texts: list[str]) -> np.ndarray:
    """(n, G) log1p of counts per 10,000 of cells as described; none is below 0.

    Args:
        task: Pre-trained with the objective.
        data: With its fitted transforms.
        objective: Of the task.
        texts: n descriptions.
    """
    task.eval()
    ids = pack_ids([data.encode_text(text) for text in texts]).to(task.device)
    pooled = task.model.encoders[objective.text](ids).pooled
    genes = torch.arange(len(data.vocabulary or ()), device=task.device) + SPECIALS
    owner = torch.zeros_like(genes)
    told = [objective.expression(task.model, one[None], owner, genes).clamp(min=0).float().cpu() for one in pooled]
    expressed: np.ndarray = torch.stack(told).numpy()
    return expressed


def nearest(known: Any, asked: Any, k: int, seed: int) -> np.ndarray:
    """(n, k) places of the known cells nearest to those asked about (cosine), on principal components of the known.

    Args:
        known: (m, G) expression.
        asked: (n, G).
        k: How many.
        seed: Of the decomposition.
    """
    from sklearn.neighbors import NearestNeighbors

    size = min(COMPONENTS, known.shape[0] - 1, known.shape[1] - 1)
    parts = TruncatedSVD(size, random_state=seed).fit(known)
    found = NearestNeighbors(n_neighbors=min(k, known.shape[0]), metric="cosine").fit(parts.transform(known))
    near: np.ndarray = found.kneighbors(parts.transform(asked), return_distance=False)
    return near


def cell_map(embedded: dict[str, Embedded], data: CellDataModule, title: str = "Map of cells") -> Panel:
    """Vectors in two dimensions, by label or text, group and split.

    Args:
        embedded: Of one modality, by part.
        data: Set up.
        title: Of the panel.
    """
    vectors = np.concatenate([each.pooled for each in embedded.values()])
    rows = np.concatenate([data.part(name)[each.rows] for name, each in embedded.items()])
    split = np.concatenate([[name] * len(each.rows) for name, each in embedded.items()])
    colours = {"by split": split}
    if data.table.classes:
        names = np.array([*data.table.classes, "unknown"])
        values = np.nan_to_num(data.table.targets[rows, 0], nan=len(names) - 1).astype(int)
        colours = {"by label": names[values], **colours}
    elif data.table.text is not None:
        colours = {"by text": np.array([(data.table.text[i] or "")[:40] for i in rows]), **colours}
    if data.table.groups != data.table.ids:
        colours["by group"] = np.array([data.table.groups[i] for i in rows])
    return map_panel(vectors, colours, title=title)
