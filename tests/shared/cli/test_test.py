"""`polyfm test` and `polyfm validate`: metrics of the best checkpoint on a part of the run's own data."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

Polyfm = Callable[..., Any]


def numbers(shown: str) -> dict[str, float]:
    return {line.split()[0]: float(line.split()[1]) for line in shown.splitlines()}


@pytest.mark.parametrize("name", ["spmm", "property"])
def test_test_gives_what_the_run_ended_with(polyfm: Polyfm, runs: Any, name: str) -> None:
    run: Path = getattr(runs, name)
    shown = polyfm("test", run)
    assert shown.code == 0, shown.err
    found = numbers(shown.out)
    final = json.loads((run / "metrics.json").read_text())
    expected = {f"test/{key}": value for key, value in found.items()}
    assert expected == {key: pytest.approx(final[key], abs=1e-3) for key in expected}
    assert found


def test_validate_gives_what_the_best_checkpoint_was_chosen_by(polyfm: Polyfm, runs: Any) -> None:
    shown = polyfm("validate", runs.property)
    assert shown.code == 0, shown.err
    scores = pd.read_csv(runs.property / "metrics.csv")["valid/score"]
    assert numbers(shown.out)["rmse"] == pytest.approx(-scores.max(), abs=1e-3)


def test_wrong_words(polyfm: Polyfm, runs: Any, tmp_path: Path) -> None:
    assert polyfm("test").code == 2
    assert "not the folder of a run" in polyfm("validate", tmp_path).err
    assert polyfm("test", runs.spmm, "more").code == 2


def test_a_run_is_tested_from_any_folder_and_told_when_its_data_are_gone(
    polyfm: Polyfm, runs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("polyfm.domains.molecules.baselines.TREES", 2)
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(runs.data, tmp_path / "here.csv")
    monkeypatch.chdir(tmp_path)
    words = ("--size", "small", "--config", runs.tiny_property, "--data.path", "here.csv", "--data.targets", "activity")
    assert polyfm("fit", "molecules/property", *words, "--init_from", runs.spmm, "--out", "run").code == 0
    first = polyfm("test", "run")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert polyfm("test", "../run").out == first.out
    assert polyfm("fit", "--resume", "../run").code == 0

    with open(tmp_path / "here.csv", "a") as file:
        file.write("\n")
    told = polyfm("test", "../run").out
    assert told.startswith(f"{tmp_path / 'here.csv'} has changed since the run was trained")
    assert told.endswith(first.out)

    (tmp_path / "here.csv").rename(tmp_path / "there.csv")
    shown = polyfm("test", "../run")
    assert shown.code == 3
    assert f"{tmp_path / 'here.csv'}: there is no such file. If the data were moved, write where" in shown.err
    assert "data.path of ../run/recipe.yaml" in shown.err
    # What is done with new items needs no file of the run's.
    assert polyfm("predict", "../run", "../there.csv", "--out", "p.csv").code == 0
