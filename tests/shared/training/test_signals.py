"""`Signals`: what is heeded when, exit codes, and queueing again; real signals sent to this process."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from polyfm.shared.training.signals import Signals, Stopped, is_requeued, job


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A SLURM job with a stub of scontrol; returns the file of its calls."""
    stub = tmp_path / "scontrol"
    stub.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path / "calls"}\n')
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    return tmp_path / "calls"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_outside_training_a_signal_stops_at_once(number: int, code: int) -> None:
    with pytest.raises(Stopped) as stopped, Signals():
        send(number)
    assert stopped.value.code == code


def test_while_training_it_is_noted() -> None:
    with Signals() as signals:
        signals.patient = True
        send(signal.SIGTERM)
        send(signal.SIGTERM)  # schedulers repeat themselves
        send(signal.SIGINT)
        assert signals.received == signal.SIGTERM
        with pytest.raises(Stopped) as stopped:
            signals.stop()
    assert stopped.value.code == 143


def test_a_second_ctrl_c_does_not_wait() -> None:
    with pytest.raises(Stopped) as stopped, Signals() as signals:
        signals.patient = True
        send(signal.SIGINT)
        send(signal.SIGINT)
    assert stopped.value.code == 130


def test_not_even_a_second_ctrl_c_breaks_a_file_that_is_being_written() -> None:
    with Signals() as signals:
        signals.patient = signals.writing = True
        send(signal.SIGINT)
        send(signal.SIGINT)
        signals.writing = False
        with pytest.raises(Stopped) as stopped:
            send(signal.SIGINT)
    assert stopped.value.code == 130


def test_what_listened_before_listens_again() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Signals():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_another_thread_leaves_signals_alone() -> None:
    before, found = signal.getsignal(signal.SIGTERM), []

    def listen() -> None:
        with Signals() as signals:
            signals.listen()
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert found == [before]


def test_outside_slurm_sigusr1_is_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    before = signal.getsignal(signal.SIGUSR1)
    with Signals():
        assert signal.getsignal(signal.SIGUSR1) == before
    assert (job(), is_requeued()) == ("", False)


@pytest.mark.parametrize("patient", [True, False])
def test_slurm_is_asked_once_to_queue_the_job_again(slurm: Path, patient: bool) -> None:
    with pytest.raises(Stopped) as stopped, Signals() as signals:
        signals.patient = patient
        send(signal.SIGUSR1)
        send(signal.SIGUSR1)
        signals.stop()
    with pytest.raises(Stopped):
        signals.stop()
    assert stopped.value.code == 143
    assert slurm.read_text() == "requeue 4711\n"


def test_a_task_of_an_array_has_a_name_of_its_own(slurm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "12")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    with pytest.raises(Stopped), Signals():
        send(signal.SIGUSR1)
    assert slurm.read_text() == "requeue 12_3\n"


@pytest.mark.parametrize("rank", ["SLURM_PROCID", "LOCAL_RANK"])
def test_only_the_first_process_asks(slurm: Path, monkeypatch: pytest.MonkeyPatch, rank: str) -> None:
    monkeypatch.setenv(rank, "1")
    with pytest.raises(Stopped), Signals():
        send(signal.SIGUSR1)
    assert not slurm.exists()


@pytest.mark.parametrize("stub", ["#!/bin/sh\necho no such job >&2; exit 1\n", None])
def test_a_failed_call_is_told_and_the_run_stops(
    slurm: Path, stub: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if stub:
        (slurm.parent / "scontrol").write_text(stub)
    else:
        monkeypatch.setenv("PATH", str(slurm.parent / "none"))
    with pytest.raises(Stopped), Signals():
        send(signal.SIGUSR1)
    told = capsys.readouterr().err
    assert told.startswith("polyfm: `scontrol requeue 4711` failed: ")
    assert ("no such job" if stub else "No such file") in told


def test_sigterm_queues_nothing(slurm: Path) -> None:
    with pytest.raises(Stopped), Signals():
        send(signal.SIGTERM)
    assert not slurm.exists()


@pytest.mark.parametrize(
    ("count", "name", "requeued"), [("1", "train", True), ("0", "train", False), ("1", "bash", False)]
)
def test_a_job_that_was_queued_again(
    slurm: Path, monkeypatch: pytest.MonkeyPatch, count: str, name: str, requeued: bool
) -> None:
    monkeypatch.setenv("SLURM_RESTART_COUNT", count)
    monkeypatch.setenv("SLURM_JOB_NAME", name)
    assert is_requeued() == requeued
    assert job() == ("" if name == "bash" else "4711")
