"""`Curves`: metrics.csv in step with the checkpoints, also when a run is resumed."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from polyfm.shared.training.curves import Curves


def write(folder: Path, rows: dict[int, dict[str, float]]) -> None:
    curves = Curves(folder)
    for step, metrics in rows.items():
        curves.log_metrics(metrics, step)
    curves.finalize("success")


def read(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "metrics.csv").set_index("step").sort_index(axis=1)


def test_a_run_writes_its_rows(tmp_path: Path) -> None:
    write(tmp_path, {1: {"train/loss": 0.5}, 3: {"valid/loss": 0.25}})
    expected = pd.DataFrame({"train/loss": [0.5, None], "valid/loss": [None, 0.25]}, pd.Index([1, 3], name="step"))
    pd.testing.assert_frame_equal(read(tmp_path), expected)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


def test_a_resumed_run_carries_on_and_replaces_what_it_does_again(tmp_path: Path) -> None:
    write(tmp_path, {step: {"train/loss": float(step)} for step in (1, 2, 3, 4)})
    write(tmp_path, {3: {"train/loss": 30.0}, 5: {"train/loss": 50.0, "train/new": 1.0}})
    assert read(tmp_path)["train/loss"].to_dict() == {1: 1.0, 2: 2.0, 3: 30.0, 5: 50.0}


def test_a_resumed_run_that_logs_nothing_keeps_the_file(tmp_path: Path) -> None:
    write(tmp_path, {1: {"train/loss": 1.0}})
    write(tmp_path, {})
    assert read(tmp_path)["train/loss"].to_dict() == {1: 1.0}


def test_a_validation_that_is_done_again_stands_behind_the_training_of_its_step(tmp_path: Path) -> None:
    first = Curves(tmp_path)
    first.log_metrics({"train/loss": 1.0}, 3)
    first.finalize("failed")
    write(tmp_path, {3: {"valid/loss": 2.0}, 4: {"train/loss": 0.5}})
    rows = pd.read_csv(tmp_path / "metrics.csv")
    assert rows["train/loss"].dropna().tolist() == [1.0, 0.5]
    assert rows["valid/loss"].dropna().tolist() == [2.0]


def test_a_row_that_a_kill_cut_off_is_left_out(tmp_path: Path) -> None:
    write(tmp_path, {1: {"train/loss": 0.25}, 2: {"train/loss": 0.125}})
    path = tmp_path / "metrics.csv"
    path.write_text(path.read_text().rstrip()[:-1])
    write(tmp_path, {3: {"train/loss": 3.0}})
    assert read(tmp_path)["train/loss"].to_dict() == {1: 0.25, 3: 3.0}


def test_opening_the_file_deletes_nothing(tmp_path: Path) -> None:
    write(tmp_path, {1: {"train/loss": 1.0}})
    assert Curves(tmp_path).experiment.metrics == []
    assert read(tmp_path)["train/loss"].to_dict() == {1: 1.0}
