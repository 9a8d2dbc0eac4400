"""Bootstrap over items."""

from __future__ import annotations

import numpy as np
import pytest

from polyfm.shared.evaluation.intervals import bootstrap


def mean(predictions: np.ndarray, values: np.ndarray) -> float:
    return float(values.mean())


def test_interval_of_a_mean_is_that_of_theory() -> None:
    values = np.random.default_rng(0).standard_normal((400, 1))
    low, high = bootstrap(mean, values, values, resamples=1000) or (0, 0)
    error = values.std() / 20
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.3 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.3 * error)


def test_predictions_and_labels_are_drawn_together() -> None:
    values = np.arange(50.0)[:, None]

    def same(predictions: np.ndarray, labels: np.ndarray) -> float:
        return float((predictions == labels).all())

    assert bootstrap(same, values, values, resamples=20) == (1.0, 1.0)


def test_resamples_where_it_is_undefined_are_left_out() -> None:
    def sometimes(predictions: np.ndarray, labels: np.ndarray) -> float | None:
        return 1.0 if labels[0] > 0 else None

    assert bootstrap(sometimes, np.zeros((2, 1)), np.array([[0.0], [1.0]]), resamples=30) == (1.0, 1.0)
    assert bootstrap(sometimes, np.zeros((2, 1)), np.zeros((2, 1)), resamples=30) is None
