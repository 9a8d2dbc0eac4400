"""Max of hinges: the formula by hand, the hardest only, other groups only, what is missing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from polyfm.shared.objectives import hinge
from polyfm.shared.objectives.hinge import MaxOfHinges, max_of_hinges
from polyfm.shared.objectives.tiled import Best

ALL = [True] * 5


def unit(n: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(n, 4, generator=torch.Generator().manual_seed(seed)), dim=1).requires_grad_()


def test_by_hand() -> None:
    a = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    b = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    # a·b: [1 .6 0], [0 .8 1], [.6 1 .8]. Rows: (.2 + .6 - 1)₊, .2 + 1 - .8, .2 + 1 - .8; columns: 0, .4, .4.
    loss, logs = max_of_hinges(a, b, 0.2, torch.arange(3))
    assert loss.item() == pytest.approx((0 + 0.4 + 0.4 + 0 + 0.4 + 0.4) / 3)
    assert logs["accuracy"].item() == pytest.approx(1 / 3)
    assert logs["pairs"] == 3


@given(groups=st.lists(st.integers(0, 4), min_size=1, max_size=9), margin=st.floats(0.05, 1.0))
@settings(max_examples=40)
def test_equals_the_dense_formula_and_its_gradient(groups: list[int], margin: float) -> None:
    n, group = len(groups), torch.tensor(groups)
    a, b = unit(n, 0), unit(n, 1)
    loss, _ = max_of_hinges(a, b, margin, group)
    z = a @ b.T
    hinges = (margin + z - z.diagonal()[:, None]).clamp(min=0).masked_fill(group[:, None] == group, 0.0)
    back = (margin + z.T - z.diagonal()[:, None]).clamp(min=0).masked_fill(group[:, None] == group, 0.0)
    dense = (hinges.amax(1) + back.amax(1)).mean()
    torch.testing.assert_close(loss, dense)
    for ours, theirs in zip(torch.autograd.grad(loss, (a, b)), torch.autograd.grad(dense, (a, b)), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_without_the_maximum_it_is_another_loss(
    bench: Any, make: Any, ablated: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ablation: VSE++ is the maximum; any wrong answer in its place gives another loss and gradient."""
    batch = make(ALL, ALL)
    first, second = bench(MaxOfHinges(margin=2.0)), bench(MaxOfHinges(margin=2.0))

    def any_wrong(a: Tensor, b: Tensor, groups: tuple[Tensor, Tensor]) -> Best:
        indices = torch.stack([(groups[1] != group).nonzero()[0] for group in groups[0]])
        return Best(values=torch.zeros(indices.shape), indices=indices)

    plain = second.objective.forward
    hardest = hinge.hardest

    def forward(*args: Any) -> Any:
        monkeypatch.setattr(hinge, "hardest", any_wrong)
        output = plain(*args)
        monkeypatch.setattr(hinge, "hardest", hardest)
        return output

    second.objective.forward = forward
    ablated(first, second, batch)


def test_what_is_missing_takes_no_part(bench: Any, make: Any, subset: Any) -> None:
    tested = bench(MaxOfHinges())
    batch = make([True, True, False, True, True], [True, True, True, False, True])
    whole = tested.loss(batch)
    torch.testing.assert_close(whole, tested.loss(subset(batch, torch.tensor([0, 1, 4]))))
    nothing = make([True, True, False], [False, False, True])
    assert tested.loss(nothing) == 0
    assert all((gradient == 0).all() for gradient in tested.grads(nothing).values())
