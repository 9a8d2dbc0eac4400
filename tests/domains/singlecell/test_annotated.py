"""What a model says goes into the cells' own AnnData, where scanpy finds it; nothing of theirs is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy

import polyfm
from polyfm.domains.singlecell.annotated import add, annotate
from polyfm.domains.singlecell.synthetic import synthetic_cells, write_synthetic
from polyfm.shared.backbones.encoder import Encoder
from polyfm.shared.cli.main import main
from polyfm.shared.errors import DataError, UsageError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
TINY = """\
model: {encoders: {genes: {width: 16, backbone: {depth: 1, block: {heads: 2, hidden: 16}}}}}
trainer: {max_epochs: 2, enable_progress_bar: false, enable_model_summary: false}
"""


def fit(folder: Path, recipe: str, *words: str) -> Path:
    (folder / "tiny.yaml").write_text(TINY)
    path = write_synthetic(folder, n=80)
    common = ["--size", "small", "--config", str(folder / "tiny.yaml"), "--data.path", str(path)]
    assert main(["fit", recipe, *common, "--out", str(folder / "run"), *words]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def annotator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit(tmp_path_factory.mktemp("annotator"), "singlecell/annotate", "--data.label", "cell_type")


@pytest.fixture
def cells(tmp_path: Path) -> Path:
    """With one empty cell."""
    made = synthetic_cells(30, seed=3)
    made.X[7] = 0
    made.X.eliminate_zeros()
    made.layers["twice"] = made.X * 2
    made.uns["note"] = "kept"
    made.write_h5ad(tmp_path / "cells.h5ad")
    return tmp_path / "cells.h5ad"


def test_everything_is_kept_and_scanpy_goes_on(annotator: Path, cells: Path, tmp_path: Path) -> None:
    assert main(["embed", str(annotator), str(cells), "--out", str(tmp_path / "out.h5ad")]) == 0
    before, after = anndata.read_h5ad(cells), anndata.read_h5ad(tmp_path / "out.h5ad")
    assert (before.X != after.X).nnz == 0
    assert (before.layers["twice"] != after.layers["twice"]).nnz == 0
    assert before.obs.equals(after.obs[before.obs.columns])
    assert before.var.equals(after.var)
    assert after.uns["note"] == "kept"
    assert list(after.obs.columns[-2:]) == ["polyfm_label", "polyfm_probability"]
    vectors, shares = after.obsm["X_polyfm"], after.obsm["polyfm_probabilities"]
    assert vectors.shape == (30, 16)
    lost = np.arange(30) == 7
    for found in (vectors, shares, after.obs["polyfm_probability"].to_numpy()[:, None]):
        assert np.isnan(found).all(1).tolist() == lost.tolist()
    assert after.obs["polyfm_label"].isna().tolist() == lost.tolist()
    classes = list(after.uns["polyfm"]["classes"])
    best = np.array(classes)[shares[~lost].argmax(1)]
    assert after.obs["polyfm_label"][~lost].astype(str).tolist() == best.tolist()
    np.testing.assert_allclose(shares[~lost].sum(1), 1, atol=1e-5)
    assert "path: molecules" not in after.uns["polyfm"]["recipe"]
    assert str(annotator.parent) not in after.uns["polyfm"]["recipe"]
    kept = after[~lost].copy()
    scanpy.pp.neighbors(kept, use_rep="X_polyfm", n_neighbors=5)
    model = polyfm.load(annotator)
    np.testing.assert_allclose(model.embed(str(cells)), vectors[~lost], atol=1e-5)


def test_cells_are_encoded_once(annotator: Path, cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = []
    forward = Encoder.forward

    def counted(self: Encoder, tokens: Any, *words: Any, **more: Any) -> Any:
        encoded.append(len(tokens.rows))
        return forward(self, tokens, *words, **more)

    monkeypatch.setattr(Encoder, "forward", counted)
    assert main(["embed", str(annotator), str(cells), "--out", str(tmp_path / "out.h5ad")]) == 0
    assert sum(encoded) == 29


def test_it_may_be_done_again(annotator: Path, cells: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one.h5ad", tmp_path / "two.h5ad"
    assert main(["embed", str(annotator), str(cells), "--out", str(one)]) == 0
    assert main(["embed", str(annotator), str(one), "--out", str(two)]) == 0
    assert list(anndata.read_h5ad(two).obs.columns) == list(anndata.read_h5ad(one).obs.columns)


@pytest.mark.parametrize("kind", ["zarr", "h5", "mtx.gz"])
def test_other_formats_become_anndata(annotator: Path, tmp_path: Path, kind: str) -> None:
    path = write_synthetic(tmp_path, kind=kind, n=20)
    assert main(["embed", str(annotator), str(path), "--out", str(tmp_path / "out.h5ad")]) == 0
    found = anndata.read_h5ad(tmp_path / "out.h5ad")
    assert found.obsm["X_polyfm"].shape == (20, 16)
    assert found.obs_names.tolist() == synthetic_cells(20).obs_names.tolist()


def test_in_memory(annotator: Path) -> None:
    cells = synthetic_cells(20)
    model = polyfm.load(annotator)
    table = model.data.samples_from(cells)
    add(cells, annotate(model, table))
    assert cells.obsm["X_polyfm"].shape == (20, 16)
    assert cells.obs["polyfm_label"].notna().all()
    np.testing.assert_allclose(model.embed(synthetic_cells(20)), cells.obsm["X_polyfm"], atol=1e-5)


def test_an_anndata_needs_no_file_and_nothing_but_its_cells(annotator: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a session has gathered in it (objects, mixed columns, numbers for names) does not matter."""
    # So that values are looked at when they are read, as of very many cells.
    monkeypatch.setattr("polyfm.domains.singlecell.read._MOST_SCANNED", 5)
    model = polyfm.load(annotator)
    cells = synthetic_cells(20)
    cells.uns["tool"] = object()
    cells.obs["mixed"] = pd.Series([1, "a", None, 2.5] * 5, index=cells.obs_names, dtype=object)
    for key in list(cells.obsm):
        del cells.obsm[key]
    cells.obs.index = pd.RangeIndex(20)
    found = annotate(model, cells)
    assert np.isfinite(found.obsm["X_polyfm"]).all()
    add(cells, found)
    assert cells.obs["polyfm_label"].notna().all()


def test_part_of_a_file_is_not_taken_for_all_of_it(annotator: Path, cells: Path) -> None:
    model = polyfm.load(annotator)
    backed = anndata.read_h5ad(cells, backed="r")
    assert len(model.embed(backed)) == 29
    with pytest.raises(UsageError, match="not in memory") as told:
        model.embed(backed[:10])
    assert "to_memory" in told.value.remedy
    assert len(model.embed(backed[:10].to_memory())) == 9  # the eighth is empty


def test_wrong_ways_to_give_cells(annotator: Path, cells: Path) -> None:
    model = polyfm.load(annotator)
    with pytest.raises(UsageError, match="'layr'"):
        model.embed(str(cells), layr="X")
    with pytest.raises(DataError, match="list is no file of cells") as told:
        model.embed([synthetic_cells(3)])
    assert "AnnData" in told.value.remedy
    scaled = synthetic_cells(20)
    scanpy.pp.normalize_total(scaled)
    scanpy.pp.log1p(scaled)
    scanpy.pp.scale(scaled)
    with pytest.raises(DataError, match="scaled") as told:
        model.embed(scaled)
    assert told.value.where == "the AnnData"


def test_cells_that_were_left_out_are_told_of(
    annotator: Path, cells: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["embed", str(annotator), str(cells), "--out", str(tmp_path / "out.h5ad")]) == 0
    assert "cells that were left out (1) have NaN" in capsys.readouterr().out


def test_numbers_are_a_column(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "made"
    folder.mkdir()
    path = write_synthetic(folder, n=80)
    cells = anndata.read_h5ad(path)
    cells.obs["age"] = np.linspace(20, 80, 80)
    cells.write_h5ad(tmp_path / "aged.h5ad")
    run = fit(folder, "singlecell/annotate", "--data.label", "age", "--data.path", str(tmp_path / "aged.h5ad"))
    assert main(["embed", str(run), str(tmp_path / "aged.h5ad"), "--out", str(tmp_path / "out.h5ad")]) == 0
    told = anndata.read_h5ad(tmp_path / "out.h5ad").obs["polyfm_age"]
    assert told.between(0, 120).all()


@pytest.mark.parametrize("out", ["vectors.parquet", "vectors.npz"])
def test_tables_of_vectors_as_everywhere(annotator: Path, cells: Path, tmp_path: Path, out: str, capsys: Any) -> None:
    assert main(["embed", str(annotator), str(cells), "--out", str(tmp_path / out)]) == 0
    assert "29 vectors of 16 numbers" in capsys.readouterr().out
