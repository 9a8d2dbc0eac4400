"""Uni-Mol: tell hidden atoms, and put moved ones back (Zhou et al., ICLR 2023, openreview.net/forum?id=6K2RM6wVqKu).

Of the atoms a share M is chosen: types are hidden as in BERT, coordinates x̃ = x + u, u uniform in a cube. With the
pairs q⁰ (embedder) and q (last layer) of `PairTransformer`, A atoms, [CLS] at the centroid one of the tokens j:

    atoms        L = -1/|M| Σ_{i∈M} log softmax(head(hᵢ))_{tᵢ}
    coordinates  L = 1/3|M| Σ_{i∈M} |x̂ᵢ - xᵢ|₁',   x̂ᵢ = x̃ᵢ + 1/A Σⱼ (x̃ⱼ - x̃ᵢ) head(norm(q_ij - q⁰_ij))
    distances    L = mean over i ∈ M and all j ≠ i of |d̂_ij - (d_ij - m)/s|',   d̂ = (head(q) + head(q)ᵀ) / 2
    token norm   L = mean of max(0, | |hᵢ| - √D | - 1), hᵢ before the final norm
    pair norm    L = mean of max(0, | |q_ij - q⁰_ij| - √H | - 1)

|·|' is the smooth absolute value (½e² below 1, |e| - ½ above). x̂ turns and moves with x̃, everything else stays. The
paper adds the five with the weights 1, 5, 10, 0.01 and 0.01.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyfm.domains.molecules.conformers import MASK, SPECIALS, TYPES, ConformerBatch
from polyfm.domains.molecules.embedder import distances
from polyfm.shared.backbones.encoder import Encoder
from polyfm.shared.data import ragged
from polyfm.shared.data.batch import Batch, TokenIds
from polyfm.shared.errors import RecipeError
from polyfm.shared.objectives.gather import global_mean
from polyfm.shared.objectives.heads import TokenHead, table, vocabulary
from polyfm.shared.objectives.objective import Objective, ObjectiveOutput, View, Views
from polyfm.shared.tokens.masking import Corruption, Draw, MaskTokens
from polyfm.shared.tokens.tokens import Features, Pairs, Tokens


@dataclasses.dataclass(frozen=True)
class MoveAtoms(Corruption):
    """Types of the chosen atoms are hidden as in BERT, and all of the chosen are moved."""

    rate: float = 0.15
    """Share of atoms chosen; at least one of each molecule."""
    masked: float = 0.8
    """Of the chosen, share whose type becomes [MASK]."""
    randomised: float = 0.1
    """Of the chosen, share whose type becomes a random one; the rest keep theirs."""
    noise: float = 1.0
    """Å, half the edge of the cube that an atom is moved in."""

    def __call__(self, batch: ConformerBatch, keys: Tensor, draw: Draw) -> tuple[ConformerBatch, Tensor]:
        """See `Corruption.__call__`."""
        hide = MaskTokens(MASK, TYPES, SPECIALS, self.rate, self.masked, self.randomised)
        tokens, chosen = hide(TokenIds(rows=batch.rows, ids=batch.ids, cu_seqlens=batch.cu_seqlens), keys, draw)
        key = keys[ragged.owners(batch.cu_seqlens, len(batch.ids))]
        place = ragged.places(batch.cu_seqlens, len(batch.ids))
        axes = [draw.uniform(f"move {axis}", key, place) for axis in "xyz"]
        moved = (2 * torch.stack(axes, dim=-1) - 1) * self.noise * chosen[:, None]
        return batch.replace(ids=tokens.ids, coordinates=batch.coordinates + moved), chosen


class ConformerObjective(Objective):
    """Base: something about a molecule whose atoms were moved.

    Args:
        modality: Of conformers.
        corruption: What is hidden and moved; objectives with the same one share a view.
    """

    def __init__(self, modality: str = "conformer", corruption: MoveAtoms = MoveAtoms()) -> None:
        super().__init__()
        self.modality, self.view = modality, View(modality, corruption)

    def needs(self) -> set[View]:
        """See `Objective.needs`."""
        return {self.view}

    def _heads(self, encoders: Mapping[str, Encoder]) -> int:
        """H of the modality's backbone."""
        heads = getattr(encoders[self.modality].backbone, "heads", None)
        if not isinstance(heads, int):
            raise RecipeError(
                f"the backbone of {self.modality!r} carries no pairs",
                where=type(self).__name__,
                remedy="Use PairTransformer",
            )
        return heads


class MaskedAtoms(ConformerObjective):
    """Tell the types of the chosen atoms.

    Args:
        modality: Of conformers.
        corruption: What is hidden and moved.
    """

    def build(self, encoders: Mapping[str, Encoder]) -> None:
        """See `Objective.build`."""
        encoder = encoders[self.modality]
        self.head = TokenHead(encoder.width, vocabulary(encoder, self.modality, "MaskedAtoms"))

    def logits(self, views: Views) -> Tensor:
        """(n, V) scores of the types of the chosen atoms.

        Args:
            views: With this objective's.
        """
        features = views[self.view]
        told: Tensor = self.head(features.tokens.items()[features.selected], table(views.model, self.modality))
        return told.float()

    def forward(self, views: Views, batch: Batch) -> ObjectiveOutput:
        """See `Objective.forward`."""
        logits = self.logits(views)
        target = batch[self.modality].ids[views[self.view].selected]
        right = (logits.detach().argmax(-1) == target).float()
        losses = F.cross_entropy(logits, target, reduction="none")
        return ObjectiveOutput(loss=global_mean(losses), logs={"accuracy": right.sum() / max(len(right), 1)})


class AtomCoordinates(ConformerObjective):
    """Put the chosen atoms back.

    Args:
        modality: Of conformers.
        corruption: What is hidden and moved.
    """

    def build(self, encoders: Mapping[str, Encoder]) -> None:
        """See `Objective.build`."""
        heads = self._heads(encoders)
        self.head = nn.Sequential(nn.LayerNorm(heads), nn.Linear(heads, heads), nn.GELU(), nn.Linear(heads, 1))

    def places(self, tokens: Tokens) -> Tensor:
        """(A, 3) Å where the atoms are put.

        Args:
            tokens: After the backbone.
        """
        padded, pairs = tokens.pad(), _pairs(tokens)
        places, real = padded.positions, padded.real
        pull = self.head(pairs.last - pairs.first).to(places.dtype) * real[:, None, :, None]
        towards = ((places[:, None] - places[:, :, None]) * pull).sum(2)
        atoms = (padded.lengths - padded.prefix).clamp(min=1)
        return padded.replace(x=places + towards / atoms[:, None, None]).items()

    def forward(self, views: Views, batch: Batch) -> ObjectiveOutput:
        """See `Objective.forward`."""
        features = views[self.view]
        chosen: Tensor = features.selected  # type: ignore[assignment]
        told, true = self.places(features.tokens)[chosen], batch[self.modality].coordinates[chosen]
        losses = F.smooth_l1_loss(told, true, reduction="none").mean(-1)
        off = (told.detach() - true).square().sum() / max(len(true), 1)
        return ObjectiveOutput(loss=global_mean(losses), logs={"rmsd": off.sqrt()})


class AtomDistances(ConformerObjective):
    """Tell how far the chosen atoms stand from all others, where they truly are.

    Args:
        modality: Of conformers.
        corruption: What is hidden and moved.
        mean: m, Å, subtracted from distances; the authors' code has that of their conformers.
        scale: s, Å, that they are divided by.
    """

    def __init__(
        self,
        modality: str = "conformer",
        corruption: MoveAtoms = MoveAtoms(),
        mean: float = 6.3126,
        scale: float = 3.3899,
    ) -> None:
        super().__init__(modality, corruption)
        self.mean, self.scale = mean, scale

    def build(self, encoders: Mapping[str, Encoder]) -> None:
        """See `Objective.build`."""
        heads = self._heads(encoders)
        self.head = nn.Sequential(nn.Linear(heads, heads), nn.GELU(), nn.LayerNorm(heads), nn.Linear(heads, 1))

    def pairs(self, features: Features, batch: ConformerBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Distances of chosen atoms to all others and to the [CLS].

        Args:
            features: Of the view.
            batch: Uncorrupted.

        Returns:
            (n,) Å as told, as they are, and as they stand in the corrupted input.
        """
        padded = features.tokens.pad()
        told = self.head(_pairs(features.tokens).last)[..., 0].float() * self.scale + self.mean
        told = (told + told.transpose(1, 2)) / 2
        _, places, real = batch.framed()
        asked = torch.zeros_like(real)
        atoms = real.clone()
        atoms[:, 0] = False
        asked[atoms] = features.selected  # type: ignore[assignment]
        itself = torch.eye(real.shape[1], dtype=torch.bool, device=real.device)
        wanted = asked[:, :, None] & real[:, None] & ~itself
        return told[wanted], distances(places)[wanted], distances(padded.positions)[wanted]

    def forward(self, views: Views, batch: Batch) -> ObjectiveOutput:
        """See `Objective.forward`."""
        told, true, _ = self.pairs(views[self.view], batch[self.modality])
        losses = F.smooth_l1_loss((told - self.mean) / self.scale, (true - self.mean) / self.scale, reduction="none")
        off = (told.detach() - true).abs().sum() / max(len(true), 1)
        return ObjectiveOutput(loss=global_mean(losses), logs={"mae": off})


class TokenNorm(ConformerObjective):
    """Keep the vectors of tokens from growing or vanishing before the final norm.

    Args:
        modality: Of conformers.
        corruption: What is hidden and moved.
    """

    def forward(self, views: Views, batch: Batch) -> ObjectiveOutput:
        """See `Objective.forward`."""
        tokens = views[self.view].tokens
        real = tokens.pad().real
        return ObjectiveOutput(loss=global_mean(_mean_over(norm_error(_pairs(tokens).tokens), real)), logs={})


class PairNorm(ConformerObjective):
    """Keep what the layers add to the pairs from growing or vanishing.

    Args:
        modality: Of conformers.
        corruption: What is hidden and moved.
    """

    def forward(self, views: Views, batch: Batch) -> ObjectiveOutput:
        """See `Objective.forward`."""
        tokens = views[self.view].tokens
        real, pairs = tokens.pad().real, _pairs(tokens)
        errors = _mean_over(norm_error(pairs.last - pairs.first), real[:, :, None] & real[:, None])
        return ObjectiveOutput(loss=global_mean(errors), logs={})


def norm_error(x: Tensor) -> Tensor:
    """(...) how far the length of (..., D) vectors is from √D, beyond a tolerance of 1.

    Args:
        x: Vectors.
    """
    length = (x.float().square().sum(-1) + 1e-10).sqrt()
    return F.relu((length - x.shape[-1] ** 0.5).abs() - 1.0)


def _mean_over(values: Tensor, real: Tensor) -> Tensor:
    """(B,) means over what is real of each row."""
    return (values * real).flatten(1).sum(1) / real.flatten(1).sum(1).clamp(min=1)


def _pairs(tokens: Tokens) -> Pairs:
    if tokens.pairs is None:
        raise RecipeError("these tokens carry no pairs", remedy="Use ConformerTokens and PairTransformer")
    return tokens.pairs
