"""`Signals`: what asks a run to stop from outside, and the exit code that it then ends with."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from types import FrameType
from typing import Any, Self


class Stopped(SystemExit):
    """A run was asked to stop: exit code 143 if it was pre-empted, 130 after Ctrl+C."""


class NotFirst(SystemExit):
    """Of several processes that trained together one tests and reports; the others end here, with exit code 0."""


class Signals:
    """Listens for SIGTERM, Ctrl+C and, in a SLURM job, for SIGUSR1, which asks to be queued again.

    While training (`patient`), the first signal is only noted, and the run stops at the next step boundary, when its
    checkpoint is written. Before and after there is nothing to save, and it stops at once, as at a second Ctrl+C.

    SLURM sends SIGUSR1 ahead of its time limit to jobs that ask for it, by ``#SBATCH --signal=USR1@90`` and by starting
    with ``srun polyfm``.
    """

    def __init__(self) -> None:
        self.received = 0
        """The first signal that came; 0 for none."""
        self.patient = False
        """Whether a checkpoint will be written before the run stops."""
        self.writing = False
        """Whether it is being written: nothing stops the run before it is whole."""
        self._requeued = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        """Listen. Outside the main thread python allows no handlers, and signals do what they did before."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.getsignal(number) for number in _heeded()}
            self.listen()
        return self

    def __exit__(self, *_: object) -> None:
        """What was there before listens again."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def listen(self) -> None:
        """Take the handlers over, also from Lightning, which adds its own: they stop in the middle of a step."""
        for number in self._before:
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        again = number == signal.SIGINT and self.received == signal.SIGINT
        self.received = self.received or number
        if not self.writing and (not self.patient or again):
            self.stop()

    def stop(self) -> None:
        """End the run, queued again if that is what was asked."""
        self.patient = False
        if self.received == signal.SIGUSR1:
            self._requeue()
        raise Stopped(128 + (signal.SIGINT if self.received == signal.SIGINT else signal.SIGTERM))

    def _requeue(self) -> None:
        """Ask SLURM, once, from the first process."""
        if self._requeued or any(os.environ.get(rank, "0") != "0" for rank in ("SLURM_PROCID", "LOCAL_RANK")):
            return
        self._requeued = True
        command = ["scontrol", "requeue", _slurm_job()]
        try:
            ran = subprocess.run(command, capture_output=True, text=True, check=False)
            problem = ran.stderr.strip() if ran.returncode else ""
        except OSError as error:
            problem = str(error)
        if problem:
            print(f"polyfm: `{' '.join(command)}` failed: {problem}", file=sys.stderr)


def is_requeued() -> bool:
    """Whether this process belongs to a SLURM job that has run before and was queued again."""
    return _in_slurm() and os.environ.get("SLURM_RESTART_COUNT", "0") != "0"


def job() -> str:
    """The SLURM job that this process belongs to; empty outside one."""
    return os.environ["SLURM_JOB_ID"] if _in_slurm() else ""


def _heeded() -> list[int]:
    return [signal.SIGTERM, signal.SIGINT, *([signal.SIGUSR1] if _in_slurm() else [])]


def _in_slurm() -> bool:
    """Interactive jobs are nobody's to queue again."""
    return "SLURM_JOB_ID" in os.environ and os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive")


def _slurm_job() -> str:
    """The job's name for scontrol; of an array, the task's."""
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ["SLURM_JOB_ID"]
