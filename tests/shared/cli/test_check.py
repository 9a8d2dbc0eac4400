"""`polyfm check`: eight samples, one step, an estimate; at paper size nothing is allocated."""

from __future__ import annotations

import gc
import re
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from polyfm.shared.cli.check import batch_of, duration, one_step, prepare, scaled, uncollected
from polyfm.shared.errors import UsageError
from polyfm.shared.training.build import RecipeParser
from polyfm.shared.training.recipe import RECIPES, find_recipe, merge

Polyfm = Callable[..., Any]


def test_small_size_shows_shapes_labels_a_step_time_and_memory(polyfm: Polyfm, runs: Any) -> None:
    start = time.monotonic()
    shown = polyfm(
        "check", "molecules/property", "--size", "small", "--data.path", runs.data, "--data.targets=[activity,active]"
    )
    assert time.monotonic() - start < 10
    assert shown.code == 0, shown.err
    assert "smiles: 8 of 8 samples have it; rows (8,), ids (" in shown.out
    assert re.search(r"label activity: [\d.]+ to [\d.]+, mean [\d.]+, sd [\d.]+; 0 missing", shown.out)
    assert "to predict: activity, active (regression; judging by the labels" in shown.out
    assert "label active: 0 to 1, mean" in shown.out
    only = polyfm(
        "check", "molecules/property", "--size", "small", "--data.path", runs.data, "--data.targets", "active"
    )
    assert re.search(r"label active: \d+ positive, \d+ negative; 0 missing", only.out)
    assert re.search(r"one step of 32 samples: loss [\d.]+, [\d.]+ s on \d+ threads", shown.out)
    assert re.search(r"parameters: 0\.\d\d million", shown.out)
    assert re.search(r"memory: about \d+ MiB", shown.out)
    assert re.search(r"time: about [\d.]+ (s|min) an epoch", shown.out)
    assert "Next: polyfm fit molecules/property" in shown.out


def test_the_next_step_names_a_file_of_ones_own_by_its_path(polyfm: Polyfm, runs: Any, tmp_path: Path) -> None:
    text = (RECIPES / "molecules" / "property.yaml").read_text(encoding="utf-8")
    own = tmp_path / "own.yaml"
    own.write_text(f"domain: molecules\n{text}", encoding="utf-8")
    assert f"Next: polyfm check {own} " in polyfm("describe", own).out
    words = ("--size", "small", "--data.path", runs.data, "--data.targets", "active")
    shown = polyfm("check", own, *words, "--model.train_blocks", "0")
    assert f"Next: polyfm fit {own} " in shown.out
    assert "parameters: 0.02 million" in shown.out  # of a frozen encoder only the head: 128 x 128 + 128 + 128 + 1


def test_a_pre_training_recipe(polyfm: Polyfm, runs: Any) -> None:
    words = ("--config", runs.tiny_spmm, "--data.path", runs.data)
    shown = polyfm("check", "molecules/spmm", "--size", "small", *words)
    assert shown.code == 0, shown.err
    assert "properties: 8 of 8 samples have it; rows (8,), values (8, 53), known (8, 53)" in shown.out


def test_paper_size_is_estimated_without_memory(polyfm: Polyfm, runs: Any) -> None:
    shown = polyfm("check", "molecules/spmm", "--size", "paper", "--data.path", runs.data)
    assert shown.code == 0, shown.err
    assert "144.0 million (built on the meta device, nothing was allocated)" in shown.out
    assert re.search(r"memory: 2\.\d GiB for weights and optimiser, about [\d.]+ GiB of activations", shown.out)
    assert re.search(r"work: about [\d.]+ TFLOP a step of 64 samples, 1 steps an epoch", shown.out)
    assert re.search(r"time: at least [\d.]+ (s|min|h) an epoch on \d+ threads of this CPU", shown.out)


def test_work_of_paper_size_is_that_of_a_real_step(runs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The estimate for a bigger size, made from a step at small size, beside that size's own step."""
    recipe = find_recipe("molecules/property")
    flags = [f"--data.path={runs.data}", "--data.targets=activity"]
    trees = {"paper": {"width": 192}, "small": {"width": 96}}
    for name, encoder in trees.items():
        trees[name] = merge(recipe.sized("small"), {"model": {"encoders": {"smiles": encoder}}})
    monkeypatch.setattr(type(recipe), "sized", lambda self, size: trees[size])
    cli = RecipeParser(recipe, trees["paper"], flags)
    train = prepare(cli)
    flops, activations = scaled(cli.model, recipe, flags, samples=32)
    with FlopCounterMode(display=False) as counter:
        _, _, kept = one_step(cli.model, batch_of(cli.datamodule, train[:32]))
    assert flops == pytest.approx(counter.get_total_flops(), rel=0.15)
    assert activations == pytest.approx(kept, rel=0.15)


def test_durations_are_said_in_the_unit_a_person_would_choose() -> None:
    assert [duration(seconds) for seconds in (0.04, 80, 600, 9_000, 1e6)] == [
        "0.04 s", "80 s", "10.0 min", "2.5 h", "11.6 days",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--data.path", "none.csv"], 3, "none.csv: there is no such file"),
        (["--data.path", "DATA", "--data.smiles", "smile"], 3, "'smile'"),
        (["--data.path", "DATA", "--data.targets=[activty]"], 3, "'activity'"),
        (["--data.path", "DATA", "--model.kinds=auto"], 2, "Did you mean --model.kind?"),
        (["--data.path", "DATA"], 3, "no label column is given. Name one: --data.targets COLUMN"),
    ],
)
def test_wrong_inputs(polyfm: Polyfm, runs: Any, words: list[str], code: int, message: str) -> None:
    words = [str(runs.data) if word == "DATA" else word for word in words]
    shown = polyfm("check", "molecules/property", "--size", "small", *words)
    assert shown.code == code, shown.err
    assert message in shown.err
    assert shown.err.count("\n") == 1


def test_the_step_counts_activations_and_leaves_no_gradient() -> None:
    class Task(torch.nn.Module):
        """y = a x² of one number."""

        def __init__(self) -> None:
            super().__init__()
            self.a = torch.nn.Parameter(torch.tensor([2.0]))
            self.target = SimpleNamespace(loss=lambda outputs, values: outputs.sum())

        def forward(self, batch: Any) -> torch.Tensor:
            return self.a * batch.x * batch.x

    task = Task()
    seconds, loss, kept = one_step(task, SimpleNamespace(x=torch.ones(1000), targets={"labels": torch.zeros(1000)}))
    assert loss == 2000
    assert seconds > 0
    assert kept >= 4 * 1000
    assert task.a.grad is None


def test_garbage_is_collected_again_after_a_check() -> None:
    with pytest.raises(UsageError), uncollected():
        assert not gc.isenabled()
        raise UsageError("wrong")
    assert gc.isenabled()


def test_of_a_long_file_only_the_beginning_is_read_and_said_to_be(
    polyfm: Polyfm, runs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("check", "molecules/property", "--size", "small", "--data.path", runs.data, "--data.targets", "activity")
    assert "rows only" not in polyfm(*words).out
    monkeypatch.setattr("polyfm.shared.cli.check.ROWS", 60)
    assert "of the first 60 rows only; fit reads them all" in polyfm(*words).out


def test_a_modality_that_the_data_do_not_give(polyfm: Polyfm, runs: Any) -> None:
    words = ("--size", "small", "--data.path", runs.data, "--data.targets", "activity", "--data.modalities", "graph")
    shown = polyfm("check", "molecules/property", *words)
    assert shown.code == 3
    assert "the model needs the modality 'smiles'; of these data it gets graph. Add smiles to --data.mod" in shown.err
