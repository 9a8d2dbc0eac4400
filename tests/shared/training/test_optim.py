"""AdamW's groups, schedule and layer-wise rates by hand; the moving average; the switches on blocks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Timer
from torch import nn

from polyfm.shared.backbones.block import Llama, PostNorm
from polyfm.shared.backbones.encoder import Encoder, MultimodalModel
from polyfm.shared.backbones.transformer import Transformer
from polyfm.shared.errors import RecipeError
from polyfm.shared.objectives.masked import MaskedTokens
from polyfm.shared.objectives.objective import Objective
from polyfm.shared.tokens.masking import Draw
from polyfm.shared.tokens.text import TextTokens
from polyfm.shared.training.optim import AdamW, move_average, prepare_blocks, time_passed, total_steps
from polyfm.shared.training.stages import Stage


def test_warm_up_then_cosine_to_the_floor_by_hand() -> None:
    rate = AdamW(warmup=0.2, floor=0.1).factor(20)  # 4 steps of warm-up, 16 of decay
    assert [rate(step) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert rate(4) == 1.0
    assert rate(8) == pytest.approx(0.1 + 0.9 * (1 + 2**-0.5) / 2)  # a quarter of a half-wave: cos(π/4)
    assert rate(12) == pytest.approx(0.55)
    assert rate(16) == pytest.approx(0.1 + 0.9 * (1 - 2**-0.5) / 2)
    assert rate(20) == pytest.approx(0.1)
    assert rate(99) == pytest.approx(0.1)


def test_time_moves_the_schedule_on_by_hand() -> None:
    """Whichever is further along decides: 4 steps of warm-up and 16 of decay, or the same shares of the time."""
    now = 0.0
    rate = AdamW(warmup=0.2, floor=0.1).factor(20, lambda: now)
    assert rate(0) == 0.25
    now = 0.6  # as after 12 of 20 steps
    assert rate(1) == rate(12) == pytest.approx(0.55)
    assert rate(16) == pytest.approx(0.1 + 0.9 * (1 - 2**-0.5) / 2)
    now = 1.0
    assert rate(2) == pytest.approx(0.1)


def test_clock_is_the_share_of_the_time_allowed() -> None:
    timer = SimpleNamespace(elapsed=15.0)
    real = Timer(duration={"minutes": 1})
    real.time_elapsed = lambda stage=None: timer.elapsed  # type: ignore[method-assign]
    clock = time_passed(SimpleNamespace(callbacks=[real]))  # type: ignore[arg-type]
    assert clock() == pytest.approx(0.25)
    timer.elapsed = 60.0
    assert clock() == pytest.approx(1.0)
    assert time_passed(SimpleNamespace(callbacks=[]))() == 0.0  # type: ignore[arg-type]


def test_without_warm_up_the_first_step_has_the_peak_rate() -> None:
    assert AdamW(warmup=0).factor(10)(0) == 1.0


def test_schedule_multiplies_every_group() -> None:
    made = AdamW(lr=1.0, warmup=0.5, floor=0.0)(nn.Linear(2, 2), total_steps=4)
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
    rates = []
    for _ in range(4):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    assert rates == [[0.5, 0.5], [1.0, 1.0], [1.0, 1.0], [pytest.approx(0.5)] * 2]


def test_vectors_are_not_decayed() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Embedding(5, 3))
    groups = AdamW(weight_decay=0.3).groups(module)
    decayed = {group["weight_decay"]: [tuple(p.shape) for p in group["params"]] for group in groups}
    assert decayed == {0.3: [(4, 3), (5, 3)], 0.0: [(4,), (4,), (4,)]}


def rates_of(task: nn.Module, **settings: Any) -> dict[str, float]:
    names = {id(parameter): name for name, parameter in task.named_parameters()}
    groups = AdamW(lr=1.0, **settings).groups(task)
    return {names[id(parameter)]: group["lr"] for group in groups for parameter in group["params"]}


class Task(nn.Module):
    """Two encoders of different depth and a head."""

    def __init__(self, block: type) -> None:
        super().__init__()

        def encoder(depth: int) -> Encoder:
            trunk = partial(Transformer, depth=depth, block=partial(block, heads=2))
            return Encoder(8, partial(TextTokens, vocabulary=5), trunk, projection=2)

        self.model = MultimodalModel({"deep": encoder(3), "flat": encoder(1)})
        self.head = nn.Linear(8, 1)


@pytest.mark.parametrize("block", [PostNorm, Llama])
def test_layer_wise_rates_by_hand(block: type) -> None:
    """BEiT: 0.5 for the last block, 0.25 for the one below …, the embedder below all; each encoder by itself."""
    rates = rates_of(Task(block), layer_decay=0.5)
    expected = {
        "head.": 1.0,
        "model.encoders.deep.projection.": 1.0,
        "model.encoders.deep.backbone.norm.": 1.0,
        "model.encoders.deep.backbone.blocks.2.": 0.5,
        "model.encoders.deep.backbone.blocks.1.": 0.25,
        "model.encoders.deep.backbone.blocks.0.": 0.125,
        "model.encoders.deep.embedder.": 0.0625,
        "model.encoders.flat.backbone.norm.": 1.0,
        "model.encoders.flat.backbone.blocks.0.": 0.5,
        "model.encoders.flat.embedder.": 0.25,
        "model.encoders.flat.projection.": 1.0,
    }
    for name, rate in rates.items():
        prefix = next(prefix for prefix in expected if name.startswith(prefix))
        assert rate == expected[prefix], name
    assert len(rates) == len(dict(Task(block).named_parameters()))


def test_frozen_parameters_are_left_out_unless_a_stage_trains_them() -> None:
    task = Task(PostNorm)
    task.model.requires_grad_(False)
    assert set(rates_of(task)) == {"head.weight", "head.bias"}
    groups = AdamW().groups(task, {"later": Stage(train=["head.*", "model.encoders.flat.*"])})
    found = sum(len(group["params"]) for group in groups)
    assert found == 2 + len(list(task.model.encoders["flat"].parameters()))


def test_parameters_of_different_rates_in_a_stage_are_in_different_groups() -> None:
    task = Task(PostNorm)
    names = {id(p): name for name, p in task.named_parameters()}
    groups = AdamW().groups(task, {"slow": Stage(rates={"model.encoders.deep.*": 0.1})})
    for group in groups:
        assert len({names[id(p)].startswith("model.encoders.deep.") for p in group["params"]}) == 1


def trainer_like(batches: int, **settings: Any) -> L.Trainer:
    data = SimpleNamespace(train_dataloader=lambda: range(batches))
    defaults = {
        "limit_train_batches": 1.0,
        "max_epochs": 3,
        "max_steps": -1,
        "accumulate_grad_batches": 1,
        "callbacks": [],
    }
    return SimpleNamespace(datamodule=data, **{**defaults, **settings})  # type: ignore[return-value]


def test_steps_of_a_run() -> None:
    assert total_steps(trainer_like(10)) == 30
    assert total_steps(trainer_like(10, accumulate_grad_batches=4)) == 9  # 4 + 4 + 2
    assert total_steps(trainer_like(10, max_steps=7)) == 7
    assert total_steps(trainer_like(10, max_steps=70)) == 30
    assert total_steps(trainer_like(10, limit_train_batches=4)) == 12
    assert total_steps(trainer_like(10, limit_train_batches=0.5)) == 15
    assert total_steps(trainer_like(10, max_epochs=-1, max_steps=50)) == 50
    assert total_steps(trainer_like(10, max_epochs=-1, callbacks=[Timer(duration={"minutes": 1})])) > 10**6
    with pytest.raises(RecipeError, match="a schedule needs an end"):
        total_steps(trainer_like(10, max_epochs=-1))


def test_moving_average_by_hand() -> None:
    average, module = nn.BatchNorm1d(1), nn.BatchNorm1d(1)
    with torch.no_grad():
        average.weight.fill_(1.0)
        module.weight.fill_(3.0)
        module.running_mean.fill_(7.0)  # type: ignore[union-attr]
    move_average(average, module, 0.9)
    assert average.weight.item() == pytest.approx(0.9 * 1 + 0.1 * 3)
    assert average.running_mean.item() == 7.0  # type: ignore[union-attr]
    move_average(average, module, 0.9)
    assert average.weight.item() == pytest.approx(0.9 * 1.2 + 0.1 * 3)
    assert module.weight.item() == 3.0


def step_of(task: Any, toy: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    data = toy()
    data.setup()
    batch = data.collate([0, 1, 2, 3])
    torch.manual_seed(0)
    outputs = {k: v(task.answer(batch, Draw(0, 0)), batch).loss for k, v in task.objectives.items()}
    loss = task.gradients(outputs)
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in task.named_parameters() if p.grad is not None}


def test_recomputed_activations_change_nothing(pretrain: Callable[..., Any], toy: Any) -> None:
    """Dropout included: the second forward pass draws what the first drew."""
    kept, kept_grads = step_of(pretrain(dropout=0.2), toy)
    again, again_grads = step_of(pretrain(dropout=0.2, recompute=True), toy)
    assert torch.equal(kept, again)
    assert kept_grads.keys() == again_grads.keys()
    for name, grad in kept_grads.items():
        torch.testing.assert_close(grad, again_grads[name])


def one_view() -> dict[str, Objective]:
    return {"token": MaskedTokens("text")}


def test_compiled_blocks_change_nothing(
    pretrain: Callable[..., Any], toy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced and differentiated by torch.compile; the machine code is a test of the longer tier."""
    plain, plain_grads = step_of(pretrain(one_view), toy)
    compile_part, compiled = nn.Module.compile, []

    def without_inductor(part: nn.Module, **settings: Any) -> None:
        compiled.append((type(part), settings))
        compile_part(part, backend="aot_eager", **settings)

    monkeypatch.setattr(nn.Module, "compile", without_inductor)
    found, grads = step_of(pretrain(one_view, compile=True), toy)
    assert compiled == [(PostNorm, {"dynamic": True})] * 3
    torch.testing.assert_close(plain, found)
    for name, grad in plain_grads.items():
        torch.testing.assert_close(grad, grads[name])


@pytest.mark.full
def test_compiled_machine_code_changes_nothing(pretrain: Callable[..., Any], toy: Any) -> None:
    plain, plain_grads = step_of(pretrain(), toy)
    found, grads = step_of(pretrain(compile=True), toy)
    torch.testing.assert_close(plain, found)
    for name, grad in plain_grads.items():
        torch.testing.assert_close(grad, grads[name], atol=1e-4, rtol=1e-4)


def test_compile_without_a_compiler_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(RecipeError, match=r"model.compile: there is no C\+\+ compiler .* Install one"):
        prepare_blocks(Task(PostNorm), recompute=False, compile=True)
