"""scGPT's elastic similarity, by hand and against its own formula."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from polyfm.shared.errors import RecipeError
from polyfm.shared.objectives.elastic import ElasticSimilarity


def loss_of(vectors: torch.Tensor, threshold: float = 0.8) -> torch.Tensor:
    objective = ElasticSimilarity("cells", threshold)
    views: Any = {objective.view: SimpleNamespace(pooled=vectors)}
    loss: torch.Tensor = objective(views, None).loss
    return loss


def test_by_hand() -> None:
    vectors = torch.tensor([[2.0, 0.0], [0.6, 0.8], [-3.0, 0.0]])
    # cosines: 0.6 once, below 0 twice: -1 and -0.6 count as 0
    wanted = (2 * (1 - 0.2**2) + 4 * (1 - 0.8**2)) / 6
    assert loss_of(vectors).item() == pytest.approx(wanted)
    assert loss_of(vectors[:1]).item() == 0


def test_it_is_scgpt_s_but_for_the_diagonal() -> None:
    vectors = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    normed = F.normalize(vectors, dim=1)
    cosines = F.relu((normed @ normed.T).masked_fill(torch.eye(6, dtype=torch.bool), 0.0))
    theirs = (1 - (cosines - 0.6) ** 2).mean()  # the diagonal adds a constant, and to the number of pairs
    ours = loss_of(vectors, 0.6)
    torch.testing.assert_close(ours * 30 / 36 + (1 - 0.6**2) / 6, theirs)
    grads = [torch.autograd.grad(loss, vectors)[0] for loss in (ours * 30 / 36, theirs)]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("cosine", [0.9, 0.7, 0.3])
def test_above_the_threshold_items_are_drawn_together_below_it_apart(cosine: float) -> None:
    vectors = torch.tensor([[1.0, 0.0], [cosine, (1 - cosine**2) ** 0.5]], requires_grad=True)
    (gradient,) = torch.autograd.grad(loss_of(vectors), vectors)
    first, second = F.normalize((vectors - 0.01 * gradient).detach(), dim=1)
    assert ((first @ second).item() > cosine) == (cosine > 0.8)


@pytest.mark.parametrize("threshold", [0.0, 1.0, -1.0])
def test_thresholds_that_make_no_sense(threshold: float) -> None:
    with pytest.raises(RecipeError, match="threshold"):
        ElasticSimilarity("cells", threshold)
