"""`CellDataModule`: from files of cells to batches, by every way of saying how much of a gene there is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from polyfm.domains.singlecell.binning import bin_counts
from polyfm.domains.singlecell.blocks import cell_keys
from polyfm.domains.singlecell.data import CellDataModule, corpus
from polyfm.domains.singlecell.sample import CLS, SPECIALS
from polyfm.domains.singlecell.synthetic import PROTEINS, TYPES, synthetic_cells, write_synthetic
from polyfm.shared.data.collate import sample_key
from polyfm.shared.data.sampler import Key
from polyfm.shared.errors import DataError, RecipeError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
Make = Callable[..., CellDataModule]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic(tmp_path_factory.mktemp("cells"), n=120)


@pytest.fixture
def make(path: Path) -> Make:
    def made(**settings: Any) -> CellDataModule:
        data = CellDataModule(str(settings.pop("path", path)), **{"batch_size": 16, **settings})
        data.setup()
        return data

    return made


def cells_of(batch: Any) -> list[tuple[str, list[int], list[float]]]:
    genes = batch["genes"]
    cuts = genes.cu_seqlens.tolist()
    values = getattr(genes, "values", torch.zeros(len(genes.ids)))
    return [
        (id, genes.ids[a:b].tolist(), values[a:b].tolist())
        for id, a, b in zip(batch.ids, cuts[:-1], cuts[1:], strict=True)
    ]


def passes(data: CellDataModule, number: int = 1) -> list[list[tuple[str, list[int], list[float]]]]:
    loader = data.loader("train", shuffle=True)
    return [[cell for batch in loader for cell in cells_of(batch)] for _ in range(number)]


class TestTokens:
    def test_a_cell_is_a_cls_and_its_genes_with_their_bins(self, make: Make) -> None:
        data = make()
        block = data.make_samples([Key(3, 0)])
        batch = data.collate(block)
        keys = cell_keys(0, 0, np.array([sample_key(block.ids[0])]))
        bins = bin_counts(block.indptr, block.genes, block.values, keys)
        assert cells_of(batch) == [(block.ids[0], [CLS, *(block.genes + SPECIALS)], [0.0, *bins])]
        assert batch["genes"].longest == len(bins) + 1

    def test_continuous_values_are_scanpy_s(self, make: Make) -> None:
        import scanpy

        data = make(values="continuous")
        cells = synthetic_cells(120)
        scanpy.pp.normalize_total(cells, target_sum=1e4)
        scanpy.pp.log1p(cells)
        for id, ids, values in cells_of(data.collate(data.table[0:5])):
            row = cells[id].X.toarray()[0]
            np.testing.assert_allclose(values[1:], row[np.array(ids[1:]) - SPECIALS], rtol=1e-5)

    def test_ranks_fall_by_count_over_the_training_median(self, make: Make) -> None:
        data = make(values="rank", max_genes=20)
        cells, train = synthetic_cells(120), data.part("train")
        counts = cells.X.toarray()
        scaled = counts / counts.sum(1, keepdims=True)
        known = np.where(scaled[train] > 0, scaled[train], np.nan)
        medians = np.nanmedian(known, 0)
        medians = np.where(np.isnan(medians), np.nanmedian(medians), medians)
        for id, ids, _ in cells_of(data.collate(data.table[0:5])):
            ratio = scaled[cells.obs_names.get_loc(id)] / medians
            assert ids[0] == CLS
            assert len(ids) == 21
            found = ratio[np.array(ids[1:]) - SPECIALS]
            np.testing.assert_allclose(found, np.sort(ratio)[::-1][:20], rtol=1e-4)

    def test_of_many_genes_the_largest_or_some_are_kept(self, make: Make) -> None:
        top = make(max_genes=10, choose="top")
        block = top.table[0:5]
        for cell, (_, ids, _) in enumerate(cells_of(top.collate(block))):
            values = block[cell].values
            assert len(ids) == 11
            kept = values[np.isin(block[cell].genes + SPECIALS, ids)]
            assert kept.min() >= np.sort(values)[::-1][9]
        first, second = (dict((id, ids) for id, ids, _ in one) for one in passes(make(max_genes=10), 2))
        assert sum(first[id] != second[id] for id in first) > len(first) / 2

    def test_a_batch_is_the_same_whatever_it_is_made_of(self, make: Make) -> None:
        data = make()
        whole = cells_of(data.collate(data.table[0:6]))
        assert cells_of(data.collate([data.table[0:2], data.table[2:6]])) == whole
        assert [cells_of(data.collate(data.table[i : i + 1]))[0] for i in range(6)] == whole


class TestModalities:
    def test_cells_of_one_text_are_one_another_s_positives(self, make: Make) -> None:
        data = make(modalities=["genes", "text"])
        batch = data.collate(data.table[0:20])
        texts = data.table.text[0:20]  # type: ignore[index]
        same = np.array(texts)[:, None] == np.array(texts)
        assert (batch.groups[:, None] == batch.groups).numpy().tolist() == same.tolist()
        assert data.text_tokenizer.decode(batch["text"].ids[: batch["text"].lengths[0]].tolist()) == texts[0]

    def test_proteins_are_standardised_and_may_be_missing(self, make: Make) -> None:
        data = make(modalities=["genes", "proteins"], split="random")
        batch = data.collate(data.table[0:40])
        measured = ~np.isnan(data.table.proteins[0:40]).all(1)  # type: ignore[index]
        assert batch["proteins"].rows.tolist() == np.flatnonzero(measured).tolist()
        assert data.proteins.names == list(PROTEINS)
        train = data.collate(data.table.read(data.part("train")))["proteins"]
        scores = train.values[train.ids != CLS].view(-1, len(PROTEINS))
        torch.testing.assert_close(scores.mean(0), torch.zeros(len(PROTEINS)), atol=1e-5, rtol=0)
        assert train.ids[: len(PROTEINS) + 1].tolist() == [CLS, *range(SPECIALS, SPECIALS + len(PROTEINS))]
        told = batch["proteins"].values[batch["proteins"].ids != CLS].view(-1, len(PROTEINS))
        back = data.proteins.invert(told.numpy())
        np.testing.assert_allclose(back, data.table.proteins[0:40][measured], rtol=1e-4, atol=1e-3)  # type: ignore[index]

    def test_what_is_not_there_is_said(self, make: Make, tmp_path: Path) -> None:
        bare = write_synthetic(tmp_path, kind="mtx", n=60)
        with pytest.raises(DataError, match="no column of descriptions was found. Name one or several: --data.text"):
            make(path=bare, modalities=["genes", "text"], split="random")
        with pytest.raises(RecipeError, match="cells have no modality 'gene'"):
            make(modalities=["gene"])
        with pytest.raises(RecipeError, match="from 3 to 256"):
            make(bins=2)

    def test_proteins_are_found_by_name_and_a_file_may_lack_some(self, make: Make, tmp_path: Path) -> None:
        data = make(modalities=["genes", "proteins"], split="random")
        cells = synthetic_cells(120)[:20].copy()
        cells.obsm["protein_expression"] = cells.obsm["protein_expression"][["CD56", "CD3"]]
        cells.write_h5ad(tmp_path / "fewer.h5ad")
        told = data.samples_from(tmp_path / "fewer.h5ad")
        whole, fewer = (data.collate(table[0:20])["proteins"] for table in (data.table, told))
        known = {SPECIALS + list(PROTEINS).index(name) for name in ("CD56", "CD3")}
        assert set(fewer.ids.tolist()) == {CLS, *known}
        for protein in known:
            torch.testing.assert_close(fewer.values[fewer.ids == protein], whole.values[whole.ids == protein])

    def test_batches_are_numbered_and_new_ones_are_unknown(self, make: Make) -> None:
        data = make(batches=True, group="batch", split="random")
        numbers = data.collate(data.table[0:20]).targets["batch"]
        assert data.batch_names == {"batch1": 0, "batch2": 1}
        assert numbers.tolist() == [data.batch_names[group] for group in data.table.groups[0:20]]
        data.batch_names = {"batch1": 0}
        again = data.collate(data.table[0:20]).targets["batch"]
        assert again.isnan().tolist() == [group == "batch2" for group in data.table.groups[0:20]]


class TestGenes:
    def test_the_most_variable_are_kept_and_the_model_knows_no_others(self, make: Make, path: Path) -> None:
        data = make(variable_genes=50)
        assert len(data.vocabulary) == 50  # type: ignore[arg-type]
        markers = [symbol for symbols, _ in TYPES.values() for symbol in symbols]
        assert sum(symbol in data.vocabulary.symbols for symbol in markers) > len(markers) / 3  # type: ignore[union-attr]
        again = CellDataModule(str(path), variable_genes=50)
        again.load_state_dict(data.state_dict())
        again.setup()
        assert again.vocabulary.symbols == data.vocabulary.symbols  # type: ignore[union-attr]
        assert cells_of(again.collate(again.table[0:4])) == cells_of(data.collate(data.table[0:4]))

    def test_a_new_file_with_its_genes_in_another_order_gives_the_same_tokens(self, make: Make, tmp_path: Path) -> None:
        data = make(values="rank")
        cells = synthetic_cells(120)
        cells[:10, np.random.default_rng(0).permutation(cells.n_vars)].copy().write_h5ad(tmp_path / "other.h5ad")
        told = data.samples_from(tmp_path / "other.h5ad")
        assert data.ids_of(told) == data.table.ids[:10]
        assert cells_of(data.collate(told[0:10])) == cells_of(data.collate(data.table[0:10]))

    def test_a_new_file_of_other_genes_is_refused(self, make: Make, tmp_path: Path) -> None:
        cells = synthetic_cells(10)
        cells.var_names = [f"OTHER{i}" for i in range(cells.n_vars)]
        cells.var["gene_ids"] = [f"ENSG000{i:08d}" for i in range(cells.n_vars)]
        cells.write_h5ad(tmp_path / "other.h5ad")
        with pytest.raises(DataError, match="overlap"):
            make().samples_from(tmp_path / "other.h5ad")


class TestLikeBefore:
    """What was found by trying: a run must read its data as it did when it was made."""

    def test_cells_without_a_chosen_gene_stay(self, make: Make, tmp_path: Path) -> None:
        cells = synthetic_cells(120)
        cells.X[:5, :-1] = 0
        cells.X[:5, -1] = 3
        cells.X.eliminate_zeros()
        cells.write_h5ad(tmp_path / "poor.h5ad")
        data = make(path=tmp_path / "poor.h5ad", variable_genes=50)
        again = CellDataModule(str(tmp_path / "poor.h5ad"), variable_genes=50)
        again.load_state_dict(data.state_dict())
        again.setup()
        assert again.table.ids == data.table.ids
        assert len(again.table) == 120
        assert cells_of(again.collate(again.table[0:5])) == cells_of(data.collate(data.table[0:5]))

    def test_medians_of_logarithms_are_those_of_their_counts(self, tmp_path: Path) -> None:
        rng = np.random.default_rng(0)
        cells = synthetic_cells(120)
        counts = cells.X.toarray() * rng.uniform(0.9, 1.1, cells.shape)
        scaled = 1e4 * counts / counts.sum(1, keepdims=True)
        cells.X = csr_matrix(np.log1p(scaled).astype(np.float32))
        cells.write_h5ad(tmp_path / "logs.h5ad")
        data = CellDataModule(str(tmp_path / "logs.h5ad"), values="rank", split="random")
        data.setup()
        assert not data.table[0:1].counts
        train = scaled[data.part("train")]
        wanted = np.nanmedian(np.where(train > 0, train, np.nan), 0)
        known = data.medians.medians > 0
        np.testing.assert_allclose(data.medians.medians[known], wanted[known], rtol=1e-3)

    def test_files_within_a_folder_are_told_apart(self, tmp_path: Path) -> None:
        data = CellDataModule(str(write_synthetic(tmp_path, kind="zarr", n=60)), split="random")
        data.setup()
        names = data.named_files()
        assert len(names) == len(data.source_files()) > 5
        assert str(tmp_path) not in " ".join(names)

    def test_batches_are_those_of_the_new_data_and_proteins_those_of_the_run(self, make: Make, tmp_path: Path) -> None:
        state = make(batches=True, modalities=["genes", "proteins"], split="random").state_dict()
        cells = synthetic_cells(120)
        cells.obs["donor"] = cells.obs["donor"].cat.rename_categories(lambda name: f"new {name}")
        cells.obsm["protein_expression"] = cells.obsm["protein_expression"][["CD56", "CD3"]]
        cells.write_h5ad(tmp_path / "new.h5ad")
        settings = {"batches": True, "modalities": ["genes", "proteins"], "split": "random"}
        data = CellDataModule(str(tmp_path / "new.h5ad"), **settings)  # type: ignore[arg-type]
        data.take_over(state)
        data.setup()
        assert all(name.startswith("new ") for name in data.batch_names)
        assert data.proteins.names == list(PROTEINS)
        assert "choose" in CellDataModule.INHERITED

    def test_proteins_of_the_run_are_looked_for_where_they_are_read(self, make: Make, tmp_path: Path) -> None:
        state = make(modalities=["genes", "proteins"], split="random").state_dict()
        cells = synthetic_cells(120)
        del cells.obsm["protein_expression"]
        cells.write_h5ad(tmp_path / "rna.h5ad")
        for modalities in (["genes"], ["genes", "proteins"]):
            data = CellDataModule(str(tmp_path / "rna.h5ad"), modalities=modalities, split="random")
            data.take_over(state)
            if "proteins" in modalities:
                with pytest.raises(DataError, match="no surface proteins were found"):
                    data.setup()
            else:
                data.setup()
                assert data.table.proteins is None

    def test_narrowing_makes_a_new_table(self, make: Make) -> None:
        table = make().table
        before = table.read([0, 1])
        few = table.narrow(np.arange(5))
        assert few.read([0, 1]).genes.max() < 5
        np.testing.assert_array_equal(table.read([0, 1]).genes, before.genes)

    def test_simple_methods_read_cells_in_any_order(self, make: Make) -> None:
        data = make()
        whole = data.expression(np.arange(8)).toarray()
        np.testing.assert_array_equal(data.expression(np.array([5, 2, 2, 7])).toarray(), whole[[5, 2, 2, 7]])

    def test_a_group_that_says_the_same_of_all_is_no_group(self, make: Make, tmp_path: Path) -> None:
        cells = synthetic_cells(60)
        del cells.obs["donor"], cells.obs["batch"]
        cells.obs["orig.ident"] = "SeuratProject"
        cells.write_h5ad(tmp_path / "seurat.h5ad")
        data = make(path=tmp_path / "seurat.h5ad")
        assert any("says the same of all cells" in remark for remark in data.remarks)
        with pytest.raises(DataError, match="all cells are of one group"):
            make(path=tmp_path / "seurat.h5ad", group="orig.ident")

    def test_an_anndata_is_left_as_it_was(self, make: Make, path: Path) -> None:
        data = make()
        backed = anndata.read_h5ad(path, backed="r")
        assert data.ids_of(data.samples_from(backed)) == data.table.ids
        assert Path(str(backed.filename)) == path
        cells = synthetic_cells(20)
        kinds = cells.obs.dtypes.astype(str).to_dict()
        data.samples_from(cells)
        assert cells.obs.dtypes.astype(str).to_dict() == kinds

    def test_values_that_the_embedder_does_not_read_are_refused(self, make: Make) -> None:
        from polyfm.domains.singlecell.embedder import GeneTokens
        from polyfm.shared.tokens.text import TextTokens

        class Encoder:
            def __init__(self, embedder: Any) -> None:
                self.embedder = embedder

        make().require_room({"genes": Encoder(GeneTokens(4, 400))})
        make(values="rank").require_room({"genes": Encoder(TextTokens(4, 400))})
        for values, embedder in (("rank", GeneTokens(4, 400)), ("binned", TextTokens(4, 400))):
            with pytest.raises(RecipeError, match=f"does not read genes with data.values {values}"):
                make(values=values).require_room({"genes": Encoder(embedder)})

    def test_one_label_in_two_ways_of_writing_is_one_class(self, make: Make, tmp_path: Path) -> None:
        for name, labels in (("a", [0.0, 1.0, np.nan] * 20), ("b", ["0", "1", "2"] * 20)):
            cells = synthetic_cells(60, seed=ord(name))
            cells.obs["cluster"] = labels
            cells.write_h5ad(tmp_path / f"{name}.h5ad")
        assert make(path=tmp_path, label=["cluster"], split="random").class_names() == ["0", "1", "2"]


class TestLoader:
    def test_every_cell_once_a_pass_and_anew_in_the_next(self, make: Make) -> None:
        data = make(block=4, pool=3)
        first, second = passes(data, 2)
        wanted = sorted(data.table.ids[i] for i in data.part("train"))
        assert sorted(id for id, *_ in first) == sorted(id for id, *_ in second) == wanted
        assert [id for id, *_ in first] != [id for id, *_ in second]

    def test_workers_change_nothing(self, make: Make) -> None:
        assert passes(make(block=4, pool=3, num_workers=2), 2) == passes(make(block=4, pool=3), 2)

    def test_validation_is_in_order_and_the_same_every_time(self, make: Make) -> None:
        loader = make(max_genes=10).loader("valid", shuffle=False)
        assert [cells_of(batch) for batch in loader] == [cells_of(batch) for batch in loader]

    def test_donors_are_not_cut(self, make: Make) -> None:
        data = make()
        assert data.splits.cut_groups() == []
        assert any(line.startswith("split by group: ") for line in data.remarks)
        assert any("'donor'" in line for line in data.remarks)

    def test_a_folder_of_files_is_one_corpus(self, make: Make, tmp_path: Path) -> None:
        write_synthetic(tmp_path, n=30).rename(tmp_path / "a.h5ad")
        write_synthetic(tmp_path, n=30, seed=1).rename(tmp_path / "b.h5ad")
        data = make(path=tmp_path)
        assert len(data.table) == 60
        assert [file.name for file in data.source_files()] == ["a.h5ad", "b.h5ad"]


def test_a_folder_may_hold_10x_folders_and_what_is_no_cells_is_named(make: Make, tmp_path: Path) -> None:
    write_synthetic(tmp_path, n=30)
    write_synthetic(tmp_path, kind="mtx.gz", n=40, seed=1)
    (tmp_path / "notes.txt").write_text("of the day")
    data = make(path=tmp_path)
    assert len(data.table) == 70
    assert any("not read: notes.txt" in line for line in data.summary())


def test_batches_that_are_one_are_refused(make: Make, tmp_path: Path) -> None:
    cells = synthetic_cells(40)
    cells.obs["tissue"] = "blood"
    cells.write_h5ad(tmp_path / "one.h5ad")
    with pytest.raises(DataError, match="'blood': there is nothing to integrate"):
        make(path=tmp_path / "one.h5ad", batches=True, group="tissue", split="random")


def test_logistic_regression_has_all_genes_whatever_the_model_keeps(make: Make) -> None:
    data = make(variable_genes=10, label=["cell_type"])
    cells = data.part("test")
    assert data.expression(cells).shape[1] == 10
    everything = data.expression(cells, data.table.widen())
    assert everything.shape[1] == 300
    again = CellDataModule(data.path, label=["cell_type"])  # of a run that is tested, or that another starts from
    again.load_state_dict(data.state_dict())
    again.setup()
    assert again.expression(cells).shape[1] == 10
    assert (again.expression(cells, again.table.widen()) != everything).nnz == 0


def test_what_cell_ranger_writes_twice_is_read_once(tmp_path: Path) -> None:
    for name in ("raw", "filtered"):
        folder = write_synthetic(tmp_path, kind="mtx.gz", n=20)
        folder.rename(tmp_path / f"{name}_feature_bc_matrix")
        write_synthetic(tmp_path, kind="h5", n=20).rename(tmp_path / f"{name}_feature_bc_matrix.h5")
    (tmp_path / "web_summary.html").write_text("")
    files, others = corpus(tmp_path)
    assert [file.name for file in files] == ["filtered_feature_bc_matrix.h5"]
    assert len(others) == 4
    assert corpus(tmp_path / "raw_feature_bc_matrix")[0] == [tmp_path / "raw_feature_bc_matrix"]


def test_labels_are_classes_and_baselines_stand_beside(make: Make) -> None:
    from polyfm.shared.training.targets.kinds import fit_target

    data = make(label=["cell_type"])
    values = data.target_values(data.part("train"))
    target = fit_target("auto", data.target_names(), values, data.class_names())
    truth = anndata.read_h5ad(data.path).obs["cell_type"].astype(str).tolist()
    told = [data.class_names()[int(i)] for i in data.table.targets[:, 0]]
    assert told == truth
    scores = {
        name: target.score(method(), data.target_values(data.part("test")))
        for name, method in data.baselines(target).items()
    }
    assert set(scores) == {"logistic_genes", "logistic_pca", "knn_pca", "commonest"}
    assert scores["logistic_genes"] > 0.8 > scores["commonest"]  # type: ignore[operator]


def test_fewer_labelled_cells_than_neighbours_are_enough_for_baselines(make: Make) -> None:
    from polyfm.domains.singlecell.baselines import NEIGHBOURS, baselines
    from polyfm.shared.training.targets.kinds import fit_target

    data = make(label=["cell_type"])
    train = data.part("train")
    few = train[np.unique(data.target_values(train)[:, 0], return_index=True)[1]]
    assert len(few) < NEIGHBOURS
    target = fit_target("auto", data.target_names(), data.target_values(few), data.class_names())
    for method in baselines(
        data.expression, data.expression, data.table.targets, few, data.part("test"), target, 0
    ).values():
        assert np.isfinite(method()).all()
