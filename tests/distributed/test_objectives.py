"""Two processes equal one: loss, gradient and state of every objective and target, however rows fall on the processes.

Averaged over processes, as `DistributedDataParallel` does, gradients must equal those of one process that has all rows.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from tests.shared.objectives.conftest import make_batch, make_model, select
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from polyfm.shared import objectives
from polyfm.shared.backbones.block import PostNorm
from polyfm.shared.backbones.encoder import Encoder
from polyfm.shared.backbones.transformer import Transformer
from polyfm.shared.data import ragged
from polyfm.shared.data.batch import Batch, Triples
from polyfm.shared.objectives.causal import CausalLM, NextValue
from polyfm.shared.objectives.contrastive import InfoNCE
from polyfm.shared.objectives.elastic import ElasticSimilarity
from polyfm.shared.objectives.gather import Ranks
from polyfm.shared.objectives.hinge import MaxOfHinges
from polyfm.shared.objectives.masked import MaskedTokens, MaskedValues
from polyfm.shared.objectives.matching import Matching
from polyfm.shared.objectives.objective import Objective, Progress, View, Views
from polyfm.shared.objectives.queue import FeatureQueue
from polyfm.shared.objectives.sigmoid import SigLIP
from polyfm.shared.objectives.translation import TransE
from polyfm.shared.tokens.entities import EntityTokens
from polyfm.shared.tokens.masking import Draw, MaskValues
from polyfm.shared.training.large_batch import LargeBatch, chunks_of
from polyfm.shared.training.optim import move_average
from polyfm.shared.training.targets.binary import Binary
from polyfm.shared.training.targets.multi_class import MultiClass
from polyfm.shared.training.targets.regression import Regression
from polyfm.shared.training.targets.target import Target
from polyfm.shared.training.views import answer

STEPS = 2
HALF = {"properties": MaskValues(0.5)}
# Of each item: whether it has SMILES, whether it has properties, its group, and the process that it is on.
LAYOUTS: dict[str, tuple[list[int], list[int], list[int], list[int]]] = {
    "equal": ([1] * 8, [1] * 8, list(range(8)), [0] * 4 + [1] * 4),
    "unequal presence": ([1, 1, 0, 1, 1, 1, 1, 0], [1, 0, 1, 1, 0, 1, 1, 1], list(range(8)), [0] * 5 + [1] * 3),
    "groups across processes": ([1] * 8, [1] * 8, [0, 1, 1, 2, 0, 0, 3, 2], [0] * 3 + [1] * 5),
    "one process without a modality": ([1] * 7, [0] * 3 + [1] * 4, list(range(7)), [0] * 3 + [1] * 4),
    "one process without a row": ([1] * 6, [1] * 6, list(range(6)), [1] * 6),
    "one process without a pair": ([1, 0, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1], list(range(6)), [0, 0, 1, 1, 1, 1]),
    "no pair anywhere": ([1, 0, 1, 0], [0, 1, 0, 1], list(range(4)), [0, 0, 1, 1]),
}
OBJECTIVES: dict[str, Callable[[], Objective]] = {
    "InfoNCE": lambda: InfoNCE(),
    "InfoNCE, soft targets": lambda: InfoNCE(soft=0.4),
    "InfoNCE, queue, soft targets, within modalities": lambda: InfoNCE(corrupt=HALF, queue=11, soft=0.4, intra=True),
    "SigLIP": lambda: SigLIP(bias=-2.0),
    "ElasticSimilarity": lambda: ElasticSimilarity("properties", threshold=0.6),
    "MaxOfHinges": lambda: MaxOfHinges(margin=0.5),
    "Matching": lambda: Matching("smiles", "properties", corrupt=HALF),
    "Matching, hardest": lambda: Matching("smiles", "properties", temperature=1e-3),
    "Matching, one way": lambda: Matching("smiles", "properties", queries="a"),
    "MaskedTokens": lambda: MaskedTokens("smiles"),
    "MaskedTokens, conditioned": lambda: MaskedTokens("smiles", context="properties", corrupt=HALF),
    "MaskedValues": lambda: MaskedValues("properties", context="smiles"),
    "MaskedValues, visible": lambda: MaskedValues("properties", predict="visible"),
    "CausalLM": lambda: CausalLM("smiles"),
    "CausalLM, conditioned, distilled": lambda: CausalLM("smiles", context="properties", corrupt=HALF, distill=0.4),
    "NextValue": lambda: NextValue("properties", context="smiles"),
    "TransE": lambda: TransE("knowledge", relations=3),
}
IN_CHUNKS = {"unequal presence", "groups across processes", "one process without a row"}
"""Layouts whose first step is also seen in chunks, of which the processes have different numbers."""
ALONE = {"ElasticSimilarity", "MaskedTokens", "MaskedValues, visible", "CausalLM", "TransE"}
"""They need no pairs."""


def classes(base: type = Objective) -> Iterator[type]:
    """Every objective of shared/ that is no base of others."""
    for module in pkgutil.iter_modules(objectives.__path__):
        importlib.import_module(f"{objectives.__name__}.{module.name}")
    for kind in base.__subclasses__():
        yield from classes(kind) if kind.__subclasses__() else [kind]


def test_the_table_has_every_objective() -> None:
    known = {kind for kind in classes() if kind.__module__.startswith(f"{objectives.__name__}.")}
    assert {type(make()) for make in OBJECTIVES.values()} == known


def in_double(module: Any) -> Any:
    """In float64, but for queues: vectors that are compared are in float32 in any case."""
    module.double()
    for part in module.modules():
        if isinstance(part, FeatureQueue):
            part.float()
    return module


def knowledge() -> Encoder:
    """Of five entities."""
    torch.manual_seed(2)
    return Encoder(
        8, partial(EntityTokens, entities=5, size=4), partial(Transformer, depth=1, block=partial(PostNorm, heads=2))
    )


def facts(rows: Tensor, step: int) -> Triples:
    """As many triples of an item as its number says, none of the first."""
    counts = rows % 4
    drawn = torch.Generator().manual_seed(step)
    triples = torch.randint(5, (int(counts.sum()), 3), generator=drawn)
    triples[:, 1] %= 3
    return Triples(rows=rows, triples=triples, cu_seqlens=ragged.boundaries(counts), entities=5)


class Model(nn.Module):
    """A small model and its teacher under one objective. In float64, or noise would be all that is seen."""

    def __init__(self, kind: str, packed: bool) -> None:
        super().__init__()
        self.model = make_model(packed=packed)
        self.teacher = make_model(seed=1, packed=packed).requires_grad_(False)
        if kind == "TransE":
            for part in (self.model, self.teacher):
                part.encoders["knowledge"] = knowledge()
            self.teacher.requires_grad_(False)
        self.objective = OBJECTIVES[kind]()
        torch.manual_seed(5)
        self.objective.build(dict(self.model.encoders.items()))  # type: ignore[arg-type]
        in_double(self)
        self.views: Views | None = None

    def forward(self, batch: Batch) -> Tensor:
        needs, draw = self.objective.needs(), Draw(seed=0, epoch=0)
        self.views = answer(needs, batch, self.model, self.teacher, draw, Progress(epoch=0.5))
        return self.objective(self.views, batch).loss

    @torch.no_grad()
    def step(self) -> None:
        """As a task does it: queues after the backward pass, then weights, then teachers."""
        self.objective.update(self.views)  # type: ignore[arg-type]
        for parameter in self.parameters():
            if parameter.grad is not None:
                parameter -= 0.1 * parameter.grad
        move_average(self.teacher, self.model, 0.9)
        self.objective.follow(self.model, 0.9)


def in_chunks(core: Model, batch: Batch, size: int) -> LargeBatch:
    """A step over a batch in chunks, under one objective called "it"."""

    def run(needs: Iterable[View], some: Batch, around: Callable[[View], Any]) -> Views:
        draw = Draw(seed=0, epoch=0)
        return answer(needs, some, core.model, core.teacher, draw, Progress(epoch=0.5), around)

    return LargeBatch(batch, chunks_of(batch, size), {"it": core.objective}, run)


def batch_of(layout: str, step: int, rank: int | None) -> Batch:
    """What a process has of a step's batch; all of it if no rank is given."""
    has_smiles, has_properties, groups, where = LAYOUTS[layout]
    whole = make_batch(map(bool, has_smiles), map(bool, has_properties), [group + 100 * step for group in groups], step)
    table = whole["properties"]
    whole.modalities["properties"] = table.replace(values=table.values.double())
    whole.modalities["facts"] = facts(whole["smiles"].rows, step)
    return select(whole, torch.tensor([i for i in range(len(groups)) if rank is None or where[i] == rank]).long())


def train(core: Model, layout: str, rank: int | None) -> tuple[list[tuple[Tensor, Tensor]], dict[str, Tensor]]:
    """Loss and whole gradient of each step, and all that has changed in the end."""
    model = core
    if rank is not None:
        model = DistributedDataParallel(core, broadcast_buffers=False, find_unused_parameters=True)  # type: ignore[assignment]
    history = []
    for step in range(STEPS):
        core.zero_grad()
        loss = model(batch_of(layout, step, rank))
        loss.backward()
        loss = loss.detach()
        if rank is not None:
            dist.all_reduce(loss)
            loss /= dist.get_world_size()
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in core.parameters() if p.requires_grad]
        history.append((loss, torch.cat([gradient.flatten() for gradient in grads])))
        core.step()
    return history, core.state_dict()


def train_in_chunks(core: Model, layout: str, rank: int) -> tuple[Tensor, Tensor]:
    """Loss and whole gradient of the first step, of which each process sees two items at once."""
    large = in_chunks(core, batch_of(layout, 0, rank), 2)
    outputs, _ = large.outputs()
    loss = outputs["it"].loss.detach() / 2
    large.backward(outputs["it"].loss / 2)
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in core.parameters() if p.requires_grad]
    gradient = torch.cat([gradient.flatten() for gradient in grads])
    dist.all_reduce(loss)
    dist.all_reduce(gradient)
    return loss, gradient


TARGETS: dict[str, Target] = {
    "Regression": Regression(["x", "y"], mean=[0.5, 0.0], scale=[2.0, 1.0]),
    "Binary": Binary(["x", "y"], positive_weight=[2.0, 0.5], threshold=[0.5, 0.5]),
    "MultiClass": MultiClass(["x"], classes=["0", "1"], class_weight=[0.7, 1.3]),
}


def supervised(name: str, rank: int | None) -> list[list[float]]:
    """A target's loss, and its gradient, on labels that fall unequally on two processes; once one of them has none."""
    found, target = [], TARGETS[name]
    for missing in ([1, 2, 6], [0, 1, 2, 3, 4]):
        generator = torch.Generator().manual_seed(len(missing))
        outputs = torch.randn(8, target.outputs, generator=generator, dtype=torch.float64)
        labels = torch.randint(2, (8, len(target.names)), generator=generator).double()
        labels[missing] = torch.nan
        labels[7, 0] = torch.nan
        scale = torch.ones((), dtype=torch.float64, requires_grad=True)
        mine = slice(0, 5) if rank == 0 else slice(5, 8) if rank == 1 else slice(None)
        loss = target.loss(scale * outputs[mine], labels[mine])
        loss.backward()
        both = torch.stack([loss.detach(), scale.grad])  # type: ignore[list-item]
        if rank is not None:
            dist.all_reduce(both)
            both /= 2
        found.append(both.tolist())
    return found


def work(rank: int, folder: str) -> None:
    """One of two processes: every case alone first, shared between the two, then together."""
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    cases = [(kind, layout) for kind in OBJECTIVES for layout in LAYOUTS]
    packed = {case: number % 2 == 0 for number, case in enumerate(cases)}
    half = {case: train(Model(case[0], packed[case]), case[1], None) for case in cases[rank::2]}
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    both: list[Any] = [None, None]
    dist.all_gather_object(both, half)
    alone, found = {**both[0], **both[1]}, {}
    for case in cases:
        history, state = train(Model(case[0], packed[case]), case[1], rank)
        history_alone, state_alone = alone[case]
        if case[1] in IN_CHUNKS:
            history.append(train_in_chunks(Model(case[0], packed[case]), case[1], rank))
            history_alone = [*history_alone, history_alone[0]]
        steps = [
            {
                "loss": float(loss - one_loss),
                "norms": (float(gradient.norm()), float(one_gradient.norm())),
                "difference": float((gradient - one_gradient).norm()),
            }
            for (loss, gradient), (one_loss, one_gradient) in zip(history, history_alone, strict=True)
        ]
        apart = {name: float((value - state_alone[name]).abs().max()) for name, value in state.items()}
        found["/".join(case)] = {"steps": steps, "state": apart}
    found["fetched"] = fetches(rank)
    found["supervised"] = {name: supervised(name, rank) for name in TARGETS}
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    dist.barrier()  # a process that leaves first makes gloo abort the other
    dist.destroy_process_group()


def fetches(rank: int) -> list[bool]:
    """Whether what is fetched is what was gathered, in values and in gradients, whatever each process has and wants."""
    same = []
    for counts in ((3, 2), (0, 4), (5, 0), (0, 0)):
        rows = torch.rand(counts[rank], 2, 3, dtype=torch.float64, requires_grad=True)
        ranks = Ranks.of(rows)
        everything = sum(counts)
        wanted = torch.randint(max(everything, 1), (4 * rank + 1 if everything else 0,))
        grads = []
        for found in (ranks.fetch(rows, wanted), ranks.gather(rows)[wanted]):
            grads += [found.detach(), *torch.autograd.grad((found * wanted[:, None, None]).sum(), rows)]
        same += [torch.equal(grads[0], grads[2]), torch.allclose(grads[1], grads[3])]
    return same


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(work, args=(str(folder),), nprocs=2)  # type: ignore[no-untyped-call]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def test_rows_are_fetched_from_whichever_process_has_them(two: list[dict[str, Any]]) -> None:
    assert [found["fetched"] for found in two] == [[True] * 8] * 2


@pytest.mark.parametrize("name", TARGETS)
def test_labels_of_two_processes_count_as_those_of_one(two: list[dict[str, Any]], name: str) -> None:
    assert {type(target) for target in TARGETS.values()} == set(Target.__subclasses__())
    alone = supervised(name, None)
    for found in two:
        for together, expected in zip(found["supervised"][name], alone, strict=True):
            assert together == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", OBJECTIVES)
def test_two_processes_equal_one(two: list[dict[str, Any]], kind: str, layout: str) -> None:
    for found in two:
        for step in found[f"{kind}/{layout}"]["steps"]:
            together, alone = step["norms"]
            assert abs(step["loss"]) < 1e-6
            if layout == "no pair anywhere" and kind not in ALONE:
                assert together == alone == 0
            else:
                assert together / alone == pytest.approx(1, abs=1e-6)
                assert step["difference"] / alone < 2e-6
        assert max(found[f"{kind}/{layout}"]["state"].values()) < 1e-6
