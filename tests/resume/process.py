"""`polyfm fit` in a process of its own that can be killed: forked from one that has imported everything, `preloaded`."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from typing import Any

from tests.resume.watch import Point, Watch, pull

import polyfm.shared.evaluation.finish
from polyfm.shared.cli.main import main
from polyfm.shared.training.build import RecipeParser

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload([__name__, "tests.resume.preloaded"])


def start(words: list[str], log: Path, at: Point | None = None, number: int = 0) -> Any:
    """Start ``polyfm WORDS``.

    Args:
        words: Of the command line.
        log: Where `Watch` writes, and beside it what the process prints.
        at: Where the run gets a signal.
        number: Which; 0 for an exception.
    """
    process = _context.Process(target=_fit, args=(words, log, at, number))
    process.start()
    return process


def run(*args: Any) -> int:
    """Start and wait; see `start`.

    Args:
        args: Of `start`.

    Returns:
        The exit code; of a process that a signal killed, the signal with a minus sign.
    """
    process = start(*args)
    process.join()
    return int(process.exitcode)


def _fit(words: list[str], log: Path, at: Point | None, number: int) -> None:
    printed = os.open(log.with_suffix(".txt"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(printed, 1)
    os.dup2(printed, 2)
    os.setpgrp()  # with its workers it can be signalled as a scheduler does
    multiprocessing.set_start_method("fork", force=True)  # of the data's workers, as in a process of its own
    watch = Watch(at, (lambda: os.kill(os.getpid(), number)) if number else pull, log)
    make = RecipeParser.make_trainer
    # What is watched is one more callback; what comes after training is tested elsewhere.
    RecipeParser.make_trainer = lambda cli, run, callbacks, **more: make(cli, run, [watch, *callbacks], **more)  # type: ignore[method-assign,assignment]
    polyfm.shared.evaluation.finish.finish = lambda cli, folder: None  # type: ignore[assignment,return-value]
    raise SystemExit(main(words))
