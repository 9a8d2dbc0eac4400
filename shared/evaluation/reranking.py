"""Retrieval in two steps: the nearest by cosine, then the same ones by what a matching head says of each pair.

    score = α cos(a, b) + (1 - α) P(match | a, b)   of the k nearest by cosine; the others stay behind them

as ALBEF (Li et al., arXiv 2107.07651) and MolFM (Luo et al., arXiv 2307.09484) do: the head sees the tokens of both,
but asking it of every pair would cost n² passes through the fusion.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polyfm.shared.data import ragged
from polyfm.shared.data.batch import Batch
from polyfm.shared.data.progress import Progress as Bar
from polyfm.shared.evaluation.retrieval import Retrieval, retrieve
from polyfm.shared.objectives.matching import Matching
from polyfm.shared.objectives.objective import Progress, paired
from polyfm.shared.tokens.masking import Draw
from polyfm.shared.tokens.tokens import Tokens
from polyfm.shared.training.views import answer

ALPHAS = tuple(i / 10 for i in range(11))
"""Shares of the cosine that are tried; 1 leaves the order as it is."""


@dataclasses.dataclass(frozen=True)
class Candidates:
    """The k nearest of each query, by both measures."""

    first: Retrieval
    """By cosine alone; ``top`` holds the k nearest."""
    cosine: np.ndarray
    """(n, k)."""
    match: np.ndarray
    """(n, k) probability that the pair belongs together."""

    def at(self, alpha: float, shown: int = 5) -> Retrieval:
        """The order at a share of the cosine.

        Args:
            alpha: α, from 0 to 1.
            shown: Best candidates to keep.
        """
        score = alpha * self.cosine + (1 - alpha) * self.match
        right = self.first.top == np.arange(len(score))[:, None]
        own = np.where(right, score, -np.inf).max(1, keepdims=True)
        above = (~right & (score > own)).sum(1) + (~right & (score == own)).sum(1) / 2
        order = np.argsort(-score, axis=1, kind="stable")[:, :shown]
        return Retrieval(
            ranks=np.where(right.any(1), 1 + above, self.first.ranks),
            top=np.take_along_axis(self.first.top, order, axis=1),
            pool=self.first.pool,
        )


def best_alpha(found: Iterable[Candidates]) -> float:
    """The share of the cosine with the highest mean reciprocal rank over all directions; of equals the largest.

    Args:
        found: Of items that are not tested on.
    """
    directions = list(found)
    return max(reversed(ALPHAS), key=lambda alpha: sum(each.at(alpha).mrr for each in directions))


@torch.inference_mode()
def candidates(task: Any, head: Matching, batches: Iterable[Batch], k: int = 16, chunk: int = 64) -> list[Candidates]:
    """The nearest of each item by cosine and by a matching head, in both directions: b for each a, a for each b.

    Items that lack either side take no part. The tokens of all items are kept on the processor.

    Args:
        task: Pre-trained.
        head: One of its objectives.
        batches: The items, each once.
        k: Candidates of each query that the head is asked about.
        chunk: Pairs at a time.
    """
    task.eval()
    a, b, vectors_a, vectors_b = _encode(task, head, batches)
    both = [retrieve(vectors_a, vectors_b, k=k), retrieve(vectors_b, vectors_a, k=k)]
    asked = [np.stack([np.repeat(np.arange(len(one.top)), one.top.shape[1]), one.top.ravel()]) for one in both]
    pairs, place = np.unique(np.concatenate([asked[0], asked[1][::-1]], axis=1), axis=1, return_inverse=True)
    match, cosine = np.empty(pairs.shape[1]), (vectors_a[pairs[0]] * vectors_b[pairs[1]]).sum(1)
    with Bar("matching") as bar:
        for start in range(0, len(match), chunk):
            i, j = torch.from_numpy(pairs[:, start : start + chunk])
            seen = head.seen(task.model, a.select(i).to(task.device).pad(), b.select(j).to(task.device).pad())
            match[start : start + chunk] = head.head(seen).float().softmax(-1)[:, 1].cpu().numpy()
            bar.update(min(start + chunk, len(match)), len(match))
    places = np.split(place.ravel(), [asked[0].shape[1]])
    return [
        Candidates(first=one, cosine=cosine[at].reshape(one.top.shape), match=match[at].reshape(one.top.shape))
        for one, at in zip(both, places, strict=True)
    ]


def _encode(task: Any, head: Matching, batches: Iterable[Batch]) -> tuple[Tokens, Tokens, np.ndarray, np.ndarray]:
    """Tokens and unit vectors of the items that have both sides."""
    tokens: tuple[list[Tokens], list[Tokens]] = ([], [])
    vectors: tuple[list[Tensor], list[Tensor]] = ([], [])
    views = (head.view_a, head.view_b)
    for batch in batches:
        found = answer(views, batch.to(task.device), task.model, None, Draw(0, -1), Progress(epoch=math.inf))
        sides = [found[view] for view in views]
        for kept, own, side, rows in zip(tokens, vectors, sides, paired(*sides), strict=True):
            kept.append(side.tokens.pack().select(rows).to(torch.device("cpu")))
            own.append(side.projected[rows].float().cpu())  # type: ignore[index]
    return _stack(tokens[0]), _stack(tokens[1]), torch.cat(vectors[0]).numpy(), torch.cat(vectors[1]).numpy()


def _stack(parts: Sequence[Tokens]) -> Tokens:
    """Packed sequences of several batches as one."""
    return Tokens(
        x=torch.cat([part.x for part in parts]),
        positions=torch.cat([part.positions for part in parts]),
        cu_seqlens=ragged.boundaries(torch.cat([part.lengths for part in parts])),
        prefix=parts[0].prefix,
    )
