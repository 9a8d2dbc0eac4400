"""`LargeBatch`: a batch in chunks gives the loss and the gradients of the whole, with memory for a chunk."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import lightning as L
import pytest
import torch
from tests.distributed.test_objectives import OBJECTIVES, Model, facts, in_chunks, in_double
from tests.shared.conftest import ToyData
from tests.shared.objectives.conftest import make_batch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from polyfm.shared.data.batch import Batch
from polyfm.shared.errors import RecipeError
from polyfm.shared.objectives.causal import CausalLM
from polyfm.shared.objectives.gather import global_mean
from polyfm.shared.objectives.objective import Objective, ObjectiveOutput, Progress, View, Views, clean
from polyfm.shared.training.optim import AdamW
from polyfm.shared.training.pretrain import PretrainTask
from polyfm.shared.training.stages import Stage

SIZE = 3
# Whether each item has SMILES, and properties: of the second chunk none has SMILES, of the third none has both.
PRESENCE = ([1, 1, 1, 0, 0, 0, 1, 0, 1, 1], [1, 0, 1, 1, 1, 1, 0, 1, 0, 1])
GROUPS = [0, 1, 2, 3, 4, 5, 6, 7, 8, 2]


def batch_of(step: int = 0, presence: tuple[list[int], list[int]] = PRESENCE) -> Batch:
    batch = make_batch(*(map(bool, has) for has in presence), [group + 100 * step for group in GROUPS], step)
    table = batch["properties"]
    batch.modalities["properties"] = table.replace(values=table.values.double())
    batch.modalities["facts"] = facts(batch["smiles"].rows, step)
    return batch


def gradients(core: Model) -> dict[str, Tensor]:
    return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in core.named_parameters()}


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("kind", OBJECTIVES)
def test_chunks_equal_the_whole(kind: str, packed: bool) -> None:
    whole, cut = Model(kind, packed), Model(kind, packed)
    for step in range(2):  # the second with what the first left in a queue
        batch = batch_of(step)
        whole.zero_grad()
        cut.zero_grad()
        expected = whole(batch)
        (2 * expected).backward()
        large = in_chunks(cut, batch, SIZE)
        outputs, cut.views = large.outputs()
        torch.testing.assert_close(outputs["it"].loss, expected, rtol=1e-6, atol=1e-8)
        large.backward(2 * outputs["it"].loss)
        found = gradients(cut)
        for name, gradient in gradients(whole).items():
            torch.testing.assert_close(
                found[name], gradient, rtol=1e-6, atol=1e-7, msg=lambda text, n=name: f"{n}: {text}"
            )
        whole.step()
        cut.step()
    state = whole.state_dict()
    for name, value in cut.state_dict().items():
        torch.testing.assert_close(value, state[name], rtol=1e-6, atol=1e-7)


def test_a_view_draws_the_same_dropout_both_times() -> None:
    """Beside the whole, with what each chunk draws, in one backward pass."""
    core = Model("InfoNCE", packed=False)
    for part in core.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.3
    batch = batch_of()
    large = in_chunks(core, batch, SIZE)
    outputs, _ = large.outputs()
    needs = core.objective.needs()
    seen = [large._views(number, needs) for number in range(len(large.chunks))]
    joined = {}
    for view in needs:
        parts = [views[view] for views in seen]
        rows = torch.cat([part.rows + SIZE * number for number, part in enumerate(parts)])
        projected = torch.cat([part.projected for part in parts if part.projected is not None])
        joined[view] = parts[0].replace(projected=projected, rows=rows)
    expected = core.objective(Views(joined, core.model, Progress()), batch).loss
    expected.backward()
    reference = {name: gradient.clone() for name, gradient in gradients(core).items()}
    core.zero_grad()
    torch.rand(7)  # what is drawn in between changes nothing
    large.backward(outputs["it"].loss)
    torch.testing.assert_close(outputs["it"].loss, expected)
    for name, gradient in gradients(core).items():
        torch.testing.assert_close(gradient, reference[name], rtol=1e-6, atol=1e-8)
    whole = core(batch)
    assert not torch.allclose(whole, expected), "there was no dropout"


class Peak(TorchDispatchMode):
    """The most bytes of tensors, made within, that are alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.alive, self.peak = {}, 0  # type: ignore[var-annotated]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(found):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                key = storage._cdata
                if key not in self.alive:
                    self.alive[key] = storage.nbytes()
                    weakref.finalize(storage, self.alive.pop, key, None)
        self.peak = max(self.peak, sum(self.alive.values()))
        return found


def memory(kind: str, times: int, size: int) -> int:
    """Bytes that a step takes at most, on a batch of so many times ten items."""
    core = Model(kind, packed=True)
    batch = make_batch([True] * 10 * times, [True] * 10 * times)
    table = batch["properties"]
    batch.modalities["properties"] = table.replace(values=table.values.double())
    core(batch).backward()  # what is made once
    with Peak() as peak:
        if size:
            large = in_chunks(core, batch, size)
            large.backward(large.outputs()[0]["it"].loss)
        else:
            core(batch).backward()
    return peak.peak


@pytest.mark.parametrize("kind", ["InfoNCE, queue, soft targets, within modalities", "Matching", "CausalLM"])
def test_memory_grows_with_the_chunk_not_with_the_batch(kind: str) -> None:
    small, large = (memory(kind, times, size=10) for times in (4, 16))
    small_whole, large_whole = (memory(kind, times, size=0) for times in (4, 16))
    assert large < 0.2 * large_whole
    assert large - small < 0.1 * (large_whole - small_whole)  # the vectors, and tokens that may be mined


class FineData(ToyData):
    """Tables in float64."""

    def collate(self, samples: Sequence[int]) -> Batch:
        batch = super().collate(samples)
        table = batch["table"]
        return batch.replace(modalities={**batch.modalities, "table": table.replace(values=table.values.double())})


Fitted = tuple[PretrainTask, dict[str, Any]]


@pytest.fixture
def fit(pretrain: Callable[..., PretrainTask], trainer: Callable[..., L.Trainer]) -> Callable[..., Fitted]:
    """Three steps of SPMM; the task, and the state of its optimiser."""

    def run(chunk: int, accumulate: int = 1, **settings: Any) -> Fitted:
        # In float64: Adam makes steps of the rounding errors of gradients that are 0.
        task = in_double(pretrain(chunk=chunk, optimizer=AdamW(lr=1e-3, warmup=0), **settings))
        data = FineData(n=40, batch_size=7, lacking={"text": (0, 3), "table": range(8, 20)})
        fitted = trainer(max_steps=3, accumulate_grad_batches=accumulate, gradient_clip_val=1.0)
        fitted.fit(task, datamodule=data)
        logged = {key: float(value) for key, value in fitted.callback_metrics.items()}
        return task, {"optimizer": fitted.optimizers[0].state_dict()["state"], "logged": logged}

    return run


@pytest.mark.parametrize("accumulate", [1, 2])
def test_three_steps_leave_what_the_whole_leaves(fit: Callable[..., Fitted], accumulate: int) -> None:
    """Weights, teacher, queue, moments of the optimiser, and what stands behind the bar."""
    (whole, expected), (cut, found) = fit(0, accumulate), fit(2, accumulate)
    state = whole.state_dict()
    assert any("teacher." in name for name in state)
    assert len(whole.objectives["contrast"].queues["table-text/a"])  # type: ignore[arg-type, index, union-attr]
    for name, value in cut.state_dict().items():
        torch.testing.assert_close(value, state[name], rtol=1e-5, atol=1e-6)
    for number, moments in expected["optimizer"].items():
        for name, value in moments.items():
            torch.testing.assert_close(found["optimizer"][number][name], value, rtol=1e-5, atol=1e-8)
    for name, value in expected["logged"].items():
        if name.endswith("loss"):
            assert found["logged"][name] == pytest.approx(value, rel=1e-6), name


def test_a_chunk_as_large_as_the_batch_is_the_plain_way(fit: Callable[..., Fitted]) -> None:
    (whole, _), (cut, _) = fit(0), fit(7)
    for name, value in cut.state_dict().items():
        assert torch.equal(value, whole.state_dict()[name]), name


def test_half_precision_reaches_every_weight(
    pretrain: Callable[..., PretrainTask], toy: Any, trainer: Callable[..., L.Trainer]
) -> None:
    """Weights that the pass without gradient has cast do not serve the pass with it."""
    reached = []
    for chunk in (0, 2):
        task = pretrain(chunk=chunk)
        fitted = trainer([Reached()], max_steps=1, precision="bf16-mixed")
        fitted.fit(task, datamodule=toy(batch_size=6))
        reached.append(fitted.callbacks[0].gradients)  # type: ignore[attr-defined]
    assert reached[0].keys() == reached[1].keys()
    for name, gradient in reached[0].items():
        torch.testing.assert_close(reached[1][name], gradient, rtol=0.1, atol=0.02, msg=name)


class Reached(L.Callback):
    """Keeps the gradients of the last step."""

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.gradients = {name: p.grad.clone() for name, p in pl_module.named_parameters() if p.grad is not None}


def test_stages_freeze_and_weigh_as_ever(fit: Callable[..., Fitted]) -> None:
    stages = {
        "first": Stage(until=0.3, train=["objectives.*"], objectives={"match": 0.0, "next_value": 3.0}),
        "then": Stage(freeze=["model.encoders.text.*", "model.fusion.*"]),
    }
    (whole, _), (cut, _) = fit(0, stages=stages), fit(2, stages=stages)
    for name, value in cut.state_dict().items():
        torch.testing.assert_close(value, whole.state_dict()[name], rtol=1e-5, atol=1e-6)


class TwoMeans(Objective):
    """What cannot be had in chunks: each mean would need a number of its own."""

    def needs(self) -> set[View]:
        return {clean("text")}

    def forward(self, views: Views, batch: Batch) -> ObjectiveOutput:
        vectors = views[clean("text")].pooled
        return ObjectiveOutput(loss=global_mean(vectors[:, 0]) + global_mean(vectors[:, 1]), logs={})


def test_a_loss_that_is_no_mean_is_refused(fit: Callable[..., Fitted]) -> None:
    with pytest.raises(RecipeError, match="the loss of 'two' is not one mean") as error:
        fit(2, objectives=lambda: {"two": TwoMeans(), "next": CausalLM("text")})
    assert error.value.where == "model.chunk"


@pytest.mark.gpu
@pytest.mark.parametrize("kind", OBJECTIVES)
def test_chunks_equal_the_whole_on_a_gpu(kind: str) -> None:
    whole, cut, batch = Model(kind, packed=True).cuda(), Model(kind, packed=True).cuda(), batch_of().to("cuda")
    whole(batch).backward()
    large = in_chunks(cut, batch, SIZE)
    large.backward(large.outputs()[0]["it"].loss)
    found = gradients(cut)
    for name, gradient in gradients(whole).items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6, msg=name)
