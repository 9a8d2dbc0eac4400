"""Nodes to tokens."""

from __future__ import annotations

import torch

from polyfm.shared.data.batch import Graphs
from polyfm.shared.tokens.graph import CategoricalSum, GraphTokens


def test_nodes_are_sums_of_their_features_vectors() -> None:
    graphs = Graphs(
        rows=torch.arange(2),
        node_features=torch.tensor([[0, 2], [4, 1], [3, 0]]),
        edge_index=torch.tensor([[0, 1], [1, 0]]),
        edge_features=torch.tensor([[1], [1]]),
        cu_nodes=torch.tensor([0, 2, 3], dtype=torch.int32),
    )
    embedder = GraphTokens(8, (5, 3))
    tokens = embedder(graphs)
    a, b = (table.weight for table in embedder.nodes.tables)
    torch.testing.assert_close(tokens.x, torch.stack([a[0] + b[2], a[4] + b[1], a[3] + b[0]]))
    assert tokens.lengths.tolist() == [2, 1]
    assert tokens.edges.index is graphs.edge_index
    assert tokens.edges.features is graphs.edge_features
    assert not tokens.positions.any()


def test_no_features_are_zeros() -> None:
    assert torch.equal(CategoricalSum(4, ())(torch.zeros(3, 0, dtype=torch.int64)), torch.zeros(3, 4))
