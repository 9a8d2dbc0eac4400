"""Two processes equal one: loss and gradient of the coupled objectives, however the rows fall on the processes.

Averaged over processes, as `DistributedDataParallel` does, gradients must equal those of one process that has all rows.
Matching is left out on purpose: its negatives come from each process's own part of the batch.
"""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from polyfm.shared.data.batch import Batch
from polyfm.shared.objectives.contrastive import InfoNCE
from polyfm.shared.objectives.gather import global_mean
from polyfm.shared.objectives.hinge import MaxOfHinges
from polyfm.shared.objectives.objective import Objective, ObjectiveOutput, Progress, View, Views
from polyfm.shared.objectives.sigmoid import SigLIP
from polyfm.shared.tokens.tokens import Features, Tokens

STEPS = 3
# Of each item: whether it has a, whether it has b, its group, and the process that it is on.
LAYOUTS: dict[str, tuple[list[int], list[int], list[int], list[int]]] = {
    "equal": ([1] * 8, [1] * 8, list(range(8)), [0] * 4 + [1] * 4),
    "unequal presence": ([1, 1, 0, 1, 1, 1, 1, 0], [1, 0, 1, 1, 0, 1, 1, 1], list(range(8)), [0] * 5 + [1] * 3),
    "groups across processes": ([1] * 8, [1] * 8, [0, 1, 1, 2, 0, 0, 3, 2], [0] * 3 + [1] * 5),
    "one process without a row": ([1] * 6, [1] * 6, list(range(6)), [1] * 6),
    "one process without a pair": ([1, 0, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1], list(range(6)), [0, 0, 1, 1, 1, 1]),
    "no pair anywhere": ([1, 0, 1, 0], [0, 1, 0, 1], list(range(4)), [0, 0, 1, 1]),
}


class MeanOfRows(Objective):
    """What separable losses do: a mean over things whose number differs between processes."""

    def build(self, encoders: Any) -> None:
        self.head = nn.Linear(3, 1)

    def needs(self) -> set[View]:
        return {View("a"), View("b")}

    def forward(self, views: Views, batch: Batch) -> ObjectiveOutput:
        rows = torch.cat([views[View("a")].pooled, views[View("b")].pooled])
        return ObjectiveOutput(loss=global_mean(self.head(rows)[:, 0].square()), logs={})


OBJECTIVES = {
    "InfoNCE": lambda: InfoNCE(),
    "InfoNCE with queue, soft targets and terms within a modality": lambda: InfoNCE(queue=11, soft=0.4, intra=True),
    "SigLIP": lambda: SigLIP(bias=-2.0),
    "MaxOfHinges": lambda: MaxOfHinges(margin=0.5),
    "mean over rows": lambda: MeanOfRows(),
}


class Model(nn.Module):
    """Two linear encoders and their teachers, under one objective."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.objective = OBJECTIVES[kind]()
        self.objective.build({name: SimpleNamespace(projection=nn.Linear(3, 3)) for name in "ab"})  # type: ignore[misc]
        self.encoders = nn.ModuleDict({"a": nn.Linear(4, 3), "b": nn.Linear(5, 3)})
        self.teacher = copy.deepcopy(self.encoders).requires_grad_(False)
        for parameter in self.teacher.parameters():
            parameter += 0.3

    def forward(self, inputs: dict[str, Tensor], rows: dict[str, Tensor], groups: Tensor) -> tuple[Tensor, Views]:
        features = {}
        for view in self.objective.needs():
            name = view.modality
            encoder = (self.encoders if view.weights == "online" else self.teacher)[name]
            vectors = F.normalize(encoder(inputs[name]), dim=-1)
            mask = torch.ones(len(vectors), 1, dtype=torch.bool)
            tokens = Tokens(x=vectors[:, None], positions=vectors[:, None, :1], mask=mask)
            features[view] = Features(tokens=tokens, pooled=vectors, projected=vectors, rows=rows[name])
        views = Views(features, None, Progress(epoch=0.5))  # type: ignore[arg-type]
        ids = [str(i) for i in range(len(groups))]
        return self.objective(views, Batch(ids=ids, keys=groups, modalities={}, targets={}, groups=groups)).loss, views


def items(layout: str, step: int, rank: int | None) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """What a process has of a step's batch: inputs and rows by modality, and groups; all of it if no rank is given."""
    has_a, has_b, groups, where = LAYOUTS[layout]
    generator = torch.Generator().manual_seed(step)
    mine = [item for item in range(len(groups)) if rank is None or where[item] == rank]
    inputs, rows = {}, {}
    for name, has, width in (("a", has_a, 4), ("b", has_b, 5)):
        values = torch.randn(len(groups), width, generator=generator)
        local = [i for i, item in enumerate(mine) if has[item]]
        rows[name] = torch.tensor(local, dtype=torch.int64)
        inputs[name] = values[[mine[i] for i in local]]
    return inputs, rows, torch.tensor([groups[item] for item in mine], dtype=torch.int64) + 100 * step


def train(core: Model, layout: str, rank: int | None) -> list[tuple[Tensor, Tensor]]:
    """Loss and whole gradient of a few steps, between which the queue fills."""
    model = core if rank is None else DistributedDataParallel(core, broadcast_buffers=False)
    history = []
    for step in range(STEPS):
        core.zero_grad()
        loss, views = model(*items(layout, step, rank))
        loss.backward()
        core.objective.update(views)
        loss = loss.detach()
        if rank is not None:
            dist.all_reduce(loss)
            loss /= dist.get_world_size()
        grads = [parameter.grad for parameter in core.parameters() if parameter.requires_grad]
        history.append((loss, torch.cat([gradient.flatten() for gradient in grads if gradient is not None])))
    return history


def work(rank: int, folder: str) -> None:
    """One of two processes: every case alone first, then together."""
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    cases = [(kind, layout) for kind in OBJECTIVES for layout in LAYOUTS]
    alone = [train(Model(kind), layout, None) for kind, layout in cases]
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    found = {}
    for (kind, layout), expected in zip(cases, alone, strict=True):
        model = Model(kind)
        steps = []
        for (loss, gradient), (one_loss, one_gradient) in zip(train(model, layout, rank), expected, strict=True):
            steps.append(
                {
                    "loss": float(loss - one_loss),
                    "norms": (float(gradient.norm()), float(one_gradient.norm())),
                    "difference": float((gradient - one_gradient).norm()),
                }
            )
        for buffer in model.buffers():
            other = buffer.clone()
            dist.broadcast(other, 0)
            assert torch.equal(buffer, other), "the queues of the processes differ"
        found[f"{kind}/{layout}"] = steps
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    dist.barrier()  # a process that leaves first makes gloo abort the other
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(work, args=(str(folder),), nprocs=2)  # type: ignore[no-untyped-call]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", OBJECTIVES)
def test_two_processes_equal_one(two: list[dict[str, Any]], kind: str, layout: str) -> None:
    for found in two:
        for step in found[f"{kind}/{layout}"]:
            together, alone = step["norms"]
            assert abs(step["loss"]) < 2e-6
            if layout == "no pair anywhere" and kind != "mean over rows":
                assert together == alone == 0
            else:
                assert together / alone == pytest.approx(1, abs=1e-6)
                assert step["difference"] / alone < 2e-6
