"""Metrics of generated molecules and told properties, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from polyfm.domains.molecules.descriptors import DESCRIPTORS, descriptor_table
from polyfm.domains.molecules.metrics import generation_metrics, r2_per_column, translation_metrics

ONES = np.ones(len(DESCRIPTORS))


def test_validity_uniqueness_and_novelty_by_hand() -> None:
    written = ["CCO", "OCC", "c1ccccc1", "CC(", "", "CCN"]  # two are one molecule, two are none
    wanted = np.full((6, 53), np.nan)
    wanted[:, 0] = 0.0
    found = generation_metrics(written, wanted, {"CCO", "CCCC"}, ONES)
    assert found["validity"] == 4 / 6
    assert found["uniqueness"] == 3 / 4
    assert found["novelty"] == 2 / 3


def test_error_is_over_what_was_asked_in_units_of_the_spread() -> None:
    column = DESCRIPTORS.index("MolWt")
    own = descriptor_table(["CCO"])[0]
    wanted = np.full((2, 53), np.nan)
    wanted[:, column] = own[column] - 6.0
    scale = ONES.copy()
    scale[column] = 3.0
    assert generation_metrics(["CCO", "not one"], wanted, (), scale)["nrmse"] == pytest.approx(2.0)
    exact = np.stack([own, own])
    assert generation_metrics(["CCO", "OCC"], exact, (), ONES)["nrmse"] == pytest.approx(0.0)


def test_nothing_valid_has_no_error() -> None:
    found = generation_metrics(["(", ""], np.zeros((2, 53)), (), ONES)
    assert found == {"validity": 0.0, "uniqueness": 0.0, "novelty": 0.0}


def test_stereochemistry_counts_if_the_run_keeps_it() -> None:
    both = ["C[C@H](N)O", "C[C@@H](N)O"]
    assert generation_metrics(both, np.zeros((2, 53)), (), ONES)["uniqueness"] == 0.5
    assert generation_metrics(both, np.zeros((2, 53)), (), ONES, isomeric=True)["uniqueness"] == 1.0


def test_r2_by_hand() -> None:
    true = np.array([[1.0, 5.0, np.nan], [2.0, 5.0, 1.0], [3.0, 5.0, 3.0]])
    told = np.array([[1.0, 4.0, 9.0], [2.0, 5.0, 2.0], [2.0, 5.0, 2.0]])
    # 1 - 1/2; constant; 1 - 2/2
    np.testing.assert_allclose(r2_per_column(told, true), [0.5, np.nan, 0.0])


def test_molecules_written_for_texts_by_hand() -> None:
    written, wanted = ["OCC", "CCN", "CC(", "c1ccccc1C"], ["CCO", "CCO", "CCC", "c1ccccc1"]
    found = translation_metrics(written, wanted)
    assert found["exact"] == 1 / 4  # ethanol, whatever the string
    assert found["validity"] == 3 / 4
    # Replaced: O C C for C C O (2 letters), N for O, C( for CC, one letter more.
    assert found["levenshtein"] == (2 + 1 + 1 + 1) / 4
    # Morgan counts of radius 2. Ethanol and ethylamine: 6 environments each (3 atoms; 3 of radius 1, of which CH3's neighbour
    # C is alike; none beyond): CH3, CH2 and CH3's surroundings in common, 3 of 6 + 6 - 3.
    alone = translation_metrics(["CCN"], ["CCO"])
    assert alone["morgan_similarity"] == pytest.approx(3 / 9)
    same = translation_metrics(["OCC"], ["CCO"])
    assert {same[f"{name}_similarity"] for name in ("maccs", "rdk", "morgan")} == {1.0}


def test_letters_of_smiles_are_what_bleu_is_of() -> None:
    # CCON for CCOC: letters 3/4, pairs 2/3, threes 1/2, fours 0/1.
    assert translation_metrics(["CCON"], ["CCOC"])["bleu"] == 0
    # CCOCN for CCOCC: 4/5, 3/4, 2/3, 1/2.
    assert translation_metrics(["CCOCN"], ["CCOCC"])["bleu"] == pytest.approx((4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)


def test_stereoisomers_are_not_exact() -> None:
    assert translation_metrics(["C[C@H](N)C(=O)O"], ["C[C@@H](N)C(=O)O"])["exact"] == 0


def test_nothing_valid_is_like_nothing() -> None:
    found = translation_metrics(["", "C("], ["CC", "CC"])
    assert (found["validity"], found["exact"]) == (0, 0)
    assert not any(name.endswith("similarity") for name in found)
