"""`PretrainTask`: losses of the objectives under one total, teacher and queues, missing modalities."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch

from polyfm.shared.data.batch import Batch
from polyfm.shared.errors import RecipeError
from polyfm.shared.objectives.elastic import ElasticSimilarity
from polyfm.shared.objectives.masked import MaskedTokens, MaskedValues
from polyfm.shared.objectives.objective import Objective
from polyfm.shared.tokens.masking import Draw
from polyfm.shared.training.gradients import GradientPolicy
from polyfm.shared.training.optim import AdamW
from polyfm.shared.training.pretrain import PretrainTask
from polyfm.shared.training.stages import Stage

Pretrain = Callable[..., PretrainTask]
SPMM = ("contrast", "match", "next_token", "next_value")


def loss_of(task: PretrainTask, batch: Batch) -> torch.Tensor:
    views = task.answer(batch, Draw(0, 0))
    losses = {name: objective(views, batch).loss for name, objective in task.objectives.items()}
    return task.gradients(losses, task.stage_weights)


def gradients(task: PretrainTask, batch: Batch) -> dict[str, torch.Tensor | None]:
    task.zero_grad()
    loss_of(task, batch).backward()
    return {name: parameter.grad for name, parameter in task.named_parameters() if parameter.requires_grad}


def batch_of(toy: Any, items: Any = range(6), **lacking: Any) -> Batch:
    data = toy(lacking=lacking)
    data.setup()
    return data.collate(list(items))


@pytest.mark.parametrize("name", SPMM)
def test_each_objective_of_spmm_counts(pretrain: Pretrain, toy: Any, name: str) -> None:
    """Ablation: without a term the total and the encoder's gradient are other ones."""
    batch = batch_of(toy)
    whole, without = pretrain(), pretrain(gradients=GradientPolicy({name: 0.0}))
    own = whole.objectives[name](whole.answer(batch, Draw(0, 0)), batch).loss
    assert float(own.detach()) > 0
    torch.testing.assert_close(loss_of(whole, batch) - loss_of(without, batch), own)
    table = "model.encoders.table.embedder.value.weight"
    with_term, other = gradients(whole, batch)[table], gradients(without, batch)[table]
    assert with_term is not None
    assert other is not None
    assert not torch.allclose(with_term, other)


def test_spmm_weighs_the_next_property_five_times(pretrain: Pretrain, toy: Any) -> None:
    batch = batch_of(toy)
    plain, weighted = pretrain(), pretrain(gradients=GradientPolicy({"next_value": 5.0}))
    own = plain.objectives["next_value"](plain.answer(batch, Draw(0, 0)), batch).loss
    torch.testing.assert_close(loss_of(weighted, batch) - loss_of(plain, batch), 4 * own)


@pytest.mark.parametrize("lacking", [{"text": (0, 2)}, {"table": (1, 5)}, {"text": (0, 2), "table": (2, 3)}])
def test_items_that_lack_a_modality_take_part_with_what_they_have(pretrain: Pretrain, toy: Any, lacking: Any) -> None:
    task = pretrain()
    grads = gradients(task, batch_of(toy, **lacking))
    assert all(grad is not None and grad.isfinite().all() for grad in grads.values())
    # Every loss of SPMM is on pairs, so the items with both give the same numbers alone.
    both = [i for i in range(6) if i not in {*lacking.get("text", ()), *lacking.get("table", ())}]
    torch.testing.assert_close(loss_of(task, batch_of(toy, **lacking)), loss_of(task, batch_of(toy, both)))


@pytest.mark.parametrize("missing", ["text", "table"])
def test_a_modality_that_no_item_has_gives_exact_zeros_and_leaves_no_parameter_unused(
    pretrain: Pretrain, toy: Any, missing: str
) -> None:
    """Without it DDP would wait for gradients that never come."""
    task = pretrain()
    batch = batch_of(toy, **{missing: range(6)})
    grads = gradients(task, batch)
    assert float(loss_of(task, batch).detach()) == 0.0  # all of SPMM's losses are on pairs
    assert not [name for name, grad in grads.items() if grad is None]
    assert not [name for name, grad in grads.items() if grad is not None and grad.count_nonzero()]


def test_losses_of_one_modality_go_on_without_the_other(pretrain: Pretrain, toy: Any) -> None:
    def alone() -> dict[str, Objective]:
        return {"token": MaskedTokens("text"), "value": MaskedValues("table")}

    task = pretrain(alone)
    grads = gradients(task, batch_of(toy, table=range(6)))
    for name, grad in grads.items():
        if name.startswith(("model.encoders.table.", "objectives.value.")) and "projection" not in name:
            assert grad is not None, name
            assert grad.count_nonzero() == 0, name
    text = grads["model.encoders.text.embedder.table.weight"]
    assert text is not None
    assert text.count_nonzero() > 0


def test_an_objective_that_needs_no_teacher_keeps_none(pretrain: Pretrain) -> None:
    assert pretrain(lambda: {"tokens": MaskedTokens("text")}).teacher is None
    assert pretrain().teacher is not None


def test_teacher_and_queue_after_one_step(pretrain: Pretrain, toy: Any, trainer: Callable[..., L.Trainer]) -> None:
    task = pretrain(optimizer=AdamW(lr=1e-2, warmup=0))
    before = {name: p.detach().clone() for name, p in task.model.named_parameters()}
    trainer(max_steps=1).fit(task, datamodule=toy())
    after, teacher = dict(task.model.named_parameters()), dict(task.teacher.named_parameters())  # type: ignore[union-attr]
    for name, old in before.items():
        torch.testing.assert_close(teacher[name], 0.9 * old + 0.1 * after[name])
    assert not torch.equal(before["encoders.text.projection.weight"], after["encoders.text.projection.weight"])
    queue = task.objectives["contrast"].queues["table-text/a"]  # type: ignore[index, union-attr]
    assert len(queue) == 4  # one batch


def test_teacher_moves_once_for_each_optimiser_step(
    pretrain: Pretrain, toy: Any, trainer: Callable[..., L.Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    moves = []
    monkeypatch.setattr("polyfm.shared.training.pretrain.move_average", lambda *_: moves.append(1))
    trainer(max_epochs=2, accumulate_grad_batches=3).fit(pretrain(), datamodule=toy())
    assert len(moves) == 4  # four batches a pass: after the third and after the last


def test_validation_is_the_same_every_time_and_leaves_the_queue_alone(
    pretrain: Pretrain, toy: Any, trainer: Callable[..., L.Trainer]
) -> None:
    task, data = pretrain(dropout=0.3), toy()
    fitted = trainer()
    first = fitted.validate(task, datamodule=data, verbose=False)[0]
    second = fitted.validate(task, datamodule=data, verbose=False)[0]
    assert first == second
    assert set(first) >= {"valid/loss", *(f"valid/{name}/loss" for name in SPMM)}
    assert first["valid/loss"] == pytest.approx(sum(first[f"valid/{name}/loss"] for name in SPMM), rel=1e-5)
    assert len(task.objectives["contrast"].queues["table-text/a"]) == 0  # type: ignore[index, union-attr]
    tested = fitted.test(task, datamodule=data, verbose=False)[0]
    assert set(tested) >= {"test/loss", "test/contrast/loss"}


def test_training_lowers_every_loss(pretrain: Pretrain, toy: Any) -> None:
    task, batch = pretrain(), batch_of(toy, range(8))
    optimizer = torch.optim.AdamW(AdamW(lr=1e-2).groups(task))

    def losses() -> dict[str, float]:
        views = task.answer(batch, Draw(0, 0))
        return {name: float(objective(views, batch).loss.detach()) for name, objective in task.objectives.items()}

    before = losses()
    for _ in range(40):
        optimizer.zero_grad()
        loss_of(task, batch).backward()
        optimizer.step()
    after = losses()
    assert after["next_token"] < 0.7 * before["next_token"]
    assert after["next_value"] < 0.7 * before["next_value"]
    assert after["match"] < 0.9 * before["match"]
    assert after["contrast"] < 0.9 * before["contrast"]


def test_predictions_are_vectors_of_the_rows_that_exist(pretrain: Pretrain, toy: Any) -> None:
    found = pretrain().eval().predict_step(batch_of(toy, text=(1,)))
    assert found["text"]["rows"].tolist() == [0, 2, 3, 4, 5]
    assert found["text"]["pooled"].shape == (5, 16)
    assert found["table"]["projected"].shape == (6, 6)
    torch.testing.assert_close(found["table"]["projected"].norm(dim=1), torch.ones(6))


def test_a_chunk_below_nothing_is_refused(pretrain: Pretrain) -> None:
    with pytest.raises(RecipeError, match="expected at least 1, or 0 for all, not -1") as error:
        pretrain(chunk=-1)
    assert error.value.where == "model.chunk"


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"gradients": GradientPolicy({"contrats": 2.0})}, "model.gradients.weights"),
        ({"stages": {"warm": Stage(objectives={"contrats": 0.0})}}, "model.stages.warm.objectives"),
    ],
)
def test_a_weight_of_an_objective_that_is_not_there_is_refused(pretrain: Pretrain, settings: Any, where: str) -> None:
    with pytest.raises(RecipeError, match="there is no objective 'contrats'") as error:
        pretrain(**settings)
    assert error.value.where == where


@pytest.mark.parametrize(
    "objective",
    [
        lambda: MaskedTokens("notes"),  # read as the head is built
        lambda: ElasticSimilarity("notes"),  # which builds nothing
        lambda: MaskedTokens("text", context="notes"),
        lambda: MaskedTokens("text", context="table+notes"),
    ],
    ids=["built", "not built", "context", "part of a context"],
)
def test_an_encoder_that_is_not_there_is_named(pretrain: Pretrain, objective: Callable[[], Objective]) -> None:
    with pytest.raises(RecipeError) as refused:
        pretrain(lambda: {"alike": objective()})
    assert str(refused.value) == (
        "model.encoders: there is no encoder 'notes', which the objective 'alike' reads. Add model.encoders.notes, or "
        "leave out model.objectives.alike"
    )


def test_an_encoder_of_another_spelling_is_named(pretrain: Pretrain) -> None:
    with pytest.raises(RecipeError) as refused:
        pretrain(lambda: {"alike": MaskedTokens("txet")})
    assert str(refused.value) == (
        "model.encoders.text: the objective 'alike' reads 'txet', and this encoder is called 'text'. Call both 'txet', or "
        "both 'text'"
    )
