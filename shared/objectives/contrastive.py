"""InfoNCE between modalities: items that belong together are similar, all others are not.

CLIP (Radford et al., arXiv 2103.00020), for n pairs of unit vectors aᵢ, bᵢ and a learned temperature τ:

    L = ½ (L_ab + L_ba),   L_ab = -1/n Σᵢ 1/|P(i)| Σ_{p∈P(i)} log softmax_j(aᵢ·bⱼ / τ)_p

P(i) are the items of i's group, usually i alone (several positives: Khosla et al., arXiv 2004.11362, L_out).

ALBEF (Li et al., arXiv 2107.07651, eq. 1 and 6) and SPMM compare with the teacher's vectors b̃, those of a queue of
earlier batches included, and soften the targets by the teacher's own similarities:

    L_ab = -1/n Σᵢ Σⱼ yᵢⱼ log softmax_j(aᵢ·b̃ⱼ / τ),   yᵢ = (1-α) [j ∈ P(i)] / |P(i)| + α softmax_j(ãᵢ·b̃ⱼ / τ)

Because Σⱼ yᵢⱼ = 1, L_ab = mean of log Σⱼ exp(aᵢ·b̃ⱼ / τ) - aᵢ·tᵢ / τ with the target vector tᵢ = Σⱼ yᵢⱼ b̃ⱼ: nothing but
the log-sum-exp needs every pair, and that is streamed. SPMM (Chang and Ye, Nat. Commun. 2024) adds the terms within
each modality: L = ½ (L_ab + L_ba + L_aa + L_bb).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyfm.shared.backbones.encoder import Encoder
from polyfm.shared.data.batch import Batch
from polyfm.shared.errors import RecipeError
from polyfm.shared.objectives.gather import Ranks
from polyfm.shared.objectives.objective import ObjectiveOutput, Progress, Views
from polyfm.shared.objectives.pairs import PairwiseObjective, Sides, positives
from polyfm.shared.objectives.queue import FeatureQueue
from polyfm.shared.objectives.tiled import hardest, log_sum_exp
from polyfm.shared.tokens.masking import Corruption


def info_nce(a: Tensor, b: Tensor, scale: Tensor, groups: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Symmetric InfoNCE over the pairs of all processes; see the module's first formula.

    Args:
        a: (n, d) unit vectors of this process's items.
        b: (n, d) of the other modality.
        scale: () 1/τ.
        groups: (n,) int64.

    Returns:
        () this process's share of the loss, and logs.
    """
    ranks = Ranks.of(a)
    all_b, all_groups = ranks.gather(b), ranks.gather(groups)
    rows, columns, best = log_sum_exp(scale * a, all_b, top=1, groups=(groups, all_groups))
    columns = ranks.each(columns).logsumexp(0)[ranks.own]
    # Summed over a group, aᵢ · (mean of its b) equals bᵢ · (mean of its a): one of the two serves both directions.
    mean, counts = positives(groups, all_b, all_groups)
    losses = (rows + columns) / 2 - scale * (a * mean).sum(1)
    logs = _logs(ranks, counts, (scale * a * b).sum(1).detach() > best.values[:, 0])
    return ranks.mean(losses), logs


def soft_info_nce(
    a: Tensor,
    teacher_a: Tensor,
    candidates: Tensor,
    scale: Tensor,
    groups: tuple[Tensor, Tensor],
    alpha: float,
) -> tuple[Tensor, Tensor]:
    """One direction of InfoNCE with soft targets; see the module's second formula.

    Args:
        a: (n, d) unit vectors.
        teacher_a: (n, d) of the same items by the teacher.
        candidates: (m, d) the teacher's vectors of the other side, the queue's included.
        scale: () 1/τ.
        groups: (n,) and (m,) int64.
        alpha: Share of the teacher's similarities in the targets.

    Returns:
        (n,) losses, and (n,) numbers of positives.
    """
    lse, _, _ = log_sum_exp(scale * a, candidates, columns=False)
    with torch.no_grad():
        target, counts = positives(groups[0], candidates, groups[1])
        if alpha > 0:
            target = torch.lerp(target, _soft_mean(scale * teacher_a, candidates), alpha)
    return lse - scale * (a * target).sum(1), counts


class InfoNCE(PairwiseObjective):
    """Contrastive loss between modalities, summed over pairs of modalities.

    Args:
        pairs: Two modalities each, by a name; every pair of encoders that have a projection if empty.
        corrupt: What is hidden from a modality, by modality (SPMM: half of the properties).
        temperature: τ at the start. Its logarithm is learnt.
        bounds: Least and largest τ.
        queue: K, vectors of earlier batches that are compared with, too; 0 for those of the batch only. Earlier vectors
            of an item's own group are positives of it, so a queue may be larger than the data.
        queue_after: Passes over the data before the queue counts. In a run of hundreds of steps the first vectors are
            those of a model that has barely begun: told from the batch's by their age alone, they teach nothing.
        soft: α, share of the teacher's similarities in the targets.
        ramp: α rises linearly over so many passes over the data.
        intra: Whether terms within each modality are added (SPMM); they need the teacher, so a queue or soft targets.
    """

    def __init__(
        self,
        pairs: dict[str, tuple[str, str]] = {},  # noqa: B006 - read only
        corrupt: dict[str, Corruption] = {},  # noqa: B006 - read only
        temperature: float = 0.07,
        bounds: tuple[float, float] = (0.01, 0.5),
        queue: int = 0,
        queue_after: float = 0.0,
        soft: float = 0.0,
        ramp: float = 1.0,
        intra: bool = False,
    ) -> None:
        super().__init__(pairs, corrupt, taught=queue > 0 or soft > 0)
        if intra and not self.taught:
            raise RecipeError(
                "terms within a modality compare with the teacher's vectors",
                where="InfoNCE.intra",
                remedy="Set queue or soft above 0",
            )
        if not 0 < bounds[0] <= temperature <= bounds[1]:
            raise RecipeError(f"the temperature {temperature} is not within its bounds {bounds}", where="InfoNCE")
        self.queue, self.queue_after = queue, queue_after
        self.soft, self.ramp, self.intra = soft, ramp, intra
        self.bounds = (-math.log(bounds[1]), -math.log(bounds[0]))
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)))
        self.queues = nn.ModuleDict()
        self._fresh: dict[str, tuple[Tensor, Tensor]] = {}

    def build(self, encoders: Mapping[str, Encoder]) -> None:
        """See `Objective.build`."""
        super().build(encoders)
        if self.queue:
            for name, (a, b) in self.pairs.items():
                self.queues[f"{name}/a"] = FeatureQueue(self.queue, self.widths[a])
                self.queues[f"{name}/b"] = FeatureQueue(self.queue, self.widths[b])

    @property
    def scale(self) -> Tensor:
        """() 1/τ, within the bounds; the gradient passes, so that it can return from a bound."""
        inside = self.log_scale.clamp(*self.bounds).detach()
        return (self.log_scale + (inside - self.log_scale.detach())).exp()

    def forward(self, views: Views, batch: Batch) -> ObjectiveOutput:
        """See `Objective.forward`."""
        scale = self.scale
        logs = {"temperature": 1 / scale.detach()}
        losses = []
        for sides in self.sides(views, batch):
            if self.taught:
                loss, more = self._with_teacher(sides, scale, views.progress)
            else:
                loss, more = info_nce(sides.a, sides.b, scale, sides.groups)
            losses.append(loss)
            logs |= self.named(sides.name, more)
        return ObjectiveOutput(loss=torch.stack(losses).sum(), logs=logs)

    def _with_teacher(self, sides: Sides, scale: Tensor, progress: Progress) -> tuple[Tensor, dict[str, Tensor]]:
        alpha = self.soft * progress.ramp(self.ramp)
        # Not in validation: a queue that fills makes the same model's loss rise.
        queued = bool(self.queue) and self.training and progress.epoch >= self.queue_after
        ranks = Ranks.of(sides.a)
        groups = ranks.gather(sides.groups)
        own = {"a": sides.a, "b": sides.b}
        taught: dict[str, Tensor] = {"a": sides.teacher_a, "b": sides.teacher_b}  # type: ignore[dict-item]
        fresh = {side: ranks.gather(vectors) for side, vectors in taught.items()}
        candidates = {side: (vectors, groups) for side, vectors in fresh.items()}
        if queued:
            candidates = {side: self._with_queue(f"{sides.name}/{side}", *both) for side, both in candidates.items()}
        total = scale.new_zeros(len(sides.a))
        for anchor, other in [("a", "b"), ("b", "a")] + ([("a", "a"), ("b", "b")] if self.intra else []):
            vectors, all_groups = candidates[other]
            both = sides.groups, all_groups
            losses, counts = soft_info_nce(own[anchor], taught[anchor], vectors, scale, both, alpha)
            total = total + losses / 2
        best = hardest(scale * sides.a, fresh["b"], (sides.groups, groups)).values[:, 0]
        first = (scale * sides.a * taught["b"]).sum(1).detach() > best
        return ranks.mean(total), _logs(ranks, counts, first)

    def _with_queue(self, name: str, vectors: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
        """This step's vectors and groups, kept for `update`, and the queue's behind them."""
        self._fresh[name] = vectors, groups
        earlier, earlier_groups = self.queues[name].valid()  # type: ignore[operator]
        return torch.cat([vectors, earlier]), torch.cat([groups, earlier_groups])

    def update(self, views: Views) -> None:
        """See `Objective.update`: the queues take in this step's vectors, of all processes; τ is kept in its bounds."""
        for name, fresh in self._fresh.items():
            self.queues[name].push(*fresh)  # type: ignore[operator]
        self._fresh = {}
        with torch.no_grad():
            self.log_scale.clamp_(*self.bounds)


def _soft_mean(queries: Tensor, candidates: Tensor) -> Tensor:
    """Σⱼ softmax_j(qᵢ·cⱼ) cⱼ, which is attention: its kernels stream, too."""
    with torch.autocast(queries.device.type, enabled=False):
        q, c = queries[None, None], candidates[None, None]
        return F.scaled_dot_product_attention(q, c, c, scale=1.0)[0, 0]


def _logs(ranks: Ranks, counts: Tensor, first: Tensor) -> dict[str, Tensor]:
    """For the curves: pairs of all processes, positives per item, share whose partner is first in the batch."""
    several = max(len(counts), 1)
    return {
        "pairs": counts.new_tensor(float(ranks.total)),
        "positives": counts.sum() / several,
        "accuracy": first.float().sum() / several,
    }
