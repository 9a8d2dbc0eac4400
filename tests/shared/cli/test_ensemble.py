"""`polyfm fit … --ensemble N`: members that differ in the seed only; their mean predicts, their spread is shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import polyfm as package
from polyfm.shared.deployment.ensemble import members, predict
from polyfm.shared.training.run_folder import RunFolder

Polyfm = Callable[..., Any]


@pytest.fixture(scope="module")
def ensemble(runs: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from polyfm.shared.cli.main import main

    out = tmp_path_factory.mktemp("ensemble") / "two"
    words = ["--config", str(runs.tiny_property), "--data.path", str(runs.data), "--data.targets=[activity,active]"]
    words += ["--model.kind=regression", "--init_from", str(runs.spmm), "--ensemble", "2", "--out", str(out)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("polyfm.domains.molecules.baselines.TREES", 2)
        assert main(["fit", "molecules/property", "--size", "small", *words]) == 0
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
    parts = [RunFolder(ensemble / f"member_{i}").metrics()["test/rmse"] for i in (0, 1)]
    assert [metrics["member_0/rmse"], metrics["member_1/rmse"]] == pytest.approx(parts)
    assert metrics["test/rmse"] <= max(parts) + 1e-9  # the mean is never worse than the worse one


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
    assert (shown.code, "It is an ensemble: give one of its members" in shown.err) == (2, True)
