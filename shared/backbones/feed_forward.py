"""What follows attention in a block: dense, gated (SwiGLU), or one per modality."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyfm.shared.errors import RecipeError
from polyfm.shared.tokens.dropout import Dropout


def _quick_gelu(x: Tensor) -> Tensor:
    """X · sigmoid(1.702 x), the approximation that CLIP was trained with (arXiv 2103.00020)."""
    return x * torch.sigmoid(1.702 * x)


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": _quick_gelu,
    "relu": F.relu,
}


class FeedForward(nn.Module):
    """Base: maps token vectors to token vectors."""

    def forward(self, x: Tensor, modality: Tensor | None = None) -> Tensor:
        """Map (..., D) to (..., D).

        Args:
            x: Token vectors.
            modality: (...) int64, which modality each token comes from.
        """
        raise TypeError(f"{type(self).__name__} has no forward")


class Dense(FeedForward):
    """Two linear layers with an activation between (Vaswani et al., arXiv 1706.03762, eq. 2).

    Args:
        width: D.
        hidden: Inner width; 0 for 4 D.
        activation: ``gelu``, ``gelu_tanh`` (GPT-2), ``quick_gelu`` (CLIP) or ``relu``.
        dropout: On the output.
    """

    def __init__(self, width: int, hidden: int = 0, activation: str = "gelu", dropout: float = 0.0) -> None:
        super().__init__()
        hidden = hidden or 4 * width
        self.inner = nn.Linear(width, hidden)
        self.outer = nn.Linear(hidden, width)
        if activation not in _ACTIVATIONS:
            raise RecipeError(
                f"no activation {activation!r}",
                where="Dense.activation",
                remedy=f"Choose one of {', '.join(_ACTIVATIONS)}",
                given=activation,
            )
        self.activation = _ACTIVATIONS[activation]
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, modality: Tensor | None = None) -> Tensor:
        """See `FeedForward.forward`."""
        out: Tensor = self.dropout(self.outer(self.activation(self.inner(x))))
        return out


class SwiGLU(FeedForward):
    """W₃(silu(W₁ x) ⊙ W₂ x), without biases (Shazeer, arXiv 2002.05202; Llama).

    Args:
        width: D.
        hidden: Inner width; 0 for 8 D / 3, so that the parameters equal a dense layer's.
        dropout: On the output.
    """

    def __init__(self, width: int, hidden: int = 0, dropout: float = 0.0) -> None:
        super().__init__()
        hidden = hidden or 8 * width // 3
        self.gate = nn.Linear(width, hidden, bias=False)
        self.inner = nn.Linear(width, hidden, bias=False)
        self.outer = nn.Linear(hidden, width, bias=False)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, modality: Tensor | None = None) -> Tensor:
        """See `FeedForward.forward`."""
        out: Tensor = self.dropout(self.outer(F.silu(self.gate(x)) * self.inner(x)))
        return out


class PerModality(FeedForward):
    """A feed-forward of its own for each modality (BEiT-3, Mono-InternVL): hard routing, each token computed once.

    Args:
        width: D.
        modalities: How many.
        expert: What each is.
    """

    def __init__(self, width: int, modalities: int, expert: Callable[[int], FeedForward] = Dense) -> None:
        super().__init__()
        self.experts = nn.ModuleList(expert(width) for _ in range(modalities))

    def forward(self, x: Tensor, modality: Tensor | None = None) -> Tensor:
        """See `FeedForward.forward`; the tokens must say their modality."""
        if modality is None:
            raise RecipeError("a feed-forward per modality needs tokens that say their modality")
        flat, kind = x.flatten(0, -2), modality.flatten()
        order = torch.argsort(kind, stable=True)
        sizes = torch.bincount(kind, minlength=len(self.experts)).tolist()
        if len(sizes) > len(self.experts):
            raise RecipeError(f"a token of modality {len(sizes) - 1} meets {len(self.experts)} feed-forwards")
        parts = [expert(part) for expert, part in zip(self.experts, flat[order].split(sizes), strict=True)]
        return torch.cat(parts)[torch.argsort(order)].view_as(x)
