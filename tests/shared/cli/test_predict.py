"""`polyfm predict`: predictions for new items, in order, with their ids."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import polyfm as package

Polyfm = Callable[..., Any]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_order_ids_and_numbers(polyfm: Polyfm, runs: Any, tmp_path: Path, suffix: str) -> None:
    table = pd.read_csv(runs.data).iloc[::-1][["id", "smiles"]]
    table.to_csv(tmp_path / "new.csv", index=False)
    out = tmp_path / f"predictions{suffix}"
    shown = polyfm("predict", runs.property, tmp_path / "new.csv", "--out", out)
    assert shown.code == 0, shown.err
    assert "80 predictions" in shown.out
    found = pd.read_csv(out) if suffix == ".csv" else pd.read_parquet(out)
    assert found.columns.tolist() == ["id", "activity"]
    assert found["id"].tolist() == table["id"].tolist()
    expected = package.load(runs.property).predict(table["smiles"].tolist())
    np.testing.assert_allclose(found["activity"], expected.values[:, 0], rtol=1e-5)
    # In the file's unit, about its mean.
    labels = pd.read_csv(runs.data)["activity"]
    assert abs(found["activity"].mean() - labels.mean()) < 2 * labels.std()


def test_the_same_numbers_as_in_the_test_of_the_run(polyfm: Polyfm, runs: Any, tmp_path: Path) -> None:
    """RMSE of the predictions for the test part is what metrics.json says."""
    splits = pd.read_csv(runs.property / "splits.csv")
    table = pd.read_csv(runs.data).merge(splits, on="id")
    table[table["split"] == "test"][["id", "smiles"]].to_csv(tmp_path / "new.csv", index=False)
    polyfm("predict", runs.property, tmp_path / "new.csv", "--out", tmp_path / "p.csv")
    both = pd.read_csv(tmp_path / "p.csv").merge(table[["id", "activity"]], on="id", suffixes=("", "_measured"))
    rmse = float(np.sqrt(np.mean((both["activity"] - both["activity_measured"]) ** 2)))
    assert rmse == pytest.approx(json.loads((runs.property / "metrics.json").read_text())["test/rmse"], rel=1e-4)


def test_what_is_left_out_is_listed_with_reasons(polyfm: Polyfm, runs: Any, tmp_path: Path) -> None:
    (tmp_path / "new.csv").write_text("id,smiles\na,CCO\nb,not a molecule\n")
    shown = polyfm("predict", runs.property, tmp_path / "new.csv", "--out", tmp_path / "p.csv")
    assert shown.code == 0, shown.err
    assert "1 of 2 rows left out" in shown.out
    assert pd.read_csv(tmp_path / "p.csv")["id"].tolist() == ["a"]
    assert pd.read_csv(tmp_path / "p.quarantine.csv")["item"].tolist() == ["not a molecule"]


def test_what_is_read_is_never_overwritten(polyfm: Polyfm, runs: Any, tmp_path: Path) -> None:
    shutil.copy(runs.data, tmp_path / "same.csv")
    shown = polyfm("predict", runs.property, tmp_path / "same.csv", "--out", tmp_path / "." / "same.csv")
    assert (shown.code, "this is the file that is read. Give --out another name" in shown.err) == (2, True)
    assert (tmp_path / "same.csv").read_bytes() == runs.data.read_bytes()


def test_a_list_of_what_was_left_out_does_not_outlive_its_result(polyfm: Polyfm, runs: Any, tmp_path: Path) -> None:
    (tmp_path / "p.quarantine.csv").write_text("of an earlier file")
    assert polyfm("predict", runs.property, runs.data, "--out", tmp_path / "p.csv").code == 0
    assert not (tmp_path / "p.quarantine.csv").exists()


def test_wrong_inputs(polyfm: Polyfm, runs: Any, tmp_path: Path) -> None:
    shown = polyfm("predict", runs.property, runs.data, "--out", tmp_path / "p.txt")
    assert (shown.code, "the result is a .csv or .parquet file" in shown.err) == (2, True)
    shown = polyfm("predict", runs.spmm, runs.data, "--out", tmp_path / "p.csv")
    assert shown.code == 2
    assert "this run was pre-trained: it has nothing to predict. Fine-tune it first, or use `polyfm embed`" in shown.err
    shown = polyfm("predict", tmp_path, runs.data, "--out", tmp_path / "p.csv")
    assert (shown.code, "not the folder of a run" in shown.err) == (2, True)


def odd_columns(runs: Any, folder: Path) -> Path:
    """The run's molecules, whose columns nobody would guess; one that looks right is wrong."""
    table = pd.read_csv(runs.data)[["id", "smiles"]].rename(columns={"id": "nr", "smiles": "drug"})
    table.assign(smiles="of the drug").to_csv(folder / "odd.csv", index=False)
    return folder / "odd.csv"


def test_columns_may_be_told(polyfm: Polyfm, runs: Any, tmp_path: Path) -> None:
    odd, out = odd_columns(runs, tmp_path), tmp_path / "p.csv"
    assert polyfm("predict", runs.property, odd, "--out", out).code == 3
    shown = polyfm("predict", runs.property, odd, "--out", out, "--data.smiles", "drug", "--data.id=nr")
    assert shown.code == 0, shown.err
    found = pd.read_csv(out)
    polyfm("predict", runs.property, runs.data, "--out", tmp_path / "expected.csv")
    pd.testing.assert_frame_equal(found, pd.read_csv(tmp_path / "expected.csv"))


@pytest.mark.parametrize(
    ("option", "code", "message"),
    [
        ("--data.smile=drug", 2, "there is no option --data.smile. Did you mean --data.smiles?"),
        (
            "--data.targets=[y]",
            2,
            "--data.targets stays as the run was trained. Options about reading a file: --data.smil",
        ),
        (
            "--data.smiles=durg",
            3,
            "there is no column 'durg'; the columns are 'nr', 'drug', 'smiles'. Did you mean 'drug'?",
        ),
        ("--smiles=drug", 2, "How a file is read is said with --data.KEY VALUE"),
    ],
)
def test_wrong_options_about_reading(
    polyfm: Polyfm, runs: Any, tmp_path: Path, option: str, code: int, message: str
) -> None:
    shown = polyfm("predict", runs.property, odd_columns(runs, tmp_path), "--out", tmp_path / "p.csv", option)
    assert shown.code == code
    assert message in shown.err
    assert shown.err.count("\n") == 1
