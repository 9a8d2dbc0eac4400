"""Arithmetic on CSR blocks, against the plain way."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from polyfm.domains.singlecell.blocks import cell_keys, chunks, draws, halves, keep, sort_cells, sort_keys, take_cells

SIZES = st.lists(st.integers(0, 9), max_size=12)


@given(sizes=SIZES, most=st.integers(1, 30))
def test_chunks_cover_all_cells_once_and_are_bounded(sizes: list[int], most: int) -> None:
    indptr = np.cumsum([0, *sizes])
    ranges = list(chunks(indptr, most))
    assert [cell for first, last in ranges for cell in range(first, last)] == list(range(len(sizes)))
    assert all(last == first + 1 or indptr[last] - indptr[first] <= most for first, last in ranges)


@given(sizes=SIZES, chosen=st.lists(st.integers(0, 11), max_size=6))
def test_cells_are_taken_in_the_order_asked_for(sizes: list[int], chosen: list[int]) -> None:
    indptr = np.cumsum([0, *sizes])
    cells = np.array([cell for cell in chosen if cell < len(sizes)], np.int64)
    taken, places = take_cells(indptr, cells)
    plain = [place for cell in cells for place in range(indptr[cell], indptr[cell + 1])]
    assert places.tolist() == plain
    assert np.diff(taken).tolist() == [sizes[cell] for cell in cells]


@given(sizes=SIZES, seed=st.integers(0, 9))
def test_keeping_some(sizes: list[int], seed: int) -> None:
    indptr = np.cumsum([0, *sizes])
    stays = np.random.default_rng(seed).random(indptr[-1]) < 0.5
    expected = [int(stays[indptr[i] : indptr[i + 1]].sum()) for i in range(len(sizes))]
    assert np.diff(keep(indptr, np.flatnonzero(stays))).tolist() == expected


@given(sizes=SIZES, seed=st.integers(0, 9))
def test_keys_sort_within_cells_by_the_high_half_then_the_low(sizes: list[int], seed: int) -> None:
    indptr = np.cumsum([0, *sizes])
    rng = np.random.default_rng(seed)
    high, low = rng.integers(0, 3, indptr[-1]).astype(np.uint32), rng.integers(0, 2**32, indptr[-1]).astype(np.uint32)
    keys = sort_keys(high, low)
    sort_cells(keys, indptr)
    got = list(zip(*(half.tolist() for half in halves(keys)), strict=True))
    pairs = list(zip(high.tolist(), low.tolist(), strict=True))
    assert got == [pair for i in range(len(sizes)) for pair in sorted(pairs[indptr[i] : indptr[i + 1]])]


def test_keys_of_cells_differ_by_seed_pass_and_cell() -> None:
    cells = np.arange(100_000)
    keys = cell_keys(0, 0, cells)
    assert keys.dtype == np.uint32
    assert len(np.unique(keys)) > 99_990  # of 2^32; one or two pairs meet by chance
    np.testing.assert_array_equal(keys[[5, 3]], cell_keys(0, 0, cells[[5, 3]]))
    for other in (cell_keys(1, 0, cells), cell_keys(0, 1, cells)):
        assert (keys == other).mean() < 0.001
    assert len(cell_keys(0, 0, np.array([-1, 2**62]))) == 2  # hashes of ids have either sign


def test_draws_are_uniform_and_a_function_of_gene_and_cell_alone() -> None:
    indptr, genes = np.array([0, 20_000, 40_000]), np.tile(np.arange(20_000, dtype=np.int32), 2)
    drawn = draws(indptr, genes, np.array([7, 8], np.uint32))
    high = np.bincount(drawn >> 28, minlength=16)
    assert ((high - 2500) ** 2 / 2500).sum() < 40  # χ² of 15 degrees: 40 has p < 0.0005
    assert abs(np.corrcoef(drawn[:20_000], drawn[20_000:])[0, 1]) < 0.03
    assert draws(np.array([0, 1]), np.array([11], np.int32), np.array([8], np.uint32))[0] == drawn[20_011]
