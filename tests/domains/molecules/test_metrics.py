"""Metrics of generated molecules and told properties, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from polyfm.domains.molecules.descriptors import DESCRIPTORS, descriptor_table
from polyfm.domains.molecules.metrics import generation_metrics, r2_per_column

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
