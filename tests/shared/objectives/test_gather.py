from __future__ import annotations

import torch

from polyfm.shared.objectives.gather import Ranks, global_mean


def test_one_process_gathers_its_own_rows() -> None:
    rows = torch.rand(3, 2, requires_grad=True)
    ranks = Ranks.of(rows)
    assert ranks == Ranks((3,), 0)
    assert ranks.gather(rows) is rows
    assert ranks.each(rows).shape == (1, 3, 2)
    assert ranks.own == slice(0, 3)


def test_own_rows_stand_behind_those_of_earlier_processes() -> None:
    assert Ranks((3, 0, 4), 2).own == slice(3, 7)
    assert Ranks((3, 0, 4), 1).own == slice(3, 3)


def test_shares_average_to_the_mean_over_all_rows() -> None:
    first, second = torch.tensor([1.0, 2.0, 6.0]), torch.tensor([11.0])
    shares = Ranks((3, 1), 0).mean(first), Ranks((3, 1), 1).mean(second)
    assert (shares[0] + shares[1]) / 2 == 5.0  # (1 + 2 + 6 + 11) / 4


def test_the_mean_of_nothing_is_zero_and_connected() -> None:
    leaf = torch.rand(2, requires_grad=True)
    loss = global_mean(leaf[:0])
    loss.backward()
    assert loss == 0
    assert torch.equal(leaf.grad, torch.zeros(2))  # type: ignore[arg-type]
