"""Masked modelling: tell what was hidden from what was not.

Tokens, BERT (Devlin et al., arXiv 1810.04805, 3.1), M the chosen tokens, of which 80 % became [MASK], 10 % another one:

    L = -1/|M| Σ_{i∈M} log softmax(head(hᵢ))_{xᵢ}

with the head tied to the embedder's table; conditioned on another modality, hᵢ attends to that through the fusion
(MolFM, Luo et al., arXiv 2307.09484, after ALBEF).

Values (masked autoencoders, He et al., arXiv 2111.06377, on numbers), M the hidden values or, as a control, the others:

    L = 1/|M| Σ_{i∈M} (head(hᵢ) - xᵢ)²
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from polyfm.shared.backbones.encoder import Encoder
from polyfm.shared.backbones.masks import FULL, MaskSpec
from polyfm.shared.data.batch import Batch
from polyfm.shared.errors import RecipeError
from polyfm.shared.objectives.gather import global_mean
from polyfm.shared.objectives.heads import TokenHead, ValueHead, table, vocabulary
from polyfm.shared.objectives.objective import Objective, ObjectiveOutput, View, Views, inputs_of
from polyfm.shared.tokens.masking import Corruption, MaskTokens, MaskValues
from polyfm.shared.tokens.tokens import Tokens


def conditioned(view: View, context: str, corrupt: Mapping[str, Corruption]) -> View:
    """A view that attends to another modality through the fusion, or the view itself.

    Args:
        view: Of the modality that is predicted.
        context: The other modality; none if empty.
        corrupt: What is hidden from the other modality, by modality.
    """
    if not context:
        return view
    seen = View(context, corruption=corrupt.get(context))
    return View(view.modality, view.corruption, view.mask, view.depth, context=seen)


class MaskedTokens(Objective):
    """Tell masked tokens.

    Args:
        modality: Of discrete tokens.
        context: A modality that the tokens attend to through the fusion; none if empty.
        corrupt: What is hidden from the context, by modality.
        rate: Share of tokens chosen.
        masked: Of the chosen, share replaced by [MASK].
        randomised: Of the chosen, share replaced by a random token; the rest is kept.
        mask_id: Id of [MASK].
        specials: Ids below are special tokens, which are never chosen.
    """

    def __init__(
        self,
        modality: str,
        context: str = "",
        corrupt: dict[str, Corruption] = {},  # noqa: B006 - read only
        rate: float = 0.15,
        masked: float = 0.8,
        randomised: float = 0.1,
        mask_id: int = 3,
        specials: int = 4,
    ) -> None:
        super().__init__()
        if masked + randomised > 1:
            raise RecipeError(
                f"masked {masked} and randomised {randomised} are shares of the chosen tokens, but exceed 1",
                where="MaskedTokens",
            )
        self.modality, self.context, self.corrupt = modality, context, dict(corrupt)
        self.rate, self.masked, self.randomised = rate, masked, randomised
        self.mask_id, self.specials = mask_id, specials

    def build(self, encoders: Mapping[str, Encoder]) -> None:
        """See `Objective.build`."""
        encoder = encoders[self.modality]
        size = vocabulary(encoder, self.modality, "MaskedTokens")
        self.head = TokenHead(encoder.width, size)
        corruption = MaskTokens(self.mask_id, size, self.specials, self.rate, self.masked, self.randomised)
        self.view = conditioned(View(self.modality, corruption), self.context, self.corrupt)

    def needs(self) -> set[View]:
        """See `Objective.needs`."""
        return {self.view}

    def forward(self, views: Views, batch: Batch) -> ObjectiveOutput:
        """See `Objective.forward`."""
        features = views[self.view]
        chosen: Tensor = features.selected  # type: ignore[assignment]
        target = inputs_of(features, batch[self.modality]).ids[chosen]
        logits = self.head(features.tokens.items()[chosen], table(views.model, self.modality))
        losses = F.cross_entropy(logits.float(), target, reduction="none")
        right = (logits.argmax(-1) == target).float()
        logs = {"accuracy": right.sum() / max(len(right), 1), "tokens": right.new_tensor(float(len(right)))}
        return ObjectiveOutput(loss=global_mean(losses), logs=logs)


class ValuePrediction(Objective):
    """Base: tell values of a table.

    Args:
        modality: A table of values.
        context: A modality that the values attend to through the fusion; none if empty.
        corrupt: What is hidden, by modality: the modality's own masking, and the context's if any.
        predict: Whether the loss is on the hidden or on the visible values.
    """

    mask: ClassVar[MaskSpec] = FULL
    """Which tokens of the table may attend to which."""

    def __init__(
        self,
        modality: str,
        context: str = "",
        corrupt: dict[str, Corruption] = {},  # noqa: B006 - read only
        predict: Literal["hidden", "visible"] = "hidden",
    ) -> None:
        super().__init__()
        own = corrupt.get(modality, MaskValues())
        self.modality, self.predict = modality, predict
        self.view = conditioned(View(modality, own, self.mask), context, corrupt)

    def build(self, encoders: Mapping[str, Encoder]) -> None:
        """See `Objective.build`."""
        self.head = ValueHead(encoders[self.modality].width)

    def needs(self) -> set[View]:
        """See `Objective.needs`."""
        return {self.view}

    def outputs(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """The outputs that tell a value.

        Args:
            tokens: Of the table.

        Returns:
            (n, D) their vectors, and (n,) which of ``tokens.items()`` each tells.
        """
        raise TypeError(f"{type(self).__name__} has no outputs")

    def forward(self, views: Views, batch: Batch) -> ObjectiveOutput:
        """See `Objective.forward`."""
        features = views[self.view]
        inputs = inputs_of(features, batch[self.modality])
        hidden: Tensor = features.selected  # type: ignore[assignment]
        chosen = hidden if self.predict == "hidden" else inputs.known.flatten() & ~hidden
        x, told = self.outputs(features.tokens)
        chosen = chosen[told]
        return value_output(self.head(x[chosen])[:, 0], inputs.values.flatten()[told[chosen]])


class MaskedValues(ValuePrediction):
    """Tell hidden values where they stand.

    Args:
        modality: A table of values.
        context: A modality that the values attend to through the fusion; none if empty.
        corrupt: What is hidden, by modality: the modality's own masking, and the context's if any.
        predict: Whether the loss is on the hidden or on the visible values.
    """

    def outputs(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """See `ValuePrediction.outputs`: every value by its own."""
        x = tokens.items()
        return x, torch.arange(len(x), device=x.device)


def value_output(predicted: Tensor, target: Tensor) -> ObjectiveOutput:
    """Mean squared error over the values of all processes.

    Args:
        predicted: (n,).
        target: (n,) standardised values.
    """
    losses = (predicted.float() - target).square()
    share = max(len(target), 1)
    logs = {"values": losses.new_tensor(float(len(target))), "mae": (predicted.detach() - target).abs().sum() / share}
    return ObjectiveOutput(loss=global_mean(losses), logs=logs)
