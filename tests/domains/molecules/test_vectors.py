"""Rows of numbers for whole molecules and texts, sparse ones kept sparse."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rdkit import Chem
from rdkit.Chem import AllChem

from polyfm.domains.molecules import vectors as module
from polyfm.domains.molecules.vectors import FINGERPRINT, MoleculeVectors, dense_rows, fingerprints


@pytest.fixture(scope="module")
def table(molecules: Path) -> pd.DataFrame:
    return pd.read_csv(molecules)


def test_fingerprints_are_ecfp4(table: pd.DataFrame) -> None:
    smiles = table["smiles"].tolist()[:5]
    expected = []
    for text in smiles:
        bits = AllChem.GetMorganFingerprintAsBitVect(Chem.MolFromSmiles(text), 2, nBits=2048)
        expected.append(np.array(list(bits)))
    found = fingerprints(smiles)
    found = found.toarray() if hasattr(found, "toarray") else found
    np.testing.assert_array_equal(found, expected)


def test_counts_of_substructures_are_rdkit_s() -> None:
    counts = fingerprints(["CCO", "c1ccccc1"], counts=True)
    assert counts.sum(1).tolist() == [6, 18]  # 3 atoms, 2 bonds' ends and the middle; 6 atoms at 3 radii
    assert ((counts > 0) == fingerprints(["CCO", "c1ccccc1"])).all()


def test_no_molecule_has_no_fingerprint() -> None:
    assert fingerprints([]).shape == (0, FINGERPRINT)


def test_only_what_a_recipe_has_is_made(table: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "descriptor_table_2d", None)  # calling it would fail
    vectors = MoleculeVectors(["smiles", "fingerprint"], 10).fit(table["smiles"].tolist(), [None] * len(table))
    made = vectors.make(table["smiles"].tolist(), None)
    assert set(made.dense([0])[0]) == {"fingerprint"}
    assert vectors.state() == {}
    assert MoleculeVectors(["smiles"], 10).make(["CCO", "CC"], None).dense([1, 0]) == [{}, {}]


def test_blocks_make_the_same_rows(table: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    smiles, texts = table["smiles"].tolist(), table["description"].tolist()
    vectors = MoleculeVectors(["features", "words"], 50).fit(smiles, texts)
    whole = vectors.make(smiles, texts)
    monkeypatch.setattr(module, "_BLOCK", 7)
    parts = vectors.make(smiles, texts)
    asked = [3, 79, 3, 0]
    for ours, theirs in zip(whole.dense(asked), parts.dense(asked), strict=True):
        assert set(ours) == {"features", "words"}
        for name in ours:
            assert ours[name].dtype == np.float32
            np.testing.assert_array_equal(ours[name], theirs[name])
    assert whole.parts["fingerprint"].nnz < 0.1 * len(smiles) * FINGERPRINT


def test_without_a_column_of_texts_nobody_has_words(table: pd.DataFrame) -> None:
    smiles = table["smiles"].tolist()
    vectors = MoleculeVectors(["fingerprint", "words"], 50).fit(smiles, table["description"].tolist())
    assert set(vectors.make(smiles, None).dense([0])[0]) == {"fingerprint"}


def test_rows_of_several_tables_stand_in_the_order_of_the_batch(table: pd.DataFrame) -> None:
    smiles = table["smiles"].tolist()
    vectors = MoleculeVectors(["fingerprint"], 10)
    first, second = vectors.make(smiles[:5], None), vectors.make(smiles[5:8], None)
    found = dense_rows([second.row(2), None, first.row(4), second.row(0)])
    assert found[1] == {}
    for numbers, i in zip((found[0], found[2], found[3]), (7, 4, 5), strict=True):
        expected = np.log1p(fingerprints([smiles[i]], counts=True)[0])
        np.testing.assert_allclose(numbers["fingerprint"], expected, rtol=1e-6)
