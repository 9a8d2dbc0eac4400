"""`molecules/property` on every MoleculeNet file, baselines beside it; rows go to benchmarks/results/moleculenet.csv.

Fixed before running: small size, from scratch, scaffold split, seed 0, training time by file below. A file whose rows
are there with this budget is not run again: delete its rows to repeat it. Every row is kept, whoever wins.
"""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest

from polyfm.shared.cli.main import main
from polyfm.shared.training.run_folder import RunFolder

pytestmark = [pytest.mark.evidence, pytest.mark.realdata, pytest.mark.timeout(0)]

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "moleculenet.csv"
FIELDS = ["file", "seed", "seconds", "method", "metric", "value", "test_rows"]
SEED = 0

TOX21 = "NR-AR NR-AR-LBD NR-AhR NR-Aromatase NR-ER NR-ER-LBD NR-PPAR-gamma SR-ARE SR-ATAD5 SR-HSE SR-MMP SR-p53".split()
MUV = [f"MUV-{n}" for n in (466, 548, 600, 644, 652, 689, 692, 712, 713, 733, 737, 810, 832, 846, 852, 858, 859)]
# File, label columns, metric, seconds of training.
SETS = [
    ("freesolv.csv", ["expt"], "rmse", 60),
    ("esol_delaney.csv", ["measured log solubility in mols per litre"], "rmse", 60),
    ("bbbp.csv", ["p_np"], "auroc", 60),
    ("lipophilicity.csv", ["exp"], "rmse", 120),
    ("tox21.csv.gz", TOX21, "auroc", 120),
    ("hiv.csv.gz", ["HIV_active"], "auroc", 180),
    ("muv_93k.csv.gz", MUV, "auroc", 180),
]


@pytest.mark.parametrize(("file", "targets", "metric", "seconds"), SETS, ids=[row[0] for row in SETS])
def test_property_finishes_beside_baselines(
    file: str, targets: list[str], metric: str, seconds: int, tmp_path: Path
) -> None:
    if not known(file, seconds):
        path = Path(os.environ["POLYFM_DATA"]) / "molecules" / file
        flags = [f"--data.path={path}", "--data.smiles=smiles", f"--data.targets={targets!r}"]
        flags += [f"--trainer.max_time=00:00:{seconds // 60:02d}:00", f"--seed_everything={SEED}"]
        assert main(["fit", "molecules/property", "--size", "small", "--out", str(tmp_path / "run"), *flags]) == 0
        record(file, seconds, metric, RunFolder(tmp_path / "run").metrics())
    rows = [row for row in read() if row["file"] == file]
    assert {row["method"] for row in rows} == {"polyfm, scratch", "ecfp4_forest", "ecfp4_linear", "rdkit2d_forest"}


def read() -> list[dict[str, str]]:
    if not RESULTS.is_file():
        return []
    with RESULTS.open(newline="") as table:
        return list(csv.DictReader(table))


def known(file: str, seconds: int) -> bool:
    return any(row["file"] == file and row["seconds"] == str(seconds) for row in read())


def record(file: str, seconds: int, metric: str, metrics: dict[str, float]) -> None:
    rows = [row for row in read() if row["file"] != file]
    found = {"polyfm, scratch": metrics[f"test/{metric}"]}
    for key, value in metrics.items():
        kind, *rest = key.split("/")
        if kind == "baseline" and rest[1:] == [metric]:
            found[rest[0]] = value
    for method, value in found.items():
        rows.append(
            dict(zip(FIELDS, [file, SEED, seconds, method, metric, f"{value:.4f}", metrics["test/rows"]], strict=True))  # type: ignore[arg-type]
        )
    with RESULTS.open("w", newline="") as table:
        writer = csv.DictWriter(table, FIELDS)
        writer.writeheader()
        writer.writerows(rows)
