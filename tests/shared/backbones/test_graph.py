"""Message passing against dense references: an adjacency matrix instead of a list of edges."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyfm.shared.backbones.encoder import Encoder
from polyfm.shared.backbones.graph import GAT, GIN, GATLayer, GINLayer, MessagePassing
from polyfm.shared.backbones.masks import CAUSAL
from polyfm.shared.backbones.pooling import Mean
from polyfm.shared.data import ragged
from polyfm.shared.data.batch import Graphs
from polyfm.shared.errors import RecipeError
from polyfm.shared.tokens.graph import GraphTokens
from polyfm.shared.tokens.tokens import Edges, Tokens

WIDTH, NODES, EDGES = 16, (7, 3), (5, 2)


def graphs(sizes: tuple[int, ...] = (4, 1, 6, 3)) -> Graphs:
    """Random undirected graphs; edges of all graphs mixed."""
    cu = ragged.boundaries(torch.tensor(sizes, dtype=torch.int64))
    pairs = []
    for start, size in zip(cu.tolist(), sizes, strict=False):
        upper = torch.triu(torch.rand(size, size) < 0.6, diagonal=1).nonzero() + start
        pairs.append(upper)
    half = torch.cat([torch.zeros(0, 2, dtype=torch.int64), *pairs])
    kinds = torch.stack([torch.randint(0, size, (len(half),)) for size in EDGES], dim=-1)
    order = torch.randperm(2 * len(half))
    return Graphs(
        rows=torch.arange(len(sizes)),
        node_features=torch.stack([torch.randint(0, size, (sum(sizes),)) for size in NODES], dim=-1),
        edge_index=torch.cat([half, half.flip(1)])[order].T,
        edge_features=torch.cat([kinds, kinds])[order],
        cu_nodes=cu,
    )


def encoder(backbone: partial[MessagePassing]) -> Encoder:
    return Encoder(WIDTH, partial(GraphTokens, cardinalities=NODES), backbone, Mean, projection=8)


def dense(edges: Edges, count: int, table: nn.Module) -> tuple[Tensor, Tensor]:
    """(A, A) who hears whom and (A, A, D) vectors of the edges."""
    heard = torch.zeros(count, count)
    heard[edges.index[1], edges.index[0]] = 1
    vectors = torch.zeros(count, count, WIDTH)
    vectors[edges.index[1], edges.index[0]] = table(edges.features)
    return heard, vectors


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.BatchNorm1d])
def test_gin_is_the_dense_formula(norm: type[nn.Module]) -> None:
    model = encoder(partial(GIN, depth=3, edge_cardinalities=EDGES, learn_eps=True, norm=norm)).train()
    batch = graphs()
    tokens = model.embedder(batch)
    x = tokens.x
    for i, layer in enumerate(model.backbone.blocks):
        assert isinstance(layer, GINLayer)
        nn.init.constant_(layer.eps, 0.1 * i)
        heard, vectors = dense(tokens.edges, len(x), layer.edge)
        total = (1 + layer.eps) * x + heard @ x + vectors.sum(1)
        x = layer.norm(layer.mlp(total))
        x = x if i == 2 else x.relu()
    torch.testing.assert_close(model(batch).tokens.x, x, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("cardinalities", [(), EDGES], ids=["paper", "with edges"])
def test_gat_is_the_dense_masked_softmax(cardinalities: tuple[int, ...]) -> None:
    model = encoder(partial(GAT, depth=2, heads=4, edge_cardinalities=cardinalities, norm=nn.Identity)).eval()
    batch = graphs()
    tokens = model.embedder(batch)
    x = tokens.x
    for i, layer in enumerate(model.backbone.blocks):
        assert isinstance(layer, GATLayer)
        h = layer.linear(x)
        heard, vectors = dense(tokens.edges, len(x), layer.edge)
        said = (h + vectors).unflatten(-1, (4, -1))  # (A, A, H, d): what each hears from each
        own = (h.unflatten(-1, (4, -1)) * layer.from_self).sum(-1)
        scores = F.leaky_relu((said * layer.from_neighbour).sum(-1) + own[:, None], 0.2)
        seen = (heard + torch.eye(len(x))).bool()
        weights = scores.masked_fill(~seen[..., None], float("-inf")).softmax(1)
        x = (weights[..., None] * said).sum(1).flatten(1) + layer.bias
        x = x if i == 1 else F.elu(x)
    torch.testing.assert_close(model(batch).tokens.x, x, atol=1e-5, rtol=1e-5)


BACKBONES = [
    partial(GIN, depth=2, edge_cardinalities=EDGES, learn_eps=True),
    partial(GAT, depth=2, edge_cardinalities=EDGES),
]


@pytest.mark.parametrize("backbone", BACKBONES, ids=["gin", "gat"])
def test_graphs_do_not_see_one_another_and_may_be_chosen(backbone: partial[MessagePassing]) -> None:
    model, batch = encoder(backbone).eval(), graphs()
    together = model(batch).pooled
    some = torch.tensor([2, 0, 2])
    torch.testing.assert_close(model(batch.select(some)).pooled, together[some], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backbone", BACKBONES, ids=["gin", "gat"])
def test_order_of_nodes_does_not_matter(backbone: partial[MessagePassing]) -> None:
    model, batch = encoder(backbone).eval(), graphs((6,))
    order = torch.randperm(6)
    place = torch.argsort(order)
    turned = batch.replace(node_features=batch.node_features[order], edge_index=place[batch.edge_index])
    torch.testing.assert_close(model(turned).pooled, model(batch).pooled, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backbone", BACKBONES, ids=["gin", "gat"])
def test_padded_is_packed(backbone: partial[MessagePassing]) -> None:
    model, batch = encoder(backbone).eval(), graphs()
    tokens = model.embedder(batch)
    packed, padded = model.backbone(tokens), model.backbone(tokens.pad())
    assert packed.packed
    assert not padded.packed
    torch.testing.assert_close(padded.pack().x, packed.x)


@pytest.mark.parametrize("backbone", BACKBONES, ids=["gin", "gat"])
@pytest.mark.parametrize("sizes", [(), (1, 1)], ids=["no rows", "no edges"])
def test_nothing_to_pass(backbone: partial[MessagePassing], sizes: tuple[int, ...]) -> None:
    model = encoder(backbone).train()
    out = model(graphs(sizes))
    assert out.projected.isfinite().all()
    out.projected.sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert sizes or not any(p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("backbone", BACKBONES, ids=["gin", "gat"])
def test_recomputation_gives_the_same_gradients(backbone: partial[MessagePassing]) -> None:
    model, batch, found = encoder(partial(backbone, dropout=0.3)).train(), graphs(), []
    for recompute in (False, True):
        model.backbone.recompute = recompute
        model.zero_grad()
        torch.manual_seed(3)
        model(batch).projected.square().sum().backward()
        model.projection.weight.grad = None
        found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


def test_depth_stops_early() -> None:
    model, batch = encoder(BACKBONES[0]).eval(), graphs()
    tokens = model.embedder(batch)
    torch.testing.assert_close(model.backbone(tokens, depth=1).x, model.backbone.blocks[0](tokens.x, tokens.edges))


def test_what_it_cannot_do() -> None:
    model = GIN(WIDTH, 1)
    tokens = Tokens(x=torch.zeros(2, WIDTH), positions=torch.zeros(2, 1), cu_seqlens=torch.tensor([0, 2]))
    with pytest.raises(RecipeError, match="no edges"):
        model(tokens)
    with pytest.raises(RecipeError, match="no mask"):
        model(tokens, CAUSAL)
    with pytest.raises(RecipeError, match="heads: expected a divisor of the width"):
        GAT(WIDTH, heads=3)
