"""From a modality's batch to features, also where the modality is missing."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn

from polyfm.shared.backbones.backbone import Backbone
from polyfm.shared.backbones.block import Llama, PostNorm
from polyfm.shared.backbones.encoder import Encoder, MultimodalModel, num_parameters, on_meta
from polyfm.shared.backbones.masks import CAUSAL
from polyfm.shared.backbones.pooling import Mean
from polyfm.shared.backbones.transformer import Transformer
from polyfm.shared.data.batch import TokenIds, Values
from polyfm.shared.errors import RecipeError
from polyfm.shared.tokens.embedder import Embedder
from polyfm.shared.tokens.positions import NoPositions
from polyfm.shared.tokens.table import ValueTokens
from polyfm.shared.tokens.text import TextTokens
from polyfm.shared.tokens.tokens import Tokens

TRUNK = partial(Transformer, depth=2, block=partial(PostNorm, heads=2))


@pytest.mark.parametrize("packed", [True, False])
def test_features(ids: Callable[..., TokenIds], packed: bool) -> None:
    batch = ids()
    model = Encoder(16, partial(TextTokens, vocabulary=50, packed=packed), TRUNK, projection=8).eval()
    features = model(batch)
    assert features.tokens.packed == packed
    assert features.tokens.items().shape == (len(batch.ids), 16)
    assert features.pooled.shape == (9, 16)
    torch.testing.assert_close(features.projected.norm(dim=-1), torch.ones(9))
    assert torch.equal(features.rows, batch.rows)


@pytest.mark.parametrize("pooling", [None, Mean])
@pytest.mark.parametrize("packed", [True, False])
def test_zero_rows(ids: Callable[..., TokenIds], packed: bool, pooling: type | None) -> None:
    more = {} if pooling is None else {"pooling": pooling}
    model = Encoder(16, partial(TextTokens, vocabulary=50, packed=packed), TRUNK, projection=8, **more).train()
    features = model(ids([]), CAUSAL)
    assert features.projected.shape == (0, 8)
    (features.projected.sum() + features.tokens.x.sum()).backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_zero_rows_of_a_table() -> None:
    model = Encoder(16, partial(ValueTokens, columns=5), TRUNK, projection=8).train()
    batch = Values(rows=torch.arange(0), values=torch.zeros(0, 5), known=torch.zeros(0, 5, dtype=torch.bool))
    model(batch).projected.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_modalities_by_name(ids: Callable[..., TokenIds]) -> None:
    model = MultimodalModel({"text": Encoder(16, partial(TextTokens, vocabulary=50), TRUNK)})
    assert model("text", ids([2, 3])).pooled.shape == (2, 16)
    tokens = model.encoders["text"](ids([2])).tokens
    with pytest.raises(RecipeError, match=r"no model\.fusion"):
        model.fuse(tokens, tokens)


def test_parts_that_lack_something_say_so(ids: Callable[..., TokenIds]) -> None:
    batch = ids([2])
    with pytest.raises(TypeError, match="Embedder has no forward"):
        Embedder()(batch)
    with pytest.raises(TypeError, match="cannot generate"):
        Embedder().continued(batch, torch.zeros(1))
    tokens = Tokens(x=torch.zeros(1, 1, 4), positions=torch.zeros(1, 1, 1), mask=torch.ones(1, 1, dtype=torch.bool))
    with pytest.raises(TypeError, match="Backbone has no forward"):
        Backbone()(tokens)


def test_sizes_without_memory() -> None:
    """BERT-base has 109,482,240 parameters, of which pooler (590,592) and segments (2 x 768) have no place here."""
    build = partial(Encoder, 768, partial(TextTokens, vocabulary=30522), partial(Transformer, depth=12, block=PostNorm))
    model = on_meta(build)
    assert num_parameters(model) == 109_482_240 - 590_592 - 2 * 768
    assert next(model.parameters()).is_meta


def test_size_of_llama_7b() -> None:
    """6,738,415,616 parameters, half of the embeddings (32,000 x 4,096) in the head that an encoder has not."""
    embedder = partial(TextTokens, vocabulary=32_000, positions=NoPositions, norm=False)
    block = partial(Llama, heads=32, hidden=11_008)
    model: nn.Module = on_meta(partial(Encoder, 4096, embedder, partial(Transformer, depth=32, block=block)))
    assert num_parameters(model) == 6_738_415_616 - 32_000 * 4096
