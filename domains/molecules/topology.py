"""Topological indices of a molecule, computed together from one reading of its graph.

RDKit computes each index by itself and so reads atoms, finds paths and fills distance matrices many times over. Here
the graph is read once and the indices share what they need. Every sum and product runs in RDKit's own order, so the
values are bit-equal to `rdkit.Chem.GraphDescriptors`, `rdkit.Chem.EState` and `rdMolDescriptors.CalcChi*`/`CalcKappa*`;
the tests hold them to that. Hydrogens must be implicit (RDKit's path finder leaves explicit ones out).

Sources: chi and kappa, Hall & Kier, Rev. Comput. Chem. 2, 367-422 (1991); E-state, Hall, Mohney & Kier, J. Chem. Inf.
Comput. Sci. 31, 76-81 (1991); Balaban, Chem. Phys. Lett. 89, 399-404 (1982); Bertz, J. Am. Chem. Soc. 103, 3599-3601
(1981).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyfm.shared.errors import MissingExtraError

try:
    from rdkit import Chem
    from rdkit.Chem.EState.EState import GetPrincipleQuantumNumber
    from rdkit.ML.InfoTheory import entropy
except ImportError as error:
    raise MissingExtraError("rdkit", "molecules") from error

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

_ENTROPY: Any = entropy  # has no types
_TABLE = Chem.GetPeriodicTable()
_ELEMENTS = range(119)  # 0 is the wildcard atom
_OUTER = np.array([_TABLE.GetNOuterElecs(z) for z in _ELEMENTS])
_ESTATE_SCALE = np.array([4.0 / (n * n) for n in map(GetPrincipleQuantumNumber, _ELEMENTS)])
_BERTZ_CUTOFF = 100
_FAR = 1e6
"""Distances from here on mean "in another fragment" to RDKit."""


@dataclass(frozen=True, slots=True)
class Skeleton:
    """The graph of a molecule with A heavy atoms and E bonds, as arrays."""

    numbers: Integers
    """(A,) atomic numbers."""
    degrees: Integers
    """(A,) neighbours."""
    hydrogens: Integers
    """(A,) implicit hydrogens."""
    charges: Integers
    """(A,) formal charges, e."""
    radicals: Integers
    """(A,) unpaired electrons."""
    bonds: Integers
    """(E, 2) begin and end atom of every bond, in RDKit's order."""
    neighbours: list[list[tuple[int, float]]]
    """Per atom its neighbours, ascending, with the bond's order."""

    @classmethod
    def of(cls, mol: Any) -> Skeleton:
        """Read an RDKit molecule."""
        # Atom by index: RDKit's own iterator over atoms costs a third more.
        atoms = [mol.GetAtomWithIdx(index) for index in range(mol.GetNumAtoms())]
        columns = [
            (a.GetAtomicNum(), a.GetDegree(), a.GetTotalNumHs(), a.GetFormalCharge(), a.GetNumRadicalElectrons())
            for a in atoms
        ]
        bonds = [
            (b.GetBeginAtomIdx(), b.GetEndAtomIdx(), 1.5 if b.GetIsAromatic() else b.GetBondTypeAsDouble())
            for b in mol.GetBonds()
        ]
        neighbours: list[list[tuple[int, float]]] = [[] for _ in atoms]
        for begin, end, order in bonds:
            neighbours[begin].append((end, order))
            neighbours[end].append((begin, order))
        for near in neighbours:
            near.sort()
        ends = np.array([bond[:2] for bond in bonds], dtype=np.int64).reshape(-1, 2)
        numbers, degrees, hydrogens, charges, radicals = np.array(columns, dtype=np.int64).T
        return cls(numbers, degrees, hydrogens, charges, radicals, ends, neighbours)

    @property
    def valence_electrons(self) -> int:
        """Outer electrons of all atoms, hydrogens and charge included."""
        return int((_OUTER[self.numbers] - self.charges + self.hydrogens).sum())


def _in_order(values: Floats) -> float:
    # NumPy's sum() adds pairwise and Python's compensates from 3.12 on; RDKit adds one after the other.
    return float(np.add.accumulate(values)[-1]) if len(values) else 0.0


def chi_simple(graph: Skeleton) -> tuple[float, float]:
    """Chi0 and Chi1: sums of 1/sqrt(degree) over atoms, of 1/sqrt(degree product) over bonds."""
    degrees = graph.degrees.astype(np.float64)
    per_bond = degrees[graph.bonds[:, 0]] * degrees[graph.bonds[:, 1]]
    return _in_order(np.sqrt(1.0 / degrees[degrees > 0])), _in_order(np.sqrt(1.0 / per_bond))


def chi_weights(graph: Skeleton) -> tuple[Floats, Floats]:
    """1/sqrt(delta) of every atom for ChiNn (delta = outer electrons - hydrogens) and for ChiNv (Hall-Kier delta)."""
    plain = (_OUTER[graph.numbers] - graph.hydrogens).astype(np.float64)
    # From the second row on, Hall and Kier divide by the number of core electrons.
    core = np.where(graph.numbers > 10, graph.numbers - _OUTER[graph.numbers] - 1, 1)
    with np.errstate(divide="ignore", invalid="ignore"):  # negative deltas (odd metals) are NaN in RDKit too
        valence = np.where(graph.numbers > 1, plain / core, 0.0)
        return tuple(np.where(delta != 0, 1.0 / np.sqrt(delta), 0.0) for delta in (plain, valence))  # type: ignore[return-value]


@dataclass(frozen=True, slots=True)
class PathIndices:
    """What the paths of two, three and four bonds say."""

    chi: tuple[float, float, float, float, float, float]
    """Chi2n, Chi2v, Chi3n, Chi3v, Chi4n, Chi4v: sums over paths of the product of atom weights."""
    num_paths: tuple[int, int]
    """Paths of two and of three bonds."""


def path_indices(graph: Skeleton, plain: Floats, valence: Floats) -> PathIndices:
    """Walk every path of up to four bonds once, in RDKit's (lexicographic) order, with running products.

    A path is a set of bonds without branches; its last atom may close a ring. Of a path's two directions, and of a
    ring's many starts, the lexicographically first counts.

    Args:
        graph: The molecule.
        plain: (A,) weights for ChiNn, from `chi_weights`.
        valence: (A,) weights for ChiNv.
    """
    near = [[atom for atom, _ in neighbours] for neighbours in graph.neighbours]
    p, v = plain.tolist(), valence.tolist()
    chi2n = chi2v = chi3n = chi3v = chi4n = chi4v = 0.0
    num2 = num3 = 0
    for a, near_a in enumerate(near):
        for b in near_a:
            pb, vb = p[a] * p[b], v[a] * v[b]
            for c in near[b]:
                if c == a:
                    continue
                pc, vc = pb * p[c], vb * v[c]
                if a < c:
                    chi2n, chi2v, num2 = chi2n + pc, chi2v + vc, num2 + 1
                for d in near[c]:
                    if d == b:
                        continue
                    if d == a:  # a ring of three; the atom that closes it counts once
                        if a < b < c:
                            chi3n, chi3v, num3 = chi3n + pc, chi3v + vc, num3 + 1
                        continue
                    pd, vd = pc * p[d], vc * v[d]
                    if a < d:
                        chi3n, chi3v, num3 = chi3n + pd, chi3v + vd, num3 + 1
                    for e in near[d]:
                        if e == a:  # a ring of four
                            if a < b < d and a < c:
                                chi4n, chi4v = chi4n + pd, chi4v + vd
                        elif e == b:  # a ring of three with a tail; here RDKit counts the closing atom twice
                            if c < d:
                                chi4n, chi4v = chi4n + pd * p[b], chi4v + vd * v[b]
                        elif a < e and e != c:
                            chi4n, chi4v = chi4n + pd * p[e], chi4v + vd * v[e]
    return PathIndices((chi2n, chi2v, chi3n, chi3v, chi4n, chi4v), (num2, num3))


def kappa(order: int, num_paths: int, num_atoms: int, alpha: float) -> float:
    """Hall-Kier shape index of order 2 or 3.

    Args:
        order: 2 or 3.
        num_paths: Paths of that many bonds.
        num_atoms: Heavy atoms.
        alpha: Hall-Kier alpha.
    """
    denominator = (num_paths + alpha) * (num_paths + alpha)
    if denominator == 0:
        return 0.0
    first, second = (1, 2) if order == 2 else (1, 3) if num_atoms % 2 else (2, 3)
    return (num_atoms + alpha - first) * (num_atoms + alpha - second) * (num_atoms + alpha - second) / denominator


def estate(graph: Skeleton, distances: Floats) -> Floats:
    """(A,) electrotopological state of every atom.

    Args:
        graph: The molecule.
        distances: (A, A) bonds between atoms.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        valence = _ESTATE_SCALE[graph.numbers] * (_OUTER[graph.numbers] - graph.hydrogens) + 1
        intrinsic = np.where(graph.degrees > 0, valence / graph.degrees, 0.0)
    spread = distances + 1
    perturbation = (intrinsic[None, :] - intrinsic[:, None]) / (spread * spread)
    perturbation[spread >= _FAR] = 0.0
    indices: Floats = np.add.accumulate(perturbation, axis=0)[-1] + intrinsic
    return indices


def balaban_j(graph: Skeleton, distances: Floats) -> float:
    """Balaban's J.

    Args:
        graph: The molecule.
        distances: (A, A) sums of 1/bond order along shortest paths.
    """
    num_bonds = len(graph.bonds)
    cycles_plus_one = num_bonds - len(graph.numbers) + 2
    if cycles_plus_one == 0:
        return 0.0
    sums = np.add.accumulate(distances, axis=0)[-1]
    in_order = [(low, high) for low, near in enumerate(graph.neighbours) for high, _ in near if low < high]
    low, high = np.array(in_order, dtype=np.int64).reshape(-1, 2).T
    return num_bonds / cycles_plus_one * _in_order(1.0 / np.sqrt(sums[low] * sums[high]))


def bertz_ct(graph: Skeleton, distances: Floats) -> float:
    """Bertz's complexity: information content of the bonding plus that of the elements.

    Args:
        graph: The molecule.
        distances: (A, A) sums of 1/bond order along shortest paths.
    """
    num_atoms = len(graph.numbers)
    if num_atoms < 2:
        return 0.0
    # Atoms are equivalent if their sorted distances agree to four decimals; multiples of 1/12 never sit on a tie.
    rows = np.rint(np.sort(distances, axis=1)[:, :_BERTZ_CUTOFF] * 1e4)
    classes: dict[bytes, int] = {}
    kind = [classes.setdefault(row.tobytes(), len(classes)) for row in rows]
    connections: dict[tuple[int, ...], float] = {}  # the order of insertion is the order of RDKit's sum
    for hinge, near in enumerate(graph.neighbours):
        middle = kind[hinge]
        for index, (one, first) in enumerate(near):
            left = kind[one]
            if first > 1 and one > hinge:
                key: tuple[int, ...] = (middle, left) if middle < left else (left, middle)
                connections[key] = connections.get(key, 0) + first * (first - 1) / 2
            for other, second in near[index + 1 :]:
                right = kind[other]
                key = (left, middle, right) if left < right else (right, middle, left)
                connections[key] = connections.get(key, 0) + first * second
    elements: dict[int, int] = {}
    for number in graph.numbers.tolist():
        elements[number] = elements.get(number, 0) + 1
    counts = list(connections.values()) or [1.0]
    total = sum(counts)
    bonding = total * (_ENTROPY.InfoEntropy(np.array(counts, dtype=np.float64)) + math.log(total) / math.log(2))
    return float(num_atoms * _ENTROPY.InfoEntropy(np.array(list(elements.values()), dtype=np.float64)) + bonding)
