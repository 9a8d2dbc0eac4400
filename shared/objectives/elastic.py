"""Items are alike or different, not in between (elastic cell similarity of scGPT, Cui et al., Nature Methods 2024).

    L = 1/(n (n-1)) Σ_{i≠j} 1 - (max(cos(hᵢ, hⱼ), 0) - β)²

Similarities above β are drawn towards 1, those below it towards 0.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from polyfm.shared.data.batch import Batch
from polyfm.shared.errors import require
from polyfm.shared.objectives.gather import Ranks
from polyfm.shared.objectives.objective import Objective, ObjectiveOutput, View, Views


class ElasticSimilarity(Objective):
    """Draws pooled vectors of a modality together or apart.

    Args:
        modality: Of the items.
        threshold: β.
    """

    coupled = True

    def __init__(self, modality: str, threshold: float = 0.8) -> None:
        super().__init__()
        require(0 < threshold < 1, "ElasticSimilarity.threshold", "between 0 and 1", threshold)
        self.threshold, self.view = threshold, View(modality)

    def needs(self) -> set[View]:
        """See `Objective.needs`."""
        return {self.view}

    def forward(self, views: Views, batch: Batch) -> ObjectiveOutput:
        """See `Objective.forward`. Pairs are those of all processes; of one item alone the loss is 0."""
        pooled = views[self.view].pooled
        ranks = Ranks.of(pooled)
        with torch.autocast(pooled.device.type, enabled=False):
            own = F.normalize(pooled.to(torch.promote_types(pooled.dtype, torch.float32)), dim=-1)
            cosines = F.relu(own @ ranks.gather(own).T)
        losses = 1 - (cosines - self.threshold) ** 2
        pairs = losses.sum(1) - losses.diagonal(ranks.own.start)
        loss = ranks.mean(pairs / max(ranks.total - 1, 1))
        others = cosines.sum() - cosines.diagonal(ranks.own.start).sum()
        mean = others.detach() / max(len(pooled) * (ranks.total - 1), 1)
        return ObjectiveOutput(loss=loss, logs={"cosine": mean})
