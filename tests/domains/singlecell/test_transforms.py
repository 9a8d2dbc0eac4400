"""Normalising, ranks, medians and the choice of genes, against a plain loop over cells."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyfm.domains.singlecell import transforms
from polyfm.domains.singlecell.blocks import cell_keys
from polyfm.domains.singlecell.transforms import Medians, normalise, rank_genes, sample_genes, top_genes
from polyfm.shared.errors import DataError, RecipeError

G = 40


def cells(seed: int, n: int = 12, density: float = 0.4) -> tuple[np.ndarray, ...]:
    """(indptr, genes, counts, totals) of n random cells over G genes, some without any."""
    rng = np.random.default_rng(seed)
    dense = rng.poisson(2.0, (n, G)) * (rng.random((n, G)) < density)
    dense[n // 2] = 0
    rows, genes = np.nonzero(dense)
    indptr = np.searchsorted(rows, np.arange(n + 1))
    return indptr, genes.astype(np.int32), dense[rows, genes].astype(np.float32), dense.sum(1).astype(np.float32) + 3


class TestNormalise:
    def test_by_hand(self) -> None:
        indptr, counts = np.array([0, 2, 2, 3]), np.array([1, 3, 5], np.float32)
        done = normalise(indptr, counts, np.array([4, 0, 10]))
        assert done.dtype == np.float32
        np.testing.assert_allclose(done, np.log1p([2500, 7500, 5000]), rtol=1e-6)
        np.testing.assert_allclose(normalise(indptr, counts, np.array([4, 0, 10]), 8, log=False), [2, 6, 4])

    def test_is_scanpy_s(self) -> None:
        import anndata
        import scanpy
        from scipy.sparse import csr_matrix

        indptr, genes, counts, _ = cells(0)
        matrix = csr_matrix((counts, genes, indptr), shape=(len(indptr) - 1, G))
        theirs = anndata.AnnData(matrix.copy())
        scanpy.pp.normalize_total(theirs, target_sum=1e4)
        scanpy.pp.log1p(theirs)
        totals = np.asarray(matrix.sum(1)).ravel()
        np.testing.assert_allclose(normalise(indptr, counts, totals), theirs.X.data, rtol=1e-5)

    def test_a_cell_without_a_total_stays_zero(self) -> None:
        assert normalise(np.array([0, 1]), np.array([2.0], np.float32), np.array([0.0])).tolist() == [0.0]


class TestRanks:
    @given(seed=st.integers(0, 200), most=st.integers(1, 50))
    @settings(deadline=None)
    def test_are_those_of_a_loop(self, seed: int, most: int) -> None:
        indptr, genes, counts, totals = cells(seed)
        medians = np.random.default_rng(seed).choice([0.5, 1.0, 2.0, 3.7], G).astype(np.float32)
        taken, ranked = rank_genes(indptr, genes, counts, medians, most)
        assert ranked.dtype == np.int32
        for i in range(len(totals)):
            mine, theirs = genes[indptr[i] : indptr[i + 1]], counts[indptr[i] : indptr[i + 1]]
            scaled = theirs.astype(np.float32) / medians[mine]
            expected = mine[np.argsort(-scaled, kind="stable")][:most]
            assert ranked[taken[i] : taken[i + 1]].tolist() == expected.tolist()

    def test_by_hand(self) -> None:
        # 4 / 2 = 2, 3 / 3 = 1, 1 / 0.25 = 4, 2 / 2 = 1: gene 2, 0, then 1 before 7 because they tie.
        indptr, genes = np.array([0, 4, 4]), np.array([0, 1, 2, 7], np.int32)
        medians = np.array([2, 3, 0.25, 1, 1, 1, 1, 2])
        taken, ranked = rank_genes(indptr, genes, np.array([4, 3, 1, 2]), medians)
        assert taken.tolist() == [0, 4, 4]
        assert ranked.tolist() == [2, 0, 1, 7]

    def test_scaling_a_cell_changes_nothing(self) -> None:
        indptr, genes, counts, totals = cells(3)
        medians = np.full(G, 1.5)
        scaled = normalise(indptr, counts, totals, log=False)
        np.testing.assert_array_equal(
            rank_genes(indptr, genes, counts, medians)[1], rank_genes(indptr, genes, scaled, medians)[1]
        )

    def test_many_chunks_are_as_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        indptr, genes, counts, _ = cells(4)
        whole = rank_genes(indptr, genes, counts, np.ones(G), 9)
        monkeypatch.setattr(transforms, "chunks", lambda cuts: ((i, i + 1) for i in range(len(cuts) - 1)))
        parts = rank_genes(indptr, genes, counts, np.ones(G), 9)
        for one, other in zip(whole, parts, strict=True):
            np.testing.assert_array_equal(one, other)


class TestMedians:
    @given(seed=st.integers(0, 50), parts=st.integers(1, 4))
    @settings(max_examples=20, deadline=None)
    def test_are_exact_whatever_the_parts(self, seed: int, parts: int) -> None:
        indptr, genes, counts, totals = cells(seed)
        scaled = normalise(indptr, counts, totals, log=False)
        medians = Medians(G)
        for some in np.array_split(np.arange(len(totals)), parts):
            first, last = some[0], some[-1] + 1
            cut = slice(indptr[first], indptr[last])
            medians.add(indptr[first : last + 1] - indptr[first], genes[cut], counts[cut], totals[some])
        medians.fit()
        for gene in range(G):
            theirs = scaled[genes == gene]
            assert medians.medians[gene] == pytest.approx(np.median(theirs) if len(theirs) else 0, rel=1e-6)

    def test_above_the_limit_they_are_within_a_bin_in_any_order(self) -> None:
        rng = np.random.default_rng(0)
        n = 400
        genes = np.tile(np.arange(5, dtype=np.int32), n)
        counts = np.ceil(rng.lognormal(1, 1.5, 5 * n)).astype(np.float32)
        indptr, totals = np.arange(0, 5 * n + 1, 5), rng.integers(2000, 9000, n)
        exact = Medians(6).add(indptr, genes, counts, totals).fit()
        some = Medians(6, exact=1500)
        for first in (200, 0, 300, 100):
            cut = slice(5 * first, 5 * first + 500)
            some.add(indptr[:101], genes[cut], counts[cut], totals[first : first + 100])
        some.fit()
        # Half a bin, and what an even number of values leaves open in the middle.
        np.testing.assert_allclose(some.medians[:5], exact.medians[:5], rtol=0.03)
        assert some.medians[5] == 0
        again = Medians(6, exact=0).add(indptr, genes, counts, totals).fit()
        np.testing.assert_array_equal(again.medians, some.medians)

    def test_a_gene_never_seen_is_divided_by_the_typical_median(self) -> None:
        medians = Medians(4).add(np.array([0, 3]), np.array([0, 1, 2]), np.array([1, 2, 9.0]), np.array([1e4])).fit()
        assert medians.medians.tolist() == [1, 2, 9, 0]
        assert medians.divisors.tolist() == [1, 2, 9, 2]

    def test_state_is_numbers_and_comes_back(self) -> None:
        medians = Medians(G).add(*cells(1)).fit()
        state = medians.state()
        assert {type(value) for value in state["medians"]} == {float}
        other = Medians(0)
        other.load(state)
        np.testing.assert_array_equal(other.divisors, medians.divisors)

    def test_nothing_to_fit_says_so(self) -> None:
        with pytest.raises(DataError, match="no cell of the training part has a gene"):
            Medians(3).fit()


class TestChoice:
    @given(seed=st.integers(0, 200), most=st.integers(1, 30))
    @settings(deadline=None)
    def test_the_largest_are_those_of_a_loop(self, seed: int, most: int) -> None:
        indptr, _, counts, totals = cells(seed)
        taken, places = top_genes(indptr, counts, most)
        for i in range(len(totals)):
            order = np.argsort(-counts[indptr[i] : indptr[i + 1]], kind="stable")[:most]
            assert places[taken[i] : taken[i + 1]].tolist() == sorted((order + indptr[i]).tolist())

    @given(seed=st.integers(0, 50), most=st.integers(1, 30))
    @settings(max_examples=50, deadline=None)
    def test_a_sample_is_of_each_cell_s_own_genes_and_the_same_in_any_block(self, seed: int, most: int) -> None:
        indptr, genes, _, totals = cells(seed)
        keys = cell_keys(seed, 0, np.arange(len(totals)))
        taken, places = sample_genes(indptr, genes, keys, most)
        assert np.diff(taken).tolist() == np.minimum(np.diff(indptr), most).tolist()
        assert (np.diff(places) > 0).all()
        for i in range(len(totals)):
            mine = genes[indptr[i] : indptr[i + 1]]
            alone = sample_genes(np.array([0, len(mine)]), mine, keys[i : i + 1], most)[1]
            assert (alone + indptr[i]).tolist() == places[taken[i] : taken[i + 1]].tolist()

    def test_every_gene_is_drawn_as_often_as_any_other(self) -> None:
        n = 4000
        genes = np.tile(np.arange(20, dtype=np.int32), n)
        places = sample_genes(np.arange(0, 20 * n + 1, 20), genes, cell_keys(0, 0, np.arange(n)), 5)[1]
        counts = np.bincount(genes[places], minlength=20)
        assert ((counts - n / 4) ** 2 / (n / 4)).sum() < 44  # χ² of 19 degrees: 44 has p < 0.001
        other = sample_genes(np.arange(0, 20 * n + 1, 20), genes, cell_keys(0, 1, np.arange(n)), 5)[1]
        assert 0.2 < np.isin(places, other).mean() < 0.3  # 5 of 20 by chance

    def test_the_number_has_a_limit(self) -> None:
        ways = (lambda: top_genes(np.array([0, 1]), np.ones(1), 0), lambda: rank_genes(*cells(0)[:3], np.ones(G), 0))
        for way in ways:
            with pytest.raises(RecipeError, match="at least 1, not 0"):
                way()
