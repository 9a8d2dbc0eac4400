"""`molecules/property` on every MoleculeNet file, baselines beside it; rows go to benchmarks/results/moleculenet.csv.

Fixed before running: small size, from scratch, scaffold split, seeds 0 to 2 (of weights, order and baselines; the split
has none), training time by file below: wall-clock, so on an idle machine. What has its rows with this budget is not run
again: delete them to repeat it. Every row is kept, whoever wins, with the commit that it was measured at.
"""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest
from tests.evidence.rows import RESULTS as FOLDER
from tests.evidence.rows import replaced

from polyfm.shared.cli.main import main
from polyfm.shared.evaluation.report.panels import by_baseline
from polyfm.shared.training.run_folder import RunFolder

pytestmark = [pytest.mark.evidence, pytest.mark.realdata, pytest.mark.timeout(0)]

RESULTS = FOLDER / "moleculenet.csv"
FIELDS = ["file", "seed", "seconds", "method", "metric", "value", "test_rows", "commit"]
SEEDS = (0, 1, 2)

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


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("file", "targets", "metric", "seconds"), SETS, ids=[row[0] for row in SETS])
def test_property_finishes_beside_baselines(
    file: str, targets: list[str], metric: str, seconds: int, seed: int, tmp_path: Path
) -> None:
    if not measured(file, seed, seconds):
        path = Path(os.environ["POLYFM_DATA"]) / "molecules" / file
        flags = [f"--data.path={path}", "--data.smiles=smiles", f"--data.targets={targets!r}"]
        flags += [f"--trainer.max_time=00:00:{seconds // 60:02d}:00", f"--seed_everything={seed}"]
        assert main(["fit", "molecules/property", "--size", "small", "--out", str(tmp_path / "run"), *flags]) == 0
        record(file, seed, seconds, metric, RunFolder(tmp_path / "run"))
    assert {row["method"] for row in measured(file, seed, seconds)} == {
        "polyfm, scratch",
        "ecfp4_forest",
        "ecfp4_linear",
        "rdkit2d_forest",
    }


def read() -> list[dict[str, str]]:
    if not RESULTS.is_file():
        return []
    with RESULTS.open(newline="") as table:
        return list(csv.DictReader(table))


def measured(file: str, seed: int, seconds: int) -> list[dict[str, str]]:
    asked = {"file": file, "seed": str(seed), "seconds": str(seconds)}
    return [row for row in read() if asked.items() <= row.items()]


def record(file: str, seed: int, seconds: int, metric: str, run: RunFolder) -> None:
    others = [row for row in read() if (row["file"], row["seed"]) != (file, str(seed))]
    metrics = run.metrics()
    methods = {"polyfm, scratch": metrics[f"test/{metric}"]}
    methods |= {name: found[metric] for name, found in by_baseline(metrics).items()}
    fixed = {"file": file, "seed": seed, "seconds": seconds, "metric": metric}
    fixed |= {"test_rows": metrics["test/rows"], "commit": run.environment()["commit"][:7]}
    rows = [*others, *({**fixed, "method": method, "value": f"{value:.4f}"} for method, value in methods.items())]
    order = [file for file, *_ in SETS]
    rows.sort(key=lambda row: (order.index(row["file"]), int(row["seed"])))
    with replaced(RESULTS) as table:
        writer = csv.DictWriter(table, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
