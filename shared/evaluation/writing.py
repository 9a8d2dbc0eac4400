"""Texts written by a model that was trained to tell the next token from another modality."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from polyfm.shared.backbones.generation import beam_search
from polyfm.shared.data.collate import pack_ids
from polyfm.shared.data.datamodule import DataModule
from polyfm.shared.data.progress import Progress as Bar
from polyfm.shared.objectives.causal import CausalLM
from polyfm.shared.objectives.objective import Progress, clean
from polyfm.shared.tokens.masking import Draw
from polyfm.shared.training.views import answer


@torch.inference_mode()
def write_tokens(
    task: Any,
    data: DataModule,
    objective: CausalLM,
    tokenizer: Any,
    samples: Any,
    *,
    what: str,
    beams: int = 2,
    max_length: int = 100,
    length_penalty: float = 1.0,
    chunk: int = 64,
) -> list[list[str]]:
    """What an objective learnt to write, by beam search.

    Args:
        task: Pre-trained with the objective.
        data: With its fitted transforms.
        objective: Of the task; it has a context.
        tokenizer: Of what is written: start, end, decode.
        samples: n, with what the context is made of.
        what: Is written, for the bar.
        beams: k of the beam search.
        max_length: Most tokens.
        length_penalty: See `beam_search`.
        chunk: Items at a time.

    Returns:
        For each sample up to ``beams`` texts, the likeliest first; none where it lacks the context.
    """
    task.eval()
    context_view: Any = objective.view.context
    view = clean(context_view.modality)
    out: list[list[str]] = [[] for _ in range(len(samples))]
    with Bar(f"writing {what}") as bar:
        for first in range(0, len(samples), chunk):
            batch = data.collate(samples[first : first + chunk]).to(task.device)
            context = answer([view], batch, task.model, None, Draw(0, -1), Progress())[view]
            prompt = pack_ids([np.array([tokenizer.start])] * len(context.rows)).to(task.device)
            found = beam_search(
                objective.step(task.model, context.tokens),
                prompt,
                end=tokenizer.end,
                max_length=max_length,
                beams=beams,
                min_length=1,
                length_penalty=length_penalty,
            )
            for row, written in zip(context.rows.tolist(), found.sequences(), strict=True):
                out[first + row] = [tokenizer.decode(ids) for ids in written]
            bar.update(min(first + chunk, len(samples)), len(samples))
    return out
