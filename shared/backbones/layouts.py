"""How attention meets a batch's shape: rule and lengths, compiled once per forward pass and used by every block.

Four layouts give the same numbers. Attention calls ``attend`` and does not know which it has:

* `PaddedLayout`: (B, N) rows, SDPA, with a mask only where something is hidden.
* `GroupLayout`: packed tokens on a CPU. Sequences of equal length lie side by side and share one SDPA call on views:
  no padding, no mask, no gathering. Measured (one core, 64 SMILES, D = 256, H = 8, forward and backward): 28 ms,
  against 58 ms for eight padded buckets of near length and 148 ms for padding to the longest.
* `VarlenLayout`: packed tokens on a GPU in half precision, full, causal or windowed: FlashAttention's own kernel.
* `FlexLayout`: packed tokens on a GPU in half precision, any other rule: FlexAttention, the rule as its ``mask_mod``.

The two kernels for GPUs were written without one: run ``pytest -m gpu tests/shared/backbones`` before relying on them.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from polyfm.shared.backbones.cache import KeyValueCache
from polyfm.shared.backbones.masks import CAUSAL, FULL, MaskSpec
from polyfm.shared.data import ragged
from polyfm.shared.tokens.dropout import drop
from polyfm.shared.tokens.tokens import Tokens

Bias = Callable[[Tensor, Tensor], Tensor]
"""(positions of queries (b, n, K), of keys (b, m, K)) -> additive scores, broadcastable to (b, H, n, m)."""


class Layout(Protocol):
    """A mask, compiled for given queries and keys."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Bias | None = None, dropout: float = 0.0) -> Tensor:
        """Scaled dot-product attention; a query that sees nothing gets zeros.

        Args:
            q: Queries, (B, N, H, d) padded or (T, H, d) packed.
            k: Keys, like the queries, over the tokens attended to.
            v: Values, like the keys.
            bias: Additive scores from positions.
            dropout: Probability of dropping an attention weight.

        Returns:
            Like the queries.
        """
        ...


@dataclasses.dataclass
class Plan:
    """Tokens in the order that their layout wants, and the way back."""

    tokens: Tokens
    layout: Layout
    context: Tokens | None = None
    context_layout: Layout | None = None
    back: Tensor | None = None
    """(T,) where each of the original tokens stands now; None if none moved."""

    def restore(self, x: Tensor) -> Tensor:
        """Vectors in the order of the original tokens.

        Args:
            x: Like ``tokens.x``.
        """
        return x if self.back is None else x.index_select(0, self.back)


def plan(
    rule: MaskSpec,
    tokens: Tokens,
    context: Tokens | None = None,
    *,
    exact: bool = False,
    cache: KeyValueCache | None = None,
) -> Plan:
    """Compile a rule for tokens that attend to themselves, and to a context.

    Args:
        rule: Who sees whom among the tokens. Towards a context only padding is hidden: rules speak of one sequence.
        tokens: The queries.
        context: Sequence i of the tokens sees sequence i of the context.
        exact: Some block needs scores (bias) or dropout that the GPU kernels for packed tokens lack.
        cache: Holds the tokens before these, and these (generation); padded.
    """
    if context is not None and tokens.packed != context.packed:
        raise ValueError("tokens and context must both be padded or both be packed")
    if not tokens.packed:
        own = _padded(rule, tokens, tokens) if cache is None else _continued(rule, tokens, cache)
        return Plan(tokens, own, context, None if context is None else _padded(FULL, tokens, context))
    some = len(tokens.x) and (context is None or len(context.x))  # the kernels want at least one token
    if tokens.x.is_cuda and some and not exact and _dtype(tokens.x) != torch.float32:
        compile = _varlen if not rule.prefix and not rule.hide else _flex
        return Plan(
            tokens,
            compile(rule, tokens, tokens),
            context,
            None if context is None else _varlen(FULL, tokens, context),
        )
    pairs = torch.stack([tokens.lengths.long(), (tokens if context is None else context).lengths.long()]).tolist()
    order = sorted(range(len(tokens)), key=lambda i: (pairs[0][i], pairs[1][i]))
    back = None
    if order != list(range(len(tokens))):
        index = torch.tensor(order, device=tokens.x.device)
        moved, _ = ragged.take(tokens.boundaries, index)
        back = torch.empty_like(moved)
        back[moved] = torch.arange(len(moved), device=moved.device)
        tokens, context = tokens.select(index), None if context is None else context.select(index)
    layout = _grouped(rule, tokens, tokens)
    return Plan(tokens, layout, context, None if context is None else _grouped(FULL, tokens, context), back)


@dataclasses.dataclass
class PaddedLayout:
    """SDPA over (B, N)."""

    mask: Tensor | None
    """(B|1, 1, N|1, M) bool, True = may see; None where nothing is hidden."""
    blind: Tensor | None
    """(B|1, N|1, 1, 1) bool: queries that may see nothing (their mask lets them see all, their output is zeroed)."""
    causal: bool
    q_positions: Tensor
    k_positions: Tensor

    def attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Bias | None = None, dropout: float = 0.0) -> Tensor:
        """See `Layout.attend`."""
        mask, causal = self.mask, self.causal
        if bias is not None:
            scores = bias(self.q_positions, self.k_positions).to(q.dtype)
            if causal:
                mask, causal = CAUSAL.allowed(*_grid(q.shape[1], k.shape[1], q.device)), False
            mask = scores if mask is None else torch.where(mask, scores, float("-inf"))
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if dropout and q.device.type == "cpu":
            out = _attend_with_dropout(q, k, v, mask, causal, dropout)
        else:
            grouped = q.shape[1] != k.shape[1]
            out = F.scaled_dot_product_attention(q, k, v, mask, dropout, causal, enable_gqa=grouped)
        out = out.transpose(1, 2)
        return out if self.blind is None else out.masked_fill(self.blind, 0.0)


@dataclasses.dataclass
class GroupLayout:
    """Packed tokens: sequences of equal length lie side by side and share one SDPA call."""

    groups: list[tuple[int, int, int, PaddedLayout]]
    """Sequences, queries and keys of each, layout."""

    # Sizes differ from batch to batch: a compiled block breaks here rather than compiling anew for each.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Bias | None = None, dropout: float = 0.0) -> Tensor:
        """See `Layout.attend`."""
        if not any(n and m for _, n, m, _ in self.groups):
            return q * 0 + (k.sum() + v.sum()) * 0  # nothing attends, yet all take part in the graph (zero gradients)
        # `split` rather than slices: the gradients of slices would each be as large as all tokens.
        qs = q.split([count * n for count, n, _, _ in self.groups])
        ks, vs = (x.split([count * m for count, _, m, _ in self.groups]) for x in (k, v))
        out = []
        for (count, n, m, layout), q_, k_, v_ in zip(self.groups, qs, ks, vs, strict=True):
            if n and m:
                k_, v_ = k_.unflatten(0, (count, m)), v_.unflatten(0, (count, m))
                out.append(layout.attend(q_.unflatten(0, (count, n)), k_, v_, bias, dropout).flatten(0, 1))
            else:
                out.append(q_ * 0)
        return torch.cat(out)


@dataclasses.dataclass
class VarlenLayout:
    """Packed tokens on a GPU, FlashAttention's variable-length kernel. Checked by tests marked ``gpu``."""

    q_cu: Tensor
    k_cu: Tensor
    q_longest: int
    k_longest: int
    window: tuple[int, int]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Bias | None = None, dropout: float = 0.0) -> Tensor:
        """See `Layout.attend`; `plan` gives this layout only where there is neither bias nor dropout."""
        from torch.nn.attention.varlen import varlen_attn

        out = varlen_attn(
            q,
            k,
            v,
            self.q_cu,
            self.k_cu,
            self.q_longest,
            self.k_longest,
            window_size=self.window,
            enable_gqa=q.shape[1] != k.shape[1],
        )
        return cast(Tensor, out)  # a tuple only if more is asked for


@dataclasses.dataclass
class FlexLayout:
    """Packed tokens on a GPU, FlexAttention. Tests marked ``gpu`` check the compiled kernel, others its rule."""

    visible: Any
    """The BlockMask."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Bias | None = None, dropout: float = 0.0) -> Tensor:
        """See `Layout.attend`; `plan` gives this layout only where there is neither bias nor dropout."""
        q_, k_, v_ = (x.transpose(0, 1)[None] for x in (q, k, v))
        attention = _flex_attention(q.is_cuda)
        out: Tensor = attention(q_, k_, v_, block_mask=self.visible, enable_gqa=q.shape[1] != k.shape[1])
        return out[0].transpose(0, 1)


@functools.cache
def _flex_attention(compiled: bool) -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    attention: Any = torch.compile(flex_attention, dynamic=True) if compiled else flex_attention
    return cast(Callable[..., Any], attention)


def _attend_with_dropout(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, rate: float) -> Tensor:
    """The formula; SDPA would compute the same on a CPU, only with torch's slow dropout."""
    if q.shape[1] != k.shape[1]:
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    if causal:
        mask = CAUSAL.allowed(*_grid(q.shape[2], k.shape[2], q.device))
    scores = q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype is torch.bool else scores + mask
    return drop(scores.softmax(-1), rate) @ v


def _padded(rule: MaskSpec, tokens: Tokens, keys: Tokens) -> PaddedLayout:
    """No mask where there is nothing to hide, since SDPA is faster without."""
    real = keys.mask if keys.mask is not None and not _all(keys.mask) else None
    # Padding behind a sequence is later than all of it: causality alone hides it.
    if rule == CAUSAL and real is not None and _all(real[:, :-1] | ~real[:, 1:]):
        real = None
    return _layout(rule, tokens, keys, real)


def _layout(rule: MaskSpec, tokens: Tokens, keys: Tokens, real: Tensor | None = None) -> PaddedLayout:
    """Compile for padded tokens.

    Args:
        rule: Who sees whom.
        tokens: The queries.
        keys: What they attend to.
        real: (B, M) bool, which keys are not padding; None for all.
    """
    if rule in (FULL, CAUSAL) and real is None:
        return PaddedLayout(None, None, rule.causal, tokens.positions, keys.positions)
    if rule.trivial and real is not None:
        mask = real[:, None, None, :]
    else:
        q_modality = None if tokens.modality is None else tokens.modality[:, :, None]
        k_modality = None if keys.modality is None else keys.modality[:, None, :]
        q, k = _grid(tokens.x.shape[1], keys.x.shape[1], tokens.x.device)
        seen = rule.allowed(q, k, q_modality, k_modality)
        mask = seen[:, None] if seen.ndim == 3 else seen[None, None]
        mask = mask if real is None else mask & real[:, None, None, :]
    return _safe(mask, tokens.positions, keys.positions)


def _safe(mask: Tensor, q_positions: Tensor, k_positions: Tensor) -> PaddedLayout:
    """Let queries that see nothing see all: the softmax of nothing is NaN and would poison gradients."""
    blind = ~mask.any(-1, keepdim=True)
    if _all(~blind):
        return PaddedLayout(mask, None, False, q_positions, k_positions)
    return PaddedLayout(mask | blind, blind.transpose(1, 2), False, q_positions, k_positions)


def _continued(rule: MaskSpec, tokens: Tokens, cache: KeyValueCache) -> PaddedLayout:
    """New tokens, which the cache holds last, and all tokens before them."""
    n, seen = tokens.x.shape[1], cache.tokens
    if n == 1 and rule in (FULL, CAUSAL) and _all(seen.real):
        return PaddedLayout(None, None, False, tokens.positions, seen.positions)
    k = seen.real.cumsum(1).sub(1).masked_fill(~seen.real, -1)
    modality = seen.modality
    q_modality, k_modality = (None, None) if modality is None else (modality[:, -n:, None], modality[:, None, :])
    mask = rule.allowed(k[:, -n:, None], k[:, None, :], q_modality, k_modality)
    return _safe(mask[:, None], tokens.positions, seen.positions)


def _grouped(rule: MaskSpec, tokens: Tokens, keys: Tokens) -> GroupLayout:
    """One padded layout without padding for each run of sequences of equal length."""
    pairs = zip(tokens.lengths.tolist(), keys.lengths.tolist(), strict=True)
    groups, q_start, k_start = [], 0, 0
    for (n, m), run in itertools.groupby(pairs):
        count = len(list(run))
        q_end, k_end = q_start + count * n, k_start + count * m
        layout = _layout(rule, _rows(tokens, q_start, q_end, count), _rows(keys, k_start, k_end, count))
        groups.append((count, n, m, layout))
        q_start, k_start = q_end, k_end
    return GroupLayout(groups)


def _rows(tokens: Tokens, start: int, end: int, count: int) -> Tokens:
    """A run of packed sequences of equal length as padded ones, without their vectors' values."""
    shape = (count, (end - start) // count)
    modality = tokens.modality
    return Tokens(
        x=tokens.x[start:end, :0].unflatten(0, shape),
        positions=tokens.positions[start:end].unflatten(0, shape),
        modality=None if modality is None else modality[start:end].unflatten(0, shape),
    )


def _varlen(rule: MaskSpec, tokens: Tokens, keys: Tokens) -> VarlenLayout:
    """Full, causal and windowed rules."""
    window = -1 if rule.window is None else rule.window
    n, m = (part.longest if part.longest is not None else int(part.lengths.max()) for part in (tokens, keys))
    return VarlenLayout(tokens.boundaries, keys.boundaries, n, m, (window, 0 if rule.causal else window))


def _flex(rule: MaskSpec, tokens: Tokens, keys: Tokens) -> FlexLayout:
    """Any rule."""
    from torch.nn.attention.flex_attention import create_block_mask

    cu, total, modality = tokens.boundaries, len(tokens.x), tokens.modality
    owner, place = ragged.owners(cu, total), ragged.places(cu, total)

    def visible(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        kinds = (None, None) if modality is None else (modality[q], modality[k])
        return (owner[q] == owner[k]) & rule.allowed(place[q], place[k], *kinds)

    on_gpu = tokens.x.is_cuda  # compiled, the mask of all pairs is never held
    return FlexLayout(create_block_mask(visible, None, None, total, total, device=str(cu.device), _compile=on_gpu))


def _grid(n: int, m: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Places of queries (n, 1) and keys (m,)."""
    return torch.arange(n, device=device)[:, None], torch.arange(m, device=device)


def _all(mask: Tensor) -> bool:
    """Whether all is True. On meta tensors (size checks) and under export there is nothing to read: say no."""
    return not mask.is_meta and not torch.compiler.is_exporting() and bool(mask.all())


def _dtype(x: Tensor) -> torch.dtype:
    """What queries will be computed in."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
