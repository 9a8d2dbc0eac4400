"""Re-ranking: the score by hand, which share of the cosine is chosen, the head asked pair by pair."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from polyfm.shared.data.batch import Batch
from polyfm.shared.evaluation.reranking import ALPHAS, Candidates, best_alpha, candidates
from polyfm.shared.evaluation.retrieval import Retrieval, retrieve
from polyfm.shared.objectives.matching import Matching
from polyfm.shared.objectives.objective import View
from polyfm.shared.training.pretrain import PretrainTask

# Three queries, two candidates each: the right one is second, first, not among them.
FIRST = Retrieval(ranks=np.array([2.0, 1.0, 3.0]), top=np.array([[1, 0], [1, 2], [0, 1]]), pool=3)
COSINE = np.array([[0.9, 0.8], [0.9, 0.1], [0.5, 0.4]])
MATCH = np.array([[0.1, 0.7], [0.2, 0.9], [0.5, 0.5]])


def test_by_hand() -> None:
    found = Candidates(first=FIRST, cosine=COSINE, match=MATCH)
    assert found.at(1.0).ranks.tolist() == [2, 1, 3]
    assert found.at(1.0).top.tolist() == FIRST.top.tolist()
    # α = .5: .5 and .75; .55 and .5; the third's is still behind its two.
    half = found.at(0.5)
    assert half.ranks.tolist() == [1, 1, 3]
    assert half.top.tolist() == [[0, 1], [1, 2], [0, 1]]
    assert found.at(0.0).ranks.tolist() == [1, 2, 3]
    assert half.pool == 3


def test_ties_count_against_us() -> None:
    tied = Candidates(first=FIRST, cosine=np.zeros((3, 2)), match=np.zeros((3, 2)))
    assert tied.at(0.3).ranks.tolist() == [1.5, 1.5, 3]


def test_the_share_is_the_best_on_average_and_none_if_the_head_knows_nothing() -> None:
    found = Candidates(first=FIRST, cosine=COSINE, match=MATCH)
    alpha = best_alpha([found, found])
    assert found.at(alpha).ranks.tolist() == [1, 1, 3]
    assert alpha == max(one for one in ALPHAS if found.at(one).ranks.tolist() == [1, 1, 3])
    assert best_alpha([Candidates(first=FIRST, cosine=COSINE, match=np.zeros((3, 2)))]) == 1.0


@pytest.mark.parametrize("queries", ["both", "b"])
def test_the_head_is_asked_about_the_nearest_pair_by_pair(
    pretrain: Callable[..., PretrainTask], toy: Any, queries: Any
) -> None:
    """Items that lack a side take no part; whatever the batches, the numbers are those of the pair alone."""
    task = pretrain()
    torch.manual_seed(0)
    head = Matching(a="table", b="text", queries=queries)
    head.build(dict(task.model.encoders.items()))
    data = toy(lacking={"text": (1,), "table": (4,)})
    data.setup()
    batches: list[Batch] = [data.collate([0, 1, 2]), data.collate([3, 4, 5, 6, 7])]
    forth, back = candidates(task, head, batches, k=3, chunk=4)

    both = data.collate([0, 2, 3, 5, 6, 7])
    with torch.no_grad():
        a, b = (task.model(view.modality, both[view.modality]) for view in (View("table"), View("text")))
    vectors = a.projected.numpy(), b.projected.numpy()
    for found, (asking, answering) in ((forth, vectors), (back, vectors[::-1])):
        plain = retrieve(asking, answering, k=3)
        np.testing.assert_array_equal(found.first.top, plain.top)
        np.testing.assert_array_equal(found.at(1.0).ranks, plain.ranks)
        expected = np.take_along_axis(asking @ answering.T, plain.top, axis=1)
        np.testing.assert_allclose(found.cosine, expected, atol=1e-5)
    for query in range(6):
        for place, answer in enumerate(forth.first.top[query]):
            pair = a.tokens.select(torch.tensor([query])), b.tokens.select(torch.tensor([int(answer)]))
            with torch.no_grad():
                chance = head.head(head.seen(task.model, *pair)).softmax(-1)[0, 1]
            assert forth.match[query, place] == pytest.approx(float(chance), abs=1e-5)
            where = np.flatnonzero(back.first.top[answer] == query)
            assert all(back.match[answer, i] == pytest.approx(float(chance), abs=1e-5) for i in where)
