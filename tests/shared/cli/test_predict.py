"""`polyfm predict`: predictions for new items, in order, with their ids."""

from __future__ import annotations

import json
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


def test_wrong_inputs(polyfm: Polyfm, runs: Any, tmp_path: Path) -> None:
    shown = polyfm("predict", runs.property, runs.data, "--out", tmp_path / "p.txt")
    assert (shown.code, "the result is a .csv or .parquet file" in shown.err) == (2, True)
    shown = polyfm("predict", runs.spmm, runs.data, "--out", tmp_path / "p.csv")
    assert shown.code == 2
    assert "this run was pre-trained: it has nothing to predict. Fine-tune it first, or use `polyfm embed`" in shown.err
    shown = polyfm("predict", tmp_path, runs.data, "--out", tmp_path / "p.csv")
    assert (shown.code, "not the folder of a run" in shown.err) == (2, True)
