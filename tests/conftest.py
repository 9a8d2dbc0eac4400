"""What every test runs under: one tier at a time, nothing skipped, no network, caches of their own.

What a run leaves out is deselected and counted with its reason at the end. A test that skips fails: a missing reference
or library must be seen.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from tests.ports import free_port

# Before torch or numpy is imported: tests run in several processes, and one thread each gives the same sums everywhere.
# Numba's pool, which scanpy starts, sets OpenMP's number of threads for torch, too, and would override the first.
for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(name, "1")
# Whatever asks a model hub fails at once instead of depending on the network.
os.environ["HF_HUB_OFFLINE"] = "1"

TIERS = {"quick": "make test", "full": "make test-full", "evidence": "make evidence"}

deselected: pytest.StashKey[Counter[str]] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--tier", choices=TIERS, default="quick", help="which tests run: %(choices)s (default: quick)")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[deselected] = Counter()
    data = os.environ.get("POLYFM_DATA")
    if data and not Path(data).is_dir():
        raise pytest.UsageError(f"POLYFM_DATA={data} is not a folder")
    if not data and config.getoption("--tier") == "evidence":
        raise pytest.UsageError("evidence is about real data: set POLYFM_DATA to the folder that holds it")
    # The quick tier draws the same examples every time, so that it never fails for someone else's change; the longer
    # ones explore. Deadlines would measure how busy the machine is.
    quick = config.getoption("--tier") == "quick"
    hypothesis.settings.register_profile("polyfm", deadline=None, derandomize=quick, print_blob=True)
    hypothesis.settings.load_profile("polyfm")


def _reason_to_leave_out(item: pytest.Item, tier: str) -> str | None:
    """Why this test does not run here, or None."""
    marks = {mark.name for mark in item.iter_markers()}
    own_tier = next((name for name in ("evidence", "full") if name in marks), "quick")
    if own_tier != tier:
        return f"of another tier: {TIERS[own_tier]}"
    if "realdata" in marks and not os.environ.get("POLYFM_DATA"):
        return "without real data: set POLYFM_DATA"
    if "gpu" in marks and not _has_gpu():
        return "without a CUDA device"
    return None


def _has_gpu() -> bool:
    # Imported only when a test asks: torch takes seconds.
    import torch

    return torch.cuda.is_available()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    kept, left_out = [], []
    for item in items:
        reason = _reason_to_leave_out(item, config.getoption("--tier"))
        if reason is None:
            kept.append(item)
        else:
            config.stash[deselected][reason] += 1
            left_out.append(item)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = kept


def pytest_sessionfinish(session: pytest.Session) -> None:
    # A worker of pytest-xdist hands its counts to the process that prints.
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["deselected"] = dict(session.config.stash[deselected])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    # All workers collect the same tests, so the counts of one stand for all.
    node.config.stash[deselected] |= Counter(getattr(node, "workeroutput", {}).get("deselected", {}))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    for reason, count in sorted(config.stash[deselected].items()):
        terminalreporter.write_line(f"deselected: {count} test{'s' * (count != 1)} {reason}")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    os.environ["MASTER_PORT"] = str(free_port())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and not hasattr(report, "wasxfail"):
        report.outcome, report.longrepr = "failed", _no_skips(report.longrepr)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if report.skipped:
        report.outcome, report.longrepr = "failed", _no_skips(report.longrepr)
    return report


def _no_skips(why: object) -> str:
    return f"skipped, which no test may: {why}. Mark it realdata, gpu, full or evidence, or let it fail."


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Descriptors and the like are computed anew in every run, and never written to the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POLYFM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
