"""Answering view requests: each distinct view is run once, in an order that every process agrees on."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from polyfm.shared.backbones.encoder import MultimodalModel
from polyfm.shared.backbones.fusion import concat
from polyfm.shared.data.batch import Batch, ModalityBatch
from polyfm.shared.objectives.objective import Progress, View, Views, leading, paired
from polyfm.shared.tokens.masking import Corruption, Draw
from polyfm.shared.tokens.tokens import Features


def closure(needs: Iterable[View]) -> list[View]:
    """All views to run, those that others rest on first.

    Args:
        needs: What the objectives ask for.
    """
    found: dict[View, None] = {}

    def add(view: View) -> None:
        if view.context is not None:
            add(view.unfused)
            add(view.context)
        elif len(view.parts) > 1:
            for part in view.parts:
                add(part)
        found[view] = None

    for view in sorted(set(needs), key=repr):
        add(view)
    return list(found)


def answer(
    needs: Iterable[View],
    batch: Batch,
    model: MultimodalModel,
    teacher: MultimodalModel | None,
    draw: Draw,
    progress: Progress,
    around: Callable[[View], AbstractContextManager[Any]] = nullcontext,
) -> Views:
    """Run every view that objectives ask for.

    Args:
        needs: The union of the objectives' requests.
        batch: The items.
        model: Trained weights.
        teacher: Their moving average; needed if a view asks for it.
        draw: Random numbers of this pass, for corruptions.
        progress: How far the run is, passed on.
        around: Entered around each view's run.
    """
    corrupted: dict[tuple[str, Corruption], tuple[ModalityBatch, Tensor]] = {}
    features: dict[View, Features] = {}

    def inputs(view: View) -> tuple[ModalityBatch, Tensor | None]:
        rows = batch[view.modality]
        if view.corruption is None:
            return rows, None
        key = (view.modality, view.corruption)
        if key not in corrupted:
            # Keyed by modality and corruption only: a causal and a full view of one corruption hide the same items.
            salt = zlib.crc32(f"{view.modality}/{view.corruption}".encode())
            corrupted[key] = view.corruption(rows, batch.keys[rows.rows] ^ salt, draw)
        return corrupted[key]

    for view in closure(needs):
        if view.weights == "teacher" and teacher is None:
            raise ValueError(f"no teacher for {view}")
        source: nn.Module = model if view.weights == "online" or teacher is None else teacher
        with around(view), torch.set_grad_enabled(torch.is_grad_enabled() and view.weights == "online"):
            if view.context is not None:
                features[view] = _fused(view, features, source)
            elif len(view.parts) > 1:
                features[view] = _joined([features[part] for part in view.parts], len(batch))
            else:
                rows, selected = inputs(view)
                seen = source(view.modality, rows, view.mask, view.depth)
                features[view] = seen if selected is None else seen.replace(selected=selected)
    return Views(features, model, progress, draw)


def _joined(parts: Sequence[Features], size: int) -> Features:
    """Tokens of several modalities as one sequence for each item that has the first; the rest is the first's."""
    first = parts[0]
    whole = concat([part.tokens for part in parts], [part.rows for part in parts], size).select(first.rows)
    tokens = whole.replace(modality=None)  # of blocks with experts these are context only
    return first.replace(tokens=tokens if first.tokens.packed else tokens.pad())


def _fused(view: View, features: dict[View, Features], model: nn.Module) -> Features:
    """A view's tokens through the fusion, for the rows that both it and its context have."""
    query, context = features[view.unfused], features[view.context]  # type: ignore[index]
    rows_q, rows_c = paired(query, context)
    complete = len(rows_q) == len(query.rows) == len(context.rows)
    tokens = query.tokens if complete else query.tokens.select(rows_q)
    attended = context.tokens if complete else context.tokens.select(rows_c)
    fused = model.fuse(tokens, attended, view.mask)  # type: ignore[operator]
    selected = query.selected
    if selected is not None and not complete:
        counts = query.tokens.lengths.long() - query.tokens.prefix
        owner = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
        keep = torch.zeros(len(counts), dtype=torch.bool, device=counts.device)
        keep[rows_q] = True
        selected = selected[keep[owner]]
    encoder: Any = model.encoders[leading(view.modality)]  # type: ignore[index]
    return Features(
        tokens=fused,
        pooled=encoder.pooling(fused),
        projected=None,
        rows=query.rows[rows_q],
        selected=selected,
    )
