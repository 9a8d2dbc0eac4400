"""`polyfm fit … --ensemble N`: members that differ in the seed only; their mean predicts, their spread is shown."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import polyfm as package
from polyfm.shared.deployment.ensemble import members, predict
from polyfm.shared.evaluation.finish import collect
from polyfm.shared.training.callbacks import Checkpoint
from polyfm.shared.training.checkpoint import read_checkpoint
from polyfm.shared.training.run_folder import RunFolder
from polyfm.shared.training.targets.binary import Binary
from polyfm.shared.training.targets.kinds import target_from_state

Polyfm = Callable[..., Any]


def fit(runs: Any, out: Path, *words: str) -> str:
    """Train two members; what was printed."""
    from polyfm.shared.cli.main import main

    common = ["--size", "small", "--config", str(runs.tiny_property), "--data.path", str(runs.data)]
    common += ["--init_from", str(runs.spmm), "--ensemble", "2", "--out", str(out)]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as said:
        patch.setattr("polyfm.domains.molecules.baselines.TREES", 2)
        assert main(["fit", "molecules/property", *common, *words]) == 0
    return said.getvalue()


@pytest.fixture(scope="module")
def ensemble(runs: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ensemble") / "two"
    said = fit(runs, out, "--data.targets=[activity,active]", "--model.kind=regression")
    (out.parent / "said.txt").write_text(said)
    return out


def test_members_share_the_split_and_differ_in_their_weights(ensemble: Path) -> None:
    first, second = members(ensemble)
    assert (first.name, second.name) == ("member_0", "member_1")
    assert (first / "splits.csv").read_text() == (second / "splits.csv").read_text()
    smiles = ["CCO", "c1ccccc1O"]
    assert not np.allclose(package.load(first).predict(smiles).values, package.load(second).predict(smiles).values)


def test_metrics_are_of_the_mean_beside_each_member_s(ensemble: Path) -> None:
    metrics = json.loads((ensemble / "metrics.json").read_text())
    assert metrics["members"] == 2
    assert metrics["mean_sd"] > 0
    parts = [RunFolder(ensemble / f"member_{i}").metrics()["test/nrmse"] for i in (0, 1)]
    assert [metrics["member_0/nrmse"], metrics["member_1/nrmse"]] == pytest.approx(parts)
    assert metrics["test/nrmse"] <= max(parts) + 1e-9  # the mean is never worse than the worse one
    assert metrics["test/nrmse_low"] <= metrics["test/nrmse"] <= metrics["test/nrmse_high"]


def test_baselines_stand_beside_the_mean_and_are_measured_once(ensemble: Path) -> None:
    metrics = RunFolder(ensemble).metrics()
    for row in ("ecfp4_forest", "ecfp4_linear", "rdkit2d_forest"):
        assert metrics[f"baseline/{row}/nrmse"] > 0
    assert not [name for run in members(ensemble) for name in RunFolder(run).metrics() if name.startswith("baseline/")]
    said = (ensemble.parent / "said.txt").read_text()
    assert said.count("on the same split …") == 3
    assert said.count("Best by test nrmse: ") == 1
    assert f"Report:  {ensemble / 'report.html'}" in said


def test_the_report_is_of_the_mean_and_shows_the_spread(ensemble: Path) -> None:
    page = (ensemble / "report.html").read_text(encoding="utf-8")
    shown = (
        "Test metrics beside baselines",
        "Each label",
        "Predicted against measured: active",
        "Members and their spread",
        "Data",
    )
    for title in (*shown, "Recipe of member_0"):
        assert f"<h2>{title}</h2>" in page
    assert {"splits.csv", "quarantine.csv", "environment.json", "ensemble.json"} <= {
        path.name for path in ensemble.iterdir()
    }


@pytest.fixture(scope="module")
def untested(runs: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of yes and no, on a split without a test part."""
    out = tmp_path_factory.mktemp("untested") / "two"
    fit(runs, out, "--data.targets=[active]", "--data.split=random", "--data.fractions=[0.7,0.3,0.0]")
    return out


def test_classes_are_said_at_the_thresholds_of_the_mean(
    polyfm: Polyfm, untested: Path, runs: Any, tmp_path: Path
) -> None:
    assert polyfm("predict", untested, runs.data, "--out", tmp_path / "p.csv").code == 0
    found = pd.read_csv(tmp_path / "p.csv")
    (threshold,) = json.loads((untested / "target.json").read_text())["threshold"]
    assert found.columns.tolist() == ["id", "active", "active_sd", "active_class"]
    apart = found[(found["active"] - threshold).abs() > 1e-6]  # a table has fewer digits
    assert apart["active_class"].tolist() == (apart["active"] >= threshold).astype(int).tolist()
    assert len(apart) >= 70


def test_thresholds_are_chosen_on_the_mean_of_validation(untested: Path) -> None:
    stored = target_from_state(json.loads((untested / "target.json").read_text()))
    models = [package.load(run) for run in members(untested)]
    for model in models:
        model.data.setup("fit")
    data = models[0].data
    mean = np.mean([collect(model.task, model.data, "valid") for model in models], axis=0)
    expected = stored.unchosen()
    expected.choose(mean, data.target_values(data.part("valid")))
    assert isinstance(stored, Binary)
    assert isinstance(expected, Binary)
    assert stored.threshold == pytest.approx(expected.threshold)
    assert stored.threshold != [0.5]


def test_without_a_test_part_there_is_a_report_without_test_metrics(untested: Path) -> None:
    assert RunFolder(untested).metrics() == {"members": 2}
    page = (untested / "report.html").read_text(encoding="utf-8")
    assert "<h2>Data</h2>" in page
    assert "Test metrics" not in page


def test_a_member_that_stopped_goes_on_with_its_own_seed(
    polyfm: Polyfm, runs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--data.targets=[activity]", "--data.split=random", "--seed_everything=3", "--checkpoint.every_n_steps=1")
    fit(runs, tmp_path / "whole", *words)
    save, count = Checkpoint._save, 0

    def stop(checkpoint: Checkpoint, trainer: Any) -> None:
        nonlocal count
        save(checkpoint, trainer)
        count += checkpoint.folder.parent.name == "member_1"
        if count == 2:
            raise RuntimeError("pulled the plug")

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "_save", stop)
        with pytest.raises(RuntimeError, match="pulled the plug"):
            fit(runs, tmp_path / "stopped", *words, "--debug")
    assert polyfm("predict", tmp_path / "stopped", runs.data, "--out", tmp_path / "p.csv").code == 2
    shown = polyfm("fit", "--resume", tmp_path / "stopped")
    assert shown.code == 0, shown.err
    whole, stopped = (RunFolder(tmp_path / name).metrics() for name in ("whole", "stopped"))
    same = [key for key in whole if not key.startswith("baseline/")]  # with more trees now
    assert {key: whole[key] for key in same} == {key: stopped[key] for key in same}
    one, other = (RunFolder(tmp_path / name / "member_1") for name in ("whole", "stopped"))
    assert (one.path / "splits.csv").read_text() == (other.path / "splits.csv").read_text()
    for name in ("best", "last"):
        first, second = (read_checkpoint(getattr(run, name))["state_dict"] for run in (one, other))
        assert all((first[key] == second[key]).all() for key in first)
    same = [key for key in one.metrics() if not key.startswith("train/")]
    assert {key: one.metrics()[key] for key in same} == {key: other.metrics()[key] for key in same}
    assert not [key for key in other.metrics() if key.startswith("baseline/")]


def test_predictions_are_mean_and_standard_deviation(polyfm: Polyfm, ensemble: Path, runs: Any, tmp_path: Path) -> None:
    out = tmp_path / "p.csv"
    assert polyfm("predict", ensemble, runs.data, "--out", out).code == 0
    found = pd.read_csv(out)
    assert found.columns.tolist() == ["id", "activity", "activity_sd", "active", "active_sd"]
    each = np.stack([package.load(run).predict(str(runs.data)).values for run in members(ensemble)])
    np.testing.assert_allclose(found[["activity", "active"]], each.mean(0), rtol=1e-4)
    np.testing.assert_allclose(found[["activity_sd", "active_sd"]], each.std(0, ddof=1), rtol=1e-3, atol=1e-6)


def test_a_run_is_an_ensemble_of_one_without_spread(runs: Any) -> None:
    found = predict(runs.property, ["CCO"])
    assert members(runs.property) == [runs.property]
    assert found.spread is None
    assert found.values.shape == (1, 1)


def test_a_used_folder_is_refused_and_a_verb_on_the_whole_says_what_to_do(
    polyfm: Polyfm, ensemble: Path, runs: Any
) -> None:
    words = (
        "--size",
        "small",
        "--data.path",
        runs.data,
        "--data.targets=[active]",
        "--ensemble",
        "2",
        "--out",
        ensemble,
    )
    assert "already holds a run" in polyfm("fit", "molecules/property", *words).err
    shown = polyfm("test", ensemble)
    assert (shown.code, "It is an ensemble: for this, give one of its members" in shown.err) == (2, True)
