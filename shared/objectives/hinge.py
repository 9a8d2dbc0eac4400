"""Max of hinges: the right answer beats the most similar wrong one by a margin (VSE++, Faghri et al., 1707.05612).

For n pairs of unit vectors aᵢ, bᵢ (their MH loss; KV-PLM, MoMu and MolFM fine-tune for retrieval with margin α = 0.2):

    L = 1/n Σᵢ [ max_j (α + aᵢ·bⱼ - aᵢ·bᵢ)₊ + max_j (α + aⱼ·bᵢ - aᵢ·bᵢ)₊ ],   j of other groups than i's
"""

from __future__ import annotations

import torch
from torch import Tensor

from polyfm.shared.data.batch import Batch
from polyfm.shared.objectives.gather import Ranks
from polyfm.shared.objectives.objective import ObjectiveOutput, Views
from polyfm.shared.objectives.pairs import PairwiseObjective
from polyfm.shared.objectives.tiled import hardest
from polyfm.shared.tokens.masking import Corruption


def max_of_hinges(a: Tensor, b: Tensor, margin: float, groups: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss over the pairs of all processes.

    Args:
        a: (n, d) unit vectors of this process's items.
        b: (n, d) of the other modality.
        margin: α.
        groups: (n,) int64.

    Returns:
        () this process's share of the loss, and logs.
    """
    ranks = Ranks.of(a)
    all_groups = ranks.gather(groups)
    right = (a * b).sum(1)
    losses, first = torch.zeros_like(right), torch.ones_like(right)
    for own, others in ((a, ranks.gather(b)), (b, ranks.gather(a))):
        best = hardest(own, others, (groups, all_groups))
        there = best.values[:, 0] > -torch.inf  # an item may have no wrong answer
        wrong = (own * others[best.indices[:, 0]]).sum(1)
        losses = losses + (margin + wrong - right).clamp(min=0) * there
        first = first * (~there | (wrong < right)).float()
    logs = {"pairs": right.new_tensor(float(ranks.total)), "accuracy": first.sum() / max(len(right), 1)}
    return ranks.mean(losses), logs


class MaxOfHinges(PairwiseObjective):
    """Margin loss against the hardest wrong answer, summed over both directions and over pairs of modalities.

    Args:
        pairs: Two modalities each, by a name; every pair of encoders that have a projection if empty.
        corrupt: What is hidden from a modality, by modality.
        margin: α, in cosine.
    """

    def __init__(
        self,
        pairs: dict[str, tuple[str, str]] = {},  # noqa: B006 - read only
        corrupt: dict[str, Corruption] = {},  # noqa: B006 - read only
        margin: float = 0.2,
    ) -> None:
        super().__init__(pairs, corrupt)
        self.margin = margin

    def forward(self, views: Views, batch: Batch) -> ObjectiveOutput:
        """See `Objective.forward`."""
        losses: list[Tensor] = []
        logs: dict[str, Tensor] = {}
        for sides in self.sides(views, batch):
            loss, more = max_of_hinges(sides.a, sides.b, self.margin, sides.groups)
            losses.append(loss)
            logs |= self.named(sides.name, more)
        return ObjectiveOutput(loss=torch.stack(losses).sum(), logs=logs)
