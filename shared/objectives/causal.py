"""Tell what comes next: tokens (language modelling) and values (SPMM's next property).

Tokens, x₁ … x_N, conditioned on another modality c through the fusion or on nothing:

    L = -1/N Σᵢ log p(xᵢ | x_<i, c)

With distillation from the teacher p̃ (ALBEF, Li et al., arXiv 2107.07651, eq. 7; SPMM, Chang and Ye, Nat. Commun. 2024):

    L = (1-α) L - α/N Σᵢ Σ_v p̃(v | x_<i, c) log p(v | x_<i, c)

Values, of which a random half is hidden, predicted in their fixed order from those before; M are the visible ones:

    L = 1/|M| Σ_{i∈M} (head(h_{i-1}) - xᵢ)²,   h₀ the [CLS]
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyfm.shared.backbones.cache import KeyValueCache
from polyfm.shared.backbones.encoder import Encoder, MultimodalModel
from polyfm.shared.backbones.generation import Step
from polyfm.shared.backbones.masks import CAUSAL
from polyfm.shared.backbones.pooling import LastToken
from polyfm.shared.data.batch import Batch, TokenIds
from polyfm.shared.objectives.gather import global_mean
from polyfm.shared.objectives.heads import TokenHead, before_items, table, vocabulary
from polyfm.shared.objectives.masked import ValuePrediction, conditioned
from polyfm.shared.objectives.objective import Objective, ObjectiveOutput, View, Views, inputs_of, teacher
from polyfm.shared.tokens.masking import Corruption
from polyfm.shared.tokens.tokens import Tokens


class CausalLM(Objective):
    """Tell the next token.

    Args:
        modality: Of discrete tokens.
        context: A modality that the tokens attend to through the fusion; none if empty.
        corrupt: What is hidden from the context, by modality.
        distill: α, share of the teacher's distribution in the targets.
        ramp: α rises linearly over so many passes over the data.
    """

    def __init__(
        self,
        modality: str,
        context: str = "",
        corrupt: dict[str, Corruption] = {},  # noqa: B006 - read only
        distill: float = 0.0,
        ramp: float = 1.0,
    ) -> None:
        super().__init__()
        self.modality, self.distill, self.ramp = modality, distill, ramp
        self.view = conditioned(View(modality, mask=CAUSAL), context, corrupt)

    def build(self, encoders: Mapping[str, Encoder]) -> None:
        """See `Objective.build`."""
        encoder = encoders[self.modality]
        self.head = TokenHead(encoder.width, vocabulary(encoder, self.modality, "CausalLM"))
        if self.distill:
            self.teacher_head = copy.deepcopy(self.head).requires_grad_(False)
            weight = encoder.embedder.table.weight.detach().clone()  # type: ignore[union-attr, operator]
            self.teacher_table = nn.Parameter(weight, requires_grad=False)

    def needs(self) -> set[View]:
        """See `Objective.needs`."""
        return {self.view, teacher(self.view)} if self.distill else {self.view}

    def forward(self, views: Views, batch: Batch) -> ObjectiveOutput:
        """See `Objective.forward`."""
        features = views[self.view]
        x, following = before_items(features.tokens)
        target = inputs_of(features, batch[self.modality]).ids[following]
        logits = self.head(x, table(views.model, self.modality)).float()
        losses = hard = F.cross_entropy(logits, target, reduction="none")
        if self.distill:
            alpha = self.distill * views.progress.ramp(self.ramp)
            with torch.no_grad():
                taught, _ = before_items(views[teacher(self.view)].tokens)
                soft = self.teacher_head(taught, self.teacher_table).float().softmax(-1)
            losses = (1 - alpha) * hard + alpha * F.cross_entropy(logits, soft, reduction="none")
        with torch.no_grad():
            several = max(len(target), 1)
            accuracy = (logits.argmax(-1) == target).float().sum() / several
            perplexity = (hard.sum() / several).exp()
        return ObjectiveOutput(loss=global_mean(losses), logs={"accuracy": accuracy, "perplexity": perplexity})

    def step(self, model: MultimodalModel, context: Tokens | None = None) -> Step:
        """What comes next, as `generation` asks for it.

        Args:
            model: Trained with this objective.
            context: Of the modality that the tokens attend to, if there is one; a prompt's ``rows`` are places in it.
        """
        encoder = model.encoders[self.modality]

        def score(batch: TokenIds, cache: KeyValueCache | None) -> Tensor:
            tokens: Tokens = encoder(batch, CAUSAL, cache=cache).tokens
            if context is not None:
                tokens = model.fuse(tokens, context.select(batch.rows), CAUSAL, cache)
            scores: Tensor = self.head(LastToken()(tokens), table(model, self.modality))
            return scores

        return score

    @torch.no_grad()
    def follow(self, model: MultimodalModel, momentum: float) -> None:
        """See `Objective.follow`: the teacher's head and table."""
        if self.distill:
            averages: list[Tensor] = [*self.teacher_head.parameters(), self.teacher_table]
            current: list[Tensor] = [*self.head.parameters(), table(model, self.modality)]
            torch._foreach_lerp_(averages, current, 1.0 - momentum)


class NextValue(ValuePrediction):
    """Tell the next value of a table whose columns have an order.

    Args:
        modality: A table of values, whose embedder puts a [CLS] first.
        context: A modality that the values attend to through the fusion; none if empty.
        corrupt: What is hidden, by modality: the modality's own masking, and the context's if any.
        predict: Whether the loss is on the visible (SPMM) or on the hidden values.
    """

    mask = CAUSAL

    def __init__(
        self,
        modality: str,
        context: str = "",
        corrupt: dict[str, Corruption] = {},  # noqa: B006 - read only
        predict: Literal["visible", "hidden"] = "visible",
    ) -> None:
        super().__init__(modality, context, corrupt, predict)

    def outputs(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """See `ValuePrediction.outputs`: every value by the one before it."""
        return before_items(tokens)
