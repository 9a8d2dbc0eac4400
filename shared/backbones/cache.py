"""Keys and values of earlier steps, so that generating a token costs one token."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from polyfm.shared.tokens.tokens import Tokens


class KeyValueCache:
    """What every attention module has seen of B sequences; one cache serves a whole stack of transformers.

    Sequences may be of unequal length: new tokens are added behind the longest, and holes are never seen.
    """

    def __init__(self) -> None:
        self._entries: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        self._contexts: dict[nn.Module, Tokens] = {}
        self._tokens: Tokens | None = None

    @property
    def tokens(self) -> Tokens:
        """All tokens so far, padded, without their vectors: where they stand and which are real."""
        if self._tokens is None:
            raise ValueError("nothing is in the cache yet: call extend() with the tokens first")
        return self._tokens

    def seen(self, rows: Tensor) -> Tensor:
        """(B,) int64: tokens of each sequence so far.

        Args:
            rows: (B,) int64, one per sequence.
        """
        return torch.zeros_like(rows) if self._tokens is None else self._tokens.lengths

    def extend(self, tokens: Tokens) -> None:
        """Announce new tokens, before they go through any transformer.

        Args:
            tokens: Padded, (B, n).
        """
        new = _shell(tokens)
        if self._tokens is not None:
            parts = (self._tokens, new)
            modalities = [part.modality for part in parts if part.modality is not None]
            new = new.replace(
                x=torch.cat([part.x for part in parts], dim=1),
                positions=torch.cat([part.positions for part in parts], dim=1),
                mask=torch.cat([part.real for part in parts], dim=1),
                modality=torch.cat(modalities, dim=1) if modalities else None,
            )
        self._tokens = new

    def __contains__(self, module: nn.Module) -> bool:
        return module in self._entries

    def __getitem__(self, module: nn.Module) -> tuple[Tensor, Tensor]:
        return self._entries[module]

    def append(self, module: nn.Module, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add the keys and values of new tokens, and return all so far.

        Args:
            module: Whose.
            k: (B, n, H, d).
            v: (B, n, H, d).
        """
        if module in self._entries:
            old_k, old_v = self._entries[module]
            k, v = torch.cat([old_k, k], dim=1), torch.cat([old_v, v], dim=1)
        return self.store(module, k, v)

    def store(self, module: nn.Module, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keep the keys and values of a context, which do not grow.

        Args:
            module: Whose.
            k: (B, M, H, d).
            v: (B, M, H, d).
        """
        self._entries[module] = (k, v)
        return k, v

    def context(self, module: nn.Module, context: Tokens) -> Tokens:
        """The context that a transformer was first given, in the order of the sequences now.

        Args:
            module: The transformer.
            context: Padded. Only the first counts: its keys and values are kept, and follow the sequences.
        """
        if module not in self._contexts:
            self._contexts[module] = _shell(context)
            return context
        return self._contexts[module]

    def reorder(self, index: Tensor) -> None:
        """Follow the beams: sequence i continues what was sequence ``index[i]``.

        Args:
            index: (B',) int64; repeats are allowed.
        """
        self._entries = {module: (k[index], v[index]) for module, (k, v) in self._entries.items()}
        self._contexts = {module: context.select(index) for module, context in self._contexts.items()}
        self._tokens = None if self._tokens is None else self._tokens.select(index)


def _shell(tokens: Tokens) -> Tokens:
    return Tokens(x=tokens.x[..., :0], positions=tokens.positions, mask=tokens.mask, modality=tokens.modality)
