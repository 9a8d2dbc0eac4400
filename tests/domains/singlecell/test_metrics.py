"""LISI and kBET on cells laid out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from polyfm.domains.singlecell.metrics import integration_metrics, kbet, lisi, neighbours


def test_neighbours_are_the_others() -> None:
    vectors = np.array([[0.0], [1.0], [1.0], [1.0], [5.0]])
    distances, indices = neighbours(vectors, 2)
    assert indices.shape == (5, 2)
    assert all(cell not in row for cell, row in enumerate(indices))
    assert distances[4].tolist() == [4.0, 4.0]


class TestLisi:
    def test_equal_distances_count_labels(self) -> None:
        """All weights are equal: 1 / Σ p²."""
        distances, indices = np.ones((2, 4)), np.array([[0, 1, 2, 3], [0, 1, 4, 5]])
        labels = np.array([0, 1, 0, 1, 0, 0])
        found = lisi(distances, indices, labels, perplexity=2.0)
        np.testing.assert_allclose(found, [1 / (0.5**2 + 0.5**2), 1 / (0.75**2 + 0.25**2)])

    def test_near_neighbours_count_more(self) -> None:
        """Two neighbours have the weights w and 1 - w, of entropy log(1.3)."""
        distances, indices = np.array([[0.0, 1.0]]), np.array([[0, 1]])
        found = lisi(distances, indices, np.array([0, 1]), perplexity=1.3)[0]
        low, high = 0.5, 1.0
        for _ in range(100):
            middle = (low + high) / 2
            entropy = -(middle * np.log(middle) + (1 - middle) * np.log(1 - middle))
            low, high = (middle, high) if entropy > np.log(1.3) else (low, middle)
        assert found == pytest.approx(1 / (low**2 + (1 - low) ** 2), rel=1e-6)

    def test_one_label_is_one_and_mixed_batches_are_all(self) -> None:
        rng = np.random.default_rng(0)
        distances, indices = neighbours(rng.normal(size=(600, 5)), 90)
        np.testing.assert_allclose(lisi(distances, indices, np.zeros(600, int)), 1)
        assert np.median(lisi(distances, indices, rng.integers(3, size=600))) > 2.5


class TestKbet:
    def test_by_hand(self) -> None:
        """Half of the cells are of each batch; among four neighbours 4:0 gives χ² = 4, p = 0.0455, and 2:2 gives 0."""
        batches = np.array([0, 1] * 4)
        indices = np.array([[0, 2, 4, 6], [0, 1, 2, 3], [1, 3, 5, 7], [0, 1, 4, 5]])
        assert kbet(indices, batches) == 0.5

    def test_mixed_is_accepted_and_parted_refused(self) -> None:
        rng = np.random.default_rng(0)
        vectors, batches = rng.normal(size=(400, 3)), rng.integers(2, size=400)
        assert kbet(neighbours(vectors, 30)[1], batches) < 0.15
        assert kbet(neighbours(vectors + 10 * batches[:, None], 30)[1], batches) == 1.0


def test_a_good_space_has_high_marks_and_a_bad_one_low() -> None:
    rng = np.random.default_rng(0)
    types, batches = np.repeat([0, 1, 2], 120), np.tile([0, 1], 180)
    good = rng.normal(size=(360, 4)) + 12 * np.eye(4)[types]
    bad = rng.normal(size=(360, 4)) + 12 * np.eye(4)[batches]
    high, low = (integration_metrics(space, types, batches) for space in (good, bad))
    assert set(high) == {"silhouette_type", "silhouette_batch", "ari", "nmi", "ilisi", "clisi", "kbet"}
    assert all(-0.05 <= value <= 1.05 for value in (*high.values(), *low.values()))
    for name in high:
        assert high[name] > low[name] + 0.2, name
    assert (high["ari"], high["nmi"]) == (1.0, 1.0)
    mixing = integration_metrics(good, None, batches)
    assert mixing == {name: high[name] for name in ("ilisi", "kbet")}
