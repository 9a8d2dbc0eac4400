from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scanpy
import scipy.sparse as sp

from polyfm.domains.singlecell.quality import CellMetrics, QualityControl, is_mitochondrial, measure, row_sums
from polyfm.domains.singlecell.read import read_cells
from polyfm.domains.singlecell.synthetic import synthetic_cells
from polyfm.shared.errors import RecipeError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def test_figures_by_hand() -> None:
    """Cell 1: 2 + 6 counts, the second mitochondrial; cell 2 is empty; cell 3 has a stored zero."""
    indptr, indices, values = np.array([0, 2, 2, 4]), np.array([0, 2, 0, 1]), np.array([2.0, 6.0, 0.0, 5.0])
    found = measure(indptr, indices, values, is_mitochondrial(["ACTB", "mtor", "mt-Nd1"]))
    assert found.n_genes_by_counts.tolist() == [2, 0, 1]
    assert found.total_counts.tolist() == [8, 0, 5]
    np.testing.assert_array_equal(found.pct_counts_mt, [75, np.nan, 0])
    assert found.summary() == "a cell has 1 genes and 5 counts, 37.5 % mitochondrial (medians)"
    assert CellMetrics.concat([found, found]).select(np.array([3])).total_counts.tolist() == [8]


def test_sums_of_empty_cells_are_zero() -> None:
    assert row_sums(np.array([0, 0, 2, 2]), np.array([1.0, 2.0])).tolist() == [0, 3, 0]
    assert row_sums(np.array([0, 0]), np.array([])).tolist() == [0]


def test_limits_say_why() -> None:
    limits = QualityControl(min_genes=3, max_mt=5)
    assert limits.reason(2, 1.0) == ("few genes", "2 genes, fewer than 3")
    assert limits.reason(3, 7.0) == ("high mitochondrial share", "7.0 % of the counts, more than 5 %")
    assert limits.reason(3, 5.0) is None
    assert not QualityControl()
    with pytest.raises(RecipeError, match="expected a percentage from 0 to 100, not 200"):
        QualityControl(max_mt=200)


def test_quality_control_is_that_of_scanpy(tmp_path: Path) -> None:
    cells = synthetic_cells(150, seed=3)
    rng = np.random.default_rng(0)
    cells.X = sp.csr_matrix(
        rng.binomial(cells.X.toarray().astype(int), rng.uniform(0.05, 1, (150, 1))).astype(np.float32)
    )
    path = tmp_path / "c.h5ad"
    cells.write_h5ad(path)
    theirs = cells.copy()
    theirs.var["mt"] = theirs.var_names.str.startswith("MT-")
    scanpy.pp.calculate_qc_metrics(theirs, qc_vars=["mt"], percent_top=None, log1p=False, inplace=True)
    ours = read_cells(path)
    assert ours.metrics is not None
    np.testing.assert_array_equal(ours.metrics.n_genes_by_counts, theirs.obs.n_genes_by_counts)
    np.testing.assert_array_equal(ours.metrics.total_counts, theirs.obs.total_counts)
    np.testing.assert_allclose(ours.metrics.pct_counts_mt, theirs.obs.pct_counts_mt, rtol=1e-6)
    limits = QualityControl(min_genes=80, min_cells=40, max_mt=2.0)
    kept = theirs[theirs.obs.pct_counts_mt <= 2.0].copy()
    scanpy.pp.filter_cells(kept, min_genes=80)
    scanpy.pp.filter_genes(kept, min_cells=40)
    table = read_cells(path, quality=limits, max_broken=0.9)
    assert 0 < kept.n_obs < 150
    assert 0 < kept.n_vars < 300
    assert table.ids == kept.obs_names.tolist()
    assert table.vocabulary.symbols == kept.var_names.tolist()
    block = table.read(np.arange(len(table)))
    ours_left = sp.csr_array((block.values, block.genes, block.indptr), shape=kept.shape)
    np.testing.assert_array_equal(ours_left.toarray(), kept.X.toarray())
    assert set(table.quarantine.counts()) == {"few genes", "high mitochondrial share"}
    assert len(table.quarantine) == 150 - kept.n_obs
    finding = next(finding for finding in table.quarantine.items if finding.kind == "few genes")
    assert finding.item == cells.obs_names[finding.row - 1]
    assert any(f"{300 - kept.n_vars} of 300 genes are in fewer than 40 cells" in remark for remark in table.remarks)
