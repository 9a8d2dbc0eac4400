"""Runs of the real command line that are killed, told to stop, or break at a point: resumed, they are as if never stopped."""

from __future__ import annotations

import importlib
import itertools
import json
import os
import random
import resource
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from tests.recipes.test_recipes import FLAGS, WRITERS
from tests.resume.process import run, start
from tests.resume.watch import Point, same

from polyfm.shared.training.checkpoint import read_checkpoint
from polyfm.shared.training.recipe import find_recipe, recipe_names

EPOCHS, BATCHES = 2, 4
SMALL = {"molecules": "molecules/spmm", "singlecell": "singlecell/scgpt"}
"""The recipe of each domain that goes through the whole matrix."""
OTHERS = [name for name in recipe_names() if name not in SMALL.values()]

WAYS = {"SIGKILL": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "exception": 0}
POINTS: dict[str, Point] = {
    "in a step": ("step start", 0, 1),
    "in the last step of a pass": ("step start", 0, BATCHES - 1),
    "after the last step of a pass": ("step end", 0, BATCHES - 1),
    "as validation starts": ("validation start", 0, -1),
    "in validation": ("validation", 0, 0),
    "as validation ends": ("validation end", 0, -1),
    "at the end of a pass": ("epoch end", 0, -1),
    "between passes": ("epoch start", 1, -1),
    "after the first step of a pass": ("step end", 1, 0),
}
VALIDATIONS = {"validation after passes": [], "validation within passes": ["--trainer.val_check_interval=2"]}
ACCUMULATIONS, WORKERS = (1, 3), (0, 2)
MATRIX = list(itertools.product(SMALL.values(), WAYS, POINTS, VALIDATIONS, ACCUMULATIONS, WORKERS))
QUICK = [
    ("molecules/spmm", "SIGKILL", "in a step", "validation within passes", 1, 2),
    ("molecules/spmm", "SIGKILL", "in validation", "validation after passes", 3, 0),
    ("molecules/spmm", "SIGTERM", "in a step", "validation after passes", 3, 2),
    ("molecules/spmm", "SIGTERM", "in validation", "validation within passes", 1, 0),
    ("singlecell/scgpt", "SIGKILL", "in a step", "validation within passes", 1, 2),
]
CASES = [
    pytest.param(*case, id=", ".join(map(str, case)), marks=() if case in QUICK else pytest.mark.full)
    for case in MATRIX
] + [
    pytest.param(name, way, "in a step", "validation after passes", 1, 0, id=f"{name}, {way}", marks=pytest.mark.full)
    for name, way in itertools.product(OTHERS, ("SIGKILL", "SIGTERM"))
]


def test_the_matrix_is_whole(capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\nresume of real processes: {len(MATRIX)} cases of the matrix, {len(CASES) - len(MATRIX)} others")
    assert len(MATRIX) == len(SMALL) * 3 * 9 * 2 * 2 * 2
    assert len(CASES) - len(MATRIX) == 2 * len(OTHERS)
    assert set(SMALL) == {find_recipe(name).domain for name in recipe_names()}  # a domain more is a recipe more
    assert set(QUICK) < set(MATRIX)


def words_of(name: str, folder: Path, *more: str) -> list[str]:
    """``polyfm fit`` of a recipe at small size on 40 invented items: 4 batches for training, 1 for validation."""
    recipe = find_recipe(name)
    synthetic: Any = importlib.import_module(f"polyfm.domains.{recipe.domain}.synthetic")
    write = getattr(synthetic, WRITERS.get(recipe.tree["data"]["class_path"], "write_synthetic"))
    path = write(folder, n=40)
    flags = [f"--data.path={path}", *FLAGS[recipe.domain, recipe.tree["task"]], "--data.batch_size=8"]
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu", "--data.split=random"]
    return ["fit", name, "--size=small", *flags, *quiet, *more]


def seen(log: Path) -> list[tuple[Point, Any]]:
    """Points passed, in order; one that a kill cut off in the middle of its line is not there."""
    lines = log.read_text().splitlines(keepends=True) if log.exists() else []
    return [(tuple(point), value) for point, value in map(json.loads, (line for line in lines if line.endswith("\n")))]


def last(folder: Path) -> dict[str, Any]:
    return read_checkpoint(folder / "checkpoints" / "last.ckpt")


@pytest.fixture(scope="session")
def never_stopped(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[dict[Point, Any], dict[str, Any]]]:
    """What the run that never stopped passed and ended with, once for each setting; workers change nothing."""
    known: dict[tuple[str, ...], tuple[dict[Point, Any], dict[str, Any]]] = {}

    def whole(name: str, *more: str) -> tuple[dict[Point, Any], dict[str, Any]]:
        if (name, *more) not in known:
            folder = tmp_path_factory.mktemp("whole")
            out = folder / "run"
            assert run([*words_of(name, folder, *more), f"--out={out}"], folder / "log") == 0, (
                folder / "log.txt"
            ).read_text()
            known[name, *more] = dict(seen(folder / "log")), last(out)
        return known[name, *more]

    return whole


@pytest.mark.parametrize(("name", "way", "point", "when", "accumulate", "workers"), CASES)
def test_a_resumed_run_is_the_run_that_never_stopped(
    never_stopped: Any, tmp_path: Path, name: str, way: str, point: str, when: str, accumulate: int, workers: int
) -> None:
    settings = [*VALIDATIONS[when], f"--trainer.accumulate_grad_batches={accumulate}"]
    require_same(never_stopped, tmp_path, name, way, point, workers, accumulate, settings)


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What a run may start from: it knows other molecules, so that its tokens and means are others."""
    folder = tmp_path_factory.mktemp("sources")
    ours, theirs, log = folder / "ours", folder / "theirs", folder / "log"
    path = folder / "others.csv"
    smiles = [f"[{atom}H{n % 2 + 1}]{'C' * n}[N+](C)(C)C" for n in range(1, 13) for atom in ("Si", "Ge", "Se")]
    path.write_text("\n".join(["smiles", *smiles]) + "\n")
    words = [
        "fit",
        "molecules/spmm",
        "--size=small",
        f"--data.path={path}",
        "--data.split=random",
        "--data.batch_size=8",
    ]
    assert run([*words, "--trainer.max_steps=2", f"--out={ours}"], log) == 0, (folder / "log.txt").read_text()
    config = transformers.BertConfig(
        vocab_size=16, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    transformers.BertModel(config).save_pretrained(theirs)
    (theirs / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"cno()=123", "##c"]) + "\n"
    )
    return {"a run": str(ours), "transformers": str(theirs)}


@pytest.mark.parametrize("way", ["SIGKILL", "SIGTERM"])
@pytest.mark.parametrize("source", ["a run", "transformers"])
@pytest.mark.parametrize(
    "name", ["molecules/property", pytest.param("molecules/property_views", marks=pytest.mark.full)]
)
def test_a_run_that_started_from_another_goes_on_with_its_tokens(
    never_stopped: Any, sources: dict[str, str], tmp_path: Path, name: str, source: str, way: str
) -> None:
    start = sources[source] if name == "molecules/property" or source == "a run" else f"smiles={sources[source]}"
    require_same(never_stopped, tmp_path, name, way, "in a step", 0, 1, [f"--init_from={start}"])


def require_same(
    never_stopped: Any,
    tmp_path: Path,
    name: str,
    way: str,
    point: str,
    workers: int,
    accumulate: int,
    settings: list[str],
) -> None:
    """Stop a run, resume it, and hold it against the one that never stopped."""
    settings = [*settings, f"--trainer.max_epochs={EPOCHS}"]
    whole, expected = never_stopped(name, *settings)
    every = 0 if way == "SIGTERM" else 1  # a run that is asked to stop saves by itself
    out, log, printed = tmp_path / "run", tmp_path / "log", tmp_path / "log.txt"
    words = [
        *words_of(name, tmp_path, *settings),
        f"--data.num_workers={workers}",
        f"--checkpoint.every_n_steps={every}",
    ]
    code = {"SIGKILL": -9, "SIGTERM": 143, "exception": 1}[way]
    assert run([*words, f"--out={out}"], log, POINTS[point], WAYS[way]) == code, printed.read_text()
    before = len(seen(log))
    if (out / "checkpoints" / "last.ckpt").exists():
        words = ["fit", "--resume", str(out)]
    else:  # killed before the first checkpoint: the same command starts it again
        words = [*words, f"--out={out}"]
    assert run(words, log) == 0, printed.read_text()

    points = seen(log)
    assert {point for point, _ in points} == set(whole)
    assert all(whole[point] == value for point, value in points)
    steps = [[point for point, _ in part if point[0] == "step end"] for part in (points[:before], points[before:])]
    assert len(set(steps[0]) & set(steps[1])) <= (0 if way == "SIGTERM" else accumulate)
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch"):
        same(expected[part], last(out)[part], part)


LONG = ("--trainer.max_epochs=1000", "--trainer.check_val_every_n_epoch=3")


def wait_until(true: Callable[[], bool], process: Any, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert process.is_alive() if hasattr(process, "is_alive") else process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.001)


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_sigterm_at_any_time_loses_no_step(tmp_path: Path) -> None:
    """20 times in one run, each as likely in a step, a validation or a save; the whole group of processes is told."""
    rng, out, log = random.Random(0), tmp_path / "run", tmp_path / "log"
    words = [*words_of("molecules/spmm", tmp_path, *LONG), "--data.num_workers=2", f"--out={out}"]
    for _ in range(20):
        before = len(seen(log))
        process = start(words, log)
        wait_until(lambda before=before: len(seen(log)) > before + rng.randint(0, 20), process)  # type: ignore[misc]
        time.sleep(rng.random() / 10)
        os.killpg(process.pid, signal.SIGTERM)
        process.join()
        assert process.exitcode == 143, log.with_suffix(".txt").read_text()
        steps = [point for point, _ in seen(log) if point[0] == "step end"]
        assert len(set(steps)) == len(steps) == last(out)["global_step"]
        words = ["fit", "--resume", str(out)]


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_sigkill_while_saving_leaves_a_whole_checkpoint(tmp_path: Path, never_stopped: Any) -> None:
    """50 times in one run, which ends as if it had never been killed."""
    length = "--trainer.max_epochs=40"
    whole, expected = never_stopped("molecules/spmm", length)
    rng, out, log = random.Random(0), tmp_path / "run", tmp_path / "log"
    newest, part = out / "checkpoints" / "last.ckpt", out / "checkpoints" / "fresh.ckpt.part"
    first = [*words_of("molecules/spmm", tmp_path, length), "--checkpoint.every_n_steps=1", f"--out={out}"]
    for _ in range(50):
        process = start(["fit", "--resume", str(out)] if newest.exists() else first, log)
        for _ in range(rng.randint(0, 3)):
            known = newest.stat().st_mtime_ns if newest.exists() else 0
            wait_until(lambda known=known: newest.exists() and newest.stat().st_mtime_ns != known, process)  # type: ignore[misc]
        wait_until(part.exists, process)
        time.sleep(rng.random() / 200)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        for name in ("last", "best"):
            path = out / "checkpoints" / f"{name}.ckpt"
            assert not path.exists() or read_checkpoint(path)["global_step"] > 0
    assert run(["fit", "--resume", str(out)], log) == 0
    assert {point for point, _ in seen(log)} == set(whole)
    assert all(whole[point] == value for point, value in seen(log))
    same(expected["state_dict"], last(out)["state_dict"])
    same(expected["optimizer_states"], last(out)["optimizer_states"])


@pytest.mark.full
def test_a_full_disk_stops_the_run_and_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    """Files may not grow beyond a limit: what a full disk does to them, without a disk to fill."""
    out, log = tmp_path / "run", tmp_path / "log"
    settings = f"--trainer.max_epochs={EPOCHS}"
    words = [*words_of("molecules/spmm", tmp_path, settings), "--checkpoint.every_n_steps=1"]
    assert run([*words, f"--out={out}"], log, ("step end", 0, 2), signal.SIGKILL) == -9
    before = last(out)
    command = [sys.executable, "-m", "polyfm", "fit", "--resume", str(out)]
    limit = (out / "checkpoints" / "last.ckpt").stat().st_size // 2
    ran = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert ran.returncode == 1
    message = ran.stderr.strip().splitlines()[-1]
    assert "could not be written (File too large). The one before it is whole: free some space" in message
    assert "Traceback" not in ran.stderr
    same(before["state_dict"], last(out)["state_dict"])
    assert {path.name for path in (out / "checkpoints").iterdir()} == {"last.ckpt"}
    assert run(["fit", "--resume", str(out)], log) == 0


def test_slurm_queues_the_job_again_once_and_it_goes_on(tmp_path: Path) -> None:
    """The signal ahead of the time limit, sent twice, to the command line with a stub of scontrol."""
    stub, calls = tmp_path / "bin" / "scontrol", tmp_path / "calls"
    stub.parent.mkdir()
    stub.write_text(f'#!/bin/sh\necho "$@" >> {calls}\n')
    stub.chmod(stub.stat().st_mode | stat.S_IXUSR)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("SLURM_")},
        **{"PATH": f"{stub.parent}{os.pathsep}{os.environ['PATH']}", "SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "train"},
        **{f"SLURM_{name}": "0" for name in ("PROCID", "LOCALID", "NODEID")},
        **{f"SLURM_{name}": "1" for name in ("NTASKS", "NTASKS_PER_NODE", "NNODES")},
    }
    out = tmp_path / "run"
    words = [*words_of("molecules/spmm", tmp_path, *LONG), "--checkpoint.every_n_steps=5", f"--out={out}"]
    path, steps = out / "checkpoints" / "last.ckpt", [0]
    # Once by the signal, once more by the same signal when SLURM has queued it again; a job that did not stop is refused.
    for restarts in ("0", "1"):
        process = subprocess.Popen(
            [sys.executable, "-m", "polyfm", *words],
            env={**environment, "SLURM_RESTART_COUNT": restarts},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        known = path.stat().st_mtime_ns if path.exists() else 0
        wait_until(lambda known=known: path.exists() and path.stat().st_mtime_ns > known, process)  # type: ignore[misc]
        process.send_signal(signal.SIGUSR1)
        process.send_signal(signal.SIGUSR1)
        _, said = process.communicate()
        assert process.returncode == 143, said
        assert f"Continue with: polyfm fit --resume {out}" in said
        assert "Traceback" not in said
        steps.append(last(out)["global_step"])
        assert calls.read_text().splitlines() == ["requeue 4711"] * (len(steps) - 1)
    assert 0 < steps[1] < steps[2]
    assert [path.name for path in out.parent.iterdir() if path.name.startswith("hpc")] == []
    ran = subprocess.run([sys.executable, "-m", "polyfm", *words], capture_output=True, text=True, check=False)
    assert (ran.returncode, "this folder already holds a run" in ran.stderr) == (2, True)
    assert shutil.which("scontrol") != str(stub)
