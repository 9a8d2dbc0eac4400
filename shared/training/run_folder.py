"""`RunFolder`: everything that a run leaves behind, in one place, under the same names for every domain."""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from lightning.fabric.utilities.rank_zero import rank_zero_only

from polyfm.shared.data.datamodule import DataModule
from polyfm.shared.data.manifest import SourceFile, manifest
from polyfm.shared.errors import DataError, UsageError
from polyfm.shared.training.signals import job

LIBRARIES = ("polyfm", "torch", "lightning", "jsonargparse", "numpy", "pandas", "scikit-learn", "rdkit", "torchdata")


def is_first() -> bool:
    """Whether this process is the first, or the only one, of those that train together."""
    return not getattr(rank_zero_only, "rank", 0)


class RunFolder:
    """A run's folder.

    Args:
        path: Of the folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @classmethod
    def create(cls, path: str | Path) -> RunFolder:
        """A fresh folder; one that already holds a run is refused, never shared.

        What a run left that stopped before its first checkpoint may be replaced.

        Args:
            path: Of the folder, made if need be.
        """
        run = cls(path)
        if run.path.is_file():
            raise UsageError("this is a file, not a folder for a run", where=run.path, remedy="Choose another --out")
        if run.is_used and is_first():
            raise UsageError(
                "this folder already holds a run",
                where=run.path,
                remedy=f"Continue it with `polyfm fit --resume {run.path}`, or choose another --out",
            )
        run.path.mkdir(parents=True, exist_ok=True)
        with run.locked():
            run._clear()
        return run

    @rank_zero_only
    def _clear(self) -> None:
        for left in (self.recipe, self.curves, self.report, self.environment_path, *self.checkpoints.glob("*.part")):
            left.unlink(missing_ok=True)

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """An existing run.

        Args:
            path: Of its folder.
        """
        run = cls(path)
        if not run.recipe.is_file():
            members = run.members
            raise UsageError(
                "this is not the folder of a run (it has no recipe.yaml)",
                where=path,
                remedy=f"It is an ensemble: for this, give one of its members, such as {members[0].path}"
                if members
                else "Give the folder that `polyfm fit ... --out` wrote",
            )
        return run

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from training here meanwhile; a process that dies in whatever way keeps no lock.

        Raises:
            UsageError: Another process trains here.
        """
        if not is_first():  # the first process of a run locks for all
            yield
            return
        path = self.path / ".lock"
        with open(path, "ab") as file:
            try:
                # Unlike flock's, this lock is not inherited by the processes that make batches.
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                raise UsageError(
                    "another process is training in this folder",
                    where=self.path,
                    remedy="Wait until it ends, or choose another --out",
                ) from None
            except OSError:
                pass  # some network file systems know no locks
            try:
                yield
            finally:
                path.unlink(missing_ok=True)

    @property
    def strangers(self) -> list[str]:
        """Names of what lies in the folder and is not of a run."""
        own = {".lock", "checkpoints", "recipe.yaml", "environment.json", "metrics.csv", "metrics.json", "report.html"}
        own |= {"splits.csv", "quarantine.csv", "notices.csv"}
        return sorted(path.name for path in self.path.iterdir() if path.name not in own)

    @property
    def is_used(self) -> bool:
        """Whether this is the folder of a run that got as far as a checkpoint."""
        names = ("last.ckpt", "best.ckpt", "best.safetensors")
        kept = any((self.checkpoints / name).exists() for name in names)
        return kept or self.metrics_path.exists() or bool(self.members)

    @property
    def members(self) -> list[RunFolder]:
        """Of an ensemble, those that were begun, in their order; empty for a run of its own."""
        begun = [path.parent for path in self.path.glob("member_[0-9]*/recipe.yaml")]
        return [RunFolder(path) for path in sorted(begun, key=lambda path: int(path.name.removeprefix("member_")))]

    @property
    def recipe(self) -> Path:
        """The recipe as it was run."""
        return self.path / "recipe.yaml"

    @property
    def checkpoints(self) -> Path:
        """Folder of ``last.ckpt`` and ``best.ckpt``."""
        return self.path / "checkpoints"

    @property
    def best(self) -> Path:
        """The checkpoint to use: the best on validation data, else the last."""
        for name in ("best.ckpt", "last.ckpt", "best.safetensors"):
            if (self.checkpoints / name).is_file():
                return self.checkpoints / name
        raise self._unstarted()

    @property
    def last(self) -> Path:
        """The newest checkpoint, to resume from."""
        path = self.checkpoints / "last.ckpt"
        if path.is_file():
            return path
        if self.is_used:
            raise UsageError(
                "this run cannot be continued without its last.ckpt",
                where=self.path,
                remedy=f"Start another from it: polyfm fit RECIPE --init_from {self.path}",
            )
        raise self._unstarted()

    def _unstarted(self) -> UsageError:
        command = shlex.join(self.environment().get("command", ["polyfm", "fit", "RECIPE", "..."]))
        return UsageError(
            "this run stopped before its first checkpoint", where=self.path, remedy=f"Start it again: {command}"
        )

    def is_of_job(self, job: str) -> bool:
        """Whether a job that a scheduler has queued again finds its own run here.

        Args:
            job: Of the scheduler.
        """
        return self.is_used and self.environment().get("job") == job

    def require_same_data(self, data: DataModule) -> None:
        """Refuse to go on with other data than the run was started with.

        Args:
            data: After its setup.
        """
        for path in self.changed_files(data):
            raise DataError(
                "this file has changed since the run was started, which therefore cannot be continued",
                where=path,
                remedy="Bring the file back, or start another run with `polyfm fit ... --init_from`",
            )

    def changed_files(self, data: DataModule) -> list[Path]:
        """Files that are not what they were when the run was started.

        Args:
            data: After its setup.
        """
        known = {file["name"]: file["sha256"] for file in self.environment().get("data", {}).get("sources", [])}
        files = {name: path for name, path in data.named_files().items() if known}
        return [path for name, path in files.items() if known.get(name) != SourceFile.of(path, name).sha256]

    @rank_zero_only
    def write_plan(self, members: int, init_from: dict[str, Any]) -> None:
        """Keep what an ensemble needs to go on after a stop.

        Args:
            members: How many there will be.
            init_from: What each starts from; empty for none.
        """
        _write_json(self._plan, {"members": members, "init_from": init_from})

    def plan(self) -> dict[str, Any]:
        """What `write_plan` kept."""
        if not self._plan.is_file():
            raise UsageError(
                "this ensemble has no ensemble.json, which says how many members there will be",
                where=self.path,
                remedy=f"Continue its members one by one: polyfm fit --resume {self.members[-1].path}",
            )
        return _read_json(self._plan)

    @property
    def _plan(self) -> Path:
        return self.path / "ensemble.json"

    @rank_zero_only
    def write_recipe(self, tree: dict[str, Any]) -> None:
        """Keep the resolved recipe, with the absolute path of the data.

        Args:
            tree: As from the parser.
        """
        header = "# The recipe as it was run: defaults, size and options applied.\n"
        self.recipe.write_text(header + yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))

    @rank_zero_only
    def write_data(self, data: DataModule) -> None:
        """Keep splits, quarantine, and what the data were.

        Args:
            data: After its setup.
        """
        data.splits.to_csv(self.path / "splits.csv")
        data.quarantine.to_csv(self.path / "quarantine.csv")
        data.notices.to_csv(self.path / "notices.csv")
        sources = [SourceFile.of(file, name) for name, file in data.named_files().items()]
        self.write_environment({"data": manifest(sources, data.quarantine, data.notices)})

    @rank_zero_only
    def write_environment(self, extra: dict[str, Any]) -> None:
        """Keep versions, commit, data hashes, and the command that started the run, also when it is resumed.

        Args:
            extra: Added.
        """
        content = {
            "written": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": self.environment().get("command") or [Path(sys.argv[0]).name, *sys.argv[1:]],
            "python": platform.python_version(),
            "platform": platform.platform(),
            "versions": {name: version for name in LIBRARIES if (version := _version(name)) is not None},
            "commit": _commit(),
            **({"job": job()} if job() else {}),
            **extra,
        }
        _write_json(self.environment_path, content)

    def environment(self) -> dict[str, Any]:
        """What `write_environment` kept, empty before."""
        return _read_json(self.environment_path) if self.environment_path.is_file() else {}

    @rank_zero_only
    def write_metrics(self, metrics: dict[str, Any]) -> None:
        """Keep final metrics; merged with what is there (baselines under ``baseline/NAME/``).

        Args:
            metrics: By name.
        """
        _write_json(self.metrics_path, dict(sorted({**self.metrics(), **metrics}.items())))

    def metrics(self) -> dict[str, Any]:
        """Final metrics, empty before there are any."""
        return _read_json(self.metrics_path) if self.metrics_path.is_file() else {}

    @property
    def ensemble_target(self) -> Path:
        """What an ensemble predicts, with the thresholds of its mean."""
        return self.path / "target.json"

    @property
    def environment_path(self) -> Path:
        """Versions, commit, command, data hashes."""
        return self.path / "environment.json"

    @property
    def metrics_path(self) -> Path:
        """Final metrics."""
        return self.path / "metrics.json"

    @property
    def curves(self) -> Path:
        """Metrics by step."""
        return self.path / "metrics.csv"

    @property
    def report(self) -> Path:
        """The page to look at."""
        return self.path / "report.html"


def next_free(parent: Path, stem: str) -> Path:
    """``parent/stem``, or with the first free number behind it.

    Args:
        parent: Folder of runs.
        stem: Name wanted.
    """
    path, number = parent / stem, 2
    while path.exists():
        path, number = parent / f"{stem}-{number}", number + 1
    return path


def _write_json(path: Path, content: dict[str, Any]) -> None:
    """All of it or nothing, whenever the process dies."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(content, indent=2) + "\n")
    part.replace(path)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise DataError(
            f"this file of the run is damaged ({error})",
            where=path,
            remedy="Bring it back from a copy, or delete it to do without what it says",
        ) from error
    if not isinstance(content, dict):
        raise DataError("this file of the run is damaged (it holds no mapping)", where=path, remedy="Delete it")
    return content


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str:
    """The checkout's commit, or nothing outside one."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return ""
    found = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return found.stdout.strip()
