"""Gene tokens, hidden values, and what is told of them, by hand."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from polyfm.domains.singlecell.embedder import GeneTokens
from polyfm.domains.singlecell.objectives import (
    HIDDEN,
    BatchAdversary,
    CellExpression,
    HideValues,
    MaskedExpression,
    PseudoCell,
    ToldProteins,
)
from polyfm.domains.singlecell.sample import CLS, Genes
from polyfm.shared.backbones.block import PostNorm
from polyfm.shared.backbones.encoder import Encoder, MultimodalModel
from polyfm.shared.backbones.transformer import Transformer
from polyfm.shared.data.batch import Batch
from polyfm.shared.data.collate import pack_ids
from polyfm.shared.errors import DataError, RecipeError
from polyfm.shared.objectives.objective import Progress
from polyfm.shared.tokens.masking import Draw
from polyfm.shared.tokens.text import TextTokens
from polyfm.shared.training.views import answer


def cells(*cells: list[tuple[int, float]]) -> Genes:
    """Genes and values of each, [CLS] first."""
    pairs = [[(CLS, 0.0), *cell] for cell in cells]
    return Genes(
        rows=torch.arange(len(pairs)),
        ids=torch.tensor([gene for cell in pairs for gene, _ in cell]),
        values=torch.tensor([value for cell in pairs for _, value in cell]),
        cu_seqlens=torch.tensor([0, *[len(cell) for cell in pairs]]).cumsum(0).int(),
    )


BATCH = cells([(3, 5.0), (4, 1.0), (9, 50.0)], [(4, 2.0)])


def encoder() -> Encoder:
    torch.manual_seed(0)
    trunk = partial(Transformer, depth=1, block=partial(PostNorm, heads=2, hidden=16, dropout=0.0))
    return Encoder(8, partial(GeneTokens, vocabulary=12, dropout=0.0), trunk)


def whole(genes: Genes) -> Batch:
    size = len(genes.rows)
    keys = torch.arange(size)
    return Batch(ids=[str(i) for i in range(size)], keys=keys, modalities={"genes": genes}, targets={}, groups=keys)


class TestTokens:
    def test_a_token_is_its_gene_and_its_value(self) -> None:
        embedder = GeneTokens(8, vocabulary=12, dropout=0.0)
        tokens = embedder(BATCH)
        assert tokens.x.shape == (2, 4, 8)
        assert tokens.lengths.tolist() == [4, 2]
        inner = torch.relu(embedder.inner.weight[:, 0] * 50 + embedder.inner.bias)
        value = nn.functional.layer_norm(
            embedder.outer(inner), (8,), embedder.value_norm.weight, embedder.value_norm.bias
        )
        gene = nn.functional.layer_norm(embedder.table.weight[9], (8,))
        torch.testing.assert_close(tokens.x[0, 3], gene + value)

    def test_packed_and_padded_are_the_same_and_order_does_not_matter(self) -> None:
        one = encoder().eval()
        turned = cells([(9, 50.0), (3, 5.0), (4, 1.0)], [(4, 2.0)])
        torch.testing.assert_close(one(BATCH).pooled, one(turned).pooled)
        one.embedder.packed = True
        torch.testing.assert_close(one(BATCH).pooled, one(turned).pooled)

    def test_rows_can_be_chosen(self) -> None:
        some = BATCH.select(torch.tensor([1, 0]))
        assert some.ids.tolist() == [CLS, 4, CLS, 3, 4, 9]
        assert some.values.tolist() == [0, 2, 0, 5, 1, 50]


class TestHidden:
    def test_values_are_hidden_and_genes_stay(self) -> None:
        many = cells(*[[(gene, 1.0) for gene in range(3, 12)]] * 200)
        keys = torch.arange(200)
        hidden, selected = HideValues(0.4)(many, keys, Draw(0, 0))
        assert torch.equal(hidden.ids, many.ids)
        assert not selected[many.ids == CLS].any()
        assert (hidden.values[selected] == HIDDEN).all()
        assert torch.equal(hidden.values[~selected], many.values[~selected])
        assert abs(selected[many.ids != CLS].float().mean() - 0.4) < 0.03
        assert selected.view(200, 10).any(1).all()
        again, _ = HideValues(0.4)(many, keys, Draw(0, 0))
        other, _ = HideValues(0.4)(many, keys, Draw(0, 1))
        assert torch.equal(again.values, hidden.values)
        assert not torch.equal(other.values, hidden.values)

    def test_a_cell_with_one_gene_has_it_hidden(self) -> None:
        _, selected = HideValues(0.01)(BATCH, torch.tensor([5, 6]), Draw(0, 0))
        assert selected[-1]

    def test_losses_are_those_of_the_equations(self) -> None:
        model = MultimodalModel({"genes": encoder()}).eval()
        by_token, by_cell = MaskedExpression(), CellExpression()
        for objective in (by_token, by_cell):
            objective.build(model.encoders)  # type: ignore[arg-type]
        assert by_token.needs() == by_cell.needs()
        views = answer(by_token.needs(), whole(BATCH), model, None, Draw(0, 0), Progress())
        features = views[by_token.view]
        chosen = features.selected.nonzero()[:, 0].tolist()  # type: ignore[union-attr]
        flat, owner = features.tokens.items(), [0, 0, 0, 0, 1, 1]
        wanted = BATCH.values[chosen]
        told = by_token.head(flat[chosen])[:, 0]
        torch.testing.assert_close(by_token(views, whole(BATCH)).loss, (told - wanted).square().mean())
        embedder: Any = model.encoders["genes"].embedder
        squares = []
        for place in chosen:
            query = torch.sigmoid(by_cell.head.query(embedder.gene_norm(embedder.table.weight[BATCH.ids[place]])))
            squares.append((query @ by_cell.head.cell(features.pooled[owner[place]]) - BATCH.values[place]) ** 2)
        torch.testing.assert_close(by_cell(views, whole(BATCH)).loss, torch.stack(squares).mean())

    def test_proteins_are_told_from_the_rna_of_their_cell(self) -> None:
        model = MultimodalModel({"genes": encoder(), "proteins": encoder()}).eval()
        objective = ToldProteins()
        objective.build(model.encoders)  # type: ignore[arg-type]
        proteins = cells([(3, 1.5), (5, -0.5)]).replace(rows=torch.tensor([1]))  # the first cell has none
        batch = whole(BATCH)
        batch.modalities["proteins"] = proteins
        views = answer(objective.needs(), batch, model, None, Draw(0, 0), Progress())
        embedder: Any = model.encoders["proteins"].embedder
        rna = objective.head.cell(views[objective.view].pooled[1])
        told = torch.stack(
            [torch.sigmoid(objective.head.query(embedder.genes(torch.tensor(id)))) @ rna for id in (3, 5)]
        )
        loss = objective(views, batch).loss
        torch.testing.assert_close(loss, (told - torch.tensor([1.5, -0.5])).square().mean())
        loss.backward()
        assert model.encoders["genes"].embedder.table.weight.grad is not None
        batch.modalities["proteins"] = proteins.select(torch.zeros(0, dtype=torch.int64))
        assert objective(views, batch).loss == 0

    def test_ranks_have_no_values_to_hide(self) -> None:
        trunk = partial(Transformer, depth=1, block=partial(PostNorm, heads=2))
        with pytest.raises(RecipeError, match="TextTokens, reads no values. Use GeneTokens"):
            MaskedExpression().build({"genes": Encoder(8, partial(TextTokens, vocabulary=12), trunk)})


def test_the_rank_encoder_is_bert() -> None:
    """The recipe's own encoder at small size, its weights in transformers' BertModel."""
    import transformers

    from polyfm.shared.backbones.conversion import KEY_MAPS
    from polyfm.shared.data.batch import TokenIds
    from polyfm.shared.training.build import RecipeParser
    from polyfm.shared.training.recipe import find_recipe

    recipe = find_recipe("singlecell/geneformer")
    ours = RecipeParser(recipe, recipe.sized("small"), ["--data.path=none"]).model.model.encoders["genes"].eval()
    config = transformers.BertConfig(
        vocab_size=2003, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
        max_position_embeddings=256,
    )  # fmt: skip
    theirs = transformers.BertModel(config, add_pooling_layer=False).eval()
    state, left = KEY_MAPS["bert"].revert(ours.state_dict())
    assert left == []
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert not unexpected
    assert all("token_type" in name or "position_ids" in name for name in missing)
    nn.init.zeros_(theirs.embeddings.token_type_embeddings.weight)
    ids = torch.randint(3, 2003, (2, 40), generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([40, 25])
    mask = torch.arange(40) < lengths[:, None]
    batch = TokenIds(rows=torch.arange(2), ids=ids[mask], cu_seqlens=torch.tensor([0, 40, 65]).int())
    with torch.inference_mode():
        found = ours(batch)
        expected = theirs(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    torch.testing.assert_close(found.tokens.pad().x[mask], expected[mask], atol=1e-5, rtol=1e-5)
    mean = (expected * mask[..., None]).sum(1) / lengths[:, None]
    torch.testing.assert_close(found.pooled, mean, atol=1e-5, rtol=1e-5)


class TestBatches:
    def test_the_gradient_is_turned(self) -> None:
        model = MultimodalModel({"genes": encoder()})
        objective = BatchAdversary(batches=3, weight=0.5)
        objective.build(model.encoders)  # type: ignore[arg-type]
        batch = whole(BATCH).replace(targets={"batch": torch.tensor([2.0, torch.nan])})
        views = answer(objective.needs(), batch, model, None, Draw(0, 0), Progress())
        pooled = views[objective.view].pooled
        pooled.retain_grad()
        loss = objective(views, batch).loss
        loss.backward()
        assert pooled.grad is not None
        straight = pooled.detach().clone().requires_grad_()
        plain = nn.functional.cross_entropy(objective.head(straight[:1]), torch.tensor([2]))
        torch.testing.assert_close(loss, plain)
        plain.backward()
        torch.testing.assert_close(pooled.grad, -0.5 * straight.grad)  # type: ignore[operator]

    def test_too_many_batches_and_none_are_refused(self) -> None:
        model = MultimodalModel({"genes": encoder()})
        objective = BatchAdversary(batches=2)
        objective.build(model.encoders)  # type: ignore[arg-type]
        views = answer(objective.needs(), whole(BATCH), model, None, Draw(0, 0), Progress())
        with pytest.raises(RecipeError, match="more batches than 2"):
            objective(views, whole(BATCH).replace(targets={"batch": torch.tensor([2.0, 0.0])}))
        with pytest.raises(DataError, match="no batches are known.* Name their column: --data.group"):
            objective(views, whole(BATCH))


def test_pseudo_cells_are_told_of_genes_that_are_there_and_of_some_that_are_not() -> None:
    trunk = partial(Transformer, depth=1, block=partial(PostNorm, heads=2, hidden=16, dropout=0.0))
    text = Encoder(8, partial(TextTokens, vocabulary=9, dropout=0.0), trunk)
    model = MultimodalModel({"genes": encoder(), "text": text}).eval()
    objective = PseudoCell()
    objective.build(model.encoders)  # type: ignore[arg-type]
    batch = whole(BATCH)
    batch = batch.replace(modalities={**batch.modalities, "text": pack_ids([np.array([4, 5]), np.array([6])])})
    views = answer(objective.needs(), batch, model, None, Draw(0, 0), Progress())
    out = objective(views, batch)
    pooled = views[objective.view].pooled
    told = objective.expression(model, pooled, torch.tensor([0, 0, 0, 1]), torch.tensor([3, 4, 9, 4]))
    there = (told - torch.tensor([5.0, 1.0, 50.0, 2.0])).square().sum()
    number = int(out.logs["values"])
    assert 4 <= number <= 8
    assert out.loss * number >= there - 1e-3
    embedder: Any = model.encoders["genes"].embedder
    expected = objective.mlp(pooled[1]) @ embedder.gene_norm(embedder.table.weight[4]) + objective.typical.weight[4, 0]
    torch.testing.assert_close(told[3], expected)
