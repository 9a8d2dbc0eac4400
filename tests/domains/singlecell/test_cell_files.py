"""What stands beside the matrices: annotations of AnnData's older encodings, 10x's versions, proteins, hostile ones."""

from __future__ import annotations

import gzip
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scanpy
import scipy.sparse as sp

from polyfm.domains.singlecell.cell_files import open_cells
from polyfm.domains.singlecell.read import read_cells
from polyfm.domains.singlecell.synthetic import KINDS, PROTEINS, synthetic_cells, write_synthetic
from polyfm.domains.singlecell.tenx import read_mtx
from polyfm.shared.errors import DataError, UsageError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


@pytest.mark.parametrize("kind", KINDS)
def test_synthetic_files_are_what_other_readers_expect(kind: str, tmp_path: Path) -> None:
    path, truth = write_synthetic(tmp_path, kind=kind, n=25), synthetic_cells(25)
    if kind == "h5ad":
        theirs = anndata.read_h5ad(path)
    elif kind == "zarr":
        theirs = anndata.read_zarr(path)
    else:
        theirs = scanpy.read_10x_h5(path) if kind == "h5" else scanpy.read_10x_mtx(path)
    np.testing.assert_array_equal(theirs.X.toarray(), truth.X.toarray())
    assert theirs.obs_names.tolist() == truth.obs_names.tolist()
    assert theirs.var_names.tolist() == truth.var_names.tolist()


def test_synthetic_cells_are_the_same_for_the_same_arguments() -> None:
    one, again, other = synthetic_cells(40, seed=3), synthetic_cells(40, seed=3), synthetic_cells(40, seed=4)
    np.testing.assert_array_equal(one.X.toarray(), again.X.toarray())
    assert one.obs.equals(again.obs)
    assert one.var_names.equals(other.var_names)
    assert set(one.obs_names) != set(other.obs_names)
    assert one.obs_names.is_unique
    markers = one[one.obs.cell_type == "monocyte", "LYZ"].X.toarray().mean()
    assert markers > 4 * one[one.obs.cell_type == "B cell", "LYZ"].X.toarray().mean()
    with pytest.raises(UsageError, match="kind is 'loom'; expected one of h5ad, zarr"):
        write_synthetic("nowhere", kind="loom")


def test_annotations_as_anndata_07_wrote_them(tmp_path: Path) -> None:
    """Categories stood in a group of their own, and columns referred to them."""
    path = write_synthetic(tmp_path, n=20)
    with h5py.File(path, "r+") as file:
        obs = file["obs"]
        obs.attrs["encoding-version"] = "0.1.0"
        for name in ("cell_type", "donor", "batch", "tissue"):
            codes, categories = obs[name]["codes"][:], obs[name]["categories"][:]
            del obs[name]
            made = obs.require_group("__categories").create_dataset(name, data=categories, dtype=h5py.string_dtype())
            made.attrs["ordered"] = False
            obs[name] = codes
            obs[name].attrs["categories"] = made.ref
    table = read_cells(path, label="cell_type")
    truth = synthetic_cells(20).obs
    assert [table.classes[int(at)] for at in table.targets[:, 0]] == truth.cell_type.tolist()
    assert table.groups == truth.donor.tolist()


def test_an_h5_of_cell_ranger_2(tmp_path: Path) -> None:
    cells = synthetic_cells(15)
    matrix = sp.csc_matrix(cells.X.T).astype(np.int32)
    with h5py.File(tmp_path / "old.h5", "w") as file:
        group = file.create_group("GRCh38")
        group["barcodes"], group["shape"] = np.array(cells.obs_names, dtype="S"), np.array(matrix.shape)
        group["genes"], group["gene_names"] = (
            np.array(cells.var.gene_ids, dtype="S"),
            np.array(cells.var_names, dtype="S"),
        )
        for name in ("data", "indices", "indptr"):
            group[name] = getattr(matrix, name)
    table = read_cells(tmp_path / "old.h5")
    assert table.vocabulary.symbols == cells.var_names.tolist()
    np.testing.assert_array_equal(table.read(np.arange(15)).totals, cells.X.toarray().sum(1))


def test_a_10x_folder_with_a_prefix_and_the_matrix_itself(tmp_path: Path) -> None:
    folder = write_synthetic(tmp_path, kind="mtx.gz", n=12)
    for file in folder.iterdir():
        file.rename(folder / f"GSM1_{file.name}")
    truth = synthetic_cells(12)
    np.testing.assert_array_equal(read_mtx(folder).toarray()[:, :300], truth.X.toarray())
    assert read_cells(folder / "GSM1_matrix.mtx.gz").ids == truth.obs_names.tolist()
    (folder / "GSM2_matrix.mtx.gz").write_bytes(gzip.compress(b""))
    with pytest.raises(DataError, match="the folder holds 2 matrices: GSM1_matrix.mtx.gz, GSM2_matrix.mtx.gz"):
        open_cells(folder)


def test_proteins_of_files_that_lack_them_are_nan(tmp_path: Path) -> None:
    first, second = write_synthetic(tmp_path / "a", n=10), synthetic_cells(10, seed=5)
    del second.obsm["protein_expression"]
    second.write_h5ad(tmp_path / "b.h5ad")
    table = read_cells([first, tmp_path / "b.h5ad"])
    assert table.proteins is not None
    assert table.proteins.shape == (20, len(PROTEINS))
    assert np.isnan(table.proteins[10:]).all()
    assert not np.isnan(table.proteins[:10]).all()


def test_only_the_columns_that_are_asked_for_are_read(tmp_path: Path) -> None:
    """A column that cannot be read harms nobody who does not want it."""
    path = write_synthetic(tmp_path, n=10)
    with h5py.File(path, "r+") as file:
        file["obs/tissue"].attrs["encoding-version"] = "99"
    assert len(read_cells(path, label="cell_type")) == 10
    with pytest.raises(DataError, match=r"obs\['tissue'\] cannot be read"):
        read_cells(path, label="tissue")


def test_hostile_files_never_reach_the_readers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither h5py's high-level reader nor zarr's opens what the checks refuse."""
    hdf5, folder = write_synthetic(tmp_path, n=5), write_synthetic(tmp_path, kind="zarr", n=5)
    with h5py.File(hdf5, "r+") as file:
        file["uns/out"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/")
    (folder / "uns" / "out").symlink_to(tmp_path)

    def fail(*arguments: object, **options: object) -> None:
        raise AssertionError("opened")

    monkeypatch.setattr("polyfm.domains.singlecell.cell_files.h5py.File", fail)
    monkeypatch.setattr("polyfm.domains.singlecell.cell_files.zarr.open_group", fail)
    for path in (hdf5, folder):
        with pytest.raises(DataError, match="it was not read"):
            read_cells(path)


def test_strings_of_pandas_3_are_written(tmp_path: Path) -> None:
    cells = anndata.AnnData(np.ones((2, 1), dtype=np.float32), obs=pd.DataFrame({"t": ["x", "y"]}, index=["a", "b"]))
    for path, write, read in (
        (tmp_path / "a.h5ad", cells.write_h5ad, anndata.read_h5ad),
        (tmp_path / "a.zarr", cells.write_zarr, anndata.read_zarr),
    ):
        write(path)
        assert read(path).obs_names.tolist() == ["a", "b"]
        assert read(path).obs["t"].tolist() == ["x", "y"]
