"""Writing sequences with any model that says what comes next: greedy, sampled, along beams.

`generate` and `beam_search` only know a *step*: given the tokens that follow what the cache has seen, score the next
one. SPMM's, for example, is one cache through two transformers::

    def step(batch: TokenIds, cache: KeyValueCache | None) -> Tensor:
        tokens = encoder(batch, CAUSAL, cache=cache).tokens
        fused = fusion(tokens, context.select(batch.rows), CAUSAL, cache)
        return head(LastToken()(fused))

``batch.rows`` says which prompt each sequence continues (``rows`` of the prompts, here indices into the context). With
a cache only the context of the first call is read: its keys and values are kept, and follow the beams.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from polyfm.shared.backbones.cache import KeyValueCache
from polyfm.shared.data import ragged
from polyfm.shared.data.batch import TokenIds
from polyfm.shared.data.carrier import Carrier
from polyfm.shared.errors import DataError


class Step(Protocol):
    """What comes next."""

    def __call__(self, batch: TokenIds, cache: KeyValueCache | None) -> Tensor:
        """(B', V) scores (logits) of the token after each sequence.

        Args:
            batch: The new tokens of B' sequences; all of their tokens where there is no cache.
            cache: What was seen before; None if nothing is kept.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How a token is drawn from its scores; the filters apply in this order."""

    temperature: float = 1.0
    """Scores are divided by it."""
    top_k: int = 0
    """Only the so many most likely; 0 for all."""
    top_p: float = 1.0
    """Only the fewest most likely that together have this probability (Holtzman et al., arXiv 1904.09751)."""

    def draw(self, scores: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """(B,) int64 ids.

        Args:
            scores: (B, V) logits.
            generator: Of random numbers; torch's own if None.
        """
        ordered, order = (scores / self.temperature).sort(-1, descending=True)
        if self.top_k:
            ordered[:, self.top_k :] = float("-inf")
        chance = ordered.softmax(-1)
        chance = chance.masked_fill(chance.cumsum(-1) - chance >= self.top_p, 0.0)
        return order.gather(1, torch.multinomial(chance, 1, generator=generator))[:, 0]


class Generated(Carrier):
    """What was written after each of B prompts: K sequences each, the best first (`beam_search`: finished, by rank)."""

    ids: Tensor
    """(B, K, L) int64, prompt left out, the end token included; behind it the end token is repeated."""
    lengths: Tensor
    """(B, K) int64 tokens written, the end token included; 0 where fewer than K sequences exist."""
    log_probs: Tensor
    """(B, K) float32 log-probability of what was written, given the prompt; -inf where fewer than K exist."""
    finished: Tensor
    """(B, K) bool: whether the end token was reached within the length allowed."""

    def sequences(self) -> list[list[list[int]]]:
        """Ids of each sequence by prompt, without the end token."""
        written = self.lengths - self.finished.long()
        return [
            [ids[:length].tolist() for ids, length, exists in zip(*row, strict=True) if exists]
            for row in zip(self.ids, written.tolist(), (self.lengths > 0).tolist(), strict=True)
        ]


@torch.no_grad()
def generate(
    step: Step,
    prompt: TokenIds,
    *,
    end: int,
    max_length: int,
    sampling: Sampling | None = None,
    generator: torch.Generator | None = None,
    cached: bool = True,
) -> Generated:
    """Write one sequence after each prompt: the likeliest token each time, or a draw.

    Args:
        step: The model.
        prompt: B prompts of any lengths, at least one token each.
        end: Id of the end token.
        max_length: Most tokens written.
        sampling: How to draw; the likeliest if None.
        generator: Of random numbers.
        cached: Whether steps see only new tokens; otherwise all, with no cache (slow; same result).
    """
    written = _Written(prompt, 1, max_length, end, cached)
    log_probs = torch.zeros(len(prompt.rows), device=prompt.ids.device)
    done = torch.zeros_like(log_probs, dtype=torch.bool)
    while written.length < max_length and not bool(done.all()):
        scores = written.ask(step).float()
        token = scores.argmax(-1) if sampling is None else sampling.draw(scores, generator)
        token = token.masked_fill(done, end)
        gained = scores.log_softmax(-1).gather(1, token[:, None])[:, 0]
        log_probs = log_probs + gained.masked_fill(done, 0.0)
        done = done | (token == end)
        written.append(token)
    ids = written.ids[:, : written.length]
    ended = F.pad(ids == end, (0, 1), value=True).long().argmax(-1) + 1
    return Generated(
        ids=ids[:, None],
        lengths=ended.clamp(max=written.length)[:, None],
        log_probs=log_probs[:, None],
        finished=done[:, None],
    )


@torch.no_grad()
def beam_search(
    step: Step,
    prompt: TokenIds,
    *,
    end: int,
    max_length: int,
    beams: int,
    min_length: int = 0,
    length_penalty: float = 0.0,
    cached: bool = True,
) -> Generated:
    """The likeliest finished sequences, searched for along several at a time (SPMM's k-beam).

    A prompt is done when no running beam can still beat its worst finished sequence: log-probabilities only fall, so
    the stop loses nothing. Sequences cut at ``max_length`` fill up where fewer than ``beams`` finished.

    Args:
        step: The model.
        prompt: B prompts of any lengths, at least one token each.
        end: Id of the end token.
        max_length: Most tokens written.
        beams: K, sequences followed and returned per prompt.
        min_length: Fewest tokens before the end token.
        length_penalty: α: finished sequences are ranked by log-probability / lengthᵅ (Wu et al., arXiv 1609.08144, 7,
            in the form of transformers). 0 ranks by probability, which favours the shortest; 1 by its mean per token.
        cached: Whether steps see only new tokens; otherwise all, with no cache (slow; same result).
    """
    size, device = len(prompt.rows), prompt.ids.device
    nothing = torch.full((size, beams), float("-inf"), device=device)
    best, best_lengths = nothing, torch.zeros_like(nothing, dtype=torch.int64)
    best_ids = torch.full((size, beams, max_length), end, device=device)
    running = nothing.clone()
    running[:, 0] = 0.0  # the beams of a prompt start alike: all but one wait
    first = torch.arange(size, device=device)[:, None] * beams
    written = _Written(prompt, beams, max_length, end, cached)

    def score(log_probs: Tensor, lengths: Tensor | int) -> Tensor:
        return log_probs / torch.as_tensor(lengths, device=device).clamp(min=1) ** length_penalty

    # The best that may come of a running beam: nothing more lost, over the greatest length.
    while written.length < max_length and bool(
        (score(running[:, 0], max_length) > score(best, best_lengths)[:, -1]).any()
    ):
        log_probs = written.ask(step).float().log_softmax(-1).view(size, beams, -1)
        log_probs = running[..., None] + log_probs
        # Every beam may end here (its unwritten ids are end tokens already) …
        ended = log_probs[..., end] if written.length >= min_length else nothing
        either = torch.cat([best, ended], dim=1)
        either_lengths = torch.cat([best_lengths, torch.full_like(best_lengths, written.length + 1)], dim=1)
        kept = score(either, either_lengths).topk(beams, dim=-1).indices
        best, best_lengths = _pick(either, kept), _pick(either_lengths, kept)
        best_ids = _pick(torch.cat([best_ids, written.ids.view(size, beams, max_length)], dim=1), kept)
        # … and the likeliest that do not end go on.
        log_probs[..., end] = float("-inf")
        running, index = log_probs.flatten(1).topk(beams, dim=-1)
        written.follow((first + index // log_probs.shape[-1]).flatten())
        written.append((index % log_probs.shape[-1]).flatten())

    scores = torch.cat([best, running], dim=1)
    finished = torch.cat([best, nothing], dim=1) > float("-inf")
    lengths = torch.cat([best_lengths, torch.full_like(best_lengths, written.length)], dim=1)
    ids = torch.cat([best_ids, written.ids.view(size, beams, max_length)], dim=1)
    # Finished ones, then those cut short, then places that nothing fills; each the likeliest first, as they come.
    rank = torch.where(finished, 0, torch.where(scores > float("-inf"), 1, 2))
    order = rank.argsort(dim=-1, stable=True)[:, :beams]
    log_probs = _pick(scores, order)
    lengths = _pick(lengths, order).masked_fill(log_probs == float("-inf"), 0)
    longest = int(lengths.max()) if lengths.numel() else 0
    return Generated(
        ids=_pick(ids, order)[..., :longest],
        lengths=lengths,
        log_probs=log_probs,
        finished=_pick(finished, order),
    )


def _pick(x: Tensor, index: Tensor) -> Tensor:
    """(B, k, ...) entries of (B, n, ...), ``index`` (B, k)."""
    return x[torch.arange(len(x), device=x.device)[:, None], index]


class _Written:
    """B·K sequences being written: K after each prompt, side by side.

    Args:
        prompt: B prompts.
        copies: K.
        max_length: Most tokens written.
        end: Id of the end token.
        cached: Whether steps see only new tokens.
    """

    def __init__(self, prompt: TokenIds, copies: int, max_length: int, end: int, cached: bool) -> None:
        if not bool((prompt.lengths > 0).all()):
            raise DataError("a prompt is empty", remedy="Begin it with the start token")
        device = prompt.ids.device
        self.owner = torch.arange(len(prompt.rows), device=device).repeat_interleave(copies)
        """(B·K,) which prompt each sequence continues."""
        self.prompt, self.copies = prompt, copies
        self.ids = torch.full((len(self.owner), max_length), end, device=device)
        self.length = 0
        self.cache = KeyValueCache() if cached else None

    def ask(self, step: Step) -> Tensor:
        """(B·K, V) scores of what comes next."""
        if self.length == 0:
            scores = step(self.prompt, self.cache)
            if self.copies > 1:  # a prompt is read once, and copied where its beams part
                scores = scores[self.owner]
                if self.cache is not None:
                    self.cache.reorder(self.owner)
            return scores
        if self.cache is None:
            return step(_joined(self.prompt.select(self.owner), self.ids[:, : self.length]), None)
        boundaries = torch.arange(len(self.owner) + 1, dtype=torch.int32, device=self.ids.device)
        new = TokenIds(rows=self.prompt.rows[self.owner], ids=self.ids[:, self.length - 1], cu_seqlens=boundaries)
        return step(new, self.cache)

    def follow(self, index: Tensor) -> None:
        """Sequence i continues what was sequence ``index[i]``."""
        self.ids = self.ids[index]
        if self.cache is not None:
            self.cache.reorder(index)

    def append(self, token: Tensor) -> None:
        """Write one token behind each."""
        self.ids[:, self.length] = token
        self.length += 1


def _joined(prompt: TokenIds, ids: Tensor) -> TokenIds:
    """Prompts followed by (n, L) ids each."""
    count, length = ids.shape
    total = len(prompt.ids)
    shift = torch.arange(count, device=ids.device) * length
    old = torch.arange(total, device=ids.device) + shift[ragged.owners(prompt.cu_seqlens, total)]
    new = (prompt.cu_seqlens[1:].long() + shift)[:, None] + torch.arange(length, device=ids.device)
    joined = ids.new_empty(total + ids.numel())
    joined[old], joined[new.flatten()] = prompt.ids, ids.flatten()
    return TokenIds(rows=prompt.rows, ids=joined, cu_seqlens=ragged.boundaries(prompt.lengths + length))
