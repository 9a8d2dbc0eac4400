from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from polyfm.shared.objectives import tiled
from polyfm.shared.objectives.tiled import hardest, log_sum_exp, softplus_sum


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tiled._TILE, "cpu", 7)


def vectors(n: int, m: int, d: int = 5, scale: float = 1.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    a = F.normalize(torch.randn(n, d, generator=generator), dim=1) * scale
    b = F.normalize(torch.randn(m, d, generator=generator), dim=1)
    return a.requires_grad_(), b.requires_grad_()


@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])
@pytest.mark.parametrize(("by_rows", "by_columns"), [(True, True), (True, False), (False, True)])
def test_log_sum_exp_is_the_dense_one_forward_and_backward(scale: float, by_rows: bool, by_columns: bool) -> None:
    a, b = vectors(23, 17, scale=scale)
    weight_rows, weight_columns = torch.rand(23) * by_rows, torch.rand(17) * by_columns

    rows, columns, _ = log_sum_exp(a, b)
    grads = torch.autograd.grad((weight_rows * rows).sum() + (weight_columns * columns).sum(), (a, b))

    z = a.double() @ b.double().T
    dense = (weight_rows * z.logsumexp(1)).sum() + (weight_columns * z.logsumexp(0)).sum()
    expected = torch.autograd.grad(dense, (a, b))
    torch.testing.assert_close(rows, z.logsumexp(1).float(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(columns, z.logsumexp(0).float(), rtol=1e-6, atol=1e-6)
    # At scale 100 a similarity itself is only good to 4e-6 in float32.
    for ours, theirs in zip(grads, expected, strict=True):
        assert (ours - theirs).norm() <= max(1e-6, scale * 4e-8) * theirs.norm()


def test_columns_may_be_left_out() -> None:
    a, b = vectors(9, 20)
    rows, columns, _ = log_sum_exp(a, b.detach(), columns=False)
    assert torch.isneginf(columns).all()
    rows.sum().backward()
    expected = torch.autograd.grad((a @ b.T).logsumexp(1).sum(), a)[0]
    torch.testing.assert_close(a.grad, expected)
    assert b.grad is None


def test_softplus_sum_is_the_dense_one_forward_and_backward() -> None:
    a, b = vectors(23, 17, scale=10.0)
    bias = torch.tensor(-3.0, requires_grad=True)
    total, _ = softplus_sum(a, b, bias)
    grads = torch.autograd.grad(2 * total, (a, b, bias))
    dense = F.softplus(a.double() @ b.double().T + bias.double()).sum()
    torch.testing.assert_close(total, dense.float(), rtol=1e-6, atol=0)
    for ours, theirs in zip(grads, torch.autograd.grad(2 * dense, (a, b, bias)), strict=True):
        assert (ours - theirs).norm() <= 1e-6 * theirs.norm()
    with torch.no_grad():
        assert softplus_sum(a, b, bias)[0] == total


@given(
    groups=st.lists(st.integers(0, 4), min_size=1, max_size=16),
    others=st.lists(st.integers(0, 4), min_size=0, max_size=20),
    top=st.integers(1, 4),
)
@settings(max_examples=50, deadline=None)
def test_best_columns_are_the_most_similar_of_other_groups(groups: list[int], others: list[int], top: int) -> None:
    a, b = vectors(len(groups), len(others), seed=len(groups) * 31 + len(others))
    row_groups, column_groups = torch.tensor(groups), torch.tensor(others, dtype=torch.int64)
    z = (a @ b.T).detach()
    z[row_groups[:, None] == column_groups] = -torch.inf
    padded = torch.cat([z, z.new_full((len(z), top), -torch.inf)], dim=1)
    expected = padded.topk(top).values
    found = [log_sum_exp(a, b, top=top, groups=(row_groups, column_groups))[2]]
    found.append(softplus_sum(a, b, torch.zeros(()), top=top, groups=(row_groups, column_groups))[1])
    found.append(hardest(a, b, (row_groups, column_groups), top=top))
    for best in found:
        torch.testing.assert_close(best.values, expected)
        real = best.values > -torch.inf
        torch.testing.assert_close(padded.gather(1, best.indices)[real], best.values[real])


def test_gumbel_noise_draws_from_the_softmax() -> None:
    a, b = vectors(1, 9, scale=2.0)
    repeats = 20_000
    generator = torch.Generator().manual_seed(0)

    def noise(rows: slice, columns: slice) -> Tensor:
        uniform = torch.rand(rows.stop - rows.start, columns.stop - columns.start, generator=generator)
        return -(-uniform.clamp(min=1e-9).log()).log()

    many = a.detach().expand(repeats, -1)
    groups = torch.zeros(repeats, dtype=torch.int64), torch.tensor([0, *range(1, 9)])
    drawn = hardest(many, b.detach(), groups, noise=noise).indices[:, 0]
    z = (a @ b.T)[0].detach()
    z[0] = -torch.inf
    share = torch.bincount(drawn, minlength=9) / repeats
    assert share[0] == 0
    torch.testing.assert_close(share, z.softmax(0), atol=0.015, rtol=0)


def test_half_precision_inputs_are_summed_in_single() -> None:
    a, b = vectors(23, 17, scale=50.0)
    half = a.detach().bfloat16().requires_grad_(), b.detach().bfloat16().requires_grad_()
    rows, columns, _ = log_sum_exp(*half)
    z = half[0].double() @ half[1].double().T
    torch.testing.assert_close(rows, z.logsumexp(1).float(), rtol=1e-6, atol=1e-5)
    assert columns.dtype == torch.float32
    (rows.sum() + columns.sum()).backward()
    assert half[0].grad is not None
    assert half[0].grad.dtype == torch.bfloat16


def test_autocast_does_not_round_similarities() -> None:
    a, b = vectors(23, 17, scale=50.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rows, _, _ = log_sum_exp(a, b)
    torch.testing.assert_close(rows, log_sum_exp(a, b)[0])


@pytest.mark.parametrize(("n", "m"), [(0, 4), (4, 0), (0, 0)])
def test_nothing_to_compare_gives_zero_gradients(n: int, m: int) -> None:
    a, b = vectors(n, m)
    rows, columns, best = log_sum_exp(a, b, top=2)
    total, _ = softplus_sum(a, b, torch.zeros(()))
    assert (rows.shape, columns.shape, best.values.shape) == ((n,), (m,), (n, 2))
    ((rows[:0].sum() + columns[:0].sum()) + total).backward()
    assert a.grad is not None
    assert b.grad is not None
    assert not a.grad.any()
    assert not b.grad.any()


class Largest(TorchDispatchMode):
    """The largest tensor that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.elements = max(self.elements, leaf.untyped_storage().nbytes() // leaf.element_size())
        return out


def test_no_matrix_above_a_tile() -> None:
    a, b = vectors(70, 84)
    groups = torch.arange(70), torch.arange(84)
    with Largest() as seen:
        rows, columns, _ = log_sum_exp(a, b, top=2, groups=groups)
        total, _ = softplus_sum(a, b, torch.zeros(()), top=2, groups=groups)
        (rows.sum() + columns.sum() + total).backward()
    assert seen.elements <= max(2 * 7 * 7, 84 * 5)  # the vectors are larger than two tiles here
