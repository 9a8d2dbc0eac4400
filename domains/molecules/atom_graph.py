"""Molecules as graphs: atoms and bonds with categorical features, one molecule or a whole batch.

    SMILES ── smiles_graph.read_smiles ──▶ RDKit's numbers ── Field.categories ──▶ Graphs
        └──── what it leaves unread ──▶ RDKit molecule ── atom_graph ──────────────────┘

Both ways give the same integers; the tests compare them on thousands of molecules. Feature sets: ``gin`` is that of
GraphMVP and MolFM (atomic number, chirality; bond type, direction); ``full`` holds what chemprop v2 feeds its networks
by default (Heid et al., J. Chem. Inf. Model. 64, 9-17, 2024), as categories for embedding tables.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from polyfm.domains.molecules.smiles_graph import Ints, Numbers, SmilesGraphs, read_smiles
from polyfm.shared.data.batch import Graphs
from polyfm.shared.errors import DataError, MissingExtraError, require

try:
    from rdkit import Chem, rdBase
except ImportError as error:
    raise MissingExtraError("rdkit", "molecules") from error

Answer = TypeVar("Answer")
_DOUBLE = int(Chem.BondType.DOUBLE)
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
        low, table = _lookup(self.values)
        found: Ints = table[(numbers - low).clip(0, len(table) - 1)]
        return found


@functools.cache
def _lookup(values: tuple[int, ...]) -> tuple[int, Ints]:
    """Category by number, from the lowest number given; one cell more on either side for what lies outside."""
    low = min(values) - 1
    table = np.full(max(values) + 2 - low, len(values))
    table[np.array(values) - low] = np.arange(len(values))
    return low, table


def _isotope(atom: Any) -> int:
    """0 without a label; else mass number minus standard weight, counted from 1 if not lighter ([2H]: 2, [11C]: -1)."""
    label = atom.GetIsotope()
    shift = label - round(_STANDARD_WEIGHT(atom.GetAtomicNum()))
    return 0 if label == 0 else shift + (shift >= 0)


ATOM_FIELDS = (
    Field("atomic_number", tuple(range(1, 119)), Chem.Atom.GetAtomicNum),
    Field("chirality", (0, 1, 2, 3), Chem.Atom.GetChiralTag),  # none, clockwise, counter-clockwise, other
    Field("degree", tuple(range(7)), Chem.Atom.GetTotalDegree),  # hydrogens counted
    Field("charge", tuple(range(-3, 4)), Chem.Atom.GetFormalCharge),
    Field("hydrogens", tuple(range(5)), Chem.Atom.GetTotalNumHs),
    Field("hybridisation", tuple(range(1, 8)), Chem.Atom.GetHybridization),  # s sp sp2 sp3 sp2d sp3d sp3d2
    Field("aromatic", (0, 1), Chem.Atom.GetIsAromatic),
    Field("in_ring", (0, 1), Chem.Atom.IsInRing),
    Field("isotope", tuple(range(-4, 6)), _isotope),  # with the atomic number this is the mass
)
"""What is known of an atom."""
BOND_FIELDS = (
    Field("type", (1, 2, 3, 12), Chem.Bond.GetBondType),  # single, double, triple, aromatic
    Field("direction", (0, 4, 3), Chem.Bond.GetBondDir),  # none, / and \
    Field("stereo", tuple(range(6)), Chem.Bond.GetStereo),  # none, any, Z, E, cis, trans
    Field("conjugated", (0, 1), Chem.Bond.GetIsConjugated),
    Field("in_ring", (0, 1), Chem.Bond.IsInRing),
)
"""What is known of a bond."""


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
"""By the name that recipes use."""
_STEREO = FieldSet((), tuple(field for field in BOND_FIELDS if field.name in ("stereo", "direction")))


def field_set(name: str, where: str = "fields") -> FieldSet:
    """A feature set by its name in a recipe.

    Args:
        name: A key of `FIELD_SETS`.
        where: Who asks, for the message: ``Class.argument``.
    """
    require(name in FIELD_SETS, where, f"one of {', '.join(FIELD_SETS)}", name)
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
    return _encode(_ask(mol, chosen), chosen)


def atom_graphs(smiles: Sequence[str], fields: str = "full") -> Graphs:
    """The graphs of a batch, from text to packed tensors in one go.

    Args:
        smiles: B SMILES, canonical as `read_molecules` gives them (see `smiles_graph` for why).
        fields: A feature set.

    Returns:
        B graphs, each as `atom_graph` gives it; ``rows`` counts from 0.

    Raises:
        DataError: If RDKit refuses a SMILES or it has no atoms.
    """
    chosen = field_set(fields)
    read = read_smiles(smiles)
    numbers = _Molecules(read.atoms, read.begin, read.end, read.bonds | _bond_stereo(smiles, read))
    molecule = read.molecule
    others = np.flatnonzero(read.unread)
    if len(others):
        asked = [_asked(smiles, index, lambda text: _ask(_parse(text), chosen)) for index in others.tolist()]
        numbers, molecule = _insert(numbers, molecule, asked, others)
    graph = _encode(numbers, chosen)
    ends = np.cumsum(np.bincount(molecule, minlength=len(smiles)))
    return Graphs(
        rows=torch.arange(len(smiles)),
        node_features=torch.from_numpy(graph.node_features),
        edge_index=torch.from_numpy(graph.edge_index),
        edge_features=torch.from_numpy(graph.edge_features),
        cu_nodes=torch.from_numpy(np.concatenate(([0], ends)).astype(np.int32)),
    )


class _Molecules(NamedTuple):
    """RDKit's numbers for the fields of one molecule or several, bonds sorted by (end, begin)."""

    atoms: Numbers
    """(A,) by field."""
    begin: Ints
    """(E,) the bond's lower atom."""
    end: Ints
    """(E,) its higher atom."""
    bonds: Numbers
    """(E,) by field."""


def _ask(mol: Any, chosen: FieldSet) -> _Molecules:
    # Atom by index: RDKit's own iterators cost a third more.
    atoms = list(map(mol.GetAtomWithIdx, range(mol.GetNumAtoms())))
    bonds = list(map(mol.GetBondWithIdx, range(mol.GetNumBonds())))
    one, other = (
        np.fromiter(map(read, bonds), np.int64, len(bonds))
        for read in (Chem.Bond.GetBeginAtomIdx, Chem.Bond.GetEndAtomIdx)
    )
    begin, end = np.minimum(one, other), np.maximum(one, other)
    by_end = np.lexsort((begin, end))
    return _Molecules(
        {field.name: np.fromiter(map(field.read, atoms), np.int64, len(atoms)) for field in chosen.atoms},
        begin[by_end],
        end[by_end],
        {field.name: np.fromiter(map(field.read, bonds), np.int64, len(bonds))[by_end] for field in chosen.bonds},
    )


def _insert(numbers: _Molecules, molecule: Ints, asked: list[_Molecules], others: Ints) -> tuple[_Molecules, Ints]:
    """Put molecules that RDKit was asked about among the others, in the order of the batch.

    Args:
        numbers: Of the molecules read.
        molecule: (A,) their place in the batch, per atom.
        asked: One per molecule that was not read.
        others: Their places in the batch.
    """
    parts = [numbers, *asked]
    offsets = np.cumsum([0, *(len(part.atoms["atomic_number"]) for part in parts)])
    molecule = np.concatenate((molecule, others.repeat(np.diff(offsets[1:]))))
    begin = np.concatenate([part.begin + offset for part, offset in zip(parts, offsets[:-1], strict=True)])
    end = np.concatenate([part.end + offset for part, offset in zip(parts, offsets[:-1], strict=True)])
    by_atom, by_bond = (np.argsort(owner, kind="stable") for owner in (molecule, molecule[end]))
    place = np.argsort(by_atom)
    atoms = {name: np.concatenate([part.atoms[name] for part in parts])[by_atom] for name in asked[0].atoms}
    bonds = {name: np.concatenate([part.bonds[name] for part in parts])[by_bond] for name in asked[0].bonds}
    return _Molecules(atoms, place[begin[by_bond]], place[end[by_bond]], bonds), molecule[by_atom]


def _encode(numbers: _Molecules, chosen: FieldSet) -> AtomGraph:
    num_atoms, num_bonds = len(numbers.atoms["atomic_number"]), len(numbers.end)
    nodes = np.empty((num_atoms, len(chosen.atoms)), np.int64)
    for column, field in enumerate(chosen.atoms):
        nodes[:, column] = field.categories(numbers.atoms[field.name])
    edges = np.empty((num_bonds, 2, len(chosen.bonds)), np.int64)
    for column, field in enumerate(chosen.bonds):
        edges[:, :, column] = field.categories(numbers.bonds[field.name])[:, None]
    index = np.empty((2, num_bonds, 2), np.int64)
    index[0, :, 0] = index[1, :, 1] = numbers.begin
    index[0, :, 1] = index[1, :, 0] = numbers.end
    return AtomGraph(nodes, index.reshape(2, -1), edges.reshape(-1, len(chosen.bonds)))


def _bond_stereo(smiles: Sequence[str], read: SmilesGraphs) -> dict[str, Ints]:
    """(E,) stereo and direction of the bonds read; RDKit is asked where the text marks a double bond."""
    both = np.zeros((2, len(read.end)), np.int64)
    owner = read.molecule[read.end]
    relevant = read.marked | (read.bonds["type"] == _DOUBLE)
    for index in np.unique(owner[read.marked]).tolist():
        of_molecule = slice(*np.searchsorted(owner, (index, index + 1)))
        both[:, of_molecule] = np.where(relevant[of_molecule], _asked(smiles, index, _stereo_of), 0)
    return {"stereo": both[0], "direction": both[1]}


# A molecule comes back in every pass, and this is most of what its graph costs; 0.3 kB each.
@functools.lru_cache(maxsize=100_000)
def _stereo_of(smiles: str) -> NDArray[np.int8]:
    """(2, E) RDKit's stereo and direction of each bond, sorted by (end, begin)."""
    asked = _ask(_parse(smiles), _STEREO)
    return np.array([asked.bonds["stereo"], asked.bonds["direction"]], dtype=np.int8)


def _asked(smiles: Sequence[str], index: int, ask: Callable[[str], Answer]) -> Answer:
    """What RDKit says of one molecule of a batch."""
    try:
        return ask(smiles[index])
    except DataError as error:
        error.where = f"molecule {index} of the batch"
        raise


def _parse(smiles: str) -> Any:
    with rdBase.BlockLogs():  # the error below says it
        mol = Chem.MolFromSmiles(smiles)
    if mol is None or mol.GetNumAtoms() == 0:
        raise DataError(
            f"{smiles!r} is not a molecule",
            remedy="Read the file with read_molecules, which sorts such rows out",
        )
    return mol
