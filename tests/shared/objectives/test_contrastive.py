from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from polyfm.shared.errors import RecipeError
from polyfm.shared.objectives.contrastive import InfoNCE, info_nce, soft_info_nce
from polyfm.shared.objectives.objective import teacher
from polyfm.shared.tokens.masking import MaskValues

ALL = [True] * 6


def unit(n: int, d: int = 6, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), dim=1).requires_grad_()


def test_by_hand() -> None:
    """Two pairs at right angles, the second b leaning towards the first a."""
    a = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    b = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    # Similarities [[1, .6], [0, .8]], times 2: [[2, 1.2], [0, 1.6]]
    rows = [math.log(math.exp(2) + math.exp(1.2)) - 2, math.log(math.exp(0) + math.exp(1.6)) - 1.6]
    columns = [math.log(math.exp(2) + math.exp(0)) - 2, math.log(math.exp(1.2) + math.exp(1.6)) - 1.6]
    loss, logs = info_nce(a, b, torch.tensor(2.0), torch.arange(2))
    assert loss.item() == pytest.approx((sum(rows) + sum(columns)) / 4, abs=1e-6)
    assert {name: value.item() for name, value in logs.items()} == {"pairs": 2, "positives": 1, "accuracy": 1}


def test_soft_targets_by_hand() -> None:
    """One item, its partner and one vector of the queue: y = (0.6 + 0.4 q, 0.4 (1 - q)), q the teacher's share."""
    a, taught = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    candidates = torch.tensor([[0.8, 0.6], [-0.6, 0.8]])
    z = [2 * 0.8, 2 * -0.6]
    lse = math.log(math.exp(z[0]) + math.exp(z[1]))
    q = math.exp(2 * 0.6) / (math.exp(2 * 0.6) + math.exp(2 * 0.8))
    expected = -(0.6 + 0.4 * q) * (z[0] - lse) - 0.4 * (1 - q) * (z[1] - lse)
    groups = torch.tensor([0]), torch.tensor([0, 1])
    loss, counts = soft_info_nce(a, taught, candidates, torch.tensor(2.0), groups, 0.4)
    assert loss.item() == pytest.approx(expected, abs=1e-6)
    assert counts.item() == 1


def test_equals_cross_entropy() -> None:
    a, b, scale = unit(9), unit(9, seed=1), torch.tensor(14.0, requires_grad=True)
    loss, _ = info_nce(a, b, scale, torch.arange(9))
    logits = scale * a @ b.T
    dense = (F.cross_entropy(logits, torch.arange(9)) + F.cross_entropy(logits.T, torch.arange(9))) / 2
    torch.testing.assert_close(loss, dense, rtol=1e-6, atol=1e-6)
    for ours, theirs in zip(
        torch.autograd.grad(loss, (a, b, scale)), torch.autograd.grad(dense, (a, b, scale)), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@given(groups=st.lists(st.integers(0, 5), min_size=1, max_size=12))
@settings(max_examples=40)
def test_several_positives_are_averaged(groups: list[int]) -> None:
    n = len(groups)
    a, b, group = unit(n), unit(n, seed=1), torch.tensor(groups)
    loss, logs = info_nce(a, b, torch.tensor(5.0), group)
    same = (group[:, None] == group).float()
    targets = same / same.sum(1, keepdim=True)
    logits = 5 * a @ b.T
    dense = (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2
    torch.testing.assert_close(loss, dense, rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(torch.autograd.grad(loss, (a, b)), torch.autograd.grad(dense, (a, b)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    assert logs["positives"].item() == pytest.approx(same.sum(1).mean().item())


def albef(a: Tensor, taught: Tensor, candidates: Tensor, alpha: float, scale: float, targets: Tensor) -> Tensor:
    """One direction, written with every matrix that ALBEF's equations have."""
    soft = alpha * (scale * taught @ candidates.T).softmax(1) + (1 - alpha) * targets
    return -(soft * (scale * a @ candidates.T).log_softmax(1)).sum(1).mean()


def test_spmm_is_half_the_sum_of_four_directions(bench: Any, make: Any) -> None:
    tested = bench(InfoNCE(queue=8, soft=0.4, intra=True, temperature=0.1))
    batch, other = make(ALL, ALL), make(ALL, ALL, groups=range(10, 16), seed=3)
    tested.objective(tested.views(other), other)
    tested.objective.update(tested.views(other))

    views = tested.views(batch)
    view_a, view_b = (tested.objective.view(name) for name in ("properties", "smiles"))
    a, b = views[view_a].projected, views[view_b].projected
    taught_a, taught_b = views[teacher(view_a)].projected, views[teacher(view_b)].projected
    queue_a, queue_b = (tested.objective.queues[f"properties-smiles/{side}"].valid()[0] for side in "ab")
    all_a, all_b = torch.cat([taught_a, queue_a]), torch.cat([taught_b, queue_b])
    assert len(all_a) == 12
    target = torch.eye(6, 12)
    expected = (
        albef(a, taught_a, all_b, 0.4, 10.0, target)
        + albef(b, taught_b, all_a, 0.4, 10.0, target)
        + albef(a, taught_a, all_a, 0.4, 10.0, target)
        + albef(b, taught_b, all_b, 0.4, 10.0, target)
    ) / 2
    loss, logs = (output := tested.objective(views, batch)).loss, output.logs
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    assert logs["accuracy"] == ((a @ taught_b.T).argmax(1) == torch.arange(6)).float().mean()  # the queue left out
    parameters = [*tested.model.encoders.parameters(), tested.objective.log_scale]
    ours = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
    for got, want in zip(ours[:-1], torch.autograd.grad(expected, parameters, allow_unused=True), strict=False):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-6)
    assert ours[-1] is not None


def test_soft_targets_rise_over_the_first_pass(bench: Any, make: Any) -> None:
    tested, batch = bench(InfoNCE(soft=0.4)), make(ALL, ALL)
    hard, half, full = (tested.loss(batch, epoch=epoch) for epoch in (0.0, 0.5, 1.0))
    torch.testing.assert_close(half, (hard + full) / 2)
    assert tested.loss(batch, epoch=7.0) == full


@pytest.mark.parametrize(
    ("full", "without"),
    [
        ({"queue": 16}, {"soft": 1e-9}),
        ({"soft": 0.4}, {"soft": 1e-9}),
        ({"soft": 0.4, "intra": True}, {"soft": 0.4}),
        ({"soft": 0.4}, {}),
        ({"corrupt": {"properties": MaskValues(0.5)}}, {}),
    ],
    ids=["queue", "soft targets", "terms within a modality", "teacher", "property masking"],
)
def test_without_the_papers_term_it_is_another_loss(
    bench: Any, make: Any, ablated: Any, full: Any, without: Any
) -> None:
    first, second = bench(InfoNCE(**full)), bench(InfoNCE(**without))
    earlier = make(ALL, ALL, groups=range(20, 26), seed=9)
    for tested in (first, second):
        tested.objective(tested.views(earlier), earlier)
        tested.objective.update(tested.views(earlier))
    ablated(first, second, make(ALL, ALL))


def test_positives_of_one_group_are_not_pushed_apart(bench: Any, make: Any) -> None:
    tested = bench(InfoNCE())
    alone, together = make(ALL, ALL), make(ALL, ALL, groups=[0, 0, 1, 2, 3, 4])
    assert not torch.allclose(tested.loss(alone), tested.loss(together))
    name = "model.encoders.smiles.embedder.table.weight"
    assert not torch.allclose(tested.grads(alone)[name], tested.grads(together)[name])


def test_earlier_vectors_of_the_own_group_are_positives(bench: Any, make: Any) -> None:
    """A queue larger than the data holds every item several times."""
    tested, batch = bench(InfoNCE(queue=32)), make(ALL, ALL)
    for _ in range(3):
        output = tested.objective(tested.views(batch), batch)
        tested.objective.update(tested.views(batch))
    assert output.logs["positives"] == 3


@given(
    smiles=st.lists(st.booleans(), min_size=5, max_size=5), properties=st.lists(st.booleans(), min_size=5, max_size=5)
)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("arguments", [{}, {"queue": 8, "soft": 0.4, "intra": True}])
def test_only_pairs_that_are_there_count(
    bench: Any, make: Any, subset: Any, arguments: Any, smiles: list[bool], properties: list[bool]
) -> None:
    tested = bench(InfoNCE(**arguments))
    batch = make(smiles, properties, groups=[0, 1, 1, 2, 3])
    both = (torch.tensor(smiles) & torch.tensor(properties)).nonzero()[:, 0]
    loss, grads = tested.loss(batch), tested.grads(batch)
    if not len(both):
        assert loss == 0
        assert not any(gradient.any() for gradient in grads.values())
        return
    whole = subset(batch, both)
    torch.testing.assert_close(loss, tested.loss(whole), rtol=1e-5, atol=5e-6)
    for name, expected in tested.grads(whole).items():
        torch.testing.assert_close(grads[name], expected, rtol=1e-3, atol=1e-5, msg=name)


def test_without_pairs_every_weight_still_gets_a_zero_gradient(bench: Any, make: Any) -> None:
    for arguments in ({}, {"queue": 4, "soft": 0.1, "intra": True}):
        tested = bench(InfoNCE(**arguments))
        tested.grads(make([True, False], [False, True]))
        assert "encoders.smiles.projection.weight" in tested.touched()
        assert "encoders.properties.embedder.value.weight" in tested.touched()


def test_the_temperature_stays_within_its_bounds_and_can_return(bench: Any, make: Any) -> None:
    tested, batch = bench(InfoNCE(temperature=0.01)), make(ALL, ALL)
    with torch.no_grad():
        tested.objective.log_scale += 1.0
    output = tested.objective(tested.views(batch), batch)
    assert output.logs["temperature"].item() == pytest.approx(0.01, rel=1e-5)
    output.loss.backward()
    assert tested.objective.log_scale.grad != 0
    tested.objective.update(tested.views(batch))
    assert tested.objective.log_scale.item() == pytest.approx(math.log(100), rel=1e-6)


def test_validation_leaves_the_queue_alone(bench: Any, make: Any) -> None:
    tested, batch = bench(InfoNCE(queue=8)), make(ALL, ALL)
    tested.objective.eval()
    tested.objective(tested.views(batch), batch)
    tested.objective.update(tested.views(batch))
    assert len(tested.objective.queues["properties-smiles/a"]) == 0


def test_queue_waits_until_the_model_has_begun(bench: Any, make: Any) -> None:
    """Before `queue_after` passes the loss is that without a queue, and nothing is kept; then vectors gather."""
    tested, plain, batch = bench(InfoNCE(queue=8, queue_after=2.0)), bench(InfoNCE(soft=1e-9)), make(ALL, ALL)
    loss = tested.loss(batch, epoch=1.5)
    torch.testing.assert_close(loss, plain.loss(batch, epoch=1.5), rtol=1e-6, atol=1e-6)
    tested.objective.update(tested.views(batch))
    queue = tested.objective.queues["properties-smiles/a"]
    assert len(queue) == 0
    tested.loss(batch, epoch=2.0)
    tested.objective.update(tested.views(batch))
    assert len(queue) == 6
    other = make(ALL, ALL, groups=range(10, 16), seed=3)
    assert tested.loss(other, epoch=2.0) > plain.loss(other, epoch=2.0)  # more to be told apart


def test_terms_within_a_modality_need_the_teacher() -> None:
    with pytest.raises(RecipeError, match="teacher"):
        InfoNCE(intra=True)


def test_the_temperature_must_start_within_its_bounds() -> None:
    with pytest.raises(RecipeError, match="within its bounds"):
        InfoNCE(temperature=0.7)
