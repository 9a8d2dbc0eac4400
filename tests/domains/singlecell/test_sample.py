from __future__ import annotations

import numpy as np
import pytest

from polyfm.domains.singlecell.sample import CellBlock
from polyfm.shared.errors import UsageError


def block(dense: list[list[float]], first: int = 0, proteins: bool = False, **changes: object) -> CellBlock:
    matrix = np.array(dense, dtype=np.float32).reshape(len(dense), -1)
    rows, genes = np.nonzero(matrix)
    n = len(matrix)
    made = CellBlock(
        ids=[f"c{first + i}" for i in range(n)],
        groups=["d"] * n,
        rows=np.arange(first, first + n),
        indptr=np.concatenate([[0], np.cumsum((matrix > 0).sum(1))]).astype(np.int64),
        genes=genes.astype(np.int32),
        values=matrix[rows, genes],
        totals=matrix.sum(1),
        texts=[None] * n,
        proteins=np.arange(2 * n, dtype=np.float32).reshape(n, 2) if proteins else None,
        targets={"label": np.arange(first, first + n, dtype=np.float64)[:, None]},
    )
    return made.replace(**changes)


def test_select_takes_cells_in_the_order_asked_for() -> None:
    taken = block([[1, 0, 2], [0, 0, 0], [0, 5, 0]], proteins=True).select([2, 0, 0, 1])
    assert taken.ids == ["c2", "c0", "c0", "c1"]
    assert taken.indptr.tolist() == [0, 1, 3, 5, 5]
    assert taken.genes.tolist() == [1, 0, 2, 0, 2]
    assert taken.values.tolist() == [5, 1, 2, 1, 2]
    assert taken.totals.tolist() == [5, 3, 3, 0]
    assert taken.rows.tolist() == [2, 0, 0, 1]
    assert taken.targets["label"][:, 0].tolist() == [2, 0, 0, 1]
    assert taken.proteins is not None
    assert taken.proteins[:, 0].tolist() == [4, 0, 0, 2]


def test_one_cell_is_a_block_of_one() -> None:
    cells = block([[1, 0], [0, 3]])
    assert (len(cells), len(cells[1]), cells[1].genes.tolist(), cells[-1].ids) == (2, 1, [1], ["c1"])
    with pytest.raises(IndexError):
        cells[2]
    assert len(list(cells)) == 2


def test_concat_and_select_undo_each_other() -> None:
    whole = block([[1, 0, 2], [0, 0, 0], [0, 5, 0], [7, 8, 9]])
    again = CellBlock.concat([whole.select([0, 1]), whole.select([]), whole.select([2, 3])])
    for name in ("rows", "indptr", "genes", "values", "totals"):
        np.testing.assert_array_equal(getattr(again, name), getattr(whole, name))
        assert getattr(again, name).dtype == getattr(whole, name).dtype
    assert again.ids == whole.ids
    np.testing.assert_array_equal(again.targets["label"], whole.targets["label"])


def test_cells_without_proteins_have_nan_beside_cells_with() -> None:
    both = CellBlock.concat([block([[1]]), block([[2]], first=1, proteins=True)])
    assert both.proteins is not None
    np.testing.assert_array_equal(both.proteins, [[np.nan, np.nan], [0, 1]])
    assert CellBlock.concat([block([[1]])]).proteins is None


def test_blocks_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(UsageError, match="no blocks"):
        CellBlock.concat([])
    with pytest.raises(UsageError, match="same targets"):
        CellBlock.concat([block([[1]]), block([[1]], targets={})])
    wide = np.zeros((1, 3), dtype=np.float32)
    with pytest.raises(UsageError, match=r"same proteins, not \[2, 3\]"):
        CellBlock.concat([block([[1]], proteins=True), block([[1]]).replace(proteins=wide)])


def test_it_travels_as_a_carrier() -> None:
    cells = block([[1, 2]])
    assert cells.to("cpu").values is cells.values
