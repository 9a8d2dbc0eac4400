"""Baselines of the field: they learn what there is to learn, from training labels only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from polyfm.domains.molecules import baselines as module
from polyfm.domains.molecules.baselines import (
    baselines,
    nearest_structures,
    nearest_texts,
    text_vectors,
)
from polyfm.shared.training.targets.kinds import fit_target

NAN = float("nan")


@pytest.fixture(scope="module")
def table(molecules: Path) -> pd.DataFrame:
    return pd.read_csv(molecules)


@pytest.fixture(autouse=True)
def _few_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TREES", 30)


def run(table: pd.DataFrame, kind: str, columns: list[str], **changes: Any) -> tuple[dict[str, np.ndarray], Any, Any]:
    values = changes["values"] if "values" in changes else table[columns].to_numpy(dtype=float)
    train, test = np.arange(60), np.arange(60, 80)
    target = fit_target(kind, columns, values[train], [])
    methods = baselines(table["smiles"].tolist(), values, train, test, target, seed=0)
    return {name: method() for name, method in methods.items()}, target, values[test]


def test_each_beats_the_mean_on_a_number(table: pd.DataFrame) -> None:
    found, target, values = run(table, "regression", ["activity"])
    assert set(found) == {"ecfp4_forest", "ecfp4_linear", "rdkit2d_forest"}
    mean = target.metrics(np.full_like(values, target.mean[0]), values)["rmse"]
    for name, predictions in found.items():
        assert predictions.shape == (20, 1)
        assert target.metrics(predictions, values)["rmse"] < mean, name


def test_each_tells_substructures_with_missing_labels(table: pd.DataFrame) -> None:
    found, target, values = run(table, "binary", ["assay_amide", "assay_halogen"])
    assert np.isnan(values).any()
    for name, predictions in found.items():
        assert predictions.shape == (20, 2)
        assert ((predictions >= 0) & (predictions <= 1)).all()
        assert target.metrics(predictions, values)["auroc"] > 0.8, name


def test_several_classes_in_the_order_of_the_target(table: pd.DataFrame) -> None:
    labels = np.digitize(table["activity"], np.quantile(table["activity"], [0.3, 0.6]))[:, None].astype(float)
    labels[0] = 3  # one alone, so that a class of the target may be missing in a method
    found, target, values = run(table, "multiclass", ["activity"], values=labels)
    for predictions in found.values():
        assert predictions.shape == (20, target.outputs)
        np.testing.assert_allclose(predictions.sum(1), 1, atol=1e-6)
    assert max(target.metrics(p, values)["accuracy"] for p in found.values()) > 0.45


def test_a_column_of_one_class_or_none_is_answered_with_its_share(table: pd.DataFrame) -> None:
    values = table[["assay_amide", "active", "active"]].to_numpy(dtype=float)
    values[:60, 1], values[:60, 2] = 1.0, NAN
    found, _, _ = run(table, "binary", ["a", "b", "c"], values=values)
    for predictions in found.values():
        assert (predictions[:, 1] == 1).all()
        assert (predictions[:, 2] == 0.5).all()


def test_other_rows_are_answered_too_by_a_method_trained_once(
    table: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[object] = []
    forest = module._forest
    monkeypatch.setattr(module, "_forest", lambda *words: made.append(words) or forest(*words))
    values = table[["active"]].to_numpy(dtype=float)
    train, valid, test = np.arange(50), np.arange(50, 60), np.arange(60, 80)
    target = fit_target("binary", ["active"], values[train], [])
    for name, method in baselines(table["smiles"].tolist(), values, train, test, target, seed=17).items():
        assert method(valid).shape == (10, 1)
        np.testing.assert_array_equal(method(), method(test), err_msg=name)
    assert len(made) == 2  # one per forest


def test_the_same_question_is_answered_from_disk_and_another_one_is_not(
    table: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted: list[object] = []
    fit = module._fit
    monkeypatch.setattr(module, "_fit", lambda *words: fitted.append(words) or fit(*words))
    values = table[["activity"]].to_numpy(dtype=float)
    first, again = (run(table, "regression", ["activity"], values=values + 0.25)[0] for _ in range(2))
    assert len(fitted) == 3
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])
    changed = values + 0.25
    changed[7] += 1
    run(table, "regression", ["activity"], values=changed)
    assert len(fitted) == 6
    monkeypatch.setattr(module, "TREES", 31)
    run(table, "regression", ["activity"], values=values + 0.25)
    assert len(fitted) == 8  # the linear model has no trees


def test_test_labels_are_never_seen(table: pd.DataFrame) -> None:
    values = table[["activity"]].to_numpy(dtype=float)
    poisoned = values.copy()
    poisoned[60:] = 1e6
    first, second = (run(table, "regression", ["activity"], values=v)[0] for v in (values, poisoned))
    for name in first:
        np.testing.assert_allclose(first[name], second[name])  # trees are summed in any order


class TestTexts:
    def test_words_are_mapped_to_substructures(self, table: pd.DataFrame) -> None:
        """Invented texts name the parts: molecules are found by them, those of the training part are not needed."""
        smiles, texts = table["smiles"].tolist(), table["description"].tolist()
        said, drawn = text_vectors(smiles, texts, np.arange(60), np.arange(60, 80), seed=0)
        assert said.shape == drawn.shape == (20, 59)
        np.testing.assert_allclose(np.linalg.norm(drawn, axis=1), 1)
        assert np.mean((said @ drawn.T).argmax(1) == np.arange(20)) > 0.3  # by chance 0.05

    def test_only_training_pairs_are_fitted(self, table: pd.DataFrame) -> None:
        smiles, texts = table["smiles"].tolist(), table["description"].tolist()
        first = text_vectors(smiles, texts, np.arange(60), np.arange(60, 80), seed=0)
        texts[70] = "something else"
        again = text_vectors(smiles, texts, np.arange(60), np.arange(60, 80), seed=0)
        np.testing.assert_allclose(first[1], again[1])
        np.testing.assert_allclose(np.delete(first[0], 10, 0), np.delete(again[0], 10, 0))

    def test_the_nearest_of_the_training_part(self) -> None:
        smiles = ["CCCCO", "c1ccccc1", "CCCCN", "CCCCCO", "Cc1ccccc1"]
        assert nearest_structures(smiles, np.array([0, 1, 2]), np.array([3, 4])).tolist() == [0, 1]
        texts = ["an alcohol", "a benzene ring", "an amine", "a fatty alcohol", "a ring"]
        assert nearest_texts(texts, np.array([0, 1, 2]), np.array([3, 4])).tolist() == [0, 1]
