"""Packed rows against plain lists."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from polyfm.shared.data import ragged
from polyfm.shared.data.batch import Graphs, TokenIds

LENGTHS = st.lists(st.integers(0, 5), max_size=6)


@given(LENGTHS, st.data())
def test_rows_are_lists(lengths: list[int], data: st.DataObject) -> None:
    cu, total = ragged.boundaries(torch.tensor(lengths, dtype=torch.int64)), sum(lengths)
    rows = torch.arange(total).split(lengths) if lengths else ()
    assert cu.dtype == torch.int32
    assert ragged.owners(cu, total).tolist() == [i for i, row in enumerate(rows) for _ in row]
    assert ragged.places(cu, total).tolist() == [i for row in rows for i in range(len(row))]
    keep = data.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=8)) if lengths else []
    index, taken = ragged.take(cu, torch.tensor(keep, dtype=torch.int64))
    assert index.tolist() == [x for i in keep for x in rows[i].tolist()]
    assert taken.diff().tolist() == [lengths[i] for i in keep]


@given(LENGTHS, st.data())
def test_edges_follow_their_graphs(sizes: list[int], data: st.DataObject) -> None:
    """Each taken graph has the edges that it had, in its own nodes' numbering."""
    cu = ragged.boundaries(torch.tensor(sizes, dtype=torch.int64))
    ends = []
    for start, size in zip(cu.tolist(), sizes, strict=False):
        node = st.integers(start, start + size - 1)
        ends += data.draw(st.lists(st.tuples(node, node), max_size=4)) if size else []
    ends = data.draw(st.permutations(ends))
    graphs = Graphs(
        rows=torch.arange(len(sizes)),
        node_features=torch.arange(sum(sizes))[:, None],
        edge_index=torch.tensor(ends, dtype=torch.int64).reshape(-1, 2).T,
        edge_features=torch.arange(len(ends))[:, None],
        cu_nodes=cu,
    )
    keep = data.draw(st.lists(st.integers(0, len(sizes) - 1), max_size=5)) if sizes else []
    chosen = graphs.select(torch.tensor(keep, dtype=torch.int64))
    assert chosen.rows.tolist() == keep
    for slot, graph in enumerate(keep):
        start, end = cu[graph : graph + 2].tolist()
        nodes = chosen.node_features[chosen.cu_nodes[slot] : chosen.cu_nodes[slot + 1], 0].tolist()
        assert nodes == list(range(start, end))
        mine = ragged.owners(chosen.cu_nodes, len(chosen.node_features))[chosen.edge_index[0]] == slot
        named = chosen.node_features[:, 0][chosen.edge_index[:, mine]].T.tolist()
        edges = [(list(pair), i) for i, pair in enumerate(ends) if start <= pair[0] < end]
        assert sorted(zip(named, chosen.edge_features[mine, 0].tolist(), strict=True)) == sorted(edges)


def test_sequences_are_chosen_with_their_rows() -> None:
    batch = TokenIds(
        rows=torch.tensor([0, 2, 5]), ids=torch.arange(6), cu_seqlens=torch.tensor([0, 3, 3, 6], dtype=torch.int32)
    )
    chosen = batch.select(torch.tensor([2, 1, 2]))
    assert chosen.rows.tolist() == [5, 2, 5]
    assert chosen.ids.tolist() == [3, 4, 5, 3, 4, 5]
    assert chosen.lengths.tolist() == [3, 0, 3]
