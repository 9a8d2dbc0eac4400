"""`RunFolder`: what a run leaves behind, and folders that are refused."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from polyfm.shared.errors import DataError, UsageError
from polyfm.shared.training.run_folder import RunFolder, next_free


def test_a_fresh_folder_is_made(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "a" / "b")
    assert run.path.is_dir()
    (tmp_path / "notes.txt").write_text("mine")
    assert RunFolder.create(tmp_path).path == tmp_path  # other files do not matter


@pytest.mark.parametrize("left", ["metrics.json", "checkpoints/last.ckpt"])
def test_a_folder_that_holds_a_run_is_refused(tmp_path: Path, left: str) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / left).touch()
    with pytest.raises(UsageError, match="already holds a run. Continue it with `polyfm fit --resume") as error:
        RunFolder.create(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_what_a_run_left_that_never_began_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    for name in ("recipe.yaml", "metrics.csv", "report.html"):
        (tmp_path / name).write_text("of a run that stopped at a wrong column")
    RunFolder.create(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="this is a file, not a folder for a run. Choose another --out"):
        RunFolder.create(tmp_path / "file")


@pytest.mark.parametrize("name", ["", "none"])
def test_what_is_no_run_cannot_be_opened(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"not the folder of a run \(it has no recipe.yaml\)"):
        RunFolder.open(tmp_path / name)


def test_best_is_the_best_else_the_last_and_last_the_last(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path)
    run.checkpoints.mkdir()
    with pytest.raises(UsageError, match="stopped before its first checkpoint. Start it again: "):
        _ = run.best
    (run.checkpoints / "last.ckpt").touch()
    assert run.best.name == run.last.name == "last.ckpt"
    (run.checkpoints / "best.ckpt").touch()
    assert (run.best.name, run.last.name) == ("best.ckpt", "last.ckpt")


def test_an_exchange_file_alone_is_the_best(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path)
    run.checkpoints.mkdir()
    (run.checkpoints / "best.safetensors").touch()
    assert run.best.name == "best.safetensors"


def test_recipe_and_metrics(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path)
    assert run.metrics() == {}
    run.write_recipe({"title": "ünïcode", "model": {"x": 1}})
    assert yaml.safe_load(run.recipe.read_text()) == {"title": "ünïcode", "model": {"x": 1}}
    run.write_metrics({"test/rmse": 1.0})
    run.write_metrics({"baseline/forest/rmse": 0.5})
    assert run.metrics() == {"test/rmse": 1.0, "baseline/forest/rmse": 0.5}
    assert RunFolder.open(tmp_path).metrics() == run.metrics()


def test_data_environment_and_command(tmp_path: Path, toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/polyfm", "fit", "molecules/spmm"])
    source = tmp_path / "source.csv"
    source.write_text("a,b\n")
    data = toy()
    data.source_files = lambda: [source]
    data.setup()
    run = RunFolder.create(tmp_path / "run")
    run.write_data(data)
    with open(run.path / "splits.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["id", "group", "split"]
    assert len(rows) == 25
    assert (run.path / "quarantine.csv").read_text().startswith("source,row,kind,detail,item")
    content = json.loads((run.path / "environment.json").read_text())
    assert content["command"] == ["polyfm", "fit", "molecules/spmm"]
    monkeypatch.setattr(sys, "argv", ["polyfm", "fit", "--resume", str(run.path)])
    run.write_data(data)
    assert run.environment()["command"] == content["command"]  # what started it, not what went on
    assert {"polyfm", "torch", "lightning", "numpy"} <= set(content["versions"])
    (found,) = content["data"]["sources"]
    assert (found["name"], found["num_bytes"]) == ("source.csv", 4)
    assert len(found["sha256"]) == 64
    assert content["data"]["num_read"] == 24


@pytest.mark.parametrize("name", ["environment.json", "metrics.json", "ensemble.json"])
@pytest.mark.parametrize("left", ['{"data": {"sour', "", "[1]"])
def test_what_was_cut_off_is_told(tmp_path: Path, name: str, left: str) -> None:
    (tmp_path / name).write_text(left)
    run = RunFolder(tmp_path)
    with pytest.raises(DataError, match=f"{name}: this file of the run is damaged"):
        {"environment.json": run.environment, "metrics.json": run.metrics, "ensemble.json": run.plan}[name]()


def test_the_next_free_folder(tmp_path: Path) -> None:
    assert next_free(tmp_path, "run") == tmp_path / "run"
    (tmp_path / "run").mkdir()
    (tmp_path / "run-2").mkdir()
    assert next_free(tmp_path, "run") == tmp_path / "run-3"


def test_a_run_that_was_killed_in_its_first_save_is_started_again(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path)
    run.write_recipe({})
    run.checkpoints.mkdir()
    (run.checkpoints / "fresh.ckpt.part").touch()
    (run.path / "environment.json").write_text(json.dumps({"command": ["polyfm", "fit", "x", "--out", "a b"]}))
    with pytest.raises(
        UsageError, match="stopped before its first checkpoint. Start it again: polyfm fit x --out 'a b'"
    ):
        _ = run.last
    assert RunFolder.create(tmp_path).path == tmp_path
    assert not any(run.checkpoints.iterdir())


def test_a_run_without_last_cannot_be_continued(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path)
    run.checkpoints.mkdir()
    (run.checkpoints / "best.safetensors").touch()
    with pytest.raises(
        UsageError, match=r"cannot be continued without its last.ckpt. Start another from it: .*init_from"
    ):
        _ = run.last


def test_two_processes_never_train_in_one_folder(tmp_path: Path) -> None:
    """A process that dies keeps no lock."""
    code = (
        "import sys, time\nfrom polyfm.shared.training.run_folder import RunFolder\n"
        f"with RunFolder({str(tmp_path)!r}).locked(): print('locked', flush=True); time.sleep(600)"
    )
    run = RunFolder(tmp_path)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        for refused in (lambda: RunFolder.create(tmp_path), lambda: run.locked().__enter__()):
            with pytest.raises(UsageError, match="another process is training in this folder"):
                refused()
        other.kill()
    with run.locked():
        pass
    assert not any(tmp_path.iterdir())


def test_a_run_goes_on_only_with_its_own_data(tmp_path: Path, toy: Any) -> None:
    source = tmp_path / "source.csv"
    source.write_text("a,b\n")
    data = toy()
    data.source_files = lambda: [source]
    data.setup()
    run = RunFolder.create(tmp_path / "run")
    run.require_same_data(data)  # nothing is known
    run.write_data(data)
    run.require_same_data(data)
    source.write_text("a,b,c\n")
    with pytest.raises(DataError, match="source.csv: this file has changed since the run was started"):
        run.require_same_data(data)


def test_a_job_that_is_queued_again_knows_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    run = RunFolder.create(tmp_path)
    run.write_recipe({})
    run.write_environment({})
    assert not run.is_of_job("4711")  # nothing to go on from
    run.checkpoints.mkdir()
    (run.checkpoints / "last.ckpt").touch()
    assert run.is_of_job("4711")
    assert not run.is_of_job("4712")
