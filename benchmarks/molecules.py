"""Molecules against their peers: SMILES to graph batches, descriptors, streaming. See benchmarks/README.md.

python benchmarks/molecules.py [--section graphs|descriptors|stream] [--out benchmarks/results/molecules.md]
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy is loaded: every figure is per core

import gzip
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import harness
import numpy as np
import torch
from numpy.typing import NDArray
from rdkit import Chem, RDConfig, rdBase
from rdkit.Chem import Descriptors

from polyfm.domains.molecules.atom_graph import ATOM_FIELDS, FIELD_SETS, Field, atom_graph, atom_graphs
from polyfm.domains.molecules.descriptors import DESCRIPTORS, descriptor_table, descriptors
from polyfm.domains.molecules.read import stream_smiles
from polyfm.domains.molecules.smiles_graph import read_smiles
from polyfm.shared.data.batch import Graphs
from polyfm.shared.errors import MissingExtraError

ROUNDS = 15
GRAPH_MOLECULES = 2048
DESCRIPTOR_MOLECULES = 256
STREAM_MOLECULES = 1_000_000
STREAM_DISTINCT = 25_000
PACKAGES = ("rdkit", "chemprop", "cuik_molmaker_pin", "torch", "numpy")


def race(ways: dict[str, Callable[[], object]], count: int, against: str) -> list[str]:
    """Markdown: CPU time per item of each way, and how many times as fast as another it is, round by round.

    Args:
        ways: By name; each does all the items once.
        count: Items.
        against: The way to compare with.
    """
    taken = harness.race(ways, ROUNDS, time.process_time)
    lines = [f"| way | per CPU-second | µs each | times as fast as {against} |", "|---|---:|---:|---|"]
    for name, times in taken.items():
        each = float(np.median(times)) / count
        ratio = "1" if name == against else harness.ratio(taken[against], times)
        lines.append(f"| {name} | {1 / each:,.0f} | {each * 1e6:.1f} | {ratio} |")
    return lines


# --- Data -------------------------------------------------------------------------------------------------------------


def molecule_sets(limit: int) -> dict[str, list[str]]:
    """Canonical SMILES by name of the set: ZINC and ChEBI-20 from $POLYFM_DATA, else the NCI file that RDKit ships.

    Args:
        limit: At most so many of each.
    """
    folder = os.environ.get("POLYFM_DATA")
    if folder is None:
        with (Path(RDConfig.RDDataDir) / "NCI" / "first_5K.smi").open() as lines:
            return {"NCI (RDKit's first_5K.smi)": canonical((line.split()[0] for line in lines), limit)}
    with gzip.open(Path(folder) / "molecules" / "zinc250k_jtnn_valid.smi.gz", "rt") as lines:
        zinc = canonical((line.split()[0] for line in lines), limit)
    with gzip.open(Path(folder) / "molecules" / "chebi20_validation.tsv.gz", "rt") as lines:
        next(lines)
        chebi = canonical((line.split("\t")[1] for line in lines), limit)
    return {"ZINC": zinc, "ChEBI-20 (natural products: stereo, charges)": chebi}


def canonical(texts: Iterator[str], limit: int) -> list[str]:
    """Canonical isomeric SMILES of the first molecules, unreadable ones left out."""
    mols = (Chem.MolFromSmiles(text) for text in texts)
    good = (mol for mol in mols if mol is not None and mol.GetNumAtoms())
    return [Chem.MolToSmiles(mol) for mol in itertools.islice(good, limit)]


# --- SMILES to graph batches ------------------------------------------------------------------------------------------

INTRODUCTION = """\
`cuik-molmaker` is chemprop's batch path in C++. Both of chemprop's ways parse and sanitise with RDKit, and so does the
last row; `RDKit parse` is `MolFromSmiles` alone, without any feature. polyfm takes canonical SMILES, which RDKit parsed
and sanitised once, when the file was read, and reads them without RDKit; what it leaves unread goes through RDKit, and
so, for E/Z, does what has `/` or `\\`. chemprop makes one-hot floats, polyfm categories (int64) for embedding tables;
that both say the same is checked on every molecule beforehand."""


def graphs() -> list[str]:
    """From a list of SMILES to a packed batch, single thread, in batches of 64 and 512."""
    try:
        from chemprop.data.collate import BatchMolGraph
        from chemprop.featurizers import CuikmolmakerMolGraphFeaturizer, SimpleMoleculeMolGraphFeaturizer
        from chemprop.utils.utils import make_mol
    except ImportError as error:
        raise MissingExtraError("chemprop", "bench") from error

    cuik, default = CuikmolmakerMolGraphFeaturizer(), SimpleMoleculeMolGraphFeaturizer()
    lines = [INTRODUCTION]
    for name, smiles in molecule_sets(GRAPH_MOLECULES).items():
        checked = sum(same_features(atom_graphs([text]), cuik([text])) for text in smiles)
        marked = sum("/" in text or "\\" in text for text in smiles)
        lines += [
            "",
            f"### {name}",
            "",
            f"{len(smiles)} molecules of {len(atom_graphs(smiles).node_features) / len(smiles):.1f} atoms; "
            f"features equal chemprop's on {checked}; {read_smiles(smiles).unread.mean():.1%} left unread, "
            f"{marked / len(smiles):.1%} with `/` or `\\`.",
        ]
        for size in (64, 512):
            batches = [smiles[start : start + size] for start in range(0, len(smiles), size)]
            ways: dict[str, Callable[[], object]] = {
                "polyfm": lambda b=batches: [atom_graphs(batch) for batch in b],
                "cuik-molmaker": lambda b=batches: [cuik(batch) for batch in b],
                "chemprop's default": lambda b=batches: [
                    BatchMolGraph([default(make_mol(text)) for text in batch]) for batch in b
                ],
                "RDKit parse": lambda b=batches: [Chem.MolFromSmiles(text) for batch in b for text in batch],
                "polyfm, every molecule through RDKit": lambda b=batches: [
                    atom_graph(Chem.MolFromSmiles(text)) for batch in b for text in batch
                ],
            }
            lines += ["", f"Batches of {size}:", "", *race(ways, len(smiles), "cuik-molmaker")]
    return lines


def same_features(ours: Graphs, theirs: Any) -> bool:
    """Whether our categories hold the same as chemprop's V2 one-hot features of one molecule.

    Args:
        ours: A batch of one, fields "full".
        theirs: chemprop's graph of it.
    """
    atoms = dict(zip([f.name for f in FIELD_SETS["full"].atoms], ours.node_features.T.numpy(), strict=True))
    bonds = dict(zip([f.name for f in FIELD_SETS["full"].bonds], ours.edge_features.T.numpy(), strict=True))
    fields = {field.name: field for field in ATOM_FIELDS}

    def hot(column: NDArray[Any], field: Field, choices: Sequence[int]) -> NDArray[Any]:
        numbers = np.append(field.values, -99)[column]
        known = numbers[:, None] == np.array(choices)
        return np.column_stack((known, ~known.any(1)))

    numbers = np.append(fields["atomic_number"].values, 0)[atoms["atomic_number"]]
    weights = np.array([Chem.GetPeriodicTable().GetAtomicWeight(int(number)) for number in numbers])
    labelled = atoms["isotope"] != fields["isotope"].values.index(0)
    nodes = [
        hot(atoms["atomic_number"], fields["atomic_number"], [*range(1, 37), 53]),
        hot(atoms["degree"], fields["degree"], range(6)),
        hot(atoms["charge"], fields["charge"], [-1, -2, 1, 2, 0]),
        hot(atoms["chirality"], fields["chirality"], range(4)),
        hot(atoms["hydrogens"], fields["hydrogens"], range(5)),
        hot(atoms["hybridisation"], fields["hybridisation"], [1, 2, 3, 5, 4, 6, 7]),
        atoms["aromatic"],
        np.where(
            labelled, theirs.V[:, -1].numpy(), 0.01 * weights
        ),  # a label's exact mass is not in the periodic table
    ]
    edges = [
        np.zeros(len(bonds["type"])),
        np.eye(5)[bonds["type"]][:, :4],
        bonds["conjugated"],
        bonds["in_ring"],
        np.eye(7)[bonds["stereo"]],
    ]
    mine, their_edges = ours.edge_index.numpy(), theirs.edge_index.numpy()
    order, their_order = np.lexsort(mine), np.lexsort(their_edges)
    return (
        np.allclose(np.column_stack(nodes), theirs.V.numpy(), atol=1e-6)
        and np.array_equal(mine[:, order], their_edges[:, their_order])
        and np.array_equal(np.column_stack(edges)[order], theirs.E.numpy()[their_order])
    )


# --- Descriptors ------------------------------------------------------------------------------------------------------


def descriptors_section() -> list[str]:
    """SPMM's 53 descriptors from SMILES: RDKit's functions one by one, ours, and from the disk cache."""
    functions = [getattr(Descriptors, "qed" if name == "QED" else name) for name in DESCRIPTORS]
    name, smiles = next(iter(molecule_sets(DESCRIPTOR_MOLECULES).items()))
    mols = [Chem.MolFromSmiles(text) for text in smiles]
    plain = np.array([[function(mol) for function in functions] for mol in mols], np.float64)
    equal = sum(np.array_equal(descriptors(mol), row, equal_nan=True) for mol, row in zip(mols, plain, strict=True))

    with tempfile.TemporaryDirectory() as folder:
        os.environ["POLYFM_CACHE"] = folder
        descriptor_table(smiles)
        rows = race(
            {
                "polyfm": lambda: [descriptors(Chem.MolFromSmiles(text)) for text in smiles],
                "RDKit's functions": lambda: [
                    [function(mol) for function in functions] for mol in map(Chem.MolFromSmiles, smiles)
                ],
                "polyfm, from the disk cache": lambda: descriptor_table(smiles),
            },
            len(smiles),
            "RDKit's functions",
        )
    return [
        f"{name}: {len(smiles)} molecules, parsing included; bit-equal to RDKit's functions on {equal}.",
        "",
        *rows,
    ]


# --- Streaming --------------------------------------------------------------------------------------------------------


def stream() -> list[str]:
    """A file of a million SMILES to graph batches: time, and growth of the process."""
    name, smiles = next(iter(molecule_sets(STREAM_DISTINCT).items()))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "molecules.smi"
        with path.open("w") as file:
            for index, text in zip(range(STREAM_MOLECULES), itertools.cycle(smiles)):
                file.write(f"{text} {index}\n")
        num_molecules, num_atoms = 0, 0
        before, start = harness.peak_memory(), time.process_time()
        for block in stream_smiles(path, isomeric=True):
            for low in range(0, len(block.smiles), 512):
                num_atoms += len(atom_graphs(block.smiles[low : low + 512]).node_features)
            num_molecules += len(block.smiles)
        seconds = time.process_time() - start
    growth = harness.peak_memory() - before
    return [
        f"{num_molecules:,} SMILES ({name}, {len(smiles):,} molecules over and over) from a .smi file, canonicalised, "
        f"to packed graphs of {num_atoms:,} atoms in batches of 512, one process:",
        "",
        "| CPU-seconds | molecules per CPU-second | growth of peak memory, MB |",
        "|---:|---:|---:|",
        f"| {seconds:.0f} | {num_molecules / seconds:,.0f} | {growth:.0f} |",
    ]


if __name__ == "__main__":
    torch.set_num_threads(1)
    with rdBase.BlockLogs():
        harness.main(
            "molecules",
            {
                "graphs": ("SMILES to graph batches", graphs),
                "descriptors": ("53 descriptors", descriptors_section),
                "stream": ("A million SMILES", stream),
            },
            lambda: f"1 thread, {ROUNDS} rounds. " + harness.environment(PACKAGES),
        )
