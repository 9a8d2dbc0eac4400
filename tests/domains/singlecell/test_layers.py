from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

from polyfm.domains.singlecell.layers import UNDO, Kind, Rows, find_counts, find_steps, kind_of, recover
from polyfm.shared.errors import DataError

RANDOM = np.random.default_rng(0)
COUNTS = RANDOM.negative_binomial(0.3, 0.1, (200, 300))
COUNTS[:, 0] += COUNTS.sum(1) == 0
NORMALISED = COUNTS / COUNTS.sum(1, keepdims=True) * 1e4
LOG = np.log1p(NORMALISED).astype(np.float32)
SCALED = (LOG - LOG.mean(0)) / (LOG.std(0) + 1e-9)
CORRECTED = np.log1p(np.where(COUNTS > 0, RANDOM.gamma(2.0, 1.0, COUNTS.shape), 0))
PATH = Path("cells.h5ad")


def rows(dense: np.ndarray) -> Callable[[], Rows]:
    matrix = sp.csr_array(dense)
    return lambda: Rows(matrix.indptr.astype(np.int64), matrix.data.astype(np.float64))


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([], Kind.COUNTS),
        ([1, 2, 300], Kind.COUNTS),
        ([1, 2.0001, 3], Kind.COUNTS),
        ([0.5, 3.2], Kind.LOG_NORMALISED),
        ([0.5, 26.1], Kind.NORMALISED),
        ([-0.3, 2.0], Kind.SCALED),
    ],
)
def test_what_a_matrix_holds_is_told_by_its_values(values: list[float], kind: Kind) -> None:
    assert kind_of(np.array(values, dtype=np.float64)) == kind


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ([1, np.nan], "some values are NaN"),
        ([1, np.inf], "infinite: an overflow"),
        ([3, -2], "negative counts, down to -2"),
    ],
)
def test_what_no_matrix_should_hold_is_refused(values: list[float], problem: str) -> None:
    with pytest.raises(DataError, match=problem) as refused:
        kind_of(np.array(values))
    assert refused.value.remedy


def test_steps_by_hand() -> None:
    """Cell 1: counts 1, 3, 200 at step 0.5. Cell 2: 2, 3, 5, of which none is 1. Cell 4: no multiples of anything."""
    values = np.array([0.5, 1.5, 100, 2, 3, 5, 1, 1.33, 1.71, 2.19])
    steps, found = find_steps(np.array([0, 3, 6, 6, 10]), values)
    assert steps[:2] == pytest.approx([0.5, 1.0])
    assert (steps[2], found.tolist()) == (1, [True, True, True, False])


def test_a_common_divisor_is_lost() -> None:
    steps, found = find_steps(np.array([0, 3]), np.array([2.0, 4.0, 6.0]))
    assert (steps[0], found[0]) == (pytest.approx(2), True)


@pytest.mark.parametrize("undo", ["log1p", "log2(1 + x)", "log10(1 + x)", ""])
def test_counts_come_back_from_what_was_made_of_them(undo: str) -> None:
    made = {
        "log1p": np.log1p,
        "log2(1 + x)": lambda x: np.log2(1 + x),
        "log10(1 + x)": lambda x: np.log10(1 + x),
        "": lambda x: x,
    }
    matrix = sp.csr_array(made[undo](NORMALISED).astype(np.float32))
    values = matrix.data.astype(np.float64)
    steps, found = find_steps(matrix.indptr, UNDO[undo](values))
    assert found.all()
    np.testing.assert_array_equal(
        recover(values, undo, np.repeat(steps, np.diff(matrix.indptr))), sp.csr_array(COUNTS).data
    )


def test_counts_come_back_from_logarithms_of_three_decimals() -> None:
    matrix = sp.csr_array(np.round(LOG, 3))
    values = matrix.data.astype(np.float64)
    steps, found = find_steps(matrix.indptr, np.expm1(values))
    truth = sp.csr_array(COUNTS).data
    assert found.mean() > 0.97
    back = recover(values, "log1p", np.repeat(steps, np.diff(matrix.indptr)))
    small = (truth <= 100) & np.repeat(found, np.diff(matrix.indptr))
    assert (back[small] == truth[small]).mean() > 0.999


@pytest.mark.parametrize(
    ("matrices", "where", "kind", "undo", "remark"),
    [
        ({"X": COUNTS}, "X", Kind.COUNTS, None, ""),
        ({"X": COUNTS, "raw/X": COUNTS}, "X", Kind.COUNTS, None, ""),
        ({"GRCh38": COUNTS}, "GRCh38", Kind.COUNTS, None, ""),
        ({"layers/spliced": COUNTS}, "layers/spliced", Kind.COUNTS, None, ""),
        ({"X": LOG, "raw/X": COUNTS, "layers/counts": COUNTS}, "layers/counts", Kind.COUNTS, None, "X is log-normalised; counts are read from layers/counts"),
        ({"X": LOG, "layers/spliced": COUNTS, "raw/X": COUNTS}, "raw/X", Kind.COUNTS, None, "X is log-normalised; counts are read from raw/X"),
        ({"X": SCALED, "layers/mine": COUNTS, "raw/X": LOG}, "layers/mine", Kind.COUNTS, None, "X is scaled; counts are read from layers/mine"),
        ({"X": SCALED, "raw/X": LOG}, "raw/X", Kind.COUNTS, "log1p", "X is scaled; counts are recovered from raw/X, which is log-normalised, by undoing log1p and the normalisation cell by cell"),
        ({"X": LOG}, "X", Kind.COUNTS, "log1p", "X is log-normalised; counts are recovered from it, by undoing log1p and the normalisation cell by cell"),
        ({"X": NORMALISED}, "X", Kind.COUNTS, "", "X is normalised; counts are recovered from it, by undoing the normalisation cell by cell"),
        ({"X": CORRECTED}, "X", Kind.LOG_NORMALISED, None, "X is log-normalised and read as it is: no counts can be recovered from it"),
        ({"X": SCALED, "raw/X": CORRECTED}, "raw/X", Kind.LOG_NORMALISED, None, "X is scaled; raw/X is log-normalised and read as it is: no counts can be recovered from it"),
    ],
)  # fmt: skip
def test_counts_are_found(
    matrices: dict[str, np.ndarray], where: str, kind: Kind, undo: str | None, remark: str
) -> None:
    found = find_counts({name: rows(dense) for name, dense in matrices.items()}, PATH)
    assert (found.where, found.kind, found.undo, found.remark) == (where, kind, undo, remark)


def test_layers_are_not_read_where_x_holds_counts() -> None:
    def fail() -> Rows:
        raise AssertionError

    assert find_counts({"X": rows(COUNTS), "layers/a": fail, "raw/X": fail}, PATH).where == "X"


def test_the_user_may_name_the_layer() -> None:
    matrices = {"X": rows(COUNTS), "layers/smooth": rows(CORRECTED), "raw/X": rows(LOG)}
    assert find_counts(matrices, PATH, asked="smooth").where == "layers/smooth"
    assert find_counts(matrices, PATH, asked="raw").where == "raw/X"
    with pytest.raises(
        DataError, match="there is no layer 'count'; there are 'X', 'smooth', 'raw/X'. Name one of these"
    ):
        find_counts(matrices, PATH, asked="count")


def test_scaled_values_without_raw_are_refused() -> None:
    with pytest.raises(
        DataError,
        match=r"X is scaled, and counts are neither in layers nor in raw\. Use the file from before sc\.pp\.scale",
    ):
        find_counts({"X": rows(SCALED)}, PATH)
    with pytest.raises(DataError, match=r"nor in raw \(layers/z is scaled\)\. Use"):
        find_counts({"X": rows(SCALED), "layers/z": rows(SCALED)}, PATH)


def test_corrected_counts_without_a_logarithm_are_refused() -> None:
    with pytest.raises(DataError, match=r"X is normalised without a logarithm.*np\.rint"):
        find_counts({"X": rows(np.expm1(CORRECTED) * 30)}, PATH)


def test_pbmc68k_reduced_gives_its_counts_back() -> None:
    """Scanpy's own example: scaled X, and a raw of logarithms with three decimals; ``n_counts`` tells the truth."""
    import scanpy

    cells = scanpy.datasets.pbmc68k_reduced()
    found = find_counts({"X": rows(cells.X), "raw/X": rows(cells.raw.X.toarray())}, PATH)
    assert (found.where, found.undo) == ("raw/X", "log1p")
    matrix = sp.csr_array(cells.raw.X)
    values = matrix.data.astype(np.float64)
    steps, whole = find_steps(matrix.indptr, np.expm1(values))
    assert whole.all()
    # One count became 10,000 / n_counts: in all 700 cells, so no cell lost a divisor.
    np.testing.assert_allclose(1e4 / steps, cells.obs["n_counts"], rtol=5e-4)
    quotients = np.expm1(values) / np.repeat(steps, np.diff(matrix.indptr))
    assert np.abs(quotients - np.rint(quotients)).max() < 0.1
