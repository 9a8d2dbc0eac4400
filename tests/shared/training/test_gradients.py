"""`GradientPolicy`: Σ wₖ Lₖ."""

from __future__ import annotations

import torch

from polyfm.shared.training.gradients import GradientPolicy


def test_weighted_sum_by_hand() -> None:
    losses = {"a": torch.tensor(2.0), "b": torch.tensor(3.0), "c": torch.tensor(5.0)}
    assert GradientPolicy()(losses) == 10
    assert GradientPolicy({"b": 5.0})(losses) == 2 + 15 + 5


def test_weights_of_a_stage_go_first_and_leave_no_trace() -> None:
    policy = GradientPolicy({"b": 5.0})
    losses = {"a": torch.tensor(2.0), "b": torch.tensor(3.0)}
    assert policy(losses, {"b": 0.0, "a": 0.5}) == 1
    assert policy(losses) == 17


def test_gradients_are_weighted_too() -> None:
    x = torch.tensor(2.0, requires_grad=True)
    GradientPolicy({"square": 3.0})({"square": x**2, "linear": x}).backward()
    assert x.grad == 3 * 2 * 2 + 1
