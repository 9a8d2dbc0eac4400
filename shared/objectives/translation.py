"""TransE: relations of a knowledge graph as translations (Bordes et al., NeurIPS 2013, eq. 1; in MolFM, 2307.09484).

    L = 1/n Σ (γ + d(h + r, t) - d(h' + r, t'))₊,   d the L1 or L2 distance, ‖h‖ = ‖t‖ = 1

over the n triples (h, r, t) of the batch's items, each with one wrong triple in which the head or the tail, by the toss
of a coin, is another entity of the graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from polyfm.shared.backbones.encoder import Encoder
from polyfm.shared.data import ragged
from polyfm.shared.data.batch import Batch, Triples
from polyfm.shared.errors import RecipeError
from polyfm.shared.objectives.gather import global_mean
from polyfm.shared.objectives.objective import Objective, ObjectiveOutput, View, Views
from polyfm.shared.tokens.entities import EntityTokens
from polyfm.shared.tokens.masking import Draw


def corrupted(batch: Triples, keys: Tensor, draw: Draw) -> Tensor:
    """(T, 3) triples in which the head or the tail is another entity.

    Args:
        batch: True triples.
        keys: (B,) int64 of the batch's items.
        draw: Random numbers of this pass.
    """
    total = len(batch.triples)
    key = keys[batch.rows][ragged.owners(batch.cu_seqlens, total)]
    place = ragged.places(batch.cu_seqlens, total)
    side = 2 * (draw.uniform("side", key, place) < 0.5).long()
    true = batch.triples.gather(1, side[:, None])[:, 0]
    # One of the other E - 1: those from the true one on move up by one.
    other = (draw.uniform("entity", key, place) * (batch.entities - 1)).long()
    return batch.triples.scatter(1, side[:, None], (other + (other >= true).long())[:, None])


class TransE(Objective):
    """Translate heads to tails.

    Args:
        modality: Of entities, embedded by `EntityTokens`, whose vectors are trained.
        facts: The batch's triples.
        relations: R, how many relations the graph knows.
        margin: γ.
        norm: L1 or L2.
    """

    def __init__(
        self,
        modality: str = "knowledge",
        facts: str = "facts",
        relations: int = 8,
        margin: float = 1.0,
        norm: Literal[1, 2] = 1,
    ) -> None:
        super().__init__()
        self.modality, self.facts, self.relations = modality, facts, relations
        self.margin, self.norm = margin, norm

    def build(self, encoders: Mapping[str, Encoder]) -> None:
        """See `Objective.build`: a translation for each relation, uniform in ±6/√d as in the paper."""
        embedder = encoders[self.modality].embedder if self.modality in encoders else None
        if not isinstance(embedder, EntityTokens):
            raise RecipeError(
                f"{self.modality!r} is no encoder of entities",
                where="TransE",
                remedy="Name one whose embedder is EntityTokens",
            )
        size = embedder.entities.embedding_dim
        self.translation = nn.Embedding(self.relations, size)
        nn.init.uniform_(self.translation.weight, -6 / size**0.5, 6 / size**0.5)
        with torch.no_grad():
            self.translation.weight /= self.translation.weight.norm(dim=1, keepdim=True)

    def needs(self) -> set[View]:
        """See `Objective.needs`: the entities' vectors are read from the embedder, no view is."""
        return set()

    def distance(self, embedder: EntityTokens, triples: Tensor) -> Tensor:
        """(T,) d(h + r, t): how far a triple is from true.

        Args:
            embedder: Of the entities.
            triples: (T, 3).
        """
        head, relation, tail = triples.unbind(1)
        missed = embedder.vectors(head) + self.translation(relation) - embedder.vectors(tail)
        distance: Tensor = missed.float().norm(p=self.norm, dim=1)
        return distance

    def forward(self, views: Views, batch: Batch) -> ObjectiveOutput:
        """See `Objective.forward`."""
        facts: Triples = batch[self.facts]
        embedder: EntityTokens = views.model.encoders[self.modality].embedder  # type: ignore[assignment]
        right = self.distance(embedder, facts.triples)
        wrong = self.distance(embedder, corrupted(facts, batch.keys, views.draw))
        share = max(len(right), 1)
        logs = {
            "triples": right.new_tensor(float(len(right))),
            "accuracy": (right.detach() < wrong.detach()).float().sum() / share,
        }
        return ObjectiveOutput(loss=global_mean((self.margin + right - wrong).clamp(min=0)), logs=logs)
