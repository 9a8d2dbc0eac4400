"""Quantile bins: scGPT's own arithmetic cell by cell, hand-made cases, and the two ways against each other."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyfm.domains.singlecell import binning
from polyfm.domains.singlecell.binning import bin_counts, bin_values
from polyfm.domains.singlecell.blocks import cell_keys, draws, take_cells
from polyfm.domains.singlecell.kernels import COUNTED
from polyfm.shared.errors import DataError, RecipeError


def block(cells: list[list[float]], dtype: type = np.float32) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(indptr, genes, values); genes are numbered within the cell."""
    indptr = np.cumsum([0, *map(len, cells)])
    genes = np.concatenate([np.arange(len(cell)) for cell in cells]).astype(np.int32)
    return indptr, genes, np.array([value for cell in cells for value in cell], dtype)


def keys(n: int, epoch: int = 0) -> np.ndarray:
    return cell_keys(0, epoch, np.arange(n))


def lowest_and_highest(cell: list[int], bins: int) -> tuple[list[int], list[int]]:
    """Smallest and largest bin of each non-zero as scGPT defines them, in fractions: digits of the quantiles."""
    ordered = [Fraction(value) for value in sorted(value for value in cell if value)]
    quantiles = []
    for j in range(bins - 1):
        place = Fraction(j * (len(ordered) - 1), bins - 2)
        below, above = ordered[int(place)], ordered[min(int(place) + 1, len(ordered) - 1)]
        quantiles.append(below + (place - int(place)) * (above - below))
    low = [sum(q < value for q in quantiles) for value in cell]
    high = [sum(q <= value for q in quantiles) for value in cell]
    return [min(a + 1, b) if v else 0 for a, b, v in zip(low, high, cell, strict=True)], [
        b if v else 0 for b, v in zip(high, cell, strict=True)
    ]


@given(
    cells=st.lists(st.lists(st.one_of(st.integers(0, 5), st.integers(0, 9000)), max_size=130), min_size=1, max_size=5),
    bins=st.integers(3, 60),
)
@settings(max_examples=150, deadline=None)
def test_bins_lie_between_the_digits_of_the_quantiles(cells: list[list[int]], bins: int) -> None:
    indptr, genes, values = block(cells)
    counted = bin_counts(indptr, genes, values, keys(len(cells)), bins)
    sorted_ = bin_values(indptr, genes, values, keys(len(cells)), bins)
    assert counted.dtype == sorted_.dtype == np.uint8
    np.testing.assert_array_equal(counted, sorted_)
    for i, cell in enumerate(cells):
        if any(cell):
            low, high = lowest_and_highest(cell, bins)
            mine = counted[indptr[i] : indptr[i + 1]]
            assert (mine >= low).all()
            assert (mine <= high).all()


def test_bins_are_scgpt_s_on_cells_without_ties() -> None:
    """numpy's own quantiles and digits; with 50 of 50 values each has its quantile, so nothing is drawn."""
    rng = np.random.default_rng(0)
    for size in (1, 2, 49, 50, 51, 200, 1001):
        cell = rng.lognormal(size=size).astype(np.float32)
        mine = bin_values(np.array([0, size]), np.arange(size, dtype=np.int32), cell, keys(1))
        quantiles = np.quantile(cell, np.linspace(0, 1, 50))
        low, high = np.digitize(cell, quantiles, right=True), np.digitize(cell, quantiles)
        if size > 50:  # at least one quantile apart; where one falls on a value, numpy may round it past the value
            assert (np.abs(mine.astype(int) - high) <= (np.abs(cell[:, None] - quantiles) < 1e-6).any(1)).all()
            assert (mine == high).mean() > 0.99
        else:
            assert ((mine > low) | (mine == high)).all()


def test_by_hand() -> None:
    # Four quantiles (bins = 5) of 1 2 3 4 are the values themselves: bins 1 to 4. Zero stays 0 and is not counted.
    indptr, genes, values = block([[3, 0, 1, 4, 2], [5], [2, 2, 2], [], [1, 1, 1, 1, 1, 1, 9]])
    expected = bin_counts(indptr, genes, values, keys(5), bins=5)
    assert expected[:5].tolist() == [3, 0, 1, 4, 2]
    # One value, or all alike: every quantile is that value, so any bin from 1 to 4.
    assert 1 <= expected[5] <= 4
    assert (expected[6:9] >= 1).all()
    # Of six 1s and a 9, the quantiles are 1 1 1 9: a 1 has bins 1 to 3, the 9 has 4.
    assert set(expected[9:15].tolist()) <= {1, 2, 3}
    assert expected[15] == 4


def test_ties_spread_evenly_and_anew_in_every_pass() -> None:
    cells = 3000
    indptr, genes, values = block([[1] * 20] * cells)
    drawn = bin_counts(indptr, genes, values, keys(cells))
    counts = np.bincount(drawn, minlength=51)
    assert counts[0] == 0
    expected = cells * 20 / 50
    assert ((counts[1:] - expected) ** 2 / expected).sum() < 90  # χ² of 49 degrees: 90 has p < 0.0005
    again = bin_counts(indptr, genes, values, keys(cells, epoch=1))
    assert (drawn == again).mean() < 0.03
    # Neighbouring genes and neighbouring cells draw apart from one another.
    table = drawn.reshape(cells, 20).astype(float)
    assert np.abs(np.corrcoef(table.T) - np.eye(20)).max() < 0.09
    assert abs(np.corrcoef(table[:-1].ravel(), table[1:].ravel())[0, 1]) < 0.02


def test_a_cell_s_bins_do_not_depend_on_its_neighbours() -> None:
    rng = np.random.default_rng(1)
    indptr, genes, values = block([rng.integers(1, 5, rng.integers(0, 90)).tolist() for _ in range(40)])
    whole = bin_counts(indptr, genes, values, keys(40))
    chosen = np.array([7, 3, 39, 7])
    theirs, places = take_cells(indptr, chosen)
    alone = bin_counts(theirs, genes[places], values[places], keys(40)[chosen])
    np.testing.assert_array_equal(alone, whole[places])


def test_any_type_of_counts_gives_the_same() -> None:
    indptr, genes, values = block([[1, 2, 2, 700, 3], [1, 1, 60000, 5, 6, 6]])
    told = bin_counts(indptr, genes, values, keys(2))
    for dtype in (np.float64, np.int64, np.uint32, np.int32, np.uint16):
        np.testing.assert_array_equal(bin_counts(indptr, genes, values.astype(dtype), keys(2)), told)


def test_bytes_are_counts_too() -> None:
    indptr, genes, values = block([[1, 2, 2, 120, 3], [0, 1, 5]])
    told = bin_counts(indptr, genes, values, keys(2))
    for dtype in (np.uint8, np.int8):
        np.testing.assert_array_equal(bin_counts(indptr, genes, values.astype(dtype), keys(2)), told)
    with pytest.raises(DataError, match="negative"):
        bin_counts(indptr, genes, -values.astype(np.int64), keys(2))


def test_the_draws_are_those_of_blocks() -> None:
    """The compiled hash is the plain one: of one value alone, the bin is 50 - ⌊draw · 50⌋."""
    n = 500
    indptr, genes = np.arange(n + 1), np.arange(n, dtype=np.int32) * 37
    drawn = (draws(indptr, genes, keys(n)) >> np.uint32(16)).astype(np.int64)
    expected = 50 - (drawn * 50 >> 16)
    for way in (bin_counts, bin_values):
        np.testing.assert_array_equal(way(indptr, genes, np.ones(n, np.float32), keys(n)), expected)


def test_large_counts_are_sorted(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(binning, "bin_values", lambda *given: calls.append(len(given[0])) or bin_values(*given))
    indptr, genes, values = block([[1, 2, 3], [1, COUNTED, 7, 4e9], [5, COUNTED - 1]])
    told = bin_counts(indptr, genes, values, keys(3))
    assert calls == [2]  # the indptr of one cell
    np.testing.assert_array_equal(told, bin_values(indptr, genes, values, keys(3)))


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
@pytest.mark.parametrize("way", [bin_counts, bin_values])
def test_what_cannot_be_binned_says_so(value: float, way: object) -> None:
    indptr, genes, values = block([[1, 2], [value, 3]])
    with pytest.raises(DataError, match="negative, missing or infinite values cannot be binned"):
        way(indptr, genes, values, keys(2))  # type: ignore[operator]


def test_fractions_are_no_counts() -> None:
    indptr, genes, values = block([[1, 2.5]])
    with pytest.raises(DataError, match="no counts: some are not whole numbers"):
        bin_counts(indptr, genes, values, keys(1))


def test_the_number_of_bins_has_limits() -> None:
    for bins in (2, 257):
        with pytest.raises(RecipeError, match="from 3 to 256"):
            bin_counts(*block([[1]]), keys(1), bins)
    indptr, genes, values = block([list(range(1, 1000))])
    assert bin_counts(indptr, genes, values, keys(1), 256).max() == 255


def test_nothing_gives_nothing() -> None:
    empty = (np.zeros(1, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32), keys(0))
    assert len(bin_counts(*empty)) == len(bin_values(*empty)) == 0
