"""Vectors of a part of the data, by modality, and how well one modality finds the other."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any, NamedTuple

import numpy as np
import torch

from polyfm.shared.data.datamodule import DataModule
from polyfm.shared.data.sampler import some_of
from polyfm.shared.evaluation.retrieval import Retrieval, retrieve


class Embedded(NamedTuple):
    """Vectors of the items of a part that have a modality."""

    pooled: np.ndarray
    """(n, D)."""
    projected: np.ndarray | None
    """(n, d) of unit length; None if the encoder has no projection."""
    rows: np.ndarray
    """(n,) places within the part."""


@torch.inference_mode()
def embed_part(task: Any, data: DataModule, part: str, most: int = 0) -> dict[str, Embedded]:
    """Pooled and projected vectors of a part, by modality.

    Args:
        task: Trained.
        data: Set up.
        part: train, valid or test.
        most: Of more items so many are drawn; 0 takes all.
    """
    task.eval()
    whole = data.part(part)
    places = some_of(np.arange(len(whole)), most or len(whole), data.seed)
    pooled: dict[str, list[np.ndarray]] = {}
    projected: dict[str, list[np.ndarray]] = {}
    rows: dict[str, list[np.ndarray]] = {}
    start = 0
    for batch in data.loader(whole[places], shuffle=False):
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
            rows=places[np.concatenate(rows[name])],
        )
        for name, parts in pooled.items()
    }


def embed_sample(task: Any, data: DataModule, most: int) -> dict[str, dict[str, Embedded]]:
    """As `embed_part`, of all parts that there are; of more items so many, by the same share of each part.

    Args:
        task: Trained.
        data: Set up.
        most: How many, about.
    """
    sizes = {part: len(data.part(part)) for part in ("train", "valid", "test") if len(data.part(part))}
    share = min(most / sum(sizes.values()), 1.0)
    return {part: embed_part(task, data, part, math.ceil(size * share)) for part, size in sizes.items()}


def found_by(embedded: dict[str, Embedded]) -> tuple[dict[str, Retrieval], np.ndarray]:
    """Retrieval between every two modalities that are projected.

    Args:
        embedded: Of a part, by modality.

    Returns:
        By direction, ``a → b``, and the pool: places within the part of the items that have all the modalities. Nothing
        where there are none, or fewer than two modalities.
    """
    sides = {name: found for name, found in embedded.items() if found.projected is not None}
    if len(sides) < 2:
        return {}, np.zeros(0, dtype=np.int64)
    pool: np.ndarray = functools.reduce(np.intersect1d, [side.rows for side in sides.values()])
    if not len(pool):
        return {}, pool
    vectors = {name: side.projected[np.isin(side.rows, pool)] for name, side in sides.items()}  # type: ignore[index]
    return {f"{a} → {b}": retrieve(vectors[a], vectors[b]) for a, b in itertools.permutations(vectors, 2)}, pool
