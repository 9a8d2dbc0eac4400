"""What a pre-trained model of cells is worth: retrieval between cells and texts, how types part, a map."""

from __future__ import annotations

from typing import Any

import numpy as np

from polyfm.domains.singlecell.data import CellDataModule
from polyfm.shared.evaluation.embedding import embed_part, found_by
from polyfm.shared.evaluation.report.page import Panel
from polyfm.shared.evaluation.report.panels import map_panel, retrieval_table

MAPPED = 2000


def evaluate(task: Any, data: CellDataModule) -> tuple[dict[str, float], list[Panel]]:
    """Metrics on the test part, and the report's panels.

    Args:
        task: Pre-trained.
        data: Set up.
    """
    metrics: dict[str, float] = {}
    panels: list[Panel] = []
    texts = None if data.table.text is None else np.array([data.table.text[i] or "" for i in data.part("test")])
    groups = None if texts is None else np.unique(texts, return_inverse=True)[1]
    found, pool = found_by(task, data, "test", groups)
    if found:
        for name, one in found.items():
            metrics |= {f"retrieval/{key}": value for key, value in one.measured(name).items()}
        metrics["retrieval/texts"] = float(len(np.unique(texts[pool]))) if texts is not None else 0.0
        note = (
            f"Each of {len(pool):,} test cells is looked up by its text, and the other way round; all cells of one "
            "text are right."
        )
        panels.append(Panel(title="Retrieval", body=retrieval_table(found), note=note))
    panels.append(cell_map(task, data))
    return metrics, panels


def cell_map(task: Any, data: CellDataModule, title: str = "Map of cells") -> Panel:
    """The first modality's vectors in two dimensions, by text, group and split.

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
