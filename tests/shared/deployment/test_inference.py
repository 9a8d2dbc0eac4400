"""A trained run in Python: embedding and predicting for new items."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

import polyfm
from polyfm.domains.molecules.data import MoleculeDataModule
from polyfm.domains.molecules.demo import COMMITTED
from polyfm.shared.deployment.inference import LoadedModel, data_of, restore
from polyfm.shared.errors import DataError, UsageError
from polyfm.shared.training.checkpoint import read_checkpoint, write_exchange
from polyfm.shared.training.run_folder import RunFolder

SMILES = ["CCO", "c1ccccc1O", "CC(=O)Oc1ccccc1C(=O)O", "CCN(CC)CC"]


@pytest.fixture(scope="module")
def spmm(runs: Any) -> LoadedModel:
    return polyfm.load(runs.spmm)


@pytest.fixture(scope="module")
def fitted(runs: Any) -> LoadedModel:
    return polyfm.load(runs.property)


def test_vectors_are_in_order_and_do_not_depend_on_their_neighbours(spmm: LoadedModel) -> None:
    vectors = spmm.embed(SMILES)
    assert vectors.shape == (4, 32)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(spmm.embed(SMILES[::-1])[::-1], vectors, atol=1e-5)
    np.testing.assert_allclose(spmm.embed(SMILES[2:3]), vectors[2:3], atol=1e-5)
    np.testing.assert_array_equal(spmm.embed(SMILES), vectors)  # no dropout


def test_modalities_and_the_contrastive_space(spmm: LoadedModel) -> None:
    assert spmm.modalities == ["smiles", "properties"]
    projected = spmm.embed(SMILES, "properties", projected=True)
    np.testing.assert_allclose(np.linalg.norm(projected, axis=1), 1, atol=1e-5)
    with pytest.raises(UsageError, match="no modality 'graph'. Choose one of: smiles, properties"):
        spmm.embed(SMILES, "graph")


def test_no_item_is_no_vector(spmm: LoadedModel, fitted: LoadedModel) -> None:
    assert spmm.embed([]).shape == (0, 32)
    assert fitted.predict([]).values.shape == (0, 1)


def test_samples_with_ids_of_their_own(spmm: LoadedModel, fitted: LoadedModel) -> None:
    samples = fitted.data.samples_from(SMILES)
    found = fitted.predict(samples)
    assert found.ids == ["1", "2", "3", "4"]
    assert found.names == ["activity"]
    np.testing.assert_array_equal(found.values, fitted.predict(SMILES).values)
    assert spmm.embed(spmm.data.samples_from(SMILES)).shape == (4, 32)


def test_an_item_that_lacks_the_modality_has_no_numbers(spmm: LoadedModel) -> None:
    samples = spmm.data.samples_from(SMILES)
    samples[1] = samples[1].replace(smiles=None)
    vectors = spmm.embed(samples, "smiles")
    assert np.isnan(vectors[1]).all()
    assert not np.isnan(vectors[[0, 2, 3]]).any()
    assert not np.isnan(spmm.embed(samples, "properties")).any()


def test_what_is_no_molecule_is_told_by_its_place(spmm: LoadedModel) -> None:
    with pytest.raises(DataError, match="item 1: 'hello' is no molecule"):
        spmm.embed(["CCO", "hello"])


def test_a_pre_trained_run_predicts_nothing(spmm: LoadedModel) -> None:
    with pytest.raises(UsageError, match="this run was pre-trained: it has nothing to predict"):
        spmm.predict(SMILES)


def test_transforms_are_those_of_the_training(runs: Any, spmm: LoadedModel) -> None:
    content = read_checkpoint(runs.spmm / "checkpoints" / "best.ckpt")
    state = content["MoleculeDataModule"]["transforms"]
    assert spmm.data.standardiser.state() == state["standardiser"]
    assert spmm.data.tokenizer.state() == state["tokenizer"]


def test_the_best_checkpoint_is_loaded_in_evaluation_mode(runs: Any, fitted: LoadedModel) -> None:
    best = read_checkpoint(runs.property / "checkpoints" / "best.ckpt")["state_dict"]
    own = fitted.task.state_dict()
    assert all(torch.equal(own[name].cpu(), value) for name, value in best.items())
    assert not fitted.task.training


def test_a_run_in_the_exchange_format_is_the_same_to_half_precision(
    runs: Any, spmm: LoadedModel, tmp_path: Path
) -> None:
    folder = RunFolder.create(tmp_path / "exchanged")
    folder.checkpoints.mkdir()
    folder.recipe.write_text((runs.spmm / "recipe.yaml").read_text())
    write_exchange(read_checkpoint(runs.spmm / "checkpoints" / "best.ckpt"), folder.checkpoints / "best.safetensors")
    np.testing.assert_allclose(polyfm.load(folder.path).embed(SMILES), spmm.embed(SMILES), atol=1e-2)


def test_a_text_that_is_no_file_is_perhaps_an_item(spmm: LoadedModel, fitted: LoadedModel, tmp_path: Path) -> None:
    for use in (spmm.embed, fitted.predict):
        for text in ("CCO", "C" * 5000, str(tmp_path / "none.csv")):
            with pytest.raises(DataError) as error:
                use(text)
            assert f"there is no file {text!r}. Check the path, or give items themselves as a list: [{text!r}]" in str(
                error.value
            )


def test_columns_of_a_file_may_be_told(runs: Any, spmm: LoadedModel, fitted: LoadedModel, tmp_path: Path) -> None:
    frame = pd.read_csv(runs.data).rename(columns={"smiles": "drug"}).assign(smiles="x")
    frame.to_csv(tmp_path / "odd.csv", index=False)
    path, smiles = tmp_path / "odd.csv", frame["drug"].tolist()
    np.testing.assert_array_equal(spmm.embed(path, smiles="drug"), spmm.embed(smiles))
    predictions = fitted.predict(str(path), smiles="drug", id="description")
    np.testing.assert_array_equal(predictions.values, fitted.predict(smiles).values)
    assert predictions.ids[0] == frame["description"][0]


def test_the_data_module_of_a_run_without_building_it(runs: Any, tmp_path: Path) -> None:
    assert data_of(runs.spmm) is MoleculeDataModule
    with pytest.raises(UsageError, match="not the folder of a run"):
        data_of(tmp_path)


def test_what_is_trained_needs_its_data_no_more(runs: Any, tmp_path: Path, fitted: LoadedModel) -> None:
    shutil.copytree(runs.property, tmp_path / "run")
    recipe = RunFolder(tmp_path / "run").recipe
    recipe.write_text(recipe.read_text().replace(str(runs.data), str(tmp_path / "gone.csv")))
    found = polyfm.load(tmp_path / "run")
    np.testing.assert_array_equal(found.predict(SMILES).values, fitted.predict(SMILES).values)


def test_the_run_that_comes_along_is_ready_and_says_nothing_of_where_it_was_made() -> None:
    model = polyfm.load(COMMITTED)
    assert model.embed(SMILES).shape[0] == len(SMILES)
    recipe = read_checkpoint(model.folder.best)["recipe"]
    for text in (recipe, model.folder.recipe.read_text()):
        assert yaml.safe_load(text)["data"]["init_args"]["path"] == "first_5K.smi"


def test_a_checkpoint_of_another_model_is_refused(runs: Any, fitted: LoadedModel) -> None:
    content = read_checkpoint(runs.property / "checkpoints" / "best.ckpt")
    content["state_dict"] = {k: v for k, v in content["state_dict"].items() if "blocks" not in k}
    with pytest.raises((DataError, RuntimeError), match="does not fit its recipe|Missing key"):
        restore(fitted.task, fitted.data, content)
    with pytest.raises(DataError, match="does not fit its recipe"):
        restore(fitted.task, fitted.data, {**content, "partial": True})


def test_a_folder_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not the folder of a run"):
        polyfm.load(tmp_path)
