"""Greedy, sampled and beam search; with a cache as without; through one transformer and through two."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from polyfm.shared.backbones.block import Llama, PostNorm
from polyfm.shared.backbones.cache import KeyValueCache
from polyfm.shared.backbones.decoder import CausalDecoder
from polyfm.shared.backbones.encoder import Encoder
from polyfm.shared.backbones.fusion import CrossFusion
from polyfm.shared.backbones.generation import Sampling, Step, beam_search, generate
from polyfm.shared.backbones.masks import CAUSAL
from polyfm.shared.backbones.pooling import LastToken
from polyfm.shared.backbones.transformer import Transformer
from polyfm.shared.data.batch import TokenIds
from polyfm.shared.errors import DataError
from polyfm.shared.tokens.text import TextTokens
from polyfm.shared.tokens.tokens import Tokens

VOCABULARY, PROMPTS = 5, (3, 1, 6, 2)


def decoder() -> CausalDecoder:
    embedder = partial(TextTokens, vocabulary=VOCABULARY, dropout=0.0)
    model = CausalDecoder(16, embedder, partial(Transformer, depth=2, block=partial(Llama, heads=4, kv_heads=2)))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model.eval()


def spmm() -> Step:
    """A causal encoder, then a fusion that attends to a context: one cache through both."""
    trunk = partial(Transformer, depth=2, block=partial(PostNorm, heads=2))
    encoder = Encoder(16, partial(TextTokens, vocabulary=VOCABULARY, dropout=0.0), trunk).eval()
    fusion = CrossFusion(16, partial(Transformer, depth=2, block=partial(PostNorm, heads=2, cross=True))).eval()
    head = nn.Linear(16, VOCABULARY)
    for part in (encoder, fusion, head):
        for parameter in part.parameters():
            nn.init.normal_(parameter, std=0.5)
    places = torch.arange(4).expand(4, 4)
    mask = places < torch.tensor([4, 1, 3, 2])[:, None]
    context = Tokens(x=torch.randn(4, 4, 16), positions=places[..., None], mask=mask)

    def step(batch: TokenIds, cache: KeyValueCache | None) -> Tensor:
        tokens = encoder(batch, CAUSAL, cache=cache).tokens
        return head(LastToken()(fusion(tokens, context.select(batch.rows), CAUSAL, cache)))

    return step


@pytest.mark.parametrize("make", [lambda: decoder().step, spmm], ids=["decoder", "spmm"])
def test_with_cache_as_without(ids: Callable[..., TokenIds], make: Callable[[], Step]) -> None:
    step, prompt = make(), ids(PROMPTS, VOCABULARY)
    writers = [generate, *(partial(beam_search, beams=beams) for beams in (1, 2, 3, 7))]
    for write in writers:
        fast, slow = (write(step, prompt, end=0, max_length=9, cached=cached) for cached in (True, False))
        assert torch.equal(fast.ids, slow.ids)
        assert torch.equal(fast.finished, slow.finished)
        torch.testing.assert_close(fast.log_probs, slow.log_probs)


@torch.no_grad()
def score(model: CausalDecoder, prompt: Tensor, written: list[int]) -> float:
    """Log-probability of what was written, from one forward pass."""
    everything = torch.cat([prompt, torch.tensor(written, dtype=torch.int64)])
    cu = torch.tensor([0, len(everything) - 1], dtype=torch.int32)
    x = model(TokenIds(rows=torch.arange(1), ids=everything[:-1], cu_seqlens=cu)).pack().x
    log_probs = model.head(x).log_softmax(-1)[len(prompt) - 1 :]
    return float(log_probs.gather(1, everything[len(prompt) :, None]).sum())


@pytest.mark.parametrize(("penalty", "least"), [(0.0, 0), (0.6, 0), (1.0, 1), (2.0, 2)])
def test_wide_beams_find_all_sequences_in_order(ids: Callable[..., TokenIds], penalty: float, least: int) -> None:
    """With room for every sequence of up to four tokens, beam search is sorting: 1 + 4 + 16 + 64 of them end."""
    model, prompt = decoder(), ids(PROMPTS, VOCABULARY)
    options: dict[str, Any] = {"min_length": least, "length_penalty": penalty}
    found = beam_search(model.step, prompt, end=0, max_length=4, beams=256, **options)
    written = [[*w, 0] for n in range(least, 4) for w in itertools.product(range(1, VOCABULARY), repeat=n)]
    few = beam_search(model.step, prompt, end=0, max_length=4, beams=64, **options)
    for row, (start, length) in enumerate(zip(prompt.cu_seqlens.tolist(), PROMPTS, strict=False)):
        scores = [(score(model, prompt.ids[start : start + length], w), w) for w in written]
        scores.sort(key=lambda found: found[0] / len(found[1]) ** penalty, reverse=True)
        ended = int(found.finished[row].sum())
        assert ended == len(written)
        torch.testing.assert_close(
            found.log_probs[row, :ended], torch.tensor([s for s, _ in scores]), atol=1e-5, rtol=1e-5
        )
        assert found.sequences()[row][:ended] == [w[:-1] for _, w in scores]
        # Behind them stand the likeliest that were cut at four tokens.
        assert found.lengths[row, ended:].unique().tolist() == [4]
        # Stopping early loses nothing: as many beams as ever run at once find the same best ones.
        assert few.sequences()[row] == found.sequences()[row][:64]


def test_greedy_takes_the_likeliest(ids: Callable[..., TokenIds]) -> None:
    model, prompt = decoder(), ids(PROMPTS, VOCABULARY)
    found = generate(model.step, prompt, end=0, max_length=7)
    for row, (sequence,) in enumerate(found.sequences()):
        start, end = prompt.cu_seqlens[row : row + 2].tolist()
        written = sequence + [0] * int(found.finished[row, 0])
        assert abs(float(found.log_probs[row, 0]) - score(model, prompt.ids[start:end], written)) < 1e-4
        for n, token in enumerate(written):
            options = [score(model, prompt.ids[start:end], [*written[:n], t]) for t in range(VOCABULARY)]
            assert max(range(VOCABULARY), key=options.__getitem__) == token


def test_beams_end_where_the_model_does(ids: Callable[..., TokenIds]) -> None:
    """A model that ends for sure: one sequence, the other places empty."""

    def step(batch: TokenIds, cache: KeyValueCache | None) -> Tensor:
        return torch.tensor([0.0, *[float("-inf")] * 4]).expand(len(batch.rows), -1)

    found = beam_search(step, ids((2, 3), VOCABULARY), end=0, max_length=6, beams=3)
    assert found.ids.tolist() == [[[0]] * 3] * 2
    assert found.lengths.tolist() == [[1, 0, 0]] * 2
    assert found.sequences() == [[[]], [[]]]


def test_sampling_follows_the_probabilities() -> None:
    scores = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().expand(20_000, -1)
    generator = torch.Generator().manual_seed(0)

    def shares(sampling: Sampling) -> Tensor:
        return torch.bincount(sampling.draw(scores, generator), minlength=4) / len(scores)

    torch.testing.assert_close(shares(Sampling()), scores[0].exp(), atol=0.015, rtol=0)
    torch.testing.assert_close(shares(Sampling(top_k=2)), torch.tensor([0.625, 0.375, 0, 0]), atol=0.015, rtol=0)
    torch.testing.assert_close(shares(Sampling(top_p=0.75)), torch.tensor([0.625, 0.375, 0, 0]), atol=0.015, rtol=0)
    torch.testing.assert_close(shares(Sampling(top_p=0.01)), torch.tensor([1.0, 0, 0, 0]), atol=0, rtol=0)
    colder = (scores[0] / 0.5).softmax(-1)
    torch.testing.assert_close(shares(Sampling(temperature=0.5)), colder, atol=0.015, rtol=0)


def test_sampled_sequences_repeat_with_their_generator(ids: Callable[..., TokenIds]) -> None:
    model, prompt = decoder(), ids(PROMPTS, VOCABULARY)
    draws = [
        generate(
            model.step, prompt, end=0, max_length=8, sampling=Sampling(), generator=torch.Generator().manual_seed(seed)
        )
        for seed in (1, 1, 2)
    ]
    assert torch.equal(draws[0].ids, draws[1].ids)
    assert draws[0].sequences() != draws[2].sequences()


def test_no_prompts_and_empty_prompts(ids: Callable[..., TokenIds]) -> None:
    model = decoder()
    assert generate(model.step, ids(()), end=0, max_length=4).sequences() == []
    assert beam_search(model.step, ids(()), end=0, max_length=4, beams=2).sequences() == []
    with pytest.raises(DataError, match="prompt is empty"):
        generate(model.step, ids((2, 0)), end=0, max_length=4)
