from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polyfm.shared.objectives.gather import Ranks, global_mean, reachable, sums
from polyfm.shared.tokens.tokens import Pairs, Tokens


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


def test_rows_are_fetched_by_number_and_gradients_come_back() -> None:
    rows = torch.rand(3, 2, requires_grad=True)
    fetched = Ranks.of(rows).fetch(rows, torch.tensor([2, 0, 2]))
    assert torch.equal(fetched, rows[[2, 0, 2]])
    fetched.sum().backward()
    assert rows.grad is not None
    assert rows.grad.tolist() == [[1, 1], [0, 0], [2, 2]]


@pytest.mark.parametrize("packed", [False, True])
def test_sequences_of_one_process_are_its_own(packed: bool) -> None:
    mask = torch.tensor([[True, True], [True, False], [True, True]])
    pairs = Pairs(first=torch.rand(3, 2, 2, 1), last=torch.rand(3, 2, 2, 1), tokens=torch.rand(3, 2, 4))
    tokens = Tokens(x=torch.rand(3, 2, 4), positions=torch.rand(3, 2, 1), mask=mask, pairs=pairs)
    tokens = tokens.pack() if packed else tokens
    rows, wanted = torch.tensor([0, 2]), torch.tensor([1, 1, 0])
    found, where = reachable(Ranks.of(rows), tokens, rows, wanted)
    assert torch.equal(found.select(where).x, tokens.select(torch.tensor([2, 2, 0])).x)
    assert found.pairs is None


@given(st.lists(st.lists(st.floats(-5, 5), max_size=4), min_size=1, max_size=4))
def test_sums_of_chunks_make_up_the_mean(chunks: list[list[float]]) -> None:
    total, number = 0.0, 0
    for chunk in chunks:
        with sums() as numbers:
            total += float(global_mean(torch.tensor(chunk, dtype=torch.float64)))
        number += numbers[0]
    whole = torch.tensor([value for chunk in chunks for value in chunk], dtype=torch.float64)
    assert total / max(number, 1) == pytest.approx(float(global_mean(whole)), abs=1e-9)
