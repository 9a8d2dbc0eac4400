"""Matching: does this pair belong together? Asked of hard pairs (ALBEF, Li et al., arXiv 2107.07651, 3.2).

    L = -1/(3n) Σ log softmax(W [h_a; h_b])_y

over n true pairs (y = 1) and, for each item of either side, one wrong partner from the batch (y = 0), drawn from
softmax_j(aᵢ·bⱼ / τ) over the j of other groups, on whatever process they are. h_a is the pooled output of the fusion of
a attending to b, h_b of b attending to a: the same blocks run both ways (SPMM, Chang and Ye, Nat. Commun. 2024). Or
only one of the two is asked: in ALBEF and MolFM (Luo et al., arXiv 2307.09484) the text that attends to the image or
the molecule.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyfm.shared.backbones.encoder import Encoder, MultimodalModel
from polyfm.shared.data.batch import Batch
from polyfm.shared.errors import RecipeError
from polyfm.shared.objectives.gather import Ranks, global_mean, reachable
from polyfm.shared.objectives.objective import Objective, ObjectiveOutput, View, Views, leading, paired
from polyfm.shared.objectives.tiled import hardest
from polyfm.shared.tokens.masking import Corruption, Draw
from polyfm.shared.tokens.tokens import Tokens


class Matching(Objective):
    """Tell true pairs from hard wrong ones.

    A batch whose items are all of one group has no wrong partners and adds nothing.

    Args:
        a: A modality with a projection, or a sum of modalities whose first has one; see `View.modality`.
        b: Another.
        corrupt: What is hidden from a modality, by modality.
        temperature: τ of the draw; small for the hardest only, large for any.
        queries: Whose tokens attend to the other's: one side's, or each side's in turn.
    """

    coupled = True

    def __init__(
        self,
        a: str,
        b: str,
        corrupt: dict[str, Corruption] = {},  # noqa: B006 - read only
        temperature: float = 0.07,
        queries: Literal["both", "a", "b"] = "both",
    ) -> None:
        super().__init__()
        self.a, self.b, self.temperature = a, b, temperature
        self.view_a, self.view_b = View(a, corrupt.get(a)), View(b, corrupt.get(b))
        fused = {
            "a": View(a, corrupt.get(a), context=self.view_b),
            "b": View(b, corrupt.get(b), context=self.view_a),
        }
        self.fused = {side: view for side, view in fused.items() if queries in ("both", side)}

    def build(self, encoders: Mapping[str, Encoder]) -> None:
        """See `Objective.build`."""
        for name in (leading(self.a), leading(self.b)):
            if name not in encoders or encoders[name].projection is None:
                raise RecipeError(
                    f"{name!r} is no encoder with a projection, by which hard negatives are found",
                    where="Matching",
                    remedy=f"Set encoders.{name}.projection",
                )
        self.head = nn.Linear(sum(encoders[leading(view.modality)].width for view in self.fused.values()), 2)

    def needs(self) -> set[View]:
        """See `Objective.needs`."""
        return {self.view_a, self.view_b, *self.fused.values()}

    def seen(self, model: MultimodalModel, a: Tokens, b: Tokens) -> Tensor:
        """What the head judges pairs by.

        Args:
            model: Fuses.
            a: n sequences of the first modality.
            b: n of the second.

        Returns:
            (n, D), or (n, D_a + D_b) if both sides are asked.
        """
        asked = {"a": (a, b), "b": (b, a)}
        return torch.cat(
            [
                model.encoders[leading(view.modality)].pooling(model.fuse(*asked[side]))  # type: ignore[operator]
                for side, view in self.fused.items()
            ],
            dim=1,
        )

    def reads_tokens(self) -> set[View]:
        """See `Objective.reads_tokens`: those of partners that were mined."""
        return {self.view_a, self.view_b}

    def forward(self, views: Views, batch: Batch) -> ObjectiveOutput:
        """See `Objective.forward`."""
        features_a, features_b = views[self.view_a], views[self.view_b]
        i, j = paired(features_a, features_b)
        items = features_a.rows[i]
        ranks = Ranks.of(items)
        groups, keys = batch.groups[items], batch.keys[items]
        all_groups, all_keys = ranks.gather(groups), ranks.gather(keys)
        a = features_a.projected[i].detach() / self.temperature  # type: ignore[index]
        b = features_b.projected[j].detach()  # type: ignore[index]
        both = groups, all_groups
        wrong_b = hardest(a, ranks.gather(b), both, noise=_gumbel(views.draw, "b", keys, all_keys))
        wrong_a = hardest(b, ranks.gather(a), both, noise=_gumbel(views.draw, "a", keys, all_keys))
        asked = (wrong_b.values[:, 0] > -torch.inf).nonzero()[:, 0]
        own = asked + ranks.own.start

        tokens_a, place_a = reachable(ranks, features_a.tokens, i, torch.cat([own, wrong_a.indices[asked, 0]]))
        tokens_b, place_b = reachable(ranks, features_b.tokens, j, torch.cat([wrong_b.indices[asked, 0], own]))

        def wrong_pairs(some: Tensor) -> Tensor:
            return self.seen(views.model, tokens_a.select(place_a[some]), tokens_b.select(place_b[some]))

        true = torch.cat([views[view].pooled[asked] for view in self.fused.values()], dim=1)
        wrong = views.piecewise(wrong_pairs, torch.arange(len(place_a), device=place_a.device))
        logits = self.head(torch.cat([true, wrong])).float()
        target = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
        target[: len(true)] = 1
        losses = F.cross_entropy(logits, target, reduction="none")
        right = (logits.argmax(-1) == target).float().sum() / max(len(target), 1)
        pairs = losses.new_tensor(float(len(asked)))
        return ObjectiveOutput(loss=global_mean(losses), logs={"accuracy": right, "pairs": pairs})


def _gumbel(draw: Draw, side: str, keys: Tensor, others: Tensor) -> Callable[[slice, slice], Tensor]:
    """Noise for a tile, a pure function of the two samples, so that a resumed run draws the same negatives."""

    def noise(rows: slice, columns: slice) -> Tensor:
        first, second = torch.broadcast_tensors(keys[rows, None], others[columns])
        return -(-draw.uniform(f"negative {side}", first, second).clamp(min=1e-9).log()).log()

    return noise
