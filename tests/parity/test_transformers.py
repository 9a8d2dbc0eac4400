"""Our encoder and decoder against transformers' on converted random weights, and the conversion both ways."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from polyfm.shared.backbones.block import Llama, PostNorm, PreNorm
from polyfm.shared.backbones.conversion import KEY_MAPS
from polyfm.shared.backbones.decoder import CausalDecoder
from polyfm.shared.backbones.encoder import Encoder
from polyfm.shared.backbones.generation import beam_search, generate
from polyfm.shared.backbones.transformer import Transformer
from polyfm.shared.data import ragged
from polyfm.shared.data.batch import TokenIds
from polyfm.shared.tokens.positions import NoPositions
from polyfm.shared.tokens.text import TextTokens

VOCABULARY, WIDTH, HEADS, DEPTH = 40, 32, 4, 2
LENGTHS = torch.tensor([5, 9, 1, 7])


def randomised(model: nn.Module) -> Any:
    """Weights large enough that every part matters."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model.eval()


def inputs() -> tuple[Tensor, Tensor, TokenIds]:
    """Padded ids, their mask, and the same packed."""
    mask = torch.arange(int(LENGTHS.max())) < LENGTHS[:, None]
    ids = torch.randint(1, VOCABULARY, mask.shape) * mask
    packed = TokenIds(rows=torch.arange(len(ids)), ids=ids[mask], cu_seqlens=ragged.boundaries(LENGTHS))
    return ids, mask, packed


def bert(attention: str = "sdpa") -> BertModel:
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        num_attention_heads=HEADS,
        num_hidden_layers=DEPTH,
        intermediate_size=4 * WIDTH,
        max_position_embeddings=16,
        attn_implementation=attention,
    )
    return randomised(BertModel(config))


def our_bert(packed: bool = False) -> Encoder:
    embedder = partial(TextTokens, vocabulary=VOCABULARY, packed=packed)
    model = Encoder(WIDTH, embedder, partial(Transformer, depth=DEPTH, block=partial(PostNorm, heads=HEADS)))
    model.embedder.positions = type(model.embedder.positions)(WIDTH, maximum=16)
    return model.eval()


def llama() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        num_attention_heads=HEADS,
        num_key_value_heads=2,
        num_hidden_layers=DEPTH,
        intermediate_size=48,
        max_position_embeddings=64,
        rms_norm_eps=1e-6,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    return randomised(LlamaForCausalLM(config))


def our_llama() -> CausalDecoder:
    embedder = partial(TextTokens, vocabulary=VOCABULARY, positions=NoPositions, norm=False, dropout=0.0)
    block = partial(Llama, heads=HEADS, kv_heads=2, hidden=48)
    return CausalDecoder(WIDTH, embedder, partial(Transformer, depth=DEPTH, block=block), tied=False).eval()


def gpt2() -> GPT2LMHeadModel:
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=WIDTH,
        n_head=HEADS,
        n_layer=DEPTH,
        n_positions=512,
        eos_token_id=0,
        pad_token_id=0,
    )
    return randomised(GPT2LMHeadModel(config))


def our_gpt2() -> CausalDecoder:
    embedder = partial(TextTokens, vocabulary=VOCABULARY, norm=False)
    block = partial(PreNorm, heads=HEADS, eps=1e-5, activation="gelu_tanh")
    return CausalDecoder(WIDTH, embedder, partial(Transformer, depth=DEPTH, block=block)).eval()


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_encoder_is_bert(attention: str, packed: bool) -> None:
    reference, model = bert(attention), our_bert(packed)
    state, left = KEY_MAPS["bert"].convert(reference.state_dict())
    model.load_state_dict(state)
    assert all(key.startswith("pooler.") or key.endswith("position_ids") for key in left)
    ids, mask, batch = inputs()
    expected = reference(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    features = model(batch)
    torch.testing.assert_close(features.tokens.pack().x, expected[mask], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(features.pooled, expected[:, 0], atol=1e-5, rtol=1e-5)

    features.tokens.pack().x.square().sum().backward()
    expected[mask].square().sum().backward()
    torch.testing.assert_close(
        model.embedder.table.weight.grad, reference.embeddings.word_embeddings.weight.grad, atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize(("make", "ours", "family"), [(llama, our_llama, "llama"), (gpt2, our_gpt2, "gpt2")])
def test_decoder_is_the_language_model(make: Any, ours: Any, family: str) -> None:
    reference, model = make(), ours()
    state, left = KEY_MAPS[family].convert(reference.state_dict())
    model.load_state_dict(state)
    assert left == []
    ids, mask, batch = inputs()
    expected = reference(input_ids=ids, attention_mask=mask.long()).logits
    logits = model.head(model(batch).pack().x)
    torch.testing.assert_close(logits, expected[mask], atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(
        model.step(batch), expected[torch.arange(len(LENGTHS)), LENGTHS - 1], atol=2e-5, rtol=2e-5
    )


@pytest.mark.parametrize(("make", "ours", "family"), [(llama, our_llama, "llama"), (gpt2, our_gpt2, "gpt2")])
def test_generation_is_theirs(make: Any, ours: Any, family: str) -> None:
    reference, model = make(), ours()
    model.load_state_dict(KEY_MAPS[family].convert(reference.state_dict())[0])
    _, _, batch = inputs()
    written = generate(model.step, batch, end=0, max_length=8).sequences()
    beams = beam_search(model.step, batch, end=0, max_length=8, beams=3)
    for row in range(len(LENGTHS)):  # one by one: theirs needs prompts of equal length, or padding on the left
        prompt = batch.select(torch.tensor([row])).ids[None]
        asked = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": 8, "do_sample": False}
        theirs = reference.generate(prompt, **asked)[0, prompt.shape[1] :].tolist()
        assert written[row][0] == (theirs[: theirs.index(0)] if 0 in theirs else theirs)
        theirs = reference.generate(
            prompt,
            **asked,
            num_beams=3,
            length_penalty=0.0,
            early_stopping="never",
            return_dict_in_generate=True,
            output_scores=True,
        )
        assert float(beams.log_probs[row, 0]) >= float(theirs.sequences_scores[0]) - 1e-4


@pytest.mark.parametrize(
    ("make", "ours", "family"), [(bert, our_bert, "bert"), (llama, our_llama, "llama"), (gpt2, our_gpt2, "gpt2")]
)
def test_conversion_goes_both_ways(make: Any, ours: Any, family: str) -> None:
    """Ours, reverted, loads into theirs and computes the same; reverted and converted again it is what it was."""
    model, reference, names = randomised(ours()), make(), KEY_MAPS[family]
    theirs, left = names.revert(model.state_dict())
    assert left == []
    missing, unexpected = reference.load_state_dict(theirs, strict=False)
    assert not unexpected
    assert all(key.startswith("pooler.") for key in missing)
    ids, mask, batch = inputs()
    output = reference(input_ids=ids, attention_mask=mask.long())
    if family == "bert":
        torch.testing.assert_close(model(batch).tokens.pack().x, output.last_hidden_state[mask], atol=2e-5, rtol=2e-5)
    else:
        torch.testing.assert_close(model.head(model(batch).pack().x), output.logits[mask], atol=2e-5, rtol=2e-5)
    again, _ = names.convert(theirs)
    assert again.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, again[key]) for key, tensor in model.state_dict().items())
