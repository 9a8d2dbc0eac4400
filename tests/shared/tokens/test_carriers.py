"""Every carrier goes through Lightning's transfer, pinning, a worker and export as one thing."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import pkgutil

import pytest
import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader
from torch.utils.data._utils.pin_memory import pin_memory

from polyfm.shared import backbones, data, objectives, tokens
from polyfm.shared.backbones import generation
from polyfm.shared.data.batch import Batch, Graphs, Grids, ModalityBatch, TokenIds, Triples, Values
from polyfm.shared.data.carrier import Carrier
from polyfm.shared.errors import DataError
from polyfm.shared.objectives.objective import ObjectiveOutput
from polyfm.shared.tokens.tokens import Edges, Features, Pairs, Tokens

CU = torch.tensor([0, 2, 3], dtype=torch.int32)
IDS = TokenIds(rows=torch.tensor([0, 2]), ids=torch.arange(3), cu_seqlens=CU)
TRIPLES = Triples(rows=torch.tensor([0, 2]), triples=torch.arange(9).view(3, 3), cu_seqlens=CU, entities=9)
VALUES = Values(rows=torch.tensor([1]), values=torch.ones(1, 4), known=torch.ones(1, 4, dtype=torch.bool))
GRAPHS = Graphs(
    rows=torch.arange(2),
    node_features=torch.zeros(3, 2, dtype=torch.int64),
    edge_index=torch.tensor([[0, 1], [1, 0]]),
    edge_features=torch.zeros(2, 1, dtype=torch.int64),
    cu_nodes=CU,
)
GRIDS = Grids(rows=torch.arange(2), values=torch.zeros(2, 1, 4, 4), spacing=torch.ones(2, 2))
EDGES = Edges(index=torch.tensor([[0, 1], [1, 0]]), features=torch.zeros(2, 1, dtype=torch.int64))
PAIRS = Pairs(first=torch.ones(2, 2, 2, 1), last=torch.zeros(2, 2, 2, 1), tokens=torch.ones(2, 2, 4))
TOKENS = Tokens(x=torch.ones(3, 4), positions=torch.zeros(3, 1), cu_seqlens=CU, edges=EDGES, pairs=PAIRS)
CARRIERS: list[Carrier] = [
    ModalityBatch(rows=torch.arange(2)),
    IDS,
    TRIPLES,
    VALUES,
    GRAPHS,
    GRIDS,
    Batch(
        ids=["a", "b", "c"],
        keys=torch.arange(3),
        modalities={"text": IDS, "values": VALUES},
        targets={"label": torch.zeros(3)},
        groups=torch.arange(3),
    ),
    EDGES,
    PAIRS,
    TOKENS,
    TOKENS.pad(),
    Features(tokens=TOKENS, pooled=torch.ones(2, 4), projected=None, rows=torch.arange(2)),
    ObjectiveOutput(loss=torch.tensor(1.0), logs={"accuracy": torch.tensor(0.5)}),
    generation.Generated(
        ids=torch.zeros(1, 2, 3, dtype=torch.int64),
        lengths=torch.ones(1, 2, dtype=torch.int64),
        log_probs=torch.zeros(1, 2),
        finished=torch.ones(1, 2, dtype=torch.bool),
    ),
]
NAMES = [type(carrier).__name__ for carrier in CARRIERS]
every_carrier = pytest.mark.parametrize("carrier", CARRIERS, ids=NAMES)


def assert_same(a: Carrier, b: Carrier) -> None:
    assert type(a) is type(b)
    ours, theirs = tree_leaves(a), tree_leaves(b)
    assert len(ours) == len(theirs)
    for x, y in zip(ours, theirs, strict=True):
        assert torch.equal(x, y) if isinstance(x, Tensor) else x == y


def test_every_carrier_of_the_shared_part_stands_here() -> None:
    def below(kind: type) -> set[type]:
        return {kind}.union(*(below(child) for child in kind.__subclasses__()))

    flow = (data, tokens, backbones, objectives)
    for package in flow:
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
    homes = tuple(package.__name__ for package in flow)
    assert {kind.__name__ for kind in below(Carrier) - {Carrier} if kind.__module__.startswith(homes)} == set(NAMES)


@every_carrier
def test_lightning_transfer(carrier: Carrier) -> None:
    moved = move_data_to_device(carrier, torch.device("meta"))
    assert type(moved) is type(carrier)
    assert all(leaf.is_meta for leaf in tree_leaves(moved) if isinstance(leaf, Tensor))
    assert not any(leaf.is_meta for leaf in tree_leaves(carrier) if isinstance(leaf, Tensor))


@every_carrier
def test_pinning(carrier: Carrier, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loader's pinning reaches every tensor (what pinning itself does needs a GPU)."""
    pinned: list[Tensor] = []
    monkeypatch.setattr(Tensor, "pin_memory", lambda self, *_: pinned.append(self) or self.clone())
    assert_same(pin_memory(carrier), carrier)
    assert [id(x) for x in pinned] == [id(x) for x in tree_leaves(carrier) if isinstance(x, Tensor)]


def test_a_spawned_worker() -> None:
    loader = DataLoader(CARRIERS, batch_size=None, collate_fn=copy.copy, num_workers=1, multiprocessing_context="spawn")
    for returned, sent in zip(loader, CARRIERS, strict=True):
        assert_same(returned, sent)


@every_carrier
def test_export(carrier: Carrier) -> None:
    class Double(nn.Module):
        def forward(self, given: Carrier) -> Carrier:
            return given.map(lambda tensor: tensor + tensor)

    program = torch.export.export(Double(), (carrier,))
    assert_same(program.module()(carrier), carrier.map(lambda tensor: tensor + tensor))


@every_carrier
def test_fields_are_frozen_and_explained(carrier: Carrier) -> None:
    name = dataclasses.fields(carrier)[0].name  # type: ignore[arg-type]
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(carrier, name, None)


def test_a_modality_that_a_batch_has_not_is_told_with_those_it_has() -> None:
    batch = next(carrier for carrier in CARRIERS if isinstance(carrier, Batch))
    assert batch["text"] is IDS
    with pytest.raises(DataError, match="needs the modality 'graph'; of these data it gets text, values. Add graph to"):
        batch["graph"]
