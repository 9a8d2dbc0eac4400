"""Attention that carries pairs: by hand, padded = packed, and what it refuses."""

from __future__ import annotations

import math

import pytest
import torch

from polyfm.domains.molecules.backbone import PairBlock, PairTransformer
from polyfm.domains.molecules.conformers import made_conformers, pack_conformers
from polyfm.domains.molecules.embedder import ConformerTokens
from polyfm.shared.backbones.masks import CAUSAL
from polyfm.shared.errors import RecipeError
from polyfm.shared.tokens.tokens import Tokens

SMILES = ["CCO", "C", "CC(=O)N"]


def embedded(*smiles: str, heads: int = 4) -> Tokens:
    torch.manual_seed(0)
    tokens: Tokens = ConformerTokens(16, heads=heads, kernels=8).eval()(pack_conformers(made_conformers(smiles)))
    return tokens


def backbone(**arguments: int) -> PairTransformer:
    torch.manual_seed(1)
    return PairTransformer(16, **{"depth": 3, "heads": 4, **arguments}).eval()


def test_a_layer_by_hand() -> None:
    """Q and K pass on, V too: q + x xᵀ, and softmax of that over x."""
    block = PairBlock(2, heads=1)
    with torch.no_grad():
        block.query_key_value.weight.copy_(torch.eye(2).repeat(3, 1))
        block.query_key_value.bias.zero_()
        block.output.weight.copy_(torch.eye(2))
        block.output.bias.zero_()
        for part in (block.feed_forward.outer.weight, block.feed_forward.outer.bias):
            part.zero_()
    x = torch.tensor([[[1.0, -1.0], [-3.0, 3.0]]])  # normed: (1, -1), (-1, 1)
    scores = torch.tensor([[[[0.5, 0.0], [0.0, math.log(2)]]]])
    out, after = block(x, scores, torch.zeros(1, 1, 1, 2, dtype=torch.bool))
    r = math.sqrt(2)
    torch.testing.assert_close(after, torch.tensor([[[[0.5 + r, -r], [-r, math.log(2) + r]]]]), atol=1e-4, rtol=0)
    near = math.exp(0.5 + r) / (math.exp(0.5 + r) + math.exp(-r))
    far = 2 * math.exp(r) / (2 * math.exp(r) + math.exp(-r))
    heard = torch.tensor([[[2 * near - 1, 1 - 2 * near], [1 - 2 * far, 2 * far - 1]]])
    torch.testing.assert_close(out, x + heard, atol=1e-4, rtol=0)


def test_a_molecule_is_seen_alike_in_any_company() -> None:
    together, model = embedded(*SMILES), backbone()
    out = model(together)
    for i, smiles in enumerate(SMILES):
        alone = model(embedded(smiles))
        size = alone.x.shape[1]
        torch.testing.assert_close(out.x[i, :size], alone.x[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(out.pairs.last[i, :size, :size], alone.pairs.last[0], atol=1e-5, rtol=1e-5)


def test_packed_tokens_and_chosen_molecules_give_the_same() -> None:
    tokens, model = embedded(*SMILES), backbone()
    padded, packed = model(tokens), model(tokens.pack())
    assert packed.packed
    torch.testing.assert_close(packed.x, padded.pack().x)
    keep = torch.tensor([1])
    few = model(tokens.pack().select(keep))  # shorter than the longest of before
    torch.testing.assert_close(few.pad().x[0], padded.x[1, :6])
    torch.testing.assert_close(few.pad().pairs.last[0], padded.pairs.last[1, :6, :6])


def test_scores_are_carried_and_vectors_before_the_norm_kept() -> None:
    tokens, model = embedded(*SMILES), backbone()
    out = model(tokens)
    torch.testing.assert_close(out.pairs.first, tokens.pairs.first)
    assert not torch.allclose(out.pairs.last, tokens.pairs.last)
    torch.testing.assert_close(model.norm(out.pairs.tokens), out.x)
    shallow = model(tokens, depth=2)
    torch.testing.assert_close(shallow.pairs.tokens, shallow.x)


def test_recomputed_activations_are_the_same() -> None:
    tokens, model = embedded(*SMILES), PairTransformer(16, depth=3, heads=4, dropout=0.0).train()
    kept = torch.autograd.grad(model(tokens).x.sum(), model.blocks[0].output.weight)[0]
    model.recompute = True
    again = torch.autograd.grad(model(tokens).x.sum(), model.blocks[0].output.weight)[0]
    torch.testing.assert_close(again, kept)


def test_what_it_cannot_do_is_said() -> None:
    tokens, model = embedded(*SMILES), backbone()
    with pytest.raises(RecipeError, match="no mask, no context and no cache"):
        model(tokens, CAUSAL)
    with pytest.raises(RecipeError, match="2 numbers of each pair, a PairTransformer of 4 heads needs 4"):
        model(embedded(*SMILES, heads=2))
    with pytest.raises(RecipeError, match="tells nothing of each pair"):
        model(tokens.replace(pairs=None))
    with pytest.raises(RecipeError, match="a divisor of the width 16"):
        PairTransformer(16, heads=5)
