from __future__ import annotations

import numpy as np

from polyfm.domains.molecules.duplicates import Conflict, first_rows, merge_labels

NAN = np.nan


def test_first_rows() -> None:
    assert first_rows(["a", "b", "a", "c", "b"]).tolist() == [0, 1, 0, 3, 1]
    assert first_rows([]).tolist() == []


def test_measurements_are_averaged_and_gaps_filled() -> None:
    targets = np.array([[1.0, NAN], [5.0, 2.5], [2.0, 7.5]])
    merged, conflicts = merge_labels(targets, np.array([0, 1, 0]))
    assert merged[:2].tolist() == [[1.5, 7.5], [5.0, 2.5]]
    assert conflicts == [Conflict(0, 0, (1.0, 2.0), 1.5)]


def test_classes_that_disagree_are_unknown() -> None:
    targets = np.array([[1.0, 0.0], [0.0, 0.0], [1.0, NAN]])
    merged, conflicts = merge_labels(targets, np.array([0, 0, 2]))
    assert np.isnan(merged[0, 0])
    assert merged[0, 1] == 0.0
    assert [(conflict.task, conflict.values) for conflict in conflicts] == [(0, (1.0, 0.0))]


def test_agreement_leaves_the_number_as_it_is() -> None:
    targets = np.array([[0.1], [0.1], [0.1]])  # the mean of three 0.1 is not 0.1
    merged, conflicts = merge_labels(targets, np.zeros(3, dtype=np.int64))
    assert merged[0, 0] == 0.1
    assert conflicts == []


def test_no_targets() -> None:
    merged, conflicts = merge_labels(np.zeros((3, 0)), np.zeros(3, dtype=np.int64))
    assert merged.shape == (3, 0)
    assert conflicts == []
