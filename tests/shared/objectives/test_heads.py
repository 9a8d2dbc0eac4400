from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from polyfm.shared.data import ragged
from polyfm.shared.errors import RecipeError
from polyfm.shared.objectives.causal import CausalLM
from polyfm.shared.objectives.heads import TokenHead, before_items
from polyfm.shared.tokens.tokens import Tokens


@given(lengths=st.lists(st.integers(1, 5), max_size=5), prefix=st.integers(0, 1), padded=st.booleans())
@settings(max_examples=60)
def test_each_token_stands_before_the_item_that_it_predicts(lengths: list[int], prefix: int, padded: bool) -> None:
    cu = ragged.boundaries(torch.tensor(lengths, dtype=torch.int64))
    # A token's vector is (sequence, place).
    x = torch.stack([ragged.owners(cu, sum(lengths)), ragged.places(cu, sum(lengths))], dim=1).float()
    tokens = Tokens(x=x, positions=x[:, 1:], cu_seqlens=cu, prefix=prefix)
    if padded:
        tokens = tokens.pad()
    before, index = before_items(tokens)
    after = tokens.items()[index]
    assert torch.equal(before + torch.tensor([0.0, 1.0]), after)
    assert len(before) == sum(length - 1 for length in lengths)
    assert len(index.unique()) == len(index)


def test_the_token_head_is_berts() -> None:
    from transformers import BertConfig
    from transformers.models.bert.modeling_bert import BertLMPredictionHead

    torch.manual_seed(0)
    theirs = BertLMPredictionHead(BertConfig(hidden_size=8, vocab_size=11))
    nn.init.normal_(theirs.decoder.bias)
    ours = TokenHead(8, 11)
    ours.load_state_dict(
        {
            "dense.weight": theirs.transform.dense.weight,
            "dense.bias": theirs.transform.dense.bias,
            "norm.weight": theirs.transform.LayerNorm.weight,
            "norm.bias": theirs.transform.LayerNorm.bias,
            "bias": theirs.decoder.bias,
        }
    )
    x = torch.randn(3, 8)
    torch.testing.assert_close(ours(x, theirs.decoder.weight), theirs(x))


def test_the_table_is_neither_saved_nor_counted_twice(bench: Any) -> None:
    objective = bench(CausalLM("smiles")).objective
    assert {name for name, _ in objective.named_parameters()} == {
        "head.dense.weight",
        "head.dense.bias",
        "head.norm.weight",
        "head.norm.bias",
        "head.bias",
    }


def test_a_modality_without_a_table_is_named(bench: Any) -> None:
    with pytest.raises(RecipeError, match="'properties', ValueTokens, has no table"):
        bench(CausalLM("properties"))
