"""How the losses of several objectives become one."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class GradientPolicy(nn.Module):
    """Weighted sum, Σ wₖ Lₖ. Other policies (harmonised gradients) replace this.

    Args:
        weights: By objective; 1 where not named.
    """

    def __init__(self, weights: dict[str, float] = {}) -> None:  # noqa: B006 - read only
        super().__init__()
        self.weights = dict(weights)

    def forward(self, losses: Mapping[str, Tensor], stage: Mapping[str, float] = {}) -> Tensor:
        """The total.

        Args:
            losses: () each, by objective.
            stage: Weights of the current stage, which go before the recipe's.
        """
        weights = {**self.weights, **stage}
        return torch.stack([weights.get(name, 1.0) * loss for name, loss in losses.items()]).sum()
