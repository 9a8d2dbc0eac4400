"""Causal language models: `CausalDecoder`, and writing sequences with any model that says what comes next.

`generate` (greedy or sampled) and `beam_search` only know a *step*: given the tokens that follow what the cache has
seen, score the next one. SPMM's, for example, is one cache through two transformers::

    def step(batch: TokenIds, cache: KeyValueCache | None) -> Tensor:
        tokens = encoder(batch, CAUSAL, cache=cache).tokens
        fused = fusion(tokens, context.select(batch.rows), CAUSAL, cache)
        return head(LastToken()(fused))

``batch.rows`` says which prompt each sequence continues; with a cache only the first call's context is read (its keys
and values follow the beams), without one it is read every time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyfm.shared.backbones.cache import KeyValueCache
from polyfm.shared.backbones.masks import CAUSAL
from polyfm.shared.backbones.pooling import LastToken
from polyfm.shared.backbones.transformer import Transformer
from polyfm.shared.data import ragged
from polyfm.shared.data.batch import TokenIds
from polyfm.shared.data.carrier import Carrier
from polyfm.shared.errors import RecipeError
from polyfm.shared.tokens.text import TextTokens
from polyfm.shared.tokens.tokens import Tokens


class Step(Protocol):
    """What comes next."""

    def __call__(self, batch: TokenIds, cache: KeyValueCache | None) -> Tensor:
        """(B', V) scores (logits) of the token after each sequence.

        Args:
            batch: The new tokens of B' sequences (all of them without a cache); ``rows`` says whose prompt each continues.
            cache: What was seen before; None if nothing is kept.
        """
        ...


class CausalDecoder(nn.Module):
    """A causal language model (GPT-2, Llama): embedding, transformer, scores over the vocabulary.

    Args:
        width: D, given to every part.
        embedder: Token ids to vectors.
        backbone: A transformer.
        tied: Whether the embedding table also scores (GPT-2), or a table of its own (Llama).
    """

    def __init__(
        self,
        width: int,
        embedder: Callable[[int], TextTokens],
        backbone: Callable[[int], Transformer],
        tied: bool = True,
    ) -> None:
        super().__init__()
        self.width = width
        self.embedder = embedder(width)
        self.backbone = backbone(width)
        self.head = nn.Linear(width, self.embedder.vocabulary, bias=False)
        if tied:
            self.head.weight = self.embedder.table.weight
        else:
            nn.init.normal_(self.head.weight, std=0.02)

    def forward(self, batch: TokenIds, cache: KeyValueCache | None = None) -> Tokens:
        """Contextual vectors; ``head`` turns them into scores of the next token.

        Args:
            batch: Sequences; with a cache their new tokens.
            cache: Keys and values of earlier steps.
        """
        if cache is None:
            return self.backbone(self.embedder(batch), CAUSAL)  # type: ignore[no-any-return]
        tokens = self.embedder.continued(batch, cache.seen(batch.rows))
        cache.extend(tokens)
        return self.backbone(tokens, CAUSAL, cache=cache)  # type: ignore[no-any-return]

    def step(self, batch: TokenIds, cache: KeyValueCache | None = None) -> Tensor:
        """See `Step`."""
        return self.head(LastToken()(self(batch, cache)))  # type: ignore[no-any-return]


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How a token is drawn from the scores; filters apply in this order."""

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
        scores = scores / self.temperature
        ordered, order = scores.sort(-1, descending=True)
        if self.top_k:
            ordered[:, self.top_k :] = float("-inf")
        chance = ordered.softmax(-1)
        chance = chance.masked_fill(chance.cumsum(-1) - chance >= self.top_p, 0.0)
        return order.gather(1, torch.multinomial(chance, 1, generator=generator))[:, 0]


class Generated(Carrier):
    """What was written after each of B prompts: K sequences each, the likeliest first."""

    ids: Tensor
    """(B, K, L) int64, prompt left out, the end token included; behind it the end token is repeated."""
    lengths: Tensor
    """(B, K) int64 tokens written, the end token included; 0 where fewer than K sequences were found."""
    log_probs: Tensor
    """(B, K) float32: log-probability of what was written, given the prompt; -inf where nothing was found."""
    finished: Tensor
    """(B, K) bool: whether the end token was reached within the length allowed."""

    def sequences(self) -> list[list[list[int]]]:
        """Ids of each sequence by prompt, without the end token."""
        return [
            [ids[: length - done].tolist() for ids, length, done in zip(*row, strict=True) if length]
            for row in zip(self.ids, self.lengths.tolist(), self.finished.long().tolist(), strict=True)
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
    while written.length < max_length and not bool(written.done.all()):
        scores = written.ask(step).float()
        token = scores.argmax(-1) if sampling is None else sampling.draw(scores, generator)
        token = torch.where(written.done, end, token)
        gained = scores.log_softmax(-1).gather(1, token[:, None])[:, 0]
        log_probs = log_probs + gained.masked_fill(written.done, 0.0)
        written.append(token)
    ids = written.ids[:, : written.length]
    return Generated(
        ids=ids[:, None],
        lengths=_lengths(ids, end)[:, None],
        log_probs=log_probs[:, None],
        finished=written.done[:, None],
    )


@torch.no_grad()
def beam_search(
    step: Step, prompt: TokenIds, *, end: int, max_length: int, beams: int, cached: bool = True
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
        cached: Whether steps see only new tokens; otherwise all, with no cache (slow; same result).
    """
    size, device = len(prompt.rows), prompt.ids.device
    running = torch.full((size, beams), float("-inf"), device=device)
    running[:, 0] = 0.0  # the beams of a prompt start alike: all but one wait
    best = torch.full((size, beams), float("-inf"), device=device)
    best_ids = torch.full((size, beams, max_length), end, device=device)
    first = torch.arange(size, device=device)[:, None] * beams
    written = _Written(prompt, beams, max_length, end, cached)

    while written.length < max_length and bool((running[:, 0] > best[:, -1]).any()):
        log_probs = written.ask(step).float().log_softmax(-1).view(size, beams, -1)
        vocabulary = log_probs.shape[-1]
        log_probs = running[..., None] + log_probs
        # Twice as many candidates as beams: however many of them end, enough go on.
        scores, index = log_probs.flatten(1).topk(min(2 * beams, beams * vocabulary), dim=-1)
        source, token = index // vocabulary, index % vocabulary
        ended = token == end

        ids = written.ids.view(size, beams, -1).gather(1, source[..., None].expand(-1, -1, max_length))
        best, chosen = torch.cat([best, scores.masked_fill(~ended, float("-inf"))], dim=1).topk(beams, dim=-1)
        best_ids = torch.cat([best_ids, ids], dim=1).gather(1, chosen[..., None].expand(-1, -1, max_length))

        running, chosen = scores.masked_fill(ended, float("-inf")).topk(beams, dim=-1)
        written.follow((first + source.gather(1, chosen)).flatten())
        written.append(token.gather(1, chosen).flatten())

    finished = best > float("-inf")
    # What did not finish stands behind what did, the likeliest first.
    rank = torch.cat([finished, torch.zeros_like(finished)], dim=1).long()
    scores = torch.cat([best, running], dim=1)
    order = scores.argsort(-1, descending=True, stable=True)
    order = order.gather(1, rank.gather(1, order).argsort(-1, descending=True, stable=True))[:, :beams]
    running_lengths = torch.full_like(running, written.length).long().masked_fill(running == float("-inf"), 0)
    lengths = torch.cat([_lengths(best_ids, end).masked_fill(~finished, 0), running_lengths], dim=1)
    ids = torch.cat([best_ids, written.ids.view(size, beams, -1)], dim=1)
    lengths = lengths.gather(1, order)
    longest = int(lengths.max()) if lengths.numel() else 0
    return Generated(
        ids=ids.gather(1, order[..., None].expand(-1, -1, max_length))[..., :longest],
        lengths=lengths,
        log_probs=scores.gather(1, order),
        finished=rank.gather(1, order).bool(),
    )


class _Written:
    """B·K sequences being written: K after each prompt, row-major.

    Args:
        prompt: B prompts.
        copies: K.
        max_length: Most tokens written.
        end: Id of the end token.
        cached: Whether steps see only new tokens.
    """

    def __init__(self, prompt: TokenIds, copies: int, max_length: int, end: int, cached: bool) -> None:
        if not bool((prompt.lengths > 0).all()):
            raise RecipeError("a prompt is empty", remedy="Begin it with the start token")
        device = prompt.ids.device
        self.every = torch.arange(len(prompt.rows), device=device).repeat_interleave(copies)
        """(B·K,) which prompt each sequence continues."""
        self.prompt, self.copies = prompt, copies
        self.ids = torch.full((len(self.every), max_length), end, device=device)
        self.length = 0
        self.done = torch.zeros(len(self.every), dtype=torch.bool, device=device)
        self.end = end
        self.cache = KeyValueCache() if cached else None

    def ask(self, step: Step) -> Tensor:
        """(B·K, V) scores of what comes next."""
        if self.length == 0:
            scores = step(self.prompt, self.cache)
            if self.copies > 1:  # prompts are read once, and copied where the beams part
                scores = scores[self.every]
                if self.cache is not None:
                    self.cache.reorder(self.every)
            return scores
        rows = self.prompt.rows[self.every]
        if self.cache is not None:
            boundaries = torch.arange(len(rows) + 1, dtype=torch.int32, device=rows.device)
            return step(TokenIds(rows=rows, ids=self.ids[:, self.length - 1], cu_seqlens=boundaries), self.cache)
        prompt = self.prompt.select(self.every)
        return step(_joined(prompt, self.ids[:, : self.length]), None)

    def follow(self, index: Tensor) -> None:
        """Sequence i continues what was sequence ``index[i]``."""
        self.ids, self.done = self.ids[index], self.done[index]
        if self.cache is not None:
            self.cache.reorder(index)

    def append(self, token: Tensor) -> None:
        """Write one token behind each."""
        self.ids[:, self.length] = token
        self.done = self.done | (token == self.end)
        self.length += 1


def _joined(prompt: TokenIds, ids: Tensor) -> TokenIds:
    """Prompts followed by (n, L) ids each."""
    count, length = ids.shape
    total = len(prompt.ids)
    shift = torch.arange(count, device=ids.device) * length
    own = torch.arange(total, device=ids.device) + shift[ragged.owners(prompt.cu_seqlens, total)]
    new = (prompt.cu_seqlens[1:].long() + shift)[:, None] + torch.arange(length, device=ids.device)
    joined = ids.new_empty(total + ids.numel())
    joined[own], joined[new.flatten()] = prompt.ids, ids.flatten()
    return TokenIds(rows=prompt.rows, ids=joined, cu_seqlens=ragged.boundaries(prompt.lengths + length))


def _lengths(ids: Tensor, end: int) -> Tensor:
    """Tokens up to the first end token, it included."""
    ended = F.pad(ids == end, (0, 1), value=True).long().argmax(-1)
    return (ended + 1).clamp(max=ids.shape[-1])
