"""Small valid files of every format, made of invented cells: for tests, notebooks and first tries.

Counts are negative binomial around the profile of a cell type, with marker genes of that type, a library size per cell
and a factor per gene and batch. Marker symbols are those of real blood cells, so that species and reports look
familiar; all other genes, and all numbers, are invented. `drawn_like` invents cells in the likeness of given ones.
"""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp

from polyfm.domains.singlecell.cell_files import GENE, PROTEIN
from polyfm.shared.errors import MissingExtraError, UsageError

try:
    import h5py
    from anndata import AnnData
except ImportError as error:
    raise MissingExtraError(str(error.name), "singlecell") from error

TYPES = {
    "T cell": (("CD3D", "CD3E", "IL7R", "TRAC"), "A lymphocyte that matures in the thymus and recognises antigens."),
    "B cell": (("MS4A1", "CD79A", "CD19", "CD74"), "A lymphocyte that makes antibodies."),
    "natural killer cell": (("NKG7", "GNLY", "KLRD1", "PRF1"), "A lymphocyte that kills infected cells unprimed."),
    "monocyte": (("LYZ", "CD14", "S100A8", "S100A9"), "A phagocyte of the blood that becomes a macrophage."),
    "dendritic cell": (("FCER1A", "CST3", "CLEC10A", "CD1C"), "A cell that presents antigens to lymphocytes."),
}
"""By cell type: its marker genes and its definition."""
PROTEINS = {
    "CD3": "T cell",
    "CD19": "B cell",
    "CD56": "natural killer cell",
    "CD14": "monocyte",
    "CD1c": "dendritic cell",
}
"""By surface protein: the cell type that carries it."""
_MITOCHONDRIAL = ("MT-ND1", "MT-CO1", "MT-ATP6", "MT-CYB")
_SHARES = (0.35, 0.2, 0.15, 0.2, 0.1)
_DONORS = ("donor1", "donor2", "donor3", "donor4")
_DISPERSION = 0.6
_MARKER_FOLD = 12.0
_MEAN_COUNTS = 800
_BATCH_SPREAD = 0.35

LABEL, GROUP, TEXT = "cell_type", "donor", "description"
"""Columns of ``obs``; beside them stand batch and tissue."""
PROTEIN_KEY = "protein_expression"


def synthetic_cells(n: int, *, genes: int = 300, seed: int = 0) -> AnnData:
    """Invent cells.

    Args:
        n: How many.
        genes: Genes, markers and mitochondrial ones among them.
        seed: Another seed, other cells of the same types.

    Returns:
        Counts in a sparse X; ``obs`` with `LABEL`, `GROUP`, batch, tissue and `TEXT`; Ensembl ids in
        ``var["gene_ids"]``; counts of `PROTEINS` in ``obsm``, NaN in the second batch, where none were measured.
    """
    markers = [symbol for symbols, _ in TYPES.values() for symbol in symbols]
    if genes < len(markers) + len(_MITOCHONDRIAL):
        raise UsageError(f"genes is {genes}; expected at least {len(markers) + len(_MITOCHONDRIAL)}")
    # Types and genes are the same whatever the seed: files of several seeds are one corpus.
    fixed, random = np.random.default_rng(0), np.random.default_rng(seed)
    filler = [f"SYN{index:04d}" for index in range(1, genes - len(markers) - len(_MITOCHONDRIAL) + 1)]
    symbols = [*markers, *_MITOCHONDRIAL, *filler]
    profile = np.tile(fixed.gamma(0.4, 1.0, genes) + 0.02, (len(TYPES), 1))
    for kind, (own, _) in enumerate(TYPES.values()):
        profile[kind, [symbols.index(symbol) for symbol in own]] = _MARKER_FOLD
        profile[kind] *= np.exp(0.3 * fixed.standard_normal(genes))
    batch_effect = np.exp(_BATCH_SPREAD * fixed.standard_normal((2, genes)))

    kinds = random.choice(len(TYPES), n, p=_SHARES)
    donors = random.integers(len(_DONORS), size=n)
    batches = donors % 2
    mean = profile[kinds] * batch_effect[batches]
    mean *= (_MEAN_COUNTS * random.lognormal(0, 0.4, n) / mean.sum(1))[:, None]
    counts = random.negative_binomial(1 / _DISPERSION, 1 / (1 + _DISPERSION * mean))
    names = list(TYPES)
    obs = pd.DataFrame(
        {
            LABEL: pd.Categorical([names[kind] for kind in kinds], categories=sorted(names)),
            GROUP: pd.Categorical([_DONORS[donor] for donor in donors]),
            "batch": pd.Categorical([f"batch{batch + 1}" for batch in batches]),
            "tissue": pd.Categorical(["blood"] * n),
            TEXT: [f"cell type: {names[kind]}. {TYPES[names[kind]][1]}" for kind in kinds],
        },
        index=_barcodes(n, random),
    )
    var = pd.DataFrame({"gene_ids": [f"ENSG999{index:08d}" for index in range(genes)]}, index=pd.Index(symbols))
    cells = AnnData(sp.csr_matrix(counts.astype(np.float32)), obs=obs, var=var)
    carried = np.array([[names[kind] == owner for owner in PROTEINS.values()] for kind in kinds]).reshape(n, -1)
    proteins = random.poisson(np.where(carried, 120.0, 4.0)).astype(np.float32)
    proteins[batches == 1] = np.nan
    cells.obsm[PROTEIN_KEY] = pd.DataFrame(proteins, columns=list(PROTEINS), index=obs.index)
    return cells


def drawn_like(cells: AnnData, n: int, *, batches: int = 3, seed: int = 0) -> AnnData:
    """Cells drawn from the counts of others, in batches that differ.

    Each takes after one of them, those of a batch after others than those of another: its counts are negative binomial
    around a profile that is half of that cell and half of all cells of its type, times a factor per gene and batch,
    with that cell's library size.

    Args:
        cells: Counts in a sparse X; their types in ``obs[LABEL]``.
        n: How many to draw.
        batches: Their number; of equal size but for the last cell.
        seed: Of all that is drawn.

    Returns:
        Counts in a sparse X; ``obs`` with `LABEL` and batch.
    """
    random = np.random.default_rng(seed)
    counts = cells.X.toarray()
    totals, kinds = counts.sum(1), cells.obs[LABEL].to_numpy()
    shares = counts / totals[:, None]
    typical = pd.DataFrame(shares).groupby(kinds).transform("mean").to_numpy()
    batch = np.arange(n) % batches
    own = -(-(len(counts) - batch) // batches)  # cells that a batch takes after: each third one of three batches
    like = batch + batches * random.integers(own)
    mean = (shares + typical)[like] * np.exp(_BATCH_SPREAD * random.standard_normal((batches, counts.shape[1])))[batch]
    mean *= (totals[like] / mean.sum(1))[:, None]
    drawn = random.negative_binomial(1 / _DISPERSION, 1 / (1 + _DISPERSION * mean))
    obs = pd.DataFrame(
        {LABEL: pd.Categorical(kinds[like]), "batch": pd.Categorical([f"batch{number + 1}" for number in batch])},
        index=_barcodes(n, random),
    )
    return AnnData(sp.csr_matrix(drawn.astype(np.float32)), obs=obs, var=pd.DataFrame(index=cells.var_names))


def write_synthetic(folder: str | Path, *, kind: str = "h5ad", n: int = 200, genes: int = 300, seed: int = 0) -> Path:
    """Write one file or folder of invented cells.

    Args:
        folder: Where to; created if needed. It is named ``cells.<kind>``, a 10x folder ``cells``.
        kind: One of `KINDS`. 10x's have barcodes only, no annotations.
        n: Cells.
        genes: Genes.
        seed: Another seed, other cells.

    Returns:
        The file or folder.
    """
    if kind not in KINDS:
        raise UsageError(f"kind is {kind!r}; expected one of {', '.join(KINDS)}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ("cells" if kind.startswith("mtx") else f"cells.{kind}")
    if path.is_dir():
        shutil.rmtree(path)
    KINDS[kind](synthetic_cells(n, genes=genes, seed=seed), path)
    return path


def _barcodes(n: int, random: np.random.Generator) -> list[str]:
    """Cell barcodes of 16 bases, all different."""
    codes = random.choice(4**8, n, replace=n > 4**8)
    tails = random.permutation(max(n, 1))[:n]
    return [
        "".join("ACGT"[(code >> 2 * at) & 3] for at in range(8)) + _bases(int(tail))
        for code, tail in zip(codes.tolist(), tails.tolist(), strict=True)
    ]


def _bases(number: int) -> str:
    return "".join("ACGT"[(number >> 2 * at) & 3] for at in range(16)) + "-1"


def _h5ad(cells: AnnData, path: Path) -> None:
    cells.write_h5ad(path, compression="gzip")


def _zarr(cells: AnnData, path: Path) -> None:
    cells.write_zarr(path)


def _features(cells: AnnData) -> tuple[list[tuple[str, str, str]], sp.csc_matrix]:
    """What 10x says of genes and antibodies, and both as features × cells."""
    rows = [(name, symbol, GENE) for symbol, name in zip(cells.var_names, cells.var["gene_ids"], strict=True)]
    rows += [(name, f"{name}_TotalSeq", PROTEIN) for name in PROTEINS]
    proteins = np.nan_to_num(cells.obsm[PROTEIN_KEY].to_numpy())
    return rows, sp.csc_matrix(sp.hstack([cells.X, sp.csr_matrix(proteins)]).T).astype(np.int32)


def _tenx_h5(cells: AnnData, path: Path) -> None:
    rows, matrix = _features(cells)
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        group["barcodes"] = np.array(cells.obs_names, dtype="S")
        for name in ("data", "indices", "indptr"):
            group.create_dataset(name, data=getattr(matrix, name), compression="gzip")
        group["shape"] = np.array(matrix.shape, dtype=np.int32)
        features = group.create_group("features")
        for name, column in zip(("id", "name", "feature_type"), zip(*rows, strict=True), strict=True):
            features[name] = np.array(column, dtype="S")
        features["genome"] = np.array(["synthetic"] * len(rows), dtype="S")


def _mtx(compress: bool, features_name: str) -> Callable[[AnnData, Path], None]:
    def write(cells: AnnData, path: Path) -> None:
        path.mkdir()
        rows, matrix = _features(cells)
        if features_name == "genes":
            # Before Cell Ranger 3 a folder held genes only, and no feature types.
            rows, matrix = rows[: cells.n_vars], matrix[: cells.n_vars]
        entries = matrix.tocoo()
        head = [
            "%%MatrixMarket matrix coordinate integer general",
            "%",
            f"{matrix.shape[0]} {matrix.shape[1]} {matrix.nnz}",
        ]
        body = [f"{g + 1} {c + 1} {v}" for g, c, v in zip(entries.row, entries.col, entries.data, strict=True)]
        width = 2 if features_name == "genes" else 3
        texts = {
            "matrix.mtx": [*head, *body],
            f"{features_name}.tsv": ["\t".join(row[:width]) for row in rows],
            "barcodes.tsv": list(cells.obs_names),
        }
        for name, lines in texts.items():
            content = "".join(f"{line}\n" for line in lines).encode()
            file = path / (f"{name}.gz" if compress else name)
            file.write_bytes(gzip.compress(content, mtime=0) if compress else content)

    return write


KINDS: dict[str, Callable[[AnnData, Path], None]] = {
    "h5ad": _h5ad,
    "zarr": _zarr,
    "h5": _tenx_h5,
    "mtx": _mtx(compress=False, features_name="genes"),
    "mtx.gz": _mtx(compress=True, features_name="features"),
}
"""What `write_synthetic` can write: AnnData twice, 10x's .h5, 10x's folder of version 2 and of version 3."""
