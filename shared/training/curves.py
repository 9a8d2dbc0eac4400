"""`Curves`: metrics by step as ``metrics.csv``, which a resumed run carries on."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_only

from polyfm.shared.training.run_folder import is_first


class Curves(CSVLogger):
    """Writes ``metrics.csv`` into the run folder.

    Lightning's logger deletes the file of an earlier run. This one keeps its rows up to the point at which the run goes
    on; those after it were of steps that are now done again.

    Args:
        folder: Of the run.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, name="", version="")
        self._path = folder / "metrics.csv"
        self._earlier = _rows(self._path)

    @property
    def experiment(self) -> ExperimentWriter:
        """What writes; made when first asked for, in the first process."""
        if self._experiment is None and is_first():
            self._experiment = _Writer(self.log_dir)
        made: ExperimentWriter = super().experiment
        return made

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Take down metrics of a step.

        Args:
            metrics: By name.
            step: Of the run.
        """
        if self._earlier and step is not None:
            earlier, self._earlier = self._earlier, []

            def is_before(row: dict[str, Any]) -> bool:
                """Within a step, training is logged before validation, each with names of its own."""
                return bool(row["step"] < step or (row["step"] == step and set(row) != {*metrics, "step"}))

            kept = list(itertools.takewhile(is_before, earlier))
            self.experiment.metrics_keys = sorted({name for row in kept for name in row} | {"step"})
            _write(self._path, self.experiment.metrics_keys, kept)
        super().log_metrics(dict(metrics), step)


class _Writer(ExperimentWriter):
    """Lightning's, but no moment is without the rows that were there: a kill would take the curve with it."""

    def _check_log_dir_exists(self) -> None:
        """The file that is there is the run's own, and stays."""

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        path = Path(self.metrics_file_path)
        _write(path, fieldnames, _rows(path))


def _write(path: Path, names: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    """Replace a file of metrics at once."""
    part = path.with_name(f"{path.name}.part")
    with open(part, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=names)
        writer.writeheader()
        writer.writerows(rows)
    part.replace(path)


def _rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a file of metrics, empty cells left out; none if there is no file. A row that broke off is left out."""
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        lines = [line for line in file if line.endswith("\n")]
    rows = [{name: cell for name, cell in row.items() if cell} for row in csv.DictReader(lines)]
    return [{**row, "step": int(row["step"])} for row in rows if row.get("step", "").isdigit()]
