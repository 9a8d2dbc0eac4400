from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from polyfm.shared.objectives.contrastive import InfoNCE
from polyfm.shared.objectives.sigmoid import SigLIP, sigmoid_loss

ALL = [True] * 5


def unit(n: int, d: int = 6, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), dim=1).requires_grad_()


def test_by_hand() -> None:
    a = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    b = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    # 2 · similarity - 1: [[1, .2], [-1, .6]]
    negatives = math.log1p(math.exp(0.2)) + math.log1p(math.exp(-1.0))
    positives = math.log1p(math.exp(-1.0)) + math.log1p(math.exp(-0.6))
    loss, logs = sigmoid_loss(a, b, torch.tensor(2.0), torch.tensor(-1.0), torch.arange(2))
    assert loss.item() == pytest.approx((negatives + positives) / 2, abs=1e-6)
    assert logs["accuracy"] == 1


@given(groups=st.lists(st.integers(0, 5), min_size=1, max_size=12))
@settings(max_examples=40)
def test_equals_the_softplus_formula(groups: list[int]) -> None:
    n, group = len(groups), torch.tensor(groups)
    a, b = unit(n), unit(n, seed=1)
    scale, bias = torch.tensor(10.0, requires_grad=True), torch.tensor(-10.0, requires_grad=True)
    loss, _ = sigmoid_loss(a, b, scale, bias, group)
    labels = (group[:, None] == group).float() * 2 - 1
    dense = F.softplus(-labels * (scale * a @ b.T + bias)).sum() / n
    torch.testing.assert_close(loss, dense, rtol=1e-5, atol=1e-6)
    leaves = (a, b, scale, bias)
    for ours, theirs in zip(torch.autograd.grad(loss, leaves), torch.autograd.grad(dense, leaves), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_it_starts_as_in_the_paper(bench: Any) -> None:
    objective = bench(SigLIP()).objective
    assert objective.log_scale.exp().item() == pytest.approx(10)
    assert objective.bias.item() == -10


@pytest.mark.parametrize("without", [SigLIP(bias=0.0), InfoNCE()], ids=["bias", "sigmoid"])
def test_without_the_papers_term_it_is_another_loss(bench: Any, make: Any, without: Any) -> None:
    batch, name = make(ALL, ALL), "model.encoders.smiles.embedder.table.weight"
    full, ablation = bench(SigLIP()), bench(without)
    assert not torch.allclose(full.loss(batch), ablation.loss(batch), rtol=1e-3)
    assert not torch.allclose(full.grads(batch)[name], ablation.grads(batch)[name], rtol=1e-3)


def test_groups_are_labels(bench: Any, make: Any) -> None:
    tested = bench(SigLIP())
    assert tested.loss(make(ALL, ALL)) < tested.loss(make(ALL, ALL, groups=[0, 0, 1, 2, 3]))


def test_only_pairs_that_are_there_count(bench: Any, make: Any, subset: Any) -> None:
    tested = bench(SigLIP())
    batch = make([True, True, False, True, True], [True, False, True, True, True])
    whole = subset(batch, torch.tensor([0, 3, 4]))
    torch.testing.assert_close(tested.loss(batch), tested.loss(whole))
    nothing = make([True, False], [False, True])
    assert tested.loss(nothing) == 0
    assert not any(gradient.any() for gradient in tested.grads(nothing).values())
    assert "encoders.smiles.projection.weight" in tested.touched()
