"""`polyfm tool molecules`: both directions of SPMM and of MolFM as commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from polyfm.domains.molecules.descriptors import DESCRIPTORS
from polyfm.domains.molecules.synthetic import write_reactions
from polyfm.domains.molecules.tools import TOOLS, describe, generate, parse_properties, properties, react, translate
from polyfm.shared.errors import UsageError
from polyfm.shared.training.build import RecipeParser
from polyfm.shared.training.recipe import find_recipe
from polyfm.shared.training.run_folder import RunFolder


def test_wanted_properties_by_name() -> None:
    wanted = parse_properties("MolWt=300, TPSA=60.5")
    assert wanted[DESCRIPTORS.index("MolWt")] == 300
    assert wanted[DESCRIPTORS.index("TPSA")] == 60.5
    assert np.isnan(wanted).sum() == 51


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("MolWeight=300", "there is no property 'MolWeight'. Did you mean Mol"),
        ("MolWt=heavy", "--properties MolWt: 'heavy' is not a number"),
        ("MolWt", "--properties MolWt: '' is not a number"),
        ("MolWt=inf", "'inf' is not a number"),
    ],
)
def test_wrong_wishes(text: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_properties(text)
    assert message in str(error.value)


def test_smiles_for_wanted_properties(spmm_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "x.csv"
    generate([str(spmm_run), "--properties", "MolWt=200,TPSA=40", "--beams", "3", "--out", str(out)])
    table = pd.read_csv(out, keep_default_na=False)
    assert table.columns.tolist() == ["id", "beam", "smiles"]
    assert table["beam"].tolist() == list(range(1, len(table) + 1))
    assert "validity" in capsys.readouterr().out


def test_smiles_like_those_of_a_file(spmm_run: Path, molecules: Path, tmp_path: Path) -> None:
    few = tmp_path / "few.csv"
    pd.read_csv(molecules)[["id", "smiles"]].head(3).to_csv(few, index=False)
    generate([str(spmm_run), "--like", str(few), "--beams", "1", "--out", str(tmp_path / "x.csv")])
    assert pd.read_csv(tmp_path / "x.csv")["id"].tolist() == ["SYN-00001", "SYN-00002", "SYN-00003"]


def test_properties_of_a_file(spmm_run: Path, molecules: Path, tmp_path: Path) -> None:
    properties([str(spmm_run), str(molecules), "--out", str(tmp_path / "x.csv")])
    table = pd.read_csv(tmp_path / "x.csv")
    assert table.columns.tolist() == ["id", *DESCRIPTORS]
    assert table["id"].tolist() == pd.read_csv(molecules)["id"].tolist()
    assert table.notna().all(axis=None)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["RUN", "--out", "x.csv"], "give either --properties or --like"),
        (["RUN", "--out", "x.csv", "--properties", "MolWt=1", "--like", "y"], "give either --properties or --like"),
        (["RUN", "--out", "x.csv", "--properties", "MolWt=1", "--beams", "0"], "--beams must be at least 1"),
        (["RUN", "--out", "x.txt", "--properties", "MolWt=1"], "the result is a .csv file"),
        (["NOWHERE", "--out", "x.csv", "--properties", "MolWt=1"], "not the folder of a run"),
    ],
)
def test_wrong_words(spmm_run: Path, tmp_path: Path, words: list[str], message: str) -> None:
    named = {"RUN": str(spmm_run), "NOWHERE": str(tmp_path)}
    with pytest.raises(UsageError) as error:
        generate([named.get(word, word) for word in words])
    assert message in str(error.value)


def test_every_tool_says_what_it_does() -> None:
    assert set(TOOLS) == {"generate", "properties", "describe", "translate", "react"}
    assert all("polyfm tool molecules" in (tool.__doc__ or "") for tool in TOOLS.values())


@pytest.fixture
def odd(molecules: Path, tmp_path: Path) -> Path:
    """Three molecules, their columns hard to guess, and one row that is none."""
    table = pd.read_csv(molecules)[["id", "smiles"]].head(3)
    table.loc[3] = ["SYN-X", "nothing"]
    table.rename(columns={"id": "nr", "smiles": "drug"}).assign(smiles="x").to_csv(tmp_path / "odd.csv", index=False)
    return tmp_path / "odd.csv"


def test_columns_may_be_told(spmm_run: Path, odd: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words, out = [str(odd), "--data.smiles", "drug", "--data.id=nr"], tmp_path / "out.csv"
    properties([str(spmm_run), *words, "--out", str(out)])
    assert pd.read_csv(out)["id"].tolist() == ["SYN-00001", "SYN-00002", "SYN-00003"]
    assert "odd.csv: 1 of 4 rows left out" in capsys.readouterr().out
    generate([str(spmm_run), "--like", *words, "--beams", "1", "--out", str(out)])
    assert pd.read_csv(out)["id"].tolist() == ["SYN-00001", "SYN-00002", "SYN-00003"]
    assert "odd.csv: 1 of 4 rows left out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--like", "ODD", "--data.smils", "drug"], "there is no option --data.smils. Did you mean --data.smiles?"),
        (["--properties", "MolWt=1", "--data.id", "nr"], "--data.id is about the file of --like, which is not given"),
    ],
)
def test_wrong_options_about_reading(spmm_run: Path, odd: Path, words: list[str], message: str) -> None:
    with pytest.raises(UsageError) as error:
        generate([str(spmm_run), *(str(odd) if word == "ODD" else word for word in words), "--out", "x.csv"])
    assert message in str(error.value)


def test_descriptions_of_a_file(molfm_run: Path, odd: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "x.csv"
    describe([str(molfm_run), str(odd), "--data.smiles", "drug", "--data.id=nr", "--beams", "1", "--out", str(out)])
    table = pd.read_csv(out)
    assert table.columns.tolist() == ["id", "smiles", "description"]
    assert table["id"].tolist() == ["SYN-00001", "SYN-00002", "SYN-00003"]
    assert table["description"].str.len().min() > 0
    assert "odd.csv: 1 of 4 rows left out" in capsys.readouterr().out


def test_smiles_for_a_description(molfm_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "x.csv"
    translate([str(molfm_run), "The molecule is a member of the class of indoles.", "--beams", "2", "--out", str(out)])
    table = pd.read_csv(out, keep_default_na=False)
    assert table.columns.tolist() == ["beam", "smiles", "valid"]
    assert table["beam"].tolist() == [1, 2]
    assert ("not a valid molecule" in capsys.readouterr().out) == (not table["valid"].all())


@pytest.mark.parametrize(
    ("tool", "words", "message"),
    [
        (
            describe,
            ["RUN", "x.csv", "--out", "x.csv"],
            "this run knows no texts. Use a run of molecules/molfm_generation",
        ),
        (translate, ["RUN", "a dye", "--out", "x.csv"], "this run knows no texts"),
        (translate, ["RUN", "a dye", "--out", "x.txt"], "the result is a .csv file"),
        (describe, ["RUN", "x.csv", "--out", "x.csv", "--beams", "0"], "--beams must be at least 1"),
    ],
)
def test_wrong_words_about_texts(
    spmm_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tool: Any, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as error:
        tool([str(spmm_run) if word == "RUN" else word for word in words])
    assert message in str(error.value)


@pytest.fixture(scope="module")
def reaction_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of `molecules/reaction`, not trained."""
    folder = tmp_path_factory.mktemp("react")
    recipe = find_recipe("molecules/reaction")
    flags = [f"--data.path={write_reactions(folder, n=30)}", "--data.max_tokens=30"]
    cli = RecipeParser(recipe, recipe.sized("small"), flags)
    cli.datamodule.setup()
    run = RunFolder.create(folder / "run")
    run.write_recipe(cli.resolved())
    run.checkpoints.mkdir()
    content = {"state_dict": cli.model.state_dict(), "ReactionDataModule": cli.datamodule.state_dict()}
    torch.save(content, run.checkpoints / "last.ckpt")
    return run.path


def test_reactions_are_answered_from_sources_alone(
    reaction_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.csv").write_text("known\nOCC\nxyz\nCCBr.N>>CCN\n")
    out = tmp_path / "out.csv"
    react([str(reaction_run), str(tmp_path / "a.csv"), "--data.reaction", "known", "--beams", "2", "--out", str(out)])
    table = pd.read_csv(out, keep_default_na=False)
    assert table["source"].tolist() == ["CCO", "CCO", "CCBr.N", "CCBr.N"]
    assert table["rank"].tolist() == [1, 2, 1, 2]
    assert "2 reactions, forward" in capsys.readouterr().out
    assert "unreadable structure" in (tmp_path / "out.quarantine.csv").read_text()
    with pytest.raises(UsageError, match="this is the file that is read"):
        react([str(reaction_run), str(out), "--out", str(out)])


def test_a_run_of_molecules_tells_no_reactions(spmm_run: Path, molecules: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="knows no reactions.*molecules/reaction"):
        react([str(spmm_run), str(molecules), "--out", str(tmp_path / "x.csv")])
