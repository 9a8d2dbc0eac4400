"""Wrong inputs give exactly one message with the remedy, or are accepted and said."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any

import pytest
from tests.domains.singlecell.wrong_inputs import ERROR, NOTICE, QUARANTINE, WRONG, Wrong

from polyfm.domains.singlecell.quality import QualityControl
from polyfm.domains.singlecell.read import read_cells
from polyfm.domains.singlecell.synthetic import write_synthetic
from polyfm.shared.data import tabular
from polyfm.shared.errors import DataError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def test_size_of_the_corpus_of_wrong_inputs() -> None:
    print(f"{len(WRONG)} wrong inputs")
    assert len(WRONG) == 56


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_one_message_with_the_remedy(wrong: Wrong, tmp_path: Path) -> None:
    path = wrong.make(tmp_path)
    options = dict(wrong.options)
    if "min_genes" in options:
        options["quality"] = QualityControl(min_genes=options.pop("min_genes"))
    if wrong.outcome == ERROR:
        with pytest.raises(DataError) as refused:
            read_cells(path, **options)
        said = str(refused.value)
        assert "cells" in said.partition(": ")[0] or "no.h5ad" in said, "which file it is"
        assert "\n" not in said, "one message"
        assert wrong.says in said
        assert wrong.remedy
        assert wrong.remedy in said
        assert said.index(wrong.says) <= said.rindex(wrong.remedy)
        return
    table = read_cells(path, **options)
    told = {QUARANTINE: [table.quarantine.summary()], NOTICE: [table.notices.summary()]}.get(
        wrong.outcome, table.remarks
    )
    assert sum(wrong.says in line for line in told) == 1


@pytest.mark.parametrize("kind", ["h5ad", "h5"])
def test_a_file_that_may_not_be_read(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The superuser may read all files: that this one is refused is feigned."""
    path = write_synthetic(tmp_path, kind=kind, n=5)

    def refuse(file: Any, *rest: Any) -> IO[Any]:
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr(tabular, "open", refuse, raising=False)
    with pytest.raises(DataError) as refused:
        read_cells(path)
    assert str(refused.value) == (
        f"{path}: the file cannot be opened (Permission denied). Let yourself read it (chmod u+r FILE), or ask its owner"
    )


def test_a_folder_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_synthetic(tmp_path, kind="zarr", n=5)

    def refuse(folder: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(
        DataError, match=r"cannot be read \(Permission denied\)\. Let yourself read it \(chmod -R u\+rX"
    ):
        read_cells(path)


def test_counts_and_logarithms_are_not_mixed(tmp_path: Path) -> None:
    import numpy as np
    import scipy.sparse as sp

    from polyfm.domains.singlecell.synthetic import synthetic_cells

    first = write_synthetic(tmp_path, n=20)
    smooth = synthetic_cells(40)
    smooth.X = sp.csr_matrix(
        np.where(smooth.X.toarray() > 0, np.random.default_rng(0).gamma(2.0, 1.0, smooth.shape), 0)
    )
    smooth.write_h5ad(tmp_path / "smooth.h5ad")
    with pytest.raises(
        DataError, match=r"smooth\.h5ad: this gives log-normalised, but cells\.h5ad counts\. Use files that"
    ):
        read_cells([first, tmp_path / "smooth.h5ad"])
