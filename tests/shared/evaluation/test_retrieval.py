"""Retrieval: ranks, ties, chance and intervals by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchmetrics.functional.retrieval as tm
from hypothesis import given
from hypothesis import strategies as st

from polyfm.shared.evaluation.retrieval import Retrieval, retrieve


def found(ranks: list[float], pool: int = 10) -> Retrieval:
    return Retrieval(ranks=np.array(ranks), top=np.zeros((len(ranks), 0), dtype=int), pool=pool)


def test_ranks_by_hand() -> None:
    candidates = np.eye(3)
    queries = np.array([[0.9, 0.1, 0.0], [0.6, 0.5, 0.4], [0.3, 0.2, 0.1]])
    result = retrieve(queries, candidates, k=2)
    assert result.ranks.tolist() == [1, 2, 3]
    assert result.top.tolist() == [[0, 1], [0, 1], [0, 1]]
    assert result.pool == 3


def test_ties_have_the_mean_rank_of_the_tie() -> None:
    """All scores equal: the right answer is first, second or third with equal chance, second on average."""
    assert retrieve(np.ones((3, 2)), np.ones((3, 2))).ranks.tolist() == [2, 2, 2]
    # A model that says the same of everything must not look good.
    assert retrieve(np.ones((100, 2)), np.ones((100, 2))).recall(1) == 0


def test_recall_mrr_and_chance_by_hand() -> None:
    result = found([1, 2, 6, 1.5])
    assert result.recall(1) == 0.25
    assert result.recall(2) == 0.75
    assert result.recall(10) == 1.0
    assert result.mrr == pytest.approx((1 + 1 / 2 + 1 / 6 + 1 / 1.5) / 4)
    assert [result.chance(k) for k in (1, 5, 10, 20)] == [0.1, 0.5, 1.0, 1.0]


def test_against_torchmetrics() -> None:
    rng = np.random.default_rng(0)
    queries, candidates = rng.standard_normal((30, 8)), rng.standard_normal((30, 8))
    result = retrieve(queries, candidates)
    scores = torch.from_numpy(queries @ candidates.T).sigmoid()  # of negative scores torchmetrics makes no rank
    right = torch.eye(30, dtype=torch.bool)
    for k in (1, 5, 10):
        hits = [float(tm.retrieval_hit_rate(s, r, top_k=k)) for s, r in zip(scores, right, strict=True)]
        assert result.recall(k) == pytest.approx(np.mean(hits))
    ranks = [float(tm.retrieval_reciprocal_rank(s, r)) for s, r in zip(scores, right, strict=True)]
    assert result.mrr == pytest.approx(np.mean(ranks))


def test_random_vectors_are_at_chance() -> None:
    rng = np.random.default_rng(1)
    result = retrieve(rng.standard_normal((2000, 16)), rng.standard_normal((2000, 16)))
    low, high = result.interval(100)
    assert low < result.chance(100) < high
    assert result.ranks.mean() == pytest.approx(1000.5, rel=0.05)


def test_blocks_change_nothing() -> None:
    rng = np.random.default_rng(2)
    queries, candidates = rng.integers(-9, 9, (1030, 4)) / 2, rng.integers(-9, 9, (1030, 4)) / 2  # exact sums
    whole = retrieve(queries, candidates)
    scores = queries @ candidates.T
    own = scores.diagonal()[:, None]
    ranks = 1 + (scores > own).sum(1) + ((scores == own).sum(1) - 1) / 2
    np.testing.assert_array_equal(whole.ranks, ranks)
    assert whole.top.shape == (1030, 5)


@given(hits=st.integers(0, 60), seed=st.integers(0, 3))
def test_interval_holds_the_recall_and_is_that_of_a_binomial(hits: int, seed: int) -> None:
    n = 60
    result = found([1.0] * hits + [9.0] * (n - hits))
    low, high = result.interval(1, seed=seed)
    assert low <= result.recall(1) <= high
    p = hits / n
    width = 2 * 1.96 * np.sqrt(p * (1 - p) / n)
    assert high - low == pytest.approx(width, abs=0.05)


def test_interval_is_a_function_of_its_seed() -> None:
    result = found([1, 2, 3, 4, 5, 1, 1, 2])
    assert result.interval(1) == result.interval(1)


def test_interval_of_the_mean_reciprocal_rank() -> None:
    result = found([1, 2, 4, 4])
    low, high = result.mrr_interval()
    assert 0.25 <= low < result.mrr == 0.5 < high <= 1.0
    assert result.mrr_interval() == (low, high)
    assert found([2, 2, 2]).mrr_interval() == (0.5, 0.5)


def test_vectors_that_are_no_numbers_rank_last() -> None:
    """A model that diverged must not look perfect."""
    vectors = np.eye(5)
    assert retrieve(vectors, vectors).mrr == 1
    assert (retrieve(np.full((5, 5), np.nan), vectors).ranks == 5).all()
    assert (retrieve(vectors, np.full((5, 5), np.nan)).ranks == 5).all()
