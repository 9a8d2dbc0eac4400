"""SigLIP: each pair of vectors is told on its own to belong together or not (Zhai et al., arXiv 2303.15343).

    L = 1/n Σᵢⱼ softplus(-yᵢⱼ (t aᵢ·bⱼ + c)),   yᵢⱼ = 1 if i and j are of one group (usually i = j), else -1

with a learned scale t = exp(t′), 10 at the start, and a learned bias c, -10 at the start, because nearly all pairs are
negatives. softplus(-z) = softplus(z) - z, so a positive pair's z is subtracted from a sum that has no labels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from polyfm.shared.data.batch import Batch
from polyfm.shared.objectives.gather import Ranks
from polyfm.shared.objectives.objective import ObjectiveOutput, Views
from polyfm.shared.objectives.pairs import PairwiseObjective, positives
from polyfm.shared.objectives.tiled import softplus_sum
from polyfm.shared.tokens.masking import Corruption


def sigmoid_loss(a: Tensor, b: Tensor, scale: Tensor, bias: Tensor, groups: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss over the pairs of all processes.

    Args:
        a: (n, d) unit vectors of this process's items.
        b: (n, d) of the other modality.
        scale: () t.
        bias: () c.
        groups: (n,) int64.

    Returns:
        () this process's share of the loss, and logs.
    """
    ranks = Ranks.of(a)
    all_b, all_groups = ranks.gather(b), ranks.gather(groups)
    total, best = softplus_sum(scale * a, all_b, bias, top=1, groups=(groups, all_groups))
    mean, counts = positives(groups, all_b, all_groups)
    positive = counts * (scale * (a * mean).sum(1) + bias)
    own = ((scale * a * b).sum(1) + bias).detach()
    several = max(len(a), 1)
    logs = {
        "pairs": counts.new_tensor(float(ranks.total)),
        "positives": counts.sum() / several,
        "accuracy": (own > best.values[:, 0]).float().sum() / several,
    }
    return ranks.mean((total - positive.sum())[None]), logs


class SigLIP(PairwiseObjective):
    """Sigmoid loss between modalities, summed over pairs of modalities.

    Args:
        pairs: Two modalities each, by a name; every pair of encoders that have a projection if empty.
        corrupt: What is hidden from a modality, by modality.
        scale: t at the start; its logarithm is learnt.
        bias: c at the start.
    """

    def __init__(
        self,
        pairs: dict[str, tuple[str, str]] = {},  # noqa: B006 - read only
        corrupt: dict[str, Corruption] = {},  # noqa: B006 - read only
        scale: float = 10.0,
        bias: float = -10.0,
    ) -> None:
        super().__init__(pairs, corrupt)
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))
        self.bias = nn.Parameter(torch.tensor(float(bias)))

    def forward(self, views: Views, batch: Batch) -> ObjectiveOutput:
        """See `Objective.forward`."""
        scale = self.log_scale.exp()
        logs = {"scale": scale.detach(), "bias": self.bias.detach().clone()}
        losses = []
        for sides in self.sides(views, batch):
            loss, more = sigmoid_loss(sides.a, sides.b, scale, self.bias, sides.groups)
            losses.append(loss)
            logs |= self.named(sides.name, more)
        return ObjectiveOutput(loss=torch.stack(losses).sum(), logs=logs)
