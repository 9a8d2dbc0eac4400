"""A tiny real model over SMILES-like tokens and a table, and batches with any modality missing."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from functools import partial

import pytest
import torch
from torch import Tensor

from polyfm.shared.backbones.block import PostNorm
from polyfm.shared.backbones.encoder import Encoder, MultimodalModel
from polyfm.shared.backbones.fusion import CrossFusion
from polyfm.shared.backbones.transformer import Transformer
from polyfm.shared.data.batch import Batch, TokenIds, Values
from polyfm.shared.objectives.objective import Objective, Progress, Views
from polyfm.shared.tokens.masking import Draw
from polyfm.shared.tokens.table import ValueTokens
from polyfm.shared.tokens.text import TextTokens
from polyfm.shared.training.views import answer

WIDTH, VOCABULARY, COLUMNS = 16, 12, 5


def make_model(seed: int = 0, packed: bool = False) -> MultimodalModel:
    torch.manual_seed(seed)
    block = partial(PostNorm, heads=2, hidden=24, dropout=0.0)
    trunk = partial(Transformer, depth=1, block=block)
    text = partial(TextTokens, vocabulary=VOCABULARY, dropout=0.0, packed=packed)
    encoders = {
        "smiles": Encoder(WIDTH, text, trunk, projection=6),
        "properties": Encoder(WIDTH, partial(ValueTokens, columns=COLUMNS, dropout=0.0), trunk, projection=6),
    }
    # Tables start at 0.02, which makes all logits alike: too near for tests to tell losses apart.
    torch.nn.init.normal_(encoders["smiles"].embedder.table.weight, std=0.5)  # type: ignore[union-attr, arg-type]
    fusion = CrossFusion(WIDTH, partial(Transformer, depth=1, block=partial(block, cross=True)))
    return MultimodalModel(encoders, fusion)


def make_batch(
    smiles: Iterable[bool], properties: Iterable[bool], groups: Iterable[int] | None = None, seed: int = 0
) -> Batch:
    has_smiles, has_properties = torch.tensor(list(smiles)), torch.tensor(list(properties))
    size = len(has_smiles)
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 8, (size,), generator=generator)
    ids = [torch.randint(4, VOCABULARY, (int(length),), generator=generator) for length in lengths]
    values = torch.randn(size, COLUMNS, generator=generator)
    known = torch.rand(size, COLUMNS, generator=generator) < 0.9
    here, there = has_smiles.nonzero()[:, 0], has_properties.nonzero()[:, 0]
    ends = lengths[here].cumsum(0)
    return Batch(
        ids=[str(i) for i in range(size)],
        keys=torch.arange(size) + 1000,
        modalities={
            "smiles": TokenIds(
                rows=here,
                ids=torch.cat([torch.zeros(0, dtype=torch.int64), *(ids[i] for i in here)]),
                cu_seqlens=torch.cat([ends.new_zeros(1), ends]).int(),
            ),
            "properties": Values(rows=there, values=values[there] * known[there], known=known[there]),
        },
        targets={},
        groups=torch.arange(size) if groups is None else torch.tensor(list(groups), dtype=torch.int64),
    )


def select(batch: Batch, items: Tensor) -> Batch:
    """Only some items of a batch, as if the others had never been."""
    modalities = {}
    for name, rows in batch.modalities.items():
        keep = torch.isin(rows.rows, items).nonzero()[:, 0]
        chosen = rows.select(keep)
        modalities[name] = chosen.replace(rows=torch.searchsorted(items, chosen.rows))
    kept = [batch.ids[int(item)] for item in items]
    return batch.replace(ids=kept, keys=batch.keys[items], groups=batch.groups[items], modalities=modalities)


class Bench:
    """A built objective on a tiny model: `run` gives views and output, `grads` the model's gradients."""

    def __init__(self, objective: Objective, packed: bool = False) -> None:
        self.model = make_model(packed=packed)
        self.teacher = make_model(seed=1, packed=packed).requires_grad_(False)
        torch.manual_seed(5)
        objective.build(dict(self.model.encoders.items()))  # type: ignore[arg-type]
        self.objective = objective

    def views(self, batch: Batch, epoch: float = 1.0) -> Views:
        draw = Draw(seed=0, epoch=0)
        answered = answer(self.objective.needs(), batch, self.model, self.teacher, draw, Progress(epoch=epoch))
        return Views(dict(answered), self.model, answered.progress, draw)

    def loss(self, batch: Batch, epoch: float = 1.0) -> Tensor:
        return self.objective(self.views(batch, epoch), batch).loss

    def grads(self, batch: Batch, epoch: float = 1.0) -> dict[str, Tensor]:
        self.model.zero_grad()
        self.objective.zero_grad()
        self.loss(batch, epoch).backward()
        modules = [("model", self.model), ("objective", self.objective)]
        return {
            f"{kind}.{name}": torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
            for kind, module in modules
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        }

    def touched(self) -> dict[str, Tensor]:
        """Gradients that the last backward pass reached."""
        return {name: p.grad for name, p in self.model.named_parameters() if p.grad is not None}


@pytest.fixture
def bench() -> Callable[..., Bench]:
    return Bench


@pytest.fixture
def make() -> Callable[..., Batch]:
    return make_batch


@pytest.fixture
def subset() -> Callable[[Batch, Tensor], Batch]:
    return select


def differs(first: Bench, second: Bench, batch: Batch) -> None:
    """Ablation: without the paper's term both loss and gradient are other ones."""
    second.objective.load_state_dict(copy.deepcopy(first.objective.state_dict()), strict=False)
    assert not torch.allclose(first.loss(batch), second.loss(batch), rtol=1e-4)
    ours, theirs = first.grads(batch), second.grads(batch)
    name = "model.encoders.smiles.embedder.table.weight"
    assert not torch.allclose(ours[name], theirs[name], rtol=1e-3, atol=1e-9)


@pytest.fixture
def ablated() -> Callable[[Bench, Bench, Batch], None]:
    return differs
