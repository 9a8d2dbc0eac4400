"""Single cells against their peers: from a file larger than memory to tokens, and the tokens alone.

python benchmarks/singlecell.py [--cells 100000] [--rounds 5] [--section loader|tokens] [--out FILE.md]
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy is loaded: every figure is per core

import argparse
import importlib
import resource
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import harness
import numpy as np
import torch
from torchdata.stateful_dataloader import StatefulDataLoader

from polyfm.domains.singlecell import chunked
from polyfm.domains.singlecell.binning import bin_counts, bin_values
from polyfm.domains.singlecell.blocks import cell_keys, take_cells
from polyfm.domains.singlecell.data import CellDataModule
from polyfm.domains.singlecell.store import CellStore, Rows
from polyfm.domains.singlecell.transforms import Medians, normalise, rank_genes
from polyfm.shared.data.sampler import Key
from polyfm.shared.data.streaming import BlockOrder, PooledReads
from polyfm.shared.errors import DataError, MissingExtraError

CELLS = 100_000
GENES = 20_000
TOKENISED = 4_096
ROUNDS = 5
BATCH = BLOCK = POOL = 64
SLOW = 40
"""Batches of ways that read cell by cell: an epoch would take a minute."""
PACKAGES = ("anndata", "scdataset", "h5py", "zarr", "isal", "numba", "scipy", "torch", "numpy")


# --- Data -------------------------------------------------------------------------------------------------------------


def bladder() -> Any:
    """Counts of 2,100 mouse bladder cells × 20,000 genes, CSR."""
    import anndata

    folder = os.environ.get("POLYFM_DATA")
    if folder is None:
        raise DataError(
            "there are no counts to resample",
            remedy="Set POLYFM_DATA to the folder with singlecell/mouse_bladder_2100.h5ad",
        )
    matrix = anndata.read_h5ad(Path(folder) / "singlecell" / "mouse_bladder_2100.h5ad").X
    return matrix.tocsr()[:, :GENES].tocsr()


def resampled(cells: int, seed: int = 0) -> Any:
    """That many cells: rows drawn with replacement, counts thinned binomially to about 1,000 non-zeros."""
    matrix, rng = bladder(), np.random.default_rng(seed)
    drawn = matrix[rng.integers(0, matrix.shape[0], cells)]
    drawn.data = rng.binomial(drawn.data.astype(np.int64), 0.97).astype(np.float32)
    drawn.eliminate_zeros()
    drawn.sort_indices()
    return drawn


def write(folder: str, cells: int) -> dict[str, float]:
    """Both files, as AnnData writes them; in a process of its own, for it holds all cells."""
    import anndata
    import pandas as pd

    with pd.option_context("future.infer_string", False):  # AnnData 0.12 does not write the strings of pandas 3
        data = anndata.AnnData(resampled(cells))
        data.obs_names = np.array([f"cell{i}" for i in range(cells)], object)
        data.var_names = np.array([f"gene{i}" for i in range(GENES)], object)
        data.write_h5ad(Path(folder) / "cells.h5ad", compression="gzip")
        data.write_zarr(Path(folder) / "cells.zarr")
    return {"non_zeros": data.X.nnz / cells}


# --- From the file to tokens ------------------------------------------------------------------------------------------


def tokens(indptr: Any, genes: Any, values: Any, cells: Any, epoch: int) -> dict[str, torch.Tensor]:
    """What a model takes: gene ids and quantile bins, packed. The same for every way."""
    bins = bin_counts(indptr, genes, values, cell_keys(0, epoch, cells))
    packed = {"genes": genes, "values": bins, "cu": np.asarray(indptr, np.int32)}
    return {name: torch.from_numpy(array) for name, array in packed.items()}


def of_rows(held: Rows, places: Any, keys: list[Key]) -> dict[str, torch.Tensor]:
    """A batch of a pool."""
    indptr, taken = take_cells(held.indptr, places)
    cells = np.array([key.index for key in keys])
    return tokens(indptr, held.genes[taken], held.values[taken], cells, keys[0].epoch)


def of_csr(matrix: Any) -> dict[str, torch.Tensor]:
    """A batch of scipy's."""
    return tokens(matrix.indptr, matrix.indices.astype(np.int32), matrix.data, np.arange(matrix.shape[0]), 0)


def of_dense(matrix: Any) -> dict[str, torch.Tensor]:
    """A batch of AnnLoader's: a dense tensor."""
    from scipy.sparse import csr_matrix

    return of_csr(csr_matrix(matrix.numpy()))


def only(made: Any) -> Any:
    """What the data set made is the batch."""
    return made


def polyfm_batches(path: Path, workers: int) -> Iterator[dict[str, torch.Tensor]]:
    """Ours."""
    cells = CellStore(path)
    order = BlockOrder(cells.num_cells, batch_size=BATCH, block=BLOCK, pool=POOL)
    data = PooledReads(order, cells.read_rows, of_rows, readers=workers)
    yield from StatefulDataLoader(data, batch_sampler=order, collate_fn=only)


def zlib_batches(path: Path, workers: int) -> Iterator[dict[str, torch.Tensor]]:
    """Ours, decompressed as HDF5 does it for the others."""
    chunked.inflater = lambda: zlib.decompressobj  # type: ignore[assignment]
    yield from polyfm_batches(path, workers)


def data_module_batches(path: Path, workers: int) -> Iterator[Any]:
    """What `polyfm fit` trains on: genes numbered by the vocabulary, totals, [CLS], ids, all of them checked."""
    data = CellDataModule(str(path), max_genes=GENES, split="random", fractions=(0.98, 0.01, 0.01), num_workers=workers)
    data.setup()  # before the clock starts, as the other ways' index of the file
    return (batch for batch in data.loader("train", shuffle=True))


def backed(path: Path) -> Any:
    """The file as AnnData opens it without reading its matrix."""
    import anndata

    if path.suffix == ".h5ad":
        return anndata.read_h5ad(path, backed="r")
    import zarr

    matrix = anndata.io.sparse_dataset(zarr.open_group(str(path), mode="r")["X"])
    return anndata.AnnData(matrix)


def scdataset_batches(path: Path, workers: int) -> Iterator[dict[str, torch.Tensor]]:
    """Of scDataset, on the backed matrix, which is its quickest way: no obs, sparse."""
    try:
        from scdataset import BlockShuffling, scDataset
    except ImportError as error:
        raise MissingExtraError("scdataset", "bench") from error
    from torch.utils.data import DataLoader

    data = scDataset(
        backed(path),
        BlockShuffling(block_size=BLOCK),
        batch_size=BATCH,
        fetch_factor=POOL,
        fetch_callback=csr_rows,
        batch_transform=of_csr,
    )
    yield from DataLoader(data, batch_size=None, num_workers=workers)


def csr_rows(data: Any, rows: Any) -> Any:
    """Rising rows of a backed matrix; by a mask, for only then does AnnData read neighbours together."""
    mask = np.zeros(data.n_obs, np.bool_)
    mask[rows] = True
    return data.X[mask]


def annloader_batches(path: Path, workers: int) -> Iterator[dict[str, torch.Tensor]]:
    """AnnData's own loader, cells at random."""
    from anndata.experimental import AnnLoader

    for batch in AnnLoader(backed(path), batch_size=BATCH, shuffle=True, num_workers=workers):
        yield of_dense(batch.X)


def random_rows_batches(path: Path, workers: int) -> Iterator[dict[str, torch.Tensor]]:
    """Cells at random from AnnData's backed matrix, sparse throughout."""
    data = backed(path)
    for rows in np.array_split(np.random.default_rng(0).permutation(data.n_obs), data.n_obs // BATCH):
        yield of_csr(data.X[np.sort(rows)])


def sequential_batches(path: Path, workers: int) -> Iterator[np.ndarray[Any, Any]]:
    """The limit of AnnData's reading: the file from its beginning to its end, 1,024 cells at a time, no tokens."""
    data = backed(path)
    for start in range(0, data.n_obs, 1024):
        yield np.zeros(len(data.X[start : start + 1024].indptr))


def sequential_store_batches(path: Path, workers: int) -> Iterator[np.ndarray[Any, Any]]:
    """The same through `CellStore`."""
    cells = CellStore(path)
    for start in range(0, cells.num_cells, 1024):
        yield np.zeros(len(cells.read_rows(np.arange(start, min(start + 1024, cells.num_cells))).indptr))


WAYS: dict[str, tuple[Callable[[Path, int], Iterator[Any]], int, int]] = {
    "polyfm": (polyfm_batches, 0, 0),
    "polyfm, 2 workers": (polyfm_batches, 2, 0),
    "polyfm with zlib": (zlib_batches, 0, 0),
    "polyfm with zlib, 2 workers": (zlib_batches, 2, 0),
    "polyfm fit": (data_module_batches, 0, 0),
    "polyfm fit, 2 workers": (data_module_batches, 2, 0),
    "scDataset 64/64": (scdataset_batches, 0, 0),
    "scDataset 64/64, 2 workers": (scdataset_batches, 2, 0),
    "AnnData random rows": (random_rows_batches, 0, SLOW),
    "AnnLoader": (annloader_batches, 0, SLOW),
    "AnnData in sequence, no tokens": (sequential_batches, 0, 0),
    "CellStore in sequence, no tokens": (sequential_store_batches, 0, 0),
}
"""By name: what makes batches, its workers, and how many batches are enough (0: an epoch)."""


WITH_THREADS = ("polyfm", "polyfm with zlib", "polyfm fit")
OURS = (*WITH_THREADS, "CellStore")


def load(way: str, path: str) -> dict[str, float]:
    """One run of a way; CPU of its workers included."""
    make, workers, limit = WAYS[way]
    one = np.array([0, 1]), np.zeros(1, np.int32), np.ones(1, np.float32), np.zeros(1, np.int64)
    tokens(*one, 0)  # compiled before the clock starts, and before workers are forked
    for library in () if way.startswith(OURS) else ("anndata.experimental", "scdataset"):
        importlib.import_module(library)
    cells, batches, started, cpu = 0, make(Path(path), workers), time.perf_counter(), _cpu()
    for number, batch in enumerate(batches, start=1):
        cells += size(batch)
        if number == limit:
            break
    batches.close()  # type: ignore[attr-defined]  # ends the workers, so that their time is counted
    taken = {"cpu": _cpu() - cpu, "wall": time.perf_counter() - started}
    return {"cells": cells, **taken, "memory": harness.peak_memory(), "worker": _peak_of_workers()}


def size(batch: Any) -> int:
    """Cells of what a way makes: tokens, boundaries alone, or polyfm's own batch."""
    return len(batch["cu"]) - 1 if isinstance(batch, dict) else len(batch) - isinstance(batch, np.ndarray)


def _cpu() -> float:
    own, others = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + others.ru_utime + others.ru_stime


def _peak_of_workers() -> float:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit / 1e6


INTRODUCTION = """\
{cells:,} cells × {genes:,} genes with {non_zeros:,.0f} non-zeros each, drawn from mouse bladder cells (rows with
replacement, counts thinned binomially), written by AnnData. Every way makes the same tokens of batches of 64: gene ids
and 51 quantile bins, packed tensors. polyfm and scDataset read blocks of 64 cells and shuffle 64 blocks at a time
(polyfm in each of 4 lanes), an epoch each; ways that read cell by cell {slow} batches. Rates are cells per CPU-second,
of the process and its workers together; wall time beside. Memory is the peak of the process, plus that of its largest
worker times their number. Workers of polyfm are threads that read ahead, others' are processes. polyfm decompresses
gzip with {inflater}, the others with zlib. "polyfm fit" is its data module as training uses it, which does more: each
value is checked, genes get the vocabulary's numbers and cells their totals, a [CLS] and hashed ids. The page cache is
warm."""


def loader(cells: int, rounds: int) -> list[str]:
    """Each way in processes of its own, round by round, on both formats."""
    with tempfile.TemporaryDirectory() as folder:
        made = harness.isolated("write", folder=folder, cells=cells)
        by = chunked.inflater().__module__
        lines = [INTRODUCTION.format(cells=cells, genes=GENES, slow=SLOW, inflater=by, **made)]
        for name in ("cells.h5ad", "cells.zarr"):
            path = Path(folder) / name
            lines += ["", f"### {name.replace('cells.', '')}{', gzip' if name.endswith('h5ad') else ''}", ""]
            lines += compare(path, rounds)
    return lines


def compare(path: Path, rounds: int) -> list[str]:
    """Markdown: rates of all ways on a file, and how many times as fast as others polyfm is, round by round."""
    own = [way for way in WAYS if path.suffix == ".h5ad" or "zlib" not in way]
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in own}
    for ways in harness.turns(own, rounds):
        for way in ways:
            runs[way].append(harness.isolated("load", way=way, path=str(path)))
    cpu = {way: np.array([run["cpu"] / run["cells"] for run in theirs]) for way, theirs in runs.items()}
    wall = {way: np.array([run["wall"] / run["cells"] for run in theirs]) for way, theirs in runs.items()}
    lines = [
        "| way | cells per CPU-second | cells per second | memory, MB | polyfm is as fast times | and in wall time |",
        "|---|---:|---:|---:|---|---|",
    ]
    for way, theirs in runs.items():
        peer = "polyfm, 2 workers" if "2 workers" in way else "polyfm"
        processes = 0 if way.startswith(OURS) else WAYS[way][1]
        memory = max(run["memory"] + processes * run["worker"] for run in theirs)
        ratios = [harness.ratio(times[way], times[peer]) if way != peer else "1" for times in (cpu, wall)]
        lines.append(
            f"| {way} | {1 / np.median(cpu[way]):,.0f} | {1 / np.median(wall[way]):,.0f} | {memory:,.0f} "
            f"| {ratios[0]} | {ratios[1]} |"
        )
    faster = {way: harness.ratio(wall[way], wall[f"{way}, 2 workers"]) for way in WITH_THREADS if way in wall}
    return [
        *lines,
        "",
        *(f"Wall time of {way} with 0 workers over 2 workers: {ratio}." for way, ratio in faster.items()),
    ]


# --- Tokens alone -----------------------------------------------------------------------------------------------------


def loop_bins(indptr: Any, genes: Any, values: Any, rng: Any) -> list[Any]:
    """The bins of scGPT cell by cell: quantiles, digits from both sides, a draw between them."""
    bins = []
    for first, last in pairwise(indptr):
        cell = values[first:last]
        quantiles = np.quantile(cell, np.linspace(0, 1, 50))
        high, low = np.digitize(cell, quantiles), np.digitize(cell, quantiles, right=True)
        bins.append(np.ceil(high - rng.random(len(cell)) * (high - low)).astype(np.int64))
    return bins


def loop_ranks(indptr: Any, genes: Any, values: Any, totals: Any, medians: Any, kind: Any) -> list[Any]:
    """Geneformer's ranks cell by cell."""
    ranked = []
    for i in range(len(totals)):
        cut = slice(indptr[i], indptr[i + 1])
        scaled = values[cut] / totals[i] * np.float32(1e4) / medians[genes[cut]]
        ranked.append(genes[cut][np.argsort(-scaled, kind=kind)][:2048])
    return ranked


def check_ranks(indptr: Any, genes: Any, values: Any, medians: Any) -> None:
    """That both orders are the same where rounding cannot part what ties: without the factor of each cell."""
    ranked = rank_genes(indptr, genes, values, medians)[1]
    done = 0
    for first, last in pairwise(indptr):
        mine = genes[first:last]
        expected = mine[np.argsort(-(values[first:last] / medians[mine]), kind="stable")][:2048]
        if not np.array_equal(ranked[done : done + len(expected)], expected):
            raise DataError("polyfm's ranks are not those of the loop")
        done += len(expected)


def tokenise(rounds: int) -> list[str]:
    """Rates of tokenising on one core, blocks in memory."""
    matrix = resampled(TOKENISED)
    indptr, genes, values = matrix.indptr.astype(np.int64), matrix.indices.astype(np.int32), matrix.data
    totals, keys = np.asarray(matrix.sum(1)).ravel(), cell_keys(0, 0, np.arange(TOKENISED))
    whole, logs = values.astype(np.uint16), normalise(indptr, values, totals)
    untied = (values + np.random.default_rng(0).random(len(values), np.float32)).astype(np.float32)
    medians = Medians(GENES).add(indptr, genes, values, totals).fit().divisors
    check_ranks(indptr, genes, values, medians)
    rng = np.random.default_rng(0)
    groups: list[tuple[str, str, dict[str, Callable[[], object]]]] = [
        (
            "51 quantile bins",
            "a loop over cells",
            {
                "polyfm, counts as integers": partial(bin_counts, indptr, genes, whole, keys),
                "polyfm, counts as float32": partial(bin_counts, indptr, genes, values, keys),
                "polyfm, log-normalised": partial(bin_values, indptr, genes, logs, keys),
                "polyfm, floats without ties": partial(bin_values, indptr, genes, untied, keys),
                "a loop over cells": partial(loop_bins, indptr, genes, values, rng),
            },
        ),
        (
            "Ranks",
            "a loop over cells",
            {
                "polyfm": partial(rank_genes, indptr, genes, values, medians),
                "a loop over cells": partial(loop_ranks, indptr, genes, values, totals, medians, None),
                "a loop over cells, ties by gene": partial(
                    loop_ranks, indptr, genes, values, totals, medians, "stable"
                ),
            },
        ),
    ]
    lines = [
        f"{TOKENISED:,} cells of {len(values) / TOKENISED:,.0f} non-zeros in memory, one core; {rounds} rounds. The",
        "loops are numpy's calls per cell, with the same result but for draws and, in the first loop of ranks, ties,",
        "which it leaves in any order.",
    ]
    for title, against, ways in groups:
        taken = harness.race(ways, rounds, time.process_time)
        lines += ["", f"| {title} | cells per CPU-second | ns per non-zero | times as fast as {against} |"]
        lines.append("|---|---:|---:|---|")
        for name, times in taken.items():
            ratio = "1" if name == against else harness.ratio(taken[against], times)
            each = float(np.median(times))
            lines.append(f"| {name} | {TOKENISED / each:,.0f} | {each / len(values) * 1e9:.2f} | {ratio} |")
    return lines


def main() -> None:
    """Command line; a run of fewer cells is a trial and leaves the results alone."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--cells", type=int, default=CELLS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    known, rest = parser.parse_known_args()
    if (known.cells, known.rounds) != (CELLS, ROUNDS) and "--out" not in rest:
        rest += ["--out", str(Path(tempfile.gettempdir()) / f"singlecell-{known.cells}.md")]
    sys.argv[1:] = rest
    sections = {
        "loader": ("From a file to tokens", partial(loader, known.cells, known.rounds)),
        "tokens": ("Tokens alone", partial(tokenise, known.rounds)),
    }
    describe = partial(harness.environment, PACKAGES)
    harness.main("singlecell", sections, describe, {"load": load, "write": write})


if __name__ == "__main__":
    main()
