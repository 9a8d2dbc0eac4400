"""`polyfm fit --trainer.devices 2`, as a user starts it: two processes train, one tests and reports."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyfm.shared.data.splits import Splits
from polyfm.shared.deployment.inference import load
from polyfm.shared.evaluation.finish import measure
from polyfm.shared.training.run_folder import RunFolder

TWO = ["--size", "small", "--trainer.devices=2", "--trainer.accelerator=cpu"]


def fit(folder: Path, *words: object) -> str:
    """Run the command in a process of its own; what it printed."""
    command = [sys.executable, "-m", "polyfm", "fit", *map(str, words), *TWO]
    ran = subprocess.run(
        command, cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return ran.stdout


@pytest.fixture(scope="module")
def pretrained(runs: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("two")
    said = fit(folder, "molecules/spmm", "--config", runs.tiny_spmm, "--data.path", runs.data)
    return folder / "runs" / "molecules-spmm", said


def test_the_first_process_tests_all_rows_and_reports_once(pretrained: tuple[Path, str]) -> None:
    run, said = pretrained
    assert [path.name for path in run.parent.iterdir()] == [run.name]  # both found the same free folder
    assert said.count("Report:") == said.count("million parameters to train") == 1
    assert (run / "report.html").is_file()
    model = load(run)
    model.data.setup("fit")
    model.data.use_splits(Splits.from_csv(run / "splits.csv"))
    for name, value in measure(model.task, model.data, "test").items():
        np.testing.assert_allclose(RunFolder(run).metrics()[f"test/{name}"], value, rtol=1e-5, err_msg=name)


def test_members_of_an_ensemble_meet_again(pretrained: tuple[Path, str], runs: Any) -> None:
    words = ["--config", runs.tiny_property, "--data.path", runs.data, "--data.targets=activity"]
    said = fit(
        pretrained[0].parent,
        *("molecules/property", "--init_from", pretrained[0], "--ensemble", 2, "--out", "both", *words),
    )
    assert said.count("All 2 together") == 1
    metrics = RunFolder(pretrained[0].parent / "both").metrics()
    assert metrics["members"] == 2
    assert metrics["test/rows"] == 8
