"""Stages: what is trained, how fast, and on which objectives, as training goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch

from polyfm.shared.errors import RecipeError
from polyfm.shared.training.optim import AdamW
from polyfm.shared.training.stages import Stage, StageSwitch, matches, trainable


def test_globs_say_what_is_trained() -> None:
    stage = Stage(train=["model.encoders.*", "head.*"], freeze=["*.embedder.*"])
    assert stage.trains("model.encoders.text.backbone.blocks.0.attention.q.weight")
    assert stage.trains("head.0.weight")
    assert not stage.trains("model.encoders.text.embedder.table.weight")
    assert not stage.trains("model.fusion.backbone.blocks.0.x")
    assert Stage().trains("anything")
    assert not matches("Head.weight", ["head.*"])


def test_the_first_glob_that_matches_gives_the_rate() -> None:
    stage = Stage(rates={"*.embedder.*": 0.1, "model.*": 0.5})
    assert stage.rate("model.encoders.text.embedder.table.weight") == 0.1
    assert stage.rate("model.encoders.text.projection.weight") == 0.5
    assert stage.rate("head.weight") == 1.0


def test_a_stage_ends_when_its_passes_are_done_and_the_last_one_lasts() -> None:
    switch = StageSwitch({"warm": Stage(until=0.5), "main": Stage(until=2), "cool": Stage(until=3)})
    assert [switch.at(epoch) for epoch in (0, 0.49, 0.5, 1.9, 2, 3, 99)] == [
        "warm", "warm", "main", "main", "cool", "cool", "cool",
    ]  # fmt: skip


def test_stages_out_of_order_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"stages must end one after the other, not at \[2, 1\]"):
        StageSwitch({"a": Stage(until=2), "b": Stage(until=1)})


class Watch(L.Callback):
    """Keeps, before each step, what is trained, the rates, and the weights of objectives."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Any]] = []
        self.before: dict[str, torch.Tensor] = {}

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.before = {name: p.detach().clone() for name, p in pl_module.named_parameters()}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        named = dict(pl_module.named_parameters())
        self.steps.append(
            {
                "moved": {name for name, p in named.items() if not torch.equal(p, self.before[name])},
                "trained": {name for name, p in named.items() if p.requires_grad},
                "weights": dict(pl_module.stage_weights),
                "teacher": {name for name, p in named.items() if name.startswith("teacher.")},
            }
        )


@pytest.fixture
def watched(
    toy: Any, pretrain: Callable[..., Any], trainer: Callable[..., L.Trainer]
) -> Callable[..., list[dict[str, Any]]]:
    def run(stages: dict[str, Stage], epochs: int = 2, **settings: Any) -> list[dict[str, Any]]:
        watch = Watch()
        task = pretrain(stages=stages, optimizer=AdamW(lr=1e-2, warmup=0))
        data = toy(n=24)  # 16 for training: 4 steps a pass
        trainer([watch], max_epochs=epochs, **settings).fit(task, datamodule=data)
        return watch.steps

    return run


def test_each_stage_is_applied_at_its_step(watched: Callable[..., list[dict[str, Any]]]) -> None:
    stages = {
        "head first": Stage(until=0.5, freeze=["model.encoders.*"], objectives={"match": 0.0}),
        "all": Stage(until=1.5, objectives={"match": 2.0}),
        "rest": Stage(train=["model.fusion.*"]),
    }
    steps = watched(stages)
    assert len(steps) == 8
    for i, step in enumerate(steps):
        encoders = {name for name in step["trained"] if name.startswith("model.encoders.")}
        moved = {name for name in step["moved"] if name.startswith("model.encoders.")}
        fusion = {name for name in step["moved"] if name.startswith("model.fusion.")}
        assert fusion
        assert bool(encoders) == bool(moved) == (2 <= i < 6), i
        assert step["weights"].get("match") == (0.0 if i < 2 else 2.0 if i < 6 else None)
    assert steps[7]["trained"] == {name for name in steps[7]["trained"] if name.startswith("model.fusion.")}


def test_no_stage_trains_what_follows_others(watched: Callable[..., list[dict[str, Any]]]) -> None:
    step = watched({"all": Stage()}, epochs=1, limit_train_batches=1)[0]
    assert not {name for name in step["trained"] if "teacher" in name}
    assert {name for name in step["moved"] if name.startswith("objectives.next_token.teacher_")}  # they follow


def test_what_was_accumulated_before_a_switch_moves_nothing_after_it(
    watched: Callable[..., list[dict[str, Any]]],
) -> None:
    """The switch comes at the second batch of four, of which three are accumulated."""
    stages = {"all": Stage(until=0.25), "rest": Stage(freeze=["model.encoders.*"])}
    steps = watched(stages, epochs=1, accumulate_grad_batches=3)
    assert not {name for step in steps for name in step["moved"] if name.startswith("model.encoders.")}


def test_rates_scale_the_schedule(toy: Any, pretrain: Callable[..., Any], trainer: Callable[..., L.Trainer]) -> None:
    stages = {"first": Stage(until=1, rates={"model.encoders.text.*": 0.1}), "second": Stage()}
    task = pretrain(stages=stages, optimizer=AdamW(lr=1e-2, warmup=0, floor=1.0))
    seen: list[dict[str, float]] = []

    class Rates(L.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            seen.append({group["example"]: group["lr"] for group in trainer.optimizers[0].param_groups})

    trainer([Rates()], max_epochs=2).fit(task, datamodule=toy(n=24))
    for i, rates in enumerate(seen):
        for name, rate in rates.items():
            # A constant schedule; the rate that a step ends with is the next one's.
            slow = name.startswith("model.encoders.text.") and i < 4
            assert rate == pytest.approx(1e-3 if slow else 1e-2), (i, name)


def test_globs_that_match_nothing_are_refused(
    toy: Any, pretrain: Callable[..., Any], trainer: Callable[..., L.Trainer]
) -> None:
    task = pretrain(stages={"warm": Stage(freeze=["model.encoders.txt.*"])})
    with pytest.raises(
        RecipeError, match=r"model.stages.warm: 'model.encoders.txt.\*' matches no parameter. Names look"
    ):
        trainer(max_epochs=1).fit(task, datamodule=toy())


def test_trainable_leaves_out_what_the_task_declares(pretrain: Callable[..., Any]) -> None:
    names = [name for name, _ in trainable(pretrain())]
    assert not [name for name in names if "teacher" in name]
    assert "model.encoders.text.embedder.table.weight" in names
