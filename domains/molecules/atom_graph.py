"""Molecules as graphs: atoms and bonds with categorical features, one molecule or a whole batch.

    SMILES ── smiles_graph.read_smiles ──▶ RDKit's numbers ── Field.categories ──▶ Graphs
        └──── what it leaves unread ──▶ RDKit molecule ── atom_graph ──────────────────┘

Both ways give the same integers; the tests compare them on thousands of molecules. Feature sets: ``gin`` is GraphMVP's and
MolFM's (Liu et al., ICLR 2022; Luo et al., arXiv 2307.09484: atomic number, chirality; bond type, direction), ``full`` holds what
chemprop v2 feeds its networks (Heid et al., J. Chem. Inf. Model. 64, 9-17, 2024), as categories for embedding tables.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from polyfm.domains.molecules.smiles_graph import SmilesGraphs, read_smiles
from polyfm.shared.data.batch import Graphs
from polyfm.shared.errors import DataError, MissingExtraError, RecipeError

try:
    from rdkit import Chem, rdBase
except ImportError as error:
    raise MissingExtraError("rdkit", "molecules") from error

Ints = NDArray[np.int64]

_STANDARD_WEIGHT = Chem.GetPeriodicTable().GetAtomicWeight


@dataclass(frozen=True, slots=True)
class Field:
    """One categorical feature of an atom or a bond."""

    name: str
    """What it is."""
    values: tuple[int, ...]
    """RDKit's numbers that have a category of their own, in order; the last category takes all others."""
    read: Callable[[Any], int]
    """The number of an RDKit atom or bond."""

    @property
    def size(self) -> int:
        """Categories, "other" included."""
        return len(self.values) + 1

    def categories(self, numbers: NDArray[Any]) -> Ints:
        """(n,) categories of RDKit's numbers (n,)."""
        low, high = min(self.values), max(self.values)
        table = np.full(high - low + 3, len(self.values))  # one cell more on either side, for what lies outside
        table[np.array(self.values) - low + 1] = np.arange(len(self.values))
        return table[numbers.clip(low - 1, high + 1) - low + 1]


def _isotope(atom: Any) -> int:
    """0 without a label; else mass number minus standard weight, rounded, 1 upwards if not lighter ([2H]: 2, [11C]: -1)."""
    label = atom.GetIsotope()
    shift = label - round(_STANDARD_WEIGHT(atom.GetAtomicNum()))
    return 0 if label == 0 else shift + (shift >= 0)


ATOM_FIELDS = (
    Field("atomic_number", tuple(range(1, 119)), lambda atom: atom.GetAtomicNum()),
    Field("chirality", (0, 1, 2, 3), lambda atom: int(atom.GetChiralTag())),  # none, clockwise, counter-clockwise, other
    Field("degree", tuple(range(7)), lambda atom: atom.GetTotalDegree()),  # hydrogens counted
    Field("charge", tuple(range(-3, 4)), lambda atom: atom.GetFormalCharge()),
    Field("hydrogens", tuple(range(5)), lambda atom: atom.GetTotalNumHs()),
    Field("hybridisation", tuple(range(1, 8)), lambda atom: int(atom.GetHybridization())),  # s sp sp2 sp3 sp2d sp3d sp3d2
    Field("aromatic", (0, 1), lambda atom: int(atom.GetIsAromatic())),
    Field("in_ring", (0, 1), lambda atom: int(atom.IsInRing())),
    Field("isotope", tuple(range(-4, 6)), _isotope),  # with the atomic number this is the mass
)
BOND_FIELDS = (
    Field("type", (1, 2, 3, 12), lambda bond: int(bond.GetBondType())),  # single, double, triple, aromatic
    Field("direction", (0, 4, 3), lambda bond: int(bond.GetBondDir())),  # none, / and \ from the atom that comes first
    Field("stereo", tuple(range(6)), lambda bond: int(bond.GetStereo())),  # none, any, Z, E, cis, trans
    Field("conjugated", (0, 1), lambda bond: int(bond.GetIsConjugated())),
    Field("in_ring", (0, 1), lambda bond: int(bond.IsInRing())),
)


@dataclass(frozen=True, slots=True)
class FieldSet:
    """The columns of a graph's features."""

    atoms: tuple[Field, ...]
    """F columns of `Graphs.node_features`."""
    bonds: tuple[Field, ...]
    """F' columns of `Graphs.edge_features`."""


FIELD_SETS = {
    "gin": FieldSet(
        tuple(field for field in ATOM_FIELDS if field.name in ("atomic_number", "chirality")),
        tuple(field for field in BOND_FIELDS if field.name in ("type", "direction")),
    ),
    "full": FieldSet(ATOM_FIELDS, tuple(field for field in BOND_FIELDS if field.name != "direction")),
}


def field_set(name: str) -> FieldSet:
    """A feature set by its name in a recipe."""
    if name not in FIELD_SETS:
        raise RecipeError(f"there is no feature set {name!r}", remedy=f"Choose one of: {', '.join(FIELD_SETS)}")
    return FIELD_SETS[name]


class AtomGraph(NamedTuple):
    """One molecule as a graph of A atoms and E directed bonds."""

    node_features: Ints
    """(A, F) categories, in RDKit's order of atoms."""
    edge_index: Ints
    """(2, E) from, to; bonds by their higher atom, then the lower one; edge ``i ^ 1`` is edge ``i`` backwards."""
    edge_features: Ints
    """(E, F') categories, the same in both directions."""


def atom_graph(mol: Any, fields: str = "full") -> AtomGraph:
    """The graph of one RDKit molecule.

    Args:
        mol: Sanitised, as `Chem.MolFromSmiles` gives it.
        fields: A feature set.
    """
    chosen = field_set(fields)
    atoms, bonds = list(mol.GetAtoms()), list(mol.GetBonds())
    ends = np.array([(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()) for bond in bonds], np.int64).reshape(-1, 2)
    ends.sort(axis=1)
    by_end = np.lexsort(ends.T)
    return AtomGraph(
        _columns(chosen.atoms, {f.name: np.array([f.read(atom) for atom in atoms], np.int64) for f in chosen.atoms}),
        _both_ways(*ends[by_end].T),
        _columns(
            chosen.bonds, {f.name: np.array([f.read(bond) for bond in bonds], np.int64)[by_end] for f in chosen.bonds}
        ).repeat(2, axis=0),
    )


def atom_graphs(smiles: Sequence[str], fields: str = "full") -> Graphs:
    """The graphs of a batch, from text to packed tensors in one go.

    Args:
        smiles: B SMILES, canonical as `read` writes them (see `smiles_graph` for why).
        fields: A feature set.

    Returns:
        B graphs; ``rows`` counts from 0. Per graph the same numbers as `atom_graph`.

    Raises:
        DataError: If RDKit refuses a SMILES or it has no atoms.
    """
    chosen = field_set(fields)
    read = read_smiles(smiles)
    stereo = _bond_stereo(smiles, read)
    nodes = _columns(chosen.atoms, read.atoms)
    edges = _columns(chosen.bonds, read.bonds | stereo)
    molecule, begin, end = read.molecule, read.begin, read.end

    others = np.flatnonzero(read.unread)
    if len(others):
        graphs = [atom_graph(_parse(smiles[index], index), fields) for index in others]
        sizes = [len(graph.node_features) for graph in graphs]
        offsets = len(nodes) + np.cumsum([0, *sizes[:-1]])
        ends = [graph.edge_index[:, ::2] + offset for graph, offset in zip(graphs, offsets, strict=True)]
        begin, end = np.concatenate([np.stack((begin, end)), *ends], axis=1)
        edges = np.concatenate([edges, *(graph.edge_features[::2] for graph in graphs)])
        nodes = np.concatenate([nodes, *(graph.node_features for graph in graphs)])
        molecule = np.concatenate([molecule, others.repeat(sizes)])
        # Back into the order of the batch.
        by_molecule, by_bond = (np.argsort(owner, kind="stable") for owner in (molecule, molecule[end]))
        place = np.argsort(by_molecule)
        nodes, molecule = nodes[by_molecule], molecule[by_molecule]
        begin, end, edges = place[begin[by_bond]], place[end[by_bond]], edges[by_bond]

    sizes = np.bincount(molecule, minlength=len(smiles))
    return Graphs(
        rows=torch.arange(len(smiles)),
        node_features=torch.from_numpy(nodes),
        edge_index=torch.from_numpy(_both_ways(begin, end)),
        edge_features=torch.from_numpy(edges.repeat(2, axis=0)),
        cu_nodes=torch.from_numpy(np.concatenate(([0], np.cumsum(sizes))).astype(np.int32)),
    )


def _columns(fields: Sequence[Field], numbers: dict[str, NDArray[Any]]) -> Ints:
    columns = np.empty((len(next(iter(numbers.values()))), len(fields)), np.int64)
    for index, field in enumerate(fields):
        columns[:, index] = field.categories(numbers[field.name])
    return columns


def _both_ways(begin: NDArray[Any], end: NDArray[Any]) -> Ints:
    edges = np.empty((2, 2 * len(begin)), np.int64)
    edges[0, ::2], edges[1, ::2] = begin, end
    edges[0, 1::2], edges[1, 1::2] = end, begin
    return edges


def _bond_stereo(smiles: Sequence[str], read: SmilesGraphs) -> dict[str, Ints]:
    """Stereo and direction of the bonds read; where the text has ``/`` or ``\\``, RDKit is asked what they amount to."""
    stereo, direction = np.zeros((2, len(read.end)), np.int64)
    owner = read.molecule[read.end]
    marked = np.unique(owner[read.marked])
    first_atom, first_bond = np.searchsorted(read.molecule, marked), np.searchsorted(owner, [marked, marked + 1])
    for index, start, low, high in zip(marked, first_atom, *first_bond, strict=True):
        mol = _parse(smiles[index], index)
        asked = np.flatnonzero(read.marked[low:high] | (read.bonds["type"][low:high] == 2)) + low
        for bond in asked.tolist():
            found = mol.GetBondBetweenAtoms(int(read.begin[bond] - start), int(read.end[bond] - start))
            stereo[bond], direction[bond] = int(found.GetStereo()), int(found.GetBondDir())
    return {"stereo": stereo, "direction": direction}


def _parse(smiles: str, index: int) -> Any:
    with rdBase.BlockLogs():  # the error below says it
        mol = Chem.MolFromSmiles(smiles)
    if mol is None or mol.GetNumAtoms() == 0:
        raise DataError(
            f"not a molecule: {smiles!r}",
            where=f"molecule {index} of the batch",
            remedy="Read tables with polyfm.domains.molecules.read, which sets such rows aside",
        )
    return mol
