"""Dense, gated, and one per modality."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from polyfm.shared.backbones.feed_forward import Dense, PerModality, SwiGLU
from polyfm.shared.errors import RecipeError


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "relu"])
def test_dense_is_its_formula(activation: str) -> None:
    layer, x = Dense(8, activation=activation), torch.randn(3, 8)
    functions = {"gelu": F.gelu, "gelu_tanh": lambda h: F.gelu(h, approximate="tanh"), "relu": F.relu}
    torch.testing.assert_close(layer(x), layer.outer(functions[activation](layer.inner(x))))
    assert layer.inner.out_features == 32


def test_swiglu_is_its_formula() -> None:
    layer, x = SwiGLU(12), torch.randn(3, 12)
    torch.testing.assert_close(layer(x), layer.outer(F.silu(layer.gate(x)) * layer.inner(x)))
    assert layer.inner.out_features == 32


def test_each_modality_has_its_own() -> None:
    layer, x = PerModality(8, 3), torch.randn(4, 5, 8)
    modality = torch.randint(0, 2, (4, 5))  # the third has no tokens here
    y = layer(x, modality)
    for kind, expert in enumerate(layer.experts):
        torch.testing.assert_close(y[modality == kind], expert(x[modality == kind]))
    y.sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())
    assert not layer.experts[2].inner.weight.grad.any()


def test_errors_say_what_is_missing() -> None:
    with pytest.raises(RecipeError, match="say their modality"):
        PerModality(8, 2)(torch.randn(3, 8))
    with pytest.raises(RecipeError, match="modality 2 meets 2"):
        PerModality(8, 2)(torch.randn(3, 8), torch.tensor([0, 1, 2]))
    with pytest.raises(RecipeError, match="Choose one of gelu"):
        Dense(8, activation="tanhh")
