"""Retrieval between two modalities: recall at k, mean reciprocal rank, with bootstrap intervals and the chance line."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Retrieval:
    """Ranks of the right answers, and what follows from them."""

    ranks: np.ndarray
    """(n,) rank of the right answer per query, 1 is best; ties count against us (the mean rank of the tie)."""
    top: np.ndarray
    """(n, k) indices of the best candidates per query, for pictures."""
    pool: int
    """Candidates."""

    def recall(self, k: int) -> float:
        """Share of queries whose right answer is among the best k.

        Args:
            k: Answers looked at.
        """
        return float(np.mean(self.ranks <= k))

    @property
    def mrr(self) -> float:
        """Mean reciprocal rank."""
        return float(np.mean(1.0 / self.ranks))

    def chance(self, k: int) -> float:
        """Recall at k of random answers.

        Args:
            k: Answers looked at.
        """
        return min(k / self.pool, 1.0)

    def interval(self, k: int, *, resamples: int = 1000, seed: int = 0) -> tuple[float, float]:
        """95 % bootstrap interval of recall at k.

        Args:
            k: Answers looked at.
            resamples: Drawn.
            seed: Of the draws.
        """
        return _interval((self.ranks <= k).astype(float), resamples, seed)

    def mrr_interval(self, *, resamples: int = 1000, seed: int = 0) -> tuple[float, float]:
        """95 % bootstrap interval of the mean reciprocal rank.

        Args:
            resamples: Drawn.
            seed: Of the draws.
        """
        return _interval(1.0 / self.ranks, resamples, seed)

    def measured(self, direction: str) -> dict[str, float]:
        """By the names of metrics; the ends of 95 % intervals stand one level deeper.

        Args:
            direction: ``a → b``, and what was done beside.
        """
        key = direction.replace(" → ", "-").replace(", ", "+")
        metrics = {f"{key}/mrr": self.mrr} | {f"{key}/r@{k}": self.recall(k) for k in (10, 5, 1)}
        ends = {"mrr": self.mrr_interval()} | {f"r@{k}": self.interval(k) for k in (1, 5, 10)}
        return metrics | {
            f"{key}/{metric}/{end}": value
            for metric, both in ends.items()
            for end, value in zip(("low", "high"), both, strict=True)
        }


def _interval(values: np.ndarray, resamples: int, seed: int) -> tuple[float, float]:
    """Of the mean over queries."""
    rng = np.random.default_rng(seed)
    means = values[rng.integers(0, len(values), (resamples, len(values)))].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def retrieve(queries: np.ndarray, candidates: np.ndarray, k: int = 5) -> Retrieval:
    """Rank candidates for each query by dot product; candidate i is right for query i.

    Args:
        queries: (n, d).
        candidates: (n, d), row i belonging to query i.
        k: Best candidates to keep.
    """
    n = len(queries)
    ranks = np.empty(n)
    top = np.empty((n, min(k, n)), dtype=np.int64)
    for start in range(0, n, 1024):  # never an n×n matrix at once
        scores = queries[start : start + 1024] @ candidates.T
        own = np.arange(len(scores))
        best = scores[own, start + own][:, None]
        wrong = np.ones(scores.shape, bool)
        wrong[own, start + own] = False
        above = (wrong & ~(scores <= best)).sum(axis=1)  # what is no number is no right answer: it ranks last
        tied = (wrong & (scores == best)).sum(axis=1)
        ranks[start : start + 1024] = 1 + above + tied / 2
        top[start : start + 1024] = np.argsort(-scores, axis=1, kind="stable")[:, : top.shape[1]]
    return Retrieval(ranks=ranks, top=top, pool=n)
