"""Bootstrap over items."""

from __future__ import annotations

import numpy as np
import pytest

from polyfm.shared.evaluation.intervals import bootstrap, paired


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


def error(predictions: np.ndarray, labels: np.ndarray) -> float:
    return float(np.sqrt(np.mean((predictions - labels) ** 2)))


class TestPaired:
    def test_what_is_hard_for_both_cancels_out(self) -> None:
        """Errors of 0 to 10 differ by exactly 0.5 everywhere: known without doubt, while each alone is not."""
        labels = np.linspace(0, 10, 60)[:, None]

        def mean_error(predictions: np.ndarray, labels: np.ndarray) -> float:
            return float(np.abs(predictions - labels).mean())

        ours, theirs = np.zeros((1, 60, 1)), np.full((1, 60, 1), -0.5)
        assert paired(mean_error, ours, theirs, labels, resamples=50) == pytest.approx((-0.5, -0.5, -0.5))
        low, high = bootstrap(mean_error, ours[0], labels) or (0, 0)
        assert high - low > 1

    def test_seeds_are_averaged_after_the_metric(self) -> None:
        labels = np.zeros((30, 1))
        ours = np.stack([np.full((30, 1), 1.0), np.full((30, 1), -3.0)])  # errors 1 and 3; of their mean it would be 1
        found = paired(error, ours, np.full((3, 30, 1), 0.5), labels, resamples=20)
        assert found == pytest.approx((1.5, 1.5, 1.5))

    def test_the_sign_is_ours_minus_theirs_and_twins_are_level(self) -> None:
        rng = np.random.default_rng(0)
        labels = rng.standard_normal((80, 1))
        good, bad = labels + 0.1 * rng.standard_normal((80, 1)), labels + rng.standard_normal((80, 1))
        whole, low, high = paired(error, good[None], bad[None], labels) or (0, 0, 0)
        assert low < whole < high < 0
        assert paired(error, good[None], good[None], labels) == (0, 0, 0)

    def test_undefined_is_none(self) -> None:
        nothing = np.zeros((1, 4, 1))
        assert paired(lambda *_: None, nothing, nothing, nothing[0]) is None
