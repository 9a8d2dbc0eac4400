"""`polyfm embed`: one vector per item, in order, with its id; the same as in Python."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as parquet
import pytest

import polyfm as package

Polyfm = Callable[..., Any]


@pytest.fixture(scope="module")
def new(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Molecules in an order of their own, one of them twice, one broken."""
    path = tmp_path_factory.mktemp("new") / "new.csv"
    smiles = ["c1ccccc1O", "CCO", "CC(=O)Oc1ccccc1C(=O)O", "CCO", "not a molecule", "CCN(CC)CC"]
    pd.DataFrame({"id": ["d", "b", "a", "b2", "x", "c"], "smiles": smiles}).to_csv(path, index=False)
    return path


def read(path: Path) -> tuple[list[str], np.ndarray]:
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:  # noqa: TID251 - numbers only
            return file["id"].tolist(), file["embedding"]
    table = parquet.read_table(path).to_pydict()
    return table["id"], np.array(table["embedding"], dtype=np.float32)


@pytest.mark.parametrize("suffix", [".parquet", ".npz"])
def test_order_and_ids_are_kept_and_vectors_are_those_of_python(
    polyfm: Polyfm, runs: Any, new: Path, tmp_path: Path, suffix: str
) -> None:
    out = tmp_path / "deep" / f"vectors{suffix}"
    shown = polyfm("embed", runs.spmm, new, "--out", out)
    assert shown.code == 0, shown.err
    assert f"5 vectors of 32 numbers: {out}" in shown.out
    ids, vectors = read(out)
    assert ids == ["d", "b", "a", "b2", "c"]
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors[1], vectors[3], atol=1e-6)

    model = package.load(runs.spmm)
    np.testing.assert_allclose(model.embed(str(new)), vectors, atol=1e-6)
    smiles = ["c1ccccc1O", "CCO", "CC(=O)Oc1ccccc1C(=O)O", "CCO", "CCN(CC)CC"]
    np.testing.assert_allclose(model.embed(smiles), vectors, atol=1e-6)


def test_what_is_left_out_is_told_with_reasons(polyfm: Polyfm, runs: Any, new: Path, tmp_path: Path) -> None:
    shown = polyfm("embed", runs.spmm, new, "--out", tmp_path / "v.npz")
    assert "1 of 6 rows left out" in shown.out
    left_out = pd.read_csv(tmp_path / "v.quarantine.csv")
    assert left_out["row"].tolist() == [5]
    assert left_out["item"].tolist() == ["not a molecule"]


def test_another_modality_and_the_contrastive_space(polyfm: Polyfm, runs: Any, new: Path, tmp_path: Path) -> None:
    words = ("--modality", "properties", "--projected", "--out", tmp_path / "v.npz")
    assert polyfm("embed", runs.spmm, new, *words).code == 0
    _, vectors = read(tmp_path / "v.npz")
    assert vectors.shape == (5, 16)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_the_modality_is_one_that_the_items_have(
    polyfm: Polyfm, runs: Any, new: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["fit", "molecules/words_features", "--size", "small", "--data.path", runs.data, "--out", tmp_path / "run"]
    assert polyfm(*words, "--trainer.max_steps", "1", "--trainer.enable_progress_bar", "false").code == 0
    shown = polyfm("embed", tmp_path / "run", new, "--out", tmp_path / "v.npz")
    assert "made of features; --modality makes them of words" in shown.out
    assert np.isfinite(read(tmp_path / "v.npz")[1]).all()
    shown = polyfm("embed", tmp_path / "run", new, "--modality", "words", "--out", tmp_path / "v.npz")
    assert "5 items have no words: NaN in their place" in shown.out


def test_the_contrastive_space_is_left_behind_by_fine_tuning(
    polyfm: Polyfm, runs: Any, new: Path, tmp_path: Path
) -> None:
    shown = polyfm("embed", runs.property, new, "--projected", "--out", tmp_path / "v.npz")
    assert shown.code == 2
    assert "projection" in shown.err


def test_a_fine_tuned_run_embeds_too(polyfm: Polyfm, runs: Any, new: Path, tmp_path: Path) -> None:
    assert polyfm("embed", runs.property, new, "--out", tmp_path / "v.npz").code == 0


WRONG = {
    "format": (["RUN", "NEW", "--out", "v.csv"], 2, "v.csv: the result is a .parquet or .npz file. For example --out vectors.parquet"),
    "no out": (["RUN", "NEW"], 2, "the following arguments are required: --out"),
    "no run": (["NOWHERE", "NEW", "--out", "v.npz"], 2, "this is not the folder of a run (it has no recipe.yaml)"),
    "modality": (["RUN", "NEW", "--out", "v.npz", "--modality", "graph"], 2, "this model has no modality 'graph'. Choose one of: smiles, properties"),
    "no file": (["RUN", "none.csv", "--out", "v.npz"], 3, "none.csv: there is no such file"),
    "a folder": (["RUN", "FOLDER", "--out", "v.npz"], 3, "this is a folder; expected a file"),
    "empty": (["RUN", "EMPTY", "--out", "v.npz"], 3, "the file is empty"),
    "no molecule": (["RUN", "WORDS", "--out", "v.npz"], 3, "none of the 2 rows can be used"),
}  # fmt: skip


@pytest.mark.parametrize(("words", "code", "message"), WRONG.values(), ids=WRONG)
def test_wrong_inputs(
    polyfm: Polyfm, runs: Any, new: Path, tmp_path: Path, words: list[str], code: int, message: str
) -> None:
    (tmp_path / "empty.csv").touch()
    (tmp_path / "words.csv").write_text("smiles\nhello\nworld\n")
    named = {"RUN": runs.spmm, "NEW": new, "NOWHERE": tmp_path / "x", "FOLDER": tmp_path}
    named |= {"EMPTY": tmp_path / "empty.csv", "WORDS": tmp_path / "words.csv"}
    shown = polyfm("embed", *(named.get(word, word) for word in words))
    assert shown.code == code, shown.err
    assert message in shown.err
    assert "Traceback" not in shown.err


def test_the_column_may_be_told(polyfm: Polyfm, runs: Any, new: Path, tmp_path: Path) -> None:
    pd.read_csv(new).rename(columns={"smiles": "drug"}).assign(mol="x").to_csv(tmp_path / "odd.csv", index=False)
    shown = polyfm("embed", runs.spmm, tmp_path / "odd.csv", "--data.smiles", "drug", "--out", tmp_path / "v.npz")
    assert shown.code == 0, shown.err
    polyfm("embed", runs.spmm, new, "--out", tmp_path / "expected.npz")
    np.testing.assert_array_equal(read(tmp_path / "v.npz")[1], read(tmp_path / "expected.npz")[1])
    shown = polyfm("embed", runs.spmm, new, "--data.smilse", "drug", "--out", tmp_path / "v.npz")
    assert (shown.code, shown.err) == (2, "polyfm: there is no option --data.smilse. Did you mean --data.smiles?\n")
