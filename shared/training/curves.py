"""`Curves`: metrics by step as ``metrics.csv``, which a resumed run carries on."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_only


class Curves(CSVLogger):
    """Writes ``metrics.csv`` into the run folder.

    Lightning's logger deletes the file of an earlier run. This one keeps its rows up to the step at which the run goes
    on; those after it were of steps that are now done again.

    Args:
        folder: Of the run.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, name="", version="")
        self._earlier = _rows(folder / "metrics.csv")

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Take down metrics of a step.

        Args:
            metrics: By name.
            step: Of the run.
        """
        if self._earlier and step is not None:
            earlier, self._earlier = self._earlier, []
            self.experiment.metrics = [row for row in earlier if row["step"] < step]
            self.save()
        super().log_metrics(dict(metrics), step)


def _rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a file of metrics, empty cells left out; none if there is no file."""
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        rows = [{name: cell for name, cell in row.items() if cell} for row in csv.DictReader(file)]
    return [{**row, "step": int(row["step"])} for row in rows]
