"""Runs of earlier versions are loaded by this one and compute what they computed."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import polyfm
from polyfm.shared.training import recipe as recipes
from polyfm.shared.training.build import register

RUNS = sorted(path.parent for path in Path(__file__).parent.glob("*/*/expected.json"))
NAMES = [f"{run.parent.name}/{run.name}" for run in RUNS]


def test_there_is_one_of_every_recipe_of_this_version() -> None:
    print(f"{len(RUNS)} golden runs: {', '.join(NAMES)}")
    assert {f"{polyfm.__version__}/{name}" for name in ("spmm", "property")} <= set(NAMES)


@pytest.mark.parametrize("run", RUNS, ids=NAMES)
def test_a_golden_run_is_small_and_names_no_one(run: Path) -> None:
    files = [path for path in run.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 200_000
    assert not [path for path in files for word in (b"/home/", b"/tmp/", b"/root/", b"/work/") if word in path.read_bytes()]  # fmt: skip


@pytest.mark.parametrize("run", RUNS, ids=NAMES)
def test_it_computes_what_it_computed(run: Path) -> None:
    expected = json.loads((run / "expected.json").read_text())
    model = polyfm.load(run)
    assert list(expected["embeddings"]) == model.modalities
    for name, vectors in expected["embeddings"].items():
        np.testing.assert_allclose(model.embed(expected["items"], name), vectors, atol=1e-5, rtol=1e-5)
    if "predictions" in expected:
        predicted = model.predict(expected["items"]).values
        np.testing.assert_allclose(predicted, expected["predictions"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("run", RUNS, ids=NAMES)
def test_it_still_loads_when_parts_have_been_renamed(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if today's names were new: the file has former ones, the table says what became of them."""
    former = {"Transformer": "TrunkOfOld", "SmilesTokens": "WordsOfOld", "MoleculeDataModule": "DataOfOldMolecules"}
    monkeypatch.setattr(recipes, "ALIASES", {old: new for new, old in former.items()})
    monkeypatch.setattr("polyfm.shared.training.checkpoint.ALIASES", recipes.ALIASES)
    shutil.copytree(run, tmp_path / "run")
    text = (run / "recipe.yaml").read_text()
    for new, old in former.items():
        assert f"class_path: {new}\n" in text
        text = text.replace(f"class_path: {new}\n", f"class_path: {old}\n")
    (tmp_path / "run" / "recipe.yaml").write_text(text)
    weights = tmp_path / "run" / "checkpoints" / "best.safetensors"
    packed = weights.read_bytes()
    assert b"MoleculeDataModule" in packed  # the transforms stand under it; of equal length, so that offsets stay
    weights.write_bytes(packed.replace(b"MoleculeDataModule", b"DataOfOldMolecules"))
    expected = json.loads((run / "expected.json").read_text())
    name, vectors = next(iter(expected["embeddings"].items()))
    found = polyfm.load(tmp_path / "run").embed(expected["items"], name)
    np.testing.assert_allclose(found, vectors, atol=1e-5, rtol=1e-5)


def test_aliases_lead_from_names_that_are_gone_to_names_that_exist() -> None:
    domains = [path.parent.name for path in (recipes.ROOT / "domains").glob("*/data.py")]
    allowed = tuple(module for domain in domains for module in register(domain) if module.startswith("polyfm."))
    modules = [module for name, module in list(sys.modules.items()) if name.startswith(allowed)]
    known = {name for module in modules for name, value in vars(module).items() if isinstance(value, type)}
    assert "Transformer" in known
    assert set(recipes.ALIASES.values()) <= known
    assert not set(recipes.ALIASES) & known
