"""Counts that would not fit are not held: a training on them takes little more memory than one on a few cells."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

pytestmark = [pytest.mark.full, pytest.mark.timeout(600)]

N, G, ROW = 80_000, 2_000, 1_000
"""Cells, genes, and non-zeros of each cell: 640 MB of places and counts."""
PROGRAM = """
import resource, sys
from polyfm.shared.cli.main import main
code = main(["fit", "singlecell/scgpt", "--size", "small", "--data.path", sys.argv[1], "--out", sys.argv[2],
             "--model.encoders.genes.width", "16", "--model.encoders.genes.backbone.depth", "1",
             "--model.encoders.genes.backbone.block.heads", "2", "--model.encoders.genes.backbone.block.hidden", "16",
             "--data.max_genes", "8", "--data.batch_size", "512", "--data.num_workers", sys.argv[3],
             "--trainer.max_epochs", "1", "--trainer.limit_val_batches", "2", "--trainer.limit_test_batches", "2"])
print("MB", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
sys.exit(code)
"""


def write(path: Path, cells: int) -> Path:
    """Sparse counts, a thousand cells at a time."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        group = file.create_group("X")
        group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": (cells, G)})
        group["indptr"] = np.arange(cells + 1, dtype=np.int64) * ROW
        counts, places = (
            group.create_dataset(name, (cells * ROW,), kind, chunks=(32_768,), compression="gzip", compression_opts=1)
            for name, kind in (("data", np.float32), ("indices", np.int32))
        )
        for start in range(0, cells, 1_000):
            mine = slice(start * ROW, min(start + 1_000, cells) * ROW)
            counts[mine] = rng.poisson(0.3, mine.stop - mine.start) + 1
            places[mine] = np.concatenate(
                [np.sort(rng.permutation(G)[:ROW]) for _ in range(start, min(start + 1_000, cells))]
            )
        for name, length, prefix in (("obs", cells, "cell"), ("var", G, "GENE")):
            table = file.create_group(name)
            table.attrs.update(
                {"encoding-type": "dataframe", "encoding-version": "0.2.0", "_index": "_index", "column-order": []}
            )
            table["_index"] = np.array([f"{prefix}{i}" for i in range(length)], dtype=h5py.string_dtype())
            table["_index"].attrs.update({"encoding-type": "string-array", "encoding-version": "0.2.0"})
    return path


def megabytes(path: Path, out: Path, workers: int) -> float:
    """Peak of a training on it."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path), str(out), str(workers)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return float(done.stdout.split()[-1])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_large_file_is_not_held(tmp_path: Path, workers: int) -> None:
    few = megabytes(write(tmp_path / "few.h5ad", 2_000), tmp_path / "few", workers)
    many = megabytes(write(tmp_path / "many.h5ad", N), tmp_path / "many", workers)
    assert many < 1_500
    assert many - few < 450, f"{few:.0f} MB with 2,000 cells, {many:.0f} MB with {N:,}"
