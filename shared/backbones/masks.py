"""Who may attend to whom: `MaskSpec`, a rule that `layouts` compiles once per forward pass."""

from __future__ import annotations

import dataclasses

from torch import Tensor


@dataclasses.dataclass(frozen=True)
class MaskSpec:
    """A rule, not a tensor: hashable, so that views can ask for it.

    The default lets every token see every real token of its own sequence (`full`). In packed tokens the sequences are
    the documents: no rule ever lets one see another. A token that may see nothing gets zeros from attention.
    """

    causal: bool = False
    """A token sees itself and what stands before it."""
    prefix: int = 0
    """With ``causal``: the first ``prefix`` tokens see one another both ways (prefix LM, AIMv2)."""
    window: int | None = None
    """A token sees at most this many tokens to either side (local attention)."""
    hide: tuple[tuple[int, int], ...] = ()
    """Pairs (A, B): tokens of modality A do not see tokens of modality B (compression tokens, CoMa)."""

    @property
    def trivial(self) -> bool:
        """Whether only padding has to be hidden."""
        return self == FULL

    def allowed(
        self, q: Tensor, k: Tensor, q_modality: Tensor | None = None, k_modality: Tensor | None = None
    ) -> Tensor:
        """Whether a query may see a key; broadcasts, and serves FlexAttention as its ``mask_mod``.

        Args:
            q: Place of the query within its sequence, -1 for padding.
            k: Place of the key within its sequence, -1 for padding.
            q_modality: Modality of the query's token, needed by ``hide``.
            k_modality: Modality of the key's token, needed by ``hide``.
        """
        seen = (q >= 0) & (k >= 0)
        if self.causal:
            seen = seen & ((k <= q) | ((k < self.prefix) & (q < self.prefix)))
        if self.window is not None:
            seen = seen & ((q - k).abs() <= self.window)
        for a, b in self.hide:
            if q_modality is None or k_modality is None:
                raise ValueError("a mask that hides one modality from another needs tokens with `modality`")
            seen = seen & ~((q_modality == a) & (k_modality == b))
        return seen


FULL = MaskSpec()
CAUSAL = MaskSpec(causal=True)
