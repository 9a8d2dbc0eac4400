"""`polyfm fit` from a file to a report: what it leaves, what it refuses, starting from a run, resuming one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

import polyfm as package
from polyfm.domains.molecules.synthetic import write_reactions
from polyfm.shared.cli.fit import start_from
from polyfm.shared.deployment.inference import load
from polyfm.shared.training.callbacks import Checkpoint
from polyfm.shared.training.checkpoint import read_checkpoint
from polyfm.shared.training.recipe import find_recipe, merge
from polyfm.shared.training.run_folder import RunFolder

Polyfm = Callable[..., Any]


class TestFinished:
    def test_a_run_leaves_everything_that_tells_what_it_was(self, runs: Any) -> None:
        names = {
            *("recipe.yaml", "environment.json", "splits.csv", "quarantine.csv", "notices.csv"),
            *("metrics.csv", "metrics.json", "checkpoints", "report.html"),
        }
        for run in (runs.spmm, runs.property):
            assert {path.name for path in run.iterdir()} == names
            assert {path.name for path in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}

    def test_the_recipe_is_complete_and_has_no_module_paths(self, runs: Any) -> None:
        tree = yaml.safe_load((runs.property / "recipe.yaml").read_text())
        assert (tree["domain"], tree["task"]) == ("molecules", "finetune")
        assert tree["data"]["init_args"]["targets"] == ["activity"]
        assert tree["model"]["encoders"]["smiles"]["init_args"]["width"] == 32  # of the run it started from
        assert "polyfm." not in (runs.property / "recipe.yaml").read_text()

    def test_a_checkpoint_holds_the_recipe_as_text(self, runs: Any) -> None:
        content = read_checkpoint(runs.spmm / "checkpoints" / "best.ckpt")
        assert content["recipe"] == (runs.spmm / "recipe.yaml").read_text()
        assert set(content["MoleculeDataModule"]["transforms"]) == {"tokenizer", "standardiser"}

    def test_metrics_stand_beside_the_baselines_of_the_field(self, runs: Any) -> None:
        metrics = json.loads((runs.property / "metrics.json").read_text())
        for row in ("test", "baseline/ecfp4_forest", "baseline/ecfp4_linear", "baseline/rdkit2d_forest"):
            assert metrics[f"{row}/rmse"] > 0
        assert metrics["test/rmse_low"] <= metrics["test/rmse"] <= metrics["test/rmse_high"]
        assert metrics["test/rows"] == 8
        assert metrics["train/samples_per_second"] > 0
        assert 0 <= metrics["train/waiting"] <= 1

    def test_a_pre_trained_run_measures_retrieval_generation_and_properties(self, runs: Any) -> None:
        metrics = json.loads((runs.spmm / "metrics.json").read_text())
        expected = {"test/contrast/loss", "retrieval/smiles-properties/r@1", "retrieval/chance_r@10"}
        assert expected | {"generation/validity", "properties/mean_r2"} <= set(metrics)

    def test_the_report_opens_alone(self, runs: Any) -> None:
        for run in (runs.spmm, runs.property):
            page = (run / "report.html").read_text(encoding="utf-8")
            assert len(page) < 10 * 2**20
            assert "<script" not in page
            for title in ("Learning curves", "Data", "Recipe"):
                assert f"<h2>{title}</h2>" in page

    def test_it_said_what_it_read_and_what_to_do_next(self, runs: Any) -> None:
        assert "molecules.csv: smiles taken from column 'smiles'" in runs.said["spmm"]
        assert "64 train, 8 valid, 8 test" in runs.said["spmm"]
        assert "SMILES have more than 100 tokens" not in runs.said["spmm"]
        assert f"polyfm embed {runs.spmm} NEW_FILE --out vectors.parquet" in runs.said["spmm"]
        assert f"polyfm predict {runs.property} NEW_FILE --out predictions.csv" in runs.said["property"]

    def test_starting_from_a_run_says_what_was_taken_over(self, runs: Any) -> None:
        assert "smiles from" in runs.said["property"]
        assert "(100% of the numbers), 0 missing, 0 unexpected, 0 of another shape" in runs.said["property"]
        assert "to predict: activity (regression; judging by the labels" in runs.said["property"]
        ours, theirs = (read_checkpoint(run / "checkpoints" / "best.ckpt") for run in (runs.property, runs.spmm))
        tokenizer = "MoleculeDataModule"
        assert ours[tokenizer]["transforms"]["tokenizer"] == theirs[tokenizer]["transforms"]["tokenizer"]


class TestResume:
    WORDS = ("molecules/property", "--size", "small", "--data.targets=[activity]", "--checkpoint.every_n_steps=1")

    @pytest.fixture
    def fit(self, polyfm: Polyfm, runs: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
        monkeypatch.setattr("polyfm.domains.molecules.baselines.TREES", 2)
        words = (*self.WORDS, "--config", runs.tiny_property, "--data.path", runs.data, "--init_from", runs.spmm)
        return lambda out, *more: polyfm("fit", *words, "--out", out, *more)

    def test_a_stopped_run_is_finished_as_if_it_had_never_stopped(
        self, polyfm: Polyfm, fit: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert fit(tmp_path / "whole").code == 0

        save, count = Checkpoint._save, 0

        def stop(checkpoint: Checkpoint, trainer: Any) -> None:
            nonlocal count
            count += 1
            save(checkpoint, trainer)
            if count == 6:
                raise RuntimeError("pulled the plug")

        with monkeypatch.context() as patch:
            patch.setattr(Checkpoint, "_save", stop)
            with pytest.raises(RuntimeError, match="pulled the plug"):
                fit(tmp_path / "stopped", "--debug")
        shown = polyfm("fit", "--resume", tmp_path / "stopped")
        assert shown.code == 0, shown.err
        whole, stopped = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "stopped")
        for name in ("best", "last"):
            first, second = (read_checkpoint(getattr(run, name))["state_dict"] for run in (whole, stopped))
            assert all((first[key] == second[key]).all() for key in first)
        same = [key for key in whole.metrics() if not key.startswith("train/")]
        assert {key: whole.metrics()[key] for key in same} == {key: stopped.metrics()[key] for key in same}
        curves = [pd.read_csv(run.curves)[["step", "valid/score"]].dropna() for run in (whole, stopped)]
        pd.testing.assert_frame_equal(curves[0].reset_index(drop=True), curves[1].reset_index(drop=True))

    def test_what_was_learnt_of_the_data_is_not_learnt_again(
        self, polyfm: Polyfm, fit: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A run that started from another one has tokens of its own; what it counts by them must not change."""
        fit(tmp_path / "run")

        def learn(*_: Any) -> None:
            raise AssertionError("fitted anew")

        monkeypatch.setattr("polyfm.domains.molecules.data.MoleculeDataModule.fit_transforms", learn)
        shown = polyfm("fit", "--resume", tmp_path / "run")
        assert shown.code == 0, shown.err

    def test_a_finished_run_may_be_resumed(self, polyfm: Polyfm, fit: Callable[..., Any], tmp_path: Path) -> None:
        fit(tmp_path / "run")
        before = RunFolder(tmp_path / "run").metrics()
        assert polyfm("fit", "--resume", tmp_path / "run").code == 0
        after = RunFolder(tmp_path / "run").metrics()
        assert after["test/rmse"] == before["test/rmse"]


class TestRefused:
    def test_a_used_folder(self, polyfm: Polyfm, runs: Any) -> None:
        words = ("--size", "small", "--data.path", runs.data, "--out", runs.spmm)
        shown = polyfm("fit", "molecules/spmm", *words)
        assert shown.code == 2
        assert f"{runs.spmm}: this folder already holds a run. Continue it with `polyfm fit --resume" in shown.err

    CASES = {
        "no recipe": ([], 2, "polyfm: which recipe? `polyfm fit --help` shows how"),
        "an empty part": (["SMALL", "--data.path", "DATA", "--data.targets", "activity", "--data.split", "random", "--data.fractions", "[0.98,0.01,0.01]"], 3, "molecules.csv: the valid split of 80 items is empty (drawn at random). Use more data, change --data.fractions"),
        "wrong recipe": (["molecules/propperty"], 2, "Did you mean molecules/property?"),
        "no size on a CPU": (["molecules/property"], 2, "without a GPU the size must be chosen"),
        "wrong size": (["molecules/property", "--size", "tiny"], 2, "has no size 'tiny'. Choose one of: paper, small"),
        "no data": (["SMALL"], 2, "--data.path is missing"),
        "missing file": (["SMALL", "--data.path", "none.csv", "--data.targets=[y]"], 3, "none.csv: there is no such file"),
        "a folder": (["SMALL", "--data.path", "FOLDER", "--data.targets=[y]"], 3, "this is a folder; expected a file"),
        "an empty file": (["SMALL", "--data.path", "EMPTY", "--data.targets=[y]"], 3, "the file is empty"),
        "wrong column": (["SMALL", "--data.path", "DATA", "--data.targets=[activty]"], 3, "activity"),
        "wrong SMILES column": (["SMALL", "--data.path", "DATA", "--data.smiles", "smile", "--data.targets=[activity]"], 3, "smiles"),
        "no targets": (["SMALL", "--data.path", "DATA"], 3, "no label column is given. Name one: --data.targets COLUMN"),
        "no targets, before the file is opened": (["SMALL", "--data.path", "none.csv"], 3, "no label column is given"),
        "no targets of an ensemble": (["SMALL", "--data.path", "none.csv", "--ensemble", "2"], 3, "no label column is given"),
        "labels that are words": (["SMALL", "--data.path", "DATA", "--data.targets=[description]"], 3, "expected a number"),
        "one class": (["SMALL", "--data.path", "CONSTANT", "--data.targets=[y]"], 3, "only one class"),
        "unknown option": (["SMALL", "--data.path", "DATA", "--trainer.max_epoch=3"], 2, "Did you mean --trainer.max_epochs?"),
        "abbreviation": (["SMALL", "--data.path", "DATA", "--ou", "x"], 2, "there is no option --ou"),
        "no such run to start from": (["SMALL", "--data.path", "DATA", "--init_from", "FOLDER"], 2, "not the folder of a run"),
        "a run of other encoders": (["molecules/graph_property", "--size", "small", "--data.path", "DATA", "--init_from", "SPMM"], 2, "has encoders for smiles, properties, the recipe for graph"),
        "no such run to resume": (["--resume", "FOLDER"], 2, "not the folder of a run"),
        "resume with more words": (["--resume", "SPMM", "--trainer.max_epochs=9"], 2, "--resume takes the run's own recipe"),
        "no GPU": (["SMALL", "--data.path", "DATA", "--data.targets=activity", "--trainer.accelerator=gpu"], 4, "--trainer.accelerator gpu: Lightning refuses this trainer: No supported gpu"),
        "more processes than a CPU has room for": (["SMALL", "--data.path", "DATA", "--data.targets=activity", "--trainer.accelerator=cpu", "--trainer.devices=999"], 2, "processes on this machine's CPU, not"),
        "seed below 0": (["SMALL", "--data.path", "DATA", "--data.targets=activity", "--seed_everything=-1"], 2, "--seed_everything: expected a whole number from 0 to 4294967295, not -1"),
        "seed too large": (["SMALL", "--data.path", "DATA", "--data.targets=activity", "--seed_everything=99999999999"], 2, "from 0 to 4294967295"),
        "no micro-batch": (["SMALL", "--data.path", "DATA", "--data.targets=activity", "--trainer.accumulate_grad_batches=0"], 2, "--trainer.accumulate_grad_batches: expected at least 1, not 0"),
        "no width": (["SMALL", "--data.path", "DATA", "--data.targets=activity", "--model.encoders.smiles.width=0"], 2, "--model.encoders.smiles.width: expected at least 1, not 0"),
        "depth below 0": (["SMALL", "--data.path", "DATA", "--data.targets=activity", "--model.encoders.smiles.backbone.depth=-1"], 2, "--model.encoders.smiles.backbone.depth: expected at least 0 blocks, not -1"),
        "fewer vectors than tokens": (["SMALL", "--data.path", "DATA", "--data.targets=activity", "--model.encoders.smiles.embedder.vocabulary=20"], 4, "tokens, the embedder of smiles is made for 20"),
        "other columns than words": (["molecules/words_features", "--size", "small", "--data.path", "DATA", "--data.text_vocabulary=500"], 4, "the data have 500 columns, the embedder of words is made for"),
        "numbers as texts": (["molecules/molfm", "--size", "small", "--data.path", "DATA", "--data.text", "activity"], 3, "the column of descriptions (activity) holds no words"),
        "no time": (["SMALL", "--data.path", "DATA", "--data.targets=activity", "--trainer.max_time=foo"], 4, "is not a valid duration"),
        "texts of one token": (["SMALL", "--data.path", "DATA", "--data.targets=activity", "--data.max_text_tokens=1"], 2, "--data.max_text_tokens: expected at least 3"),
        "no pass": (["SMALL", "--data.path", "DATA", "--data.targets=activity", "--trainer.max_epochs=0"], 2, "--trainer.max_epochs: expected at least 1, or -1 for no limit, not 0"),
        "several columns": (["SMALL", "--data.path", "DATA", "--data.targets=activity,active"], 3, "Several are written [activity,active]"),
        "a constant": (["SMALL", "--data.path", "CONSTANT", "--data.targets=y", "--model.kind=regression"], 3, "column 'y' has the same value 1 in all training rows"),
        "another tokenizer than the run's": (["SMALL", "--data.path", "DATA", "--data.targets=activity", "--init_from", "SPMM", "--data.tokenizer=BpeTokenizer"], 2, "Leave out options that choose other parts, such as --data.tokenizer"),
        "words as numbers": (["SMALL", "--data.path", "WORDS", "--data.targets=y", "--model.kind=regression"], 3, "column 'y' names 2 classes in words, such as 'off'. Leave out --model.kind regression"),
        "no member": (["SMALL", "--data.path", "DATA", "--ensemble", "0"], 2, "--ensemble needs a number of at least 1"),
        "ensemble of a pre-training": (["molecules/spmm", "--size", "small", "--data.path", "DATA", "--ensemble", "2"], 2, "--ensemble is for fine-tuning recipes"),
    }  # fmt: skip

    @pytest.mark.parametrize(("words", "code", "message"), CASES.values(), ids=CASES)
    def test_wrong_inputs_are_one_line_and_leave_no_run(
        self, polyfm: Polyfm, runs: Any, tmp_path: Path, words: list[str], code: int, message: str
    ) -> None:
        (tmp_path / "empty.csv").touch()
        constant = pd.read_csv(runs.data).assign(y=1)
        constant.to_csv(tmp_path / "constant.csv", index=False)
        pd.read_csv(runs.data).assign(y=["on", "off"] * 40).to_csv(tmp_path / "words.csv", index=False)
        named = {
            "WORDS": tmp_path / "words.csv",
            "DATA": runs.data,
            "FOLDER": tmp_path,
            "EMPTY": tmp_path / "empty.csv",
            "SPMM": runs.spmm,
        }
        named |= {"CONSTANT": tmp_path / "constant.csv"}
        given: list[Any] = []
        for word in words:
            given += ["molecules/property", "--size", "small"] if word == "SMALL" else [named.get(word, word)]
        resumes = "--resume" in words
        shown = polyfm("fit", *given, *([] if resumes else ["--out", tmp_path / "run"]))
        assert shown.code == code, shown.err
        assert message in shown.err
        assert shown.err.count("\n") == 1
        assert "Traceback" not in shown.err
        again = polyfm("fit", *given, *([] if resumes else ["--out", tmp_path / "run"]))
        assert again.err == shown.err  # no half-made folder stands in the way of a second try


def test_print_config_shows_the_recipe_with_everything_applied(polyfm: Polyfm, runs: Any) -> None:
    words = ("--size", "small", "--config", runs.tiny_spmm, "--data.path", "x.csv", "--print_config")
    shown = polyfm("fit", "molecules/spmm", *words)
    assert shown.code == 0, shown.err
    tree = yaml.safe_load(shown.out)
    assert tree["model"]["encoders"]["smiles"]["init_args"]["width"] == 32
    assert tree["data"]["init_args"]["path"] == "x.csv"


def test_help_all_shows_every_option(polyfm: Polyfm) -> None:
    shown = polyfm("fit", "molecules/property", "--help-all")
    assert shown.code == 0
    for option in ("--data", "--model.kind", "--model.train_blocks", "--trainer.max_epochs", "--patience.patience"):
        assert option in shown.out


def test_a_run_that_starts_from_another_reads_items_as_that_one_did(tmp_path: Path) -> None:
    """Tokens, their number, stereochemistry, fragments: what the encoders know."""
    spmm = find_recipe("molecules/spmm").sized("small")
    told = {"max_tokens": 77, "isomeric": True, "largest_fragment": True}
    tree = merge({**spmm, "domain": "molecules"}, {"data": {"init_args": {**told, "path": "x.csv", "split": "random"}}})
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tree))
    started = start_from(tmp_path, find_recipe("molecules/property").sized("small"))["data"]["init_args"]
    assert {name: started[name] for name in told} == told
    assert not {"path", "split"} & set(started)


def test_reactions_start_from_the_encoder_the_fusion_and_the_tokenizer_of_molecules(
    polyfm: Polyfm, runs: Any, tmp_path: Path
) -> None:
    """The data module is another, of the same family; what the run has no encoder for starts afresh."""
    narrow = [f"--model.{part}=32" for part in ("encoders.target.width", "fusion.init_args.width")]
    words = ("fit", "molecules/reaction", "--size", "small", "--init_from", runs.spmm, *narrow)
    shown = polyfm(*words, "--data.path", "x.csv", "--print_config")
    assert shown.code == 0, shown.err
    tree = yaml.safe_load(shown.out)
    assert list(tree["model"]["encoders"]) == ["smiles", "target"]
    assert tree["model"]["encoders"]["smiles"]["init_args"]["width"] == 32
    assert tree["data"]["init_args"]["isomeric"] is False
    assert tree["data"]["init_args"]["max_tokens"] == 256
    path, out = write_reactions(tmp_path, n=40), tmp_path / "run"
    done = polyfm(*words, "--data.path", path, "--trainer.max_steps", "1", "--out", out)
    assert done.code == 0, done.err
    assert "smiles from" in done.out
    assert "fusion from" in done.out
    states = [load(run).data.tokenizer.state() for run in (runs.spmm, out)]
    assert states[0] == states[1]


def test_a_run_that_starts_from_another_uses_its_own_recipe_s_options(polyfm: Polyfm, runs: Any) -> None:
    """Encoders are the run's, the rest is the recipe's."""
    words = ("--size", "small", "--init_from", runs.spmm, "--data.path", "x.csv", "--print_config")
    tree = yaml.safe_load(polyfm("fit", "molecules/property", *words).out)
    assert list(tree["model"]["encoders"]) == ["smiles"]
    assert tree["model"]["hidden"] == 128
    assert tree["model"]["optimizer"]["init_args"]["layer_decay"] == 0.9


def test_two_runs_of_one_seed_are_the_same(
    polyfm: Polyfm, runs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("polyfm.domains.molecules.baselines.TREES", 2)
    predictions = []
    for seed in (7, 7, 8):
        out = tmp_path / str(len(predictions))
        words = (
            "--config",
            runs.tiny_property,
            "--data.path",
            runs.data,
            "--data.targets=[active]",
            "--out",
            out,
            "--init_from",
            runs.spmm,
        )
        shown = polyfm(
            "fit",
            "molecules/property",
            "--size",
            "small",
            f"--seed_everything={seed}",
            "--trainer.max_epochs=1",
            *words,
        )
        assert shown.code == 0, shown.err
        predictions.append(package.load(out).predict(["CCO", "c1ccccc1"]).values)
    np.testing.assert_array_equal(predictions[0], predictions[1])
    assert not np.allclose(predictions[0], predictions[2])


def test_smiles_that_are_cut_are_told_before_training(polyfm: Polyfm, runs: Any, tmp_path: Path) -> None:
    words = ("--size", "small", "--config", runs.tiny_spmm, "--data.path", runs.data, "--data.max_tokens", "12")
    shown = polyfm("fit", "molecules/spmm", *words, "--trainer.max_steps", "1", "--out", tmp_path / "run")
    assert shown.code == 0, shown.err
    cut, parameters = (shown.out.index(text) for text in ("are cut there (data.max_tokens)", "parameters to train"))
    assert cut < parameters


def test_a_single_target_needs_no_brackets(polyfm: Polyfm, runs: Any) -> None:
    words = ("--size", "small", "--data.path", "x.csv", "--data.targets", "activity", "--print_config")
    tree = yaml.safe_load(polyfm("fit", "molecules/property", *words).out)
    assert tree["data"]["init_args"]["targets"] == ["activity"]
    assert "--data.targets COLUMN" in polyfm("fit", "--help").out
