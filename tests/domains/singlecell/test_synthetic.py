"""Cells that are drawn from others take after them."""

from __future__ import annotations

import numpy as np

from polyfm.domains.singlecell.synthetic import drawn_like, synthetic_cells


def test_cells_are_drawn_in_the_likeness_of_others() -> None:
    real = synthetic_cells(200)
    drawn = drawn_like(real, 3000, batches=3)
    counts = drawn.X.toarray()
    assert (counts == np.rint(counts)).all()
    assert drawn.var_names.tolist() == real.var_names.tolist()
    assert drawn.obs["batch"].value_counts().tolist() == [1000] * 3
    np.testing.assert_allclose(np.median(counts.sum(1)), np.median(real.X.toarray().sum(1)), rtol=0.1)
    profiles = {
        name: cells.X.toarray()[(cells.obs["cell_type"] == "B cell").to_numpy()].mean(0)
        for name, cells in (("real", real), ("drawn", drawn))
    }
    assert np.corrcoef(np.log1p(profiles["real"]), np.log1p(profiles["drawn"]))[0, 1] > 0.9
    means = [counts[(drawn.obs["batch"] == name).to_numpy()].mean(0) for name in ("batch1", "batch2")]
    assert np.std(np.log((means[0] + 0.1) / (means[1] + 0.1))) > 0.2
    again = drawn_like(real, 3000, batches=3)
    assert (again.X != drawn.X).nnz == 0
