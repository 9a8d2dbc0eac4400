from __future__ import annotations

import os
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy
import scipy.sparse as sp

from polyfm.domains.singlecell.genes import GeneVocabulary
from polyfm.domains.singlecell.layers import Kind
from polyfm.domains.singlecell.read import CellTable, read_cells
from polyfm.domains.singlecell.sample import CellBlock
from polyfm.domains.singlecell.synthetic import KINDS, PROTEINS, synthetic_cells, write_synthetic
from polyfm.shared.errors import DataError, RecipeError, UsageError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def dense(block: CellBlock, genes: int) -> np.ndarray:
    return sp.csr_array((block.values, block.genes, block.indptr), shape=(len(block), genes)).toarray()


def everything(table: CellTable) -> CellBlock:
    return table.read(np.arange(len(table)))


def save(cells: anndata.AnnData, path: Path) -> Path:
    cells.write_h5ad(path)
    return path


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("in_memory", [True, False])
def test_every_format_reads_back_what_was_written(kind: str, in_memory: bool, tmp_path: Path) -> None:
    truth = synthetic_cells(60, seed=1)
    table = read_cells(write_synthetic(tmp_path, kind=kind, n=60, seed=1), in_memory=in_memory)
    assert (len(table), table.kind, len(table.quarantine)) == (60, Kind.COUNTS, 0)
    assert table.ids == truth.obs_names.tolist()
    assert table.vocabulary.symbols == truth.var_names.tolist()
    assert table.vocabulary.ensembl == truth.var.gene_ids.tolist()
    assert table.vocabulary.species == "human"
    block = everything(table)
    np.testing.assert_array_equal(dense(block, 300), truth.X.toarray())
    np.testing.assert_array_equal(block.totals, truth.X.toarray().sum(1))
    assert block.rows.tolist() == list(range(60))
    if kind in ("h5ad", "zarr"):
        assert table.text == truth.obs.description.tolist()
        assert table.groups == truth.obs.donor.tolist()
        assert table.guesses == {"text": "description", "group": "donor", "protein": "protein_expression"}
        assert table.protein_names == list(PROTEINS)
        np.testing.assert_array_equal(block.proteins, truth.obsm["protein_expression"].to_numpy())
    else:
        assert table.groups == table.ids
    if kind in ("h5", "mtx.gz"):
        assert table.protein_names == [f"{name}_TotalSeq" for name in PROTEINS]
        np.testing.assert_array_equal(block.proteins, np.nan_to_num(truth.obsm["protein_expression"].to_numpy()))
        assert any("5 features are Antibody Capture, no genes" in remark for remark in table.remarks)


def test_any_cells_in_rising_order(tmp_path: Path) -> None:
    table = read_cells(write_synthetic(tmp_path, n=200), label="cell_type")
    whole = everything(table)
    items = np.array([0, 1, 2, 3, 17, 18, 90, 199])
    some, taken = table.read(items), whole.select(items)
    for name in ("rows", "indptr", "genes", "values", "totals", "proteins"):
        np.testing.assert_array_equal(getattr(some, name), getattr(taken, name))
        assert getattr(some, name).dtype == getattr(whole, name).dtype
    assert (some.ids, some.texts, some.groups) == (taken.ids, taken.texts, taken.groups)
    np.testing.assert_array_equal(some.targets["labels"], taken.targets["labels"])
    assert len(table.read([])) == 0
    with pytest.raises(UsageError, match="in the order of their files"):
        table.read([3, 1])


def test_labels_are_classes_or_numbers(tmp_path: Path) -> None:
    cells = synthetic_cells(40)
    cells.obs["cluster"] = pd.Categorical([str(at % 3) for at in range(40)])
    cells.obs["age"] = np.arange(40.0)
    cells.obs["ill"] = [at % 2 == 0 for at in range(40)]
    cells.obs["partly"] = pd.Categorical(["a", None, "b", "nan"] * 10)
    path = save(cells, tmp_path / "c.h5ad")
    table = read_cells(path, label="cell_type")
    assert [table.classes[int(at)] for at in table.targets[:, 0]] == cells.obs.cell_type.tolist()
    table = read_cells(path, label="cluster")
    assert (table.classes, table.targets[:4, 0].tolist()) == (["0", "1", "2"], [0, 1, 2, 0])
    table = read_cells(path, label=["age", "ill"])
    assert (table.classes, table.targets[3].tolist(), table.target_names) == ([], [3.0, 0.0], ("age", "ill"))
    table = read_cells(path, label="partly")
    assert table.classes == ["a", "b"]
    assert table.notices.counts() == {"no label": 20}


def test_several_text_columns_are_joined(tmp_path: Path) -> None:
    table = read_cells(write_synthetic(tmp_path, n=20), text=["cell_type", "tissue"])
    truth = synthetic_cells(20)
    assert table.text is not None
    assert table.text[0] == f"cell type: {truth.obs.cell_type.iloc[0]}. tissue: blood"


def test_several_files_with_different_genes_are_one_corpus(tmp_path: Path) -> None:
    one, two = synthetic_cells(30, seed=1)[:, :250].copy(), synthetic_cells(20, seed=2)[:, 100:][:, ::-1].copy()
    two.var_names = two.var["gene_ids"].to_numpy()
    del two.var["gene_ids"]
    paths = [save(one, tmp_path / "one.h5ad"), save(two, tmp_path / "two.h5ad")]
    table = read_cells(paths, label="cell_type")
    assert len(table) == 50
    assert len(table.vocabulary) == 300
    assert table.files.tolist() == [0] * 30 + [1] * 20
    block = everything(table)
    names = [*one.var_names, *(name for name in two.var_names[::-1][150:])]
    np.testing.assert_array_equal(dense(block, 300)[:30, :250], one.X.toarray())
    assert (np.diff(block.genes)[np.diff(np.repeat(np.arange(50), np.diff(block.indptr))) == 0] > 0).all()
    order = [table.vocabulary.find("" if name.startswith("ENSG") else name, name) for name in two.var_names]
    np.testing.assert_array_equal(dense(block, 300)[30:][:, order], two.X.toarray())
    assert len(names) == 300
    both = read_cells(paths, coverage=1.0)
    assert len(both.vocabulary) == 150
    # Totals are over all genes of the file, whatever the vocabulary.
    np.testing.assert_array_equal(everything(both).totals, everything(table).totals)
    assert any("two.h5ad: 100.0% of the genes overlap: 150 of the file's 200" in remark for remark in both.remarks)


def test_barcodes_that_repeat_between_files_get_the_name_of_the_file(tmp_path: Path) -> None:
    paths = [write_synthetic(tmp_path / name, kind="mtx", n=20).rename(tmp_path / f"lane{name}") for name in ("1", "2")]
    table = read_cells(paths)
    assert len(set(table.ids)) == 40
    assert table.ids[20].startswith("lane2:")
    assert (table.groups[0], table.groups[20], table.guesses["group"]) == ("lane1", "lane2", "the file")


def test_duplicate_genes_are_summed(tmp_path: Path) -> None:
    cells = synthetic_cells(20)
    cells.var_names = ["CD3E", *cells.var_names[1:]]  # stands second already
    table = read_cells(save(cells, tmp_path / "c.h5ad"), min_overlap=0.5)
    assert len(table.vocabulary) == 299
    values = cells.X.toarray()
    np.testing.assert_array_equal(dense(everything(table), 299)[:, 0], values[:, 0] + values[:, 1])


def test_a_vocabulary_of_a_model_leaves_out_what_it_does_not_know(tmp_path: Path) -> None:
    path, truth = write_synthetic(tmp_path, n=20), synthetic_cells(20)
    model = GeneVocabulary(["LYZ", "CD3D", "MS4A1", "CD14"], [""] * 4, "human")
    table = read_cells(path, genes=model)
    block = everything(table)
    np.testing.assert_array_equal(dense(block, 4), truth[:, model.symbols].X.toarray())
    np.testing.assert_array_equal(block.totals, truth.X.toarray().sum(1))


@pytest.mark.parametrize("form", ["csr", "csc", "dense", "int"])
def test_matrices_of_any_form(form: str, tmp_path: Path) -> None:
    cells = synthetic_cells(30)
    truth = cells.X.toarray()
    cells.X = {"csr": cells.X, "csc": sp.csc_matrix(cells.X), "dense": truth, "int": cells.X.astype(np.int64)}[form]
    np.testing.assert_array_equal(dense(everything(read_cells(save(cells, tmp_path / "c.h5ad"))), 300), truth)


@pytest.mark.parametrize("place", ["layers", "raw", "log", "scaled"])
def test_counts_are_found_and_said(place: str, tmp_path: Path) -> None:
    cells = synthetic_cells(80)
    truth = cells.X.toarray()
    if place == "layers":
        cells.layers["counts"] = cells.X.copy()
    if place == "raw":
        cells.raw = cells.copy()
    scanpy.pp.normalize_total(cells, target_sum=1e4)
    scanpy.pp.log1p(cells)
    if place == "scaled":
        cells.raw = cells.copy()
        cells = cells[:, 50:].copy()
        scanpy.pp.scale(cells, max_value=10)
    table = read_cells(save(cells, tmp_path / "c.h5ad"))
    said = {
        "layers": "X is log-normalised; counts are read from layers/counts",
        "raw": "X is log-normalised; counts are read from raw/X",
        "log": "X is log-normalised; counts are recovered from it, by undoing log1p and the normalisation cell by cell",
        "scaled": "X is scaled; counts are recovered from raw/X, which is log-normalised, by undoing log1p and the "
        "normalisation cell by cell",
    }[place]
    assert f"c.h5ad: {said}" in table.remarks
    assert table.kind == Kind.COUNTS
    np.testing.assert_array_equal(dense(everything(table), 300), truth)


@pytest.mark.parametrize(
    ("value", "row", "message"),
    [
        (np.nan, 33, "some values are NaN"),
        (np.inf, 12, "some values are infinite"),
        (-2, 40, "negative counts, down to -2"),
        (0.5, 50, "1 values among counts are no whole numbers, such as 0.5"),
    ],
)
def test_a_bad_value_is_told_with_its_row(value: float, row: int, message: str, tmp_path: Path) -> None:
    cells = synthetic_cells(60)
    counts = cells.X.tolil()
    counts[row, 3] = value
    path = save(
        anndata.AnnData(counts.tocsr().astype(np.float32), obs=cells.obs[[]], var=cells.var), tmp_path / "b.h5ad"
    )
    with pytest.raises(DataError, match=f"X, row {row + 1}: .*{message}"):
        read_cells(path)


def test_counts_in_a_layer_win_over_what_is_nearly_whole(tmp_path: Path) -> None:
    cells = synthetic_cells(60)
    cells.layers["counts"] = cells.X.copy()
    cells.X.data[0] += 0.5
    table = read_cells(save(cells, tmp_path / "corrected.h5ad"))
    assert any("counts are read from layers/counts" in remark for remark in table.remarks)


def test_a_column_that_parts_no_cells_is_not_guessed_for_groups(tmp_path: Path) -> None:
    cells = synthetic_cells(30)
    cells.obs = pd.DataFrame({"donor": "one", "library": ["a", "b", "c"] * 10}, index=cells.obs_names)
    assert read_cells(save(cells, tmp_path / "some.h5ad")).guesses["group"] == "library"
    cells.obs["library"] = "all"
    assert read_cells(save(cells, tmp_path / "none.h5ad")).guesses["group"] == "donor"


@pytest.mark.parametrize("wrong", [{"limit": -1}, {"min_overlap": 50}, {"coverage": -0.1}, {"max_broken": 2}])
def test_numbers_outside_their_range_are_refused(wrong: dict[str, float], tmp_path: Path) -> None:
    path = write_synthetic(tmp_path, n=20)
    with pytest.raises(RecipeError, match="expected"):
        read_cells(path, **wrong)


def test_matrices_are_held_until_there_are_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [write_synthetic(tmp_path / str(i), n=20, seed=i) for i in range(2)]
    one = read_cells(paths[0]).matrices[0].store
    assert one.is_held
    assert one.num_bytes == 8 * one.sizes().sum()
    monkeypatch.setattr("polyfm.domains.singlecell.read._IN_MEMORY_BYTES", one.num_bytes)
    first, second = (matrix.store for matrix in read_cells(paths).matrices)
    assert first.is_held
    assert not second.is_held
    cells = synthetic_cells(20)
    cells.X = cells.X.tocsc()
    by_genes = save(cells, tmp_path / "by_genes.h5ad")
    assert not any("not stored by cells" in remark for remark in read_cells(by_genes).remarks)
    monkeypatch.setattr("polyfm.domains.singlecell.read._IN_MEMORY_BYTES", 10)
    table = read_cells(by_genes)
    assert table.matrices[0].store.is_held
    assert any("X is not stored by cells" in remark for remark in table.remarks)


def test_empty_cells_are_quarantined(tmp_path: Path) -> None:
    cells = synthetic_cells(20)
    values = cells.X.toarray()
    values[[3, 7]] = 0
    cells.X = sp.csr_matrix(values)
    table = read_cells(save(cells, tmp_path / "c.h5ad"))
    assert [(finding.row, finding.kind) for finding in table.quarantine.items] == [(4, "empty cell"), (8, "empty cell")]
    np.testing.assert_array_equal(dense(everything(table), 300), np.delete(values, [3, 7], 0))
    assert table.ids == np.delete(cells.obs_names.to_numpy(), [3, 7]).tolist()


def test_only_blocks_are_looked_at_if_asked(tmp_path: Path) -> None:
    cells = synthetic_cells(3000, genes=60)
    path = write_synthetic(tmp_path, n=3000, genes=60)
    table = read_cells(path, scan="sample")
    assert table.metrics is None
    assert any("looked at in some blocks only" in remark for remark in table.remarks)
    np.testing.assert_array_equal(dense(table.read(np.arange(1000, 1100)), 60), cells.X[1000:1100].toarray())


@pytest.mark.realdata
def test_real_files() -> None:
    folder = Path(os.environ["POLYFM_DATA"]) / "singlecell"
    muris = read_cells(folder / "tabula_muris_facs_4000x2000.h5ad", label="cell_type")
    assert (len(muris), len(muris.vocabulary), len(muris.classes), muris.vocabulary.species) == (
        4000,
        2000,
        12,
        "mouse",
    )
    truth = anndata.read_h5ad(folder / "tabula_muris_facs_4000x2000.h5ad")
    np.testing.assert_array_equal(dense(muris.read(np.arange(100, 400)), 2000), truth.X[100:400].toarray())
    cite = read_cells(folder / "pbmc5k_citeseq_200.h5ad")
    assert (len(cite), len(cite.protein_names), cite.guesses) == (200, 29, {"protein": "protein_expression"})
    assert cite.proteins is not None
    truth = anndata.read_h5ad(folder / "pbmc5k_citeseq_200.h5ad")
    np.testing.assert_array_equal(cite.proteins, np.asarray(truth.obsm["protein_expression"]))
    np.testing.assert_array_equal(everything(cite).totals, truth.X.toarray().sum(1))
    bladder = read_cells(folder / "mouse_bladder_2100.h5ad", label="cluster")
    assert (len(bladder), len(bladder.classes), bladder.vocabulary.species) == (2100, 16, "")
    assert any("a model that learns them fits no other file" in remark for remark in bladder.remarks)
    with pytest.raises(DataError, match="named as in mouse"):
        read_cells(folder / "tabula_muris_facs_4000x2000.h5ad", genes=cite.vocabulary)


def test_pbmc68k_reduced_is_read_from_its_raw(tmp_path: Path) -> None:
    cells = scanpy.datasets.pbmc68k_reduced()
    table = read_cells(save(cells, tmp_path / "pbmc68k.h5ad"), label="bulk_labels")
    assert (len(table), table.kind, len(table.classes), len(table.quarantine)) == (700, Kind.COUNTS, 10, 0)
    assert table.remarks[0] == (
        "pbmc68k.h5ad: X is scaled; counts are recovered from raw/X, which is log-normalised, by undoing log1p and the "
        "normalisation cell by cell"
    )
    steps = table.matrices[0].steps
    np.testing.assert_allclose(1e4 / steps, cells.obs["n_counts"], rtol=5e-4)
    values = everything(table).values
    assert values.min() == 1
    np.testing.assert_array_equal(values, np.rint(values))
