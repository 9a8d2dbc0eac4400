"""Read canonical SMILES into atoms and bonds, a whole batch at once, in numpy.

RDKit needs some 70 µs to parse and sanitise a drug-sized molecule, and a Python loop over its atoms and bonds thrice
that again. A SMILES that RDKit wrote already states the outcome of the expensive steps (aromaticity, which centres are
stereogenic); the rest is local arithmetic on the graph, which all molecules of a batch do together in 11 µs each.

What is read: closed-shell molecules of C, N, O, F, P, S, Cl, Br and I, charged or not, with tetrahedral centres of four
substituents. Whatever else occurs (metals, radicals, boron, isotopes, explicit hydrogens, atom maps, sulfoxide centres,
wrong syntax, impossible valences) is reported as *unread*, for RDKit to decide. The definitions are RDKit's (valence
model, conjugation, hybridisation; the same in 2025.03 to 2026.09), and the tests hold every number against RDKit on
thousands of molecules.

The input must be *canonical* SMILES, as `read_molecules` gives them: lower case is believed to be aromatic and ``@`` to
mark a true centre; a Kekulé form would not be recognised as aromatic, nor an impossible aromatic ring as impossible.

Letters: T tokens, A atoms, E bonds, B molecules, C ring closures.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from polyfm.shared.errors import DataError

Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]
Numbers = dict[str, NDArray[Any]]


class SmilesGraphs(NamedTuple):
    """The molecules of a batch that could be read, packed one after the other, in RDKit's numbers."""

    molecule: Ints
    """(A,) which SMILES of the batch an atom belongs to, ascending; atoms in the order of the text, as in RDKit."""
    atoms: Numbers
    """(A,) each: atomic_number, chirality, degree, charge, hydrogens, hybridisation, aromatic, in_ring, isotope."""
    begin: Ints
    """(E,) the bond's atom that comes first in the text."""
    end: Ints
    """(E,) the other one; bonds are sorted by (end, begin)."""
    bonds: Numbers
    """(E,) each: type, conjugated, in_ring."""
    marked: Flags
    """(E,) the bond is written ``/`` or ``\\``: the text holds double-bond stereo, which is not resolved here."""
    unread: Flags
    """(B,) left to RDKit: no atom of this molecule is above."""


# --- Tokens: one int each, what it is in the lowest three bits and the rest above. ------------------------------------

_TOKEN = re.compile(r"\[[^\]\n]*\]|Br|Cl|%\d\d|.|\n")
_UNKNOWN, _ATOM, _BOND, _OPEN, _CLOSE, _RING, _DOT, _END = range(8)
_SINGLE, _AROMATIC, _DOUBLE, _TRIPLE = 2, 3, 4, 6  # twice the bond order, so that sums stay integers
_MARK = 8  # the symbols / and \, which leave the order open: aromatic between aromatic atoms, else single
_BRACKET = re.compile(
    r"\[(?P<symbol>[A-Z][a-z]?|[cnops])(?P<tag>@{0,2})(?P<hydrogen>H(?P<hydrogens>\d?))?(?P<charge>[+-]\d?)?\]"
)
_ELEMENTS = {"C": 6, "N": 7, "O": 8, "F": 9, "P": 15, "S": 16, "Cl": 17, "Br": 35, "I": 53}
_AROMATIC_ELEMENTS = {"c": 6, "n": 7, "o": 8, "p": 15, "s": 16}
_CHARGE_OFFSET = 16
_CW, _CCW = 1, 2  # RDKit's ChiralType


def _atom_code(symbol: str, *, implicit: bool, hydrogens: int = 0, charge: int = 0, tag: int = 0) -> int:
    """Pack an atom token; 0 (unknown) for an element outside the organic subset."""
    number = _ELEMENTS.get(symbol) or _AROMATIC_ELEMENTS.get(symbol)
    if number is None:
        return _UNKNOWN
    aromatic = symbol in _AROMATIC_ELEMENTS
    flags = aromatic << 3 | implicit << 4 | tag << 5 | hydrogens << 7
    return _ATOM | flags | (charge + _CHARGE_OFFSET) << 11 | number << 16


class _Codes(dict[str, int]):
    """Token to code; bracket atoms are taken apart the first time they occur."""

    def __missing__(self, token: str) -> int:
        match = _BRACKET.fullmatch(token)
        if match is None:
            return _UNKNOWN  # not stored: the set of unknown tokens has no bound
        charge = match["charge"] or "+0"
        self[token] = _atom_code(
            match["symbol"],
            implicit=False,
            hydrogens=int(match["hydrogens"] or 1) if match["hydrogen"] else 0,
            charge=int(charge if len(charge) > 1 else charge + "1"),
            tag=(0, _CCW, _CW)[len(match["tag"])],
        )
        return self[token]


_CODES = _Codes(
    {symbol: _atom_code(symbol, implicit=True) for symbol in [*_ELEMENTS, *_AROMATIC_ELEMENTS]}
    | {str(digit): _RING | digit << 3 for digit in range(10)}
    | {f"%{number}": _RING | number << 3 for number in range(10, 100)}
    | {"-": _BOND | _SINGLE << 3, "=": _BOND | _DOUBLE << 3, "#": _BOND | _TRIPLE << 3}
    | {mark: _BOND | _MARK << 3 for mark in "/\\"}
    | {"(": _OPEN, ")": _CLOSE, ".": _DOT, "\n": _END}
)

_FOLLOWS = np.zeros((8, 8), bool)  # [a, b]: token b may stand after token a
_AFTER_ATOM = [_ATOM, _BOND, _OPEN, _CLOSE, _RING, _DOT, _END]
for _token, _next in (
    (_END, [_ATOM]),
    (_DOT, [_ATOM]),
    (_ATOM, _AFTER_ATOM),
    (_RING, _AFTER_ATOM),
    (_BOND, [_ATOM, _RING]),
    (_OPEN, [_ATOM, _BOND]),
    (_CLOSE, [_ATOM, _BOND, _OPEN, _CLOSE, _DOT, _END]),
):
    _FOLLOWS[_token, _next] = True

# --- Elements. Valences go by atomic number - charge, the element with the same electrons; -99 allows nothing. --------

_OUTER = np.zeros(128, np.int64)  # electrons in the outer shell
_OUTER[[6, 7, 8, 9, 15, 16, 17, 35, 53]] = [4, 5, 6, 7, 5, 6, 7, 7, 7]
_LOWEST, _HIGHEST = np.full((2, 128), -99)  # allowed valences are lowest, lowest + 2, ... highest
_ELECTRONS = [6, 7, 8, 9, 10, 14, 15, 16, 17, 18, 35, 36, 53, 54]
_LOWEST[_ELECTRONS] = [4, 3, 2, 1, 0, 4, 3, 2, 1, 0, 1, 0, 1, 0]
_HIGHEST[_ELECTRONS] = [4, 3, 2, 1, 0, 4, 7, 6, 1, 0, 1, 0, 5, 0]
_SECOND_ROW = np.isin(np.arange(128), [6, 7, 8])  # those with more than one valence electron to share
_CHALCOGEN = _OUTER == 6
_SP2 = 3
# RDKit's number by orbitals in use: s, s, sp, sp2, sp3, sp3d, sp3d2, none.
_HYBRIDISATION = np.array([1, 1, 2, _SP2, 4, 6, 7, 0])
_BOND_TYPE = np.array([0, 0, 1, 12, 2, 0, 3])  # RDKit's number by twice the bond order
_MAX_CLOSURES = 64  # of one molecule: each takes one bit
_MAX_DEPTH = 1000


class _Text(NamedTuple):
    """The tokens of a batch."""

    kind: Ints
    """(T,) one of the eight above."""
    payload: Ints
    """(T,) what the token says: the packed atom, the bond symbol, the ring number."""
    molecule: Ints
    """(T,) which SMILES."""
    level: NDArray[np.int16]
    """(T,) how many branches are open after the token."""
    before: Ints
    """(T,) kind of the token before, looking past one bond symbol."""
    symbol: Ints
    """(T,) the bond symbol just before, 0 if none."""
    atom: Ints
    """(T,) the last atom up to here."""


class _Atoms(NamedTuple):
    """What the text says about each atom."""

    at: Ints
    """(A,) its token."""
    molecule: Ints
    """(A,) which SMILES."""
    level: NDArray[np.int16]
    """(A,) how many branches are open."""
    root: Flags
    """(A,) nothing before it to be bonded to."""
    number: Ints
    """(A,) atomic number."""
    charge: Ints
    """(A,) formal charge."""
    hydrogens: Ints
    """(A,) as written in brackets."""
    implicit: Flags
    """(A,) no brackets: the valence model adds hydrogens."""
    aromatic: Flags
    """(A,) lower case."""
    tag: Ints
    """(A,) chirality in the order of the text, RDKit's number."""


class _Bonds(NamedTuple):
    """Tree bonds and ring closures, sorted by (end, begin)."""

    begin: Ints
    """(E,) the atom that comes first in the text."""
    end: Ints
    """(E,) the other one."""
    order: Ints
    """(E,) twice the bond order; 3 = aromatic."""
    marked: Flags
    """(E,) written ``/`` or ``\\``."""
    closure: Flags
    """(E,) a ring closure."""
    num_atoms: int
    """A."""

    def per_atom(self, values: Flags | Ints) -> Ints:
        """(A,) sum of the values (E,) of the bonds at each atom."""
        ends = np.concatenate((self.begin, self.end))
        return np.bincount(ends, np.concatenate((values, values)), minlength=self.num_atoms).astype(np.int64)


def read_smiles(smiles: Sequence[str]) -> SmilesGraphs:
    """Atoms, bonds and their features of a batch.

    Args:
        smiles: B canonical SMILES.

    Raises:
        DataError: If one holds a line break.
    """
    text, unread = _scan(smiles)
    atoms = _unpack(text)
    closures = _closures(text, unread)
    parent = _parents(text, atoms)
    children = np.flatnonzero(~atoms.root & ~unread[atoms.molecule])
    bonds = _bonds(text, atoms, closures, parent, children, unread)

    degree = bonds.per_atom(np.ones_like(bonds.end))
    valence, hydrogens, possible = _valence(atoms, degree, bonds.per_atom(bonds.order))
    total_degree = degree + hydrogens
    possible &= (atoms.tag == 0) | ((total_degree == 4) & ((degree == 4) | (hydrogens == 1)))
    ring_bond = bonds.closure | _looped(text, atoms, closures, unread)[bonds.end]
    ring_atom = bonds.per_atom(ring_bond) > 0
    possible &= ring_atom | ~atoms.aromatic
    unread[atoms.molecule[~possible]] = True
    unread[atoms.molecule[bonds.end[(bonds.order == _AROMATIC) & ~ring_bond]]] = True

    conjugated = _conjugated(atoms, bonds, valence, total_degree)
    orbitals = total_degree + (_OUTER[atoms.number] - valence - atoms.charge) // 2
    hybridisation = _HYBRIDISATION[orbitals.clip(0, len(_HYBRIDISATION) - 1)]
    # A lone pair beside a double bond joins in: the second oxygen of an ester is sp2.
    hybridisation[(orbitals == 4) & (total_degree <= 3) & (bonds.per_atom(conjugated) > 0)] = _SP2
    return _keep_read(
        SmilesGraphs(
            molecule=atoms.molecule,
            atoms={
                "atomic_number": atoms.number,
                "chirality": _chirality(text, atoms, closures, np.bincount(parent[children], minlength=len(parent))),
                "degree": total_degree,
                "charge": atoms.charge,
                "hydrogens": hydrogens,
                "hybridisation": hybridisation,
                "aromatic": atoms.aromatic,
                "in_ring": ring_atom,
                "isotope": np.zeros_like(hydrogens),
            },
            begin=bonds.begin,
            end=bonds.end,
            bonds={"type": _BOND_TYPE[bonds.order], "conjugated": conjugated, "in_ring": ring_bond},
            marked=bonds.marked,
            unread=unread,
        )
    )


def _scan(smiles: Sequence[str]) -> tuple[_Text, Flags]:
    """Tokens of the batch, and (B,) where their order is wrong or a token is unknown."""
    tokens = _TOKEN.findall("".join([f"{line}\n" for line in smiles]))
    codes = np.fromiter(map(_CODES.__getitem__, tokens), np.int64, len(tokens))
    kind, payload = codes & 7, codes >> 3
    stops = np.flatnonzero(kind == _END)
    if len(stops) != len(smiles):
        raise DataError("a SMILES must be one line", where=next(repr(line) for line in smiles if "\n" in line))
    molecule = np.repeat(np.arange(len(smiles)), np.diff(stops, prepend=-1))

    adjacent = np.concatenate(([_END], kind))[:-1]
    bonded = np.flatnonzero(adjacent == _BOND)
    symbol = np.zeros_like(payload)
    symbol[bonded] = payload[bonded - 1]
    before = adjacent.copy()
    before[bonded] = adjacent[bonded - 1]

    level = np.cumsum((kind == _OPEN).astype(np.int64) - (kind == _CLOSE))
    level -= np.concatenate(([0], level[stops]))[molecule]  # unbalanced branches do not spread to the next molecule
    wrong = ~_FOLLOWS[adjacent, kind] | (level < 0) | (level > _MAX_DEPTH)
    wrong |= ((kind == _END) | (kind == _DOT)) & (level != 0)
    wrong |= (kind == _RING) & (before != _ATOM) & (before != _RING)
    unread = np.zeros(len(smiles), bool)
    unread[molecule[wrong]] = True
    # 16 bits: NumPy's stable sort is then a radix sort.
    level = level.clip(-1, _MAX_DEPTH).astype(np.int16)
    return _Text(kind, payload, molecule, level, before, symbol, np.cumsum(kind == _ATOM) - 1), unread


def _unpack(text: _Text) -> _Atoms:
    at = np.flatnonzero(text.kind == _ATOM)
    code, before = text.payload[at], text.before[at]
    return _Atoms(
        at=at,
        molecule=text.molecule[at],
        level=text.level[at],
        root=(before == _END) | (before == _DOT),
        number=code >> 13,
        charge=(code >> 8 & 31) - _CHARGE_OFFSET,
        hydrogens=code >> 4 & 15,
        implicit=(code >> 1 & 1).astype(bool),
        aromatic=(code & 1).astype(bool),
        tag=code >> 2 & 3,
    )


def _find(levels: NDArray[Any], places: Ints, level: NDArray[Any], place: Ints) -> tuple[Ints, Ints]:
    """Sort some tokens by level, and find the first of a given level that does not stand before a given place.

    Returns:
        (n,) the tokens' order, and for each query an index into it; one less is the last token before the place.
    """
    span = int(max(places.max(initial=0), place.max(initial=0))) + 1
    order = np.argsort(levels, kind="stable")
    keys = levels[order].astype(np.int64) * span + places[order]
    return order, np.searchsorted(keys, level.astype(np.int64) * span + place)


def _parents(text: _Text, atoms: _Atoms) -> Ints:
    """(A,) the atom that each atom is bonded to in the tree of the text; of no meaning for roots."""
    parent = np.arange(len(atoms.at)) - 1
    before = text.before[atoms.at]
    # Only beside a parenthesis is it not simply the atom before: then it is the last one outside the branch.
    beside = np.flatnonzero((before == _OPEN) | (before == _CLOSE))
    outside = atoms.level[beside] - (before[beside] == _OPEN)
    order, index = _find(atoms.level, np.arange(len(parent)), outside, beside)
    parent[beside] = order[index - 1]
    return parent


def _closures(text: _Text, unread: Flags) -> Ints:
    """(C, 2) tokens that open and close a ring, in RDKit's order of bonds: by molecule and number, then place."""
    at = np.flatnonzero(text.kind == _RING)
    key = text.molecule[at] * 100 + text.payload[at]
    unread[np.flatnonzero(np.bincount(key) & 1) // 100] = True  # a ring that stays open
    kept = ~unread[text.molecule[at]]
    return at[kept][np.argsort(key[kept], kind="stable")].reshape(-1, 2)


def _bonds(text: _Text, atoms: _Atoms, closures: Ints, parent: Ints, children: Ints, unread: Flags) -> _Bonds:
    begin = np.concatenate((parent[children], text.atom[closures[:, 0]]))
    end = np.concatenate((children, text.atom[closures[:, 1]]))
    symbol = np.concatenate((text.symbol[atoms.at[children]], text.symbol[closures].max(1, initial=0)))
    order = symbol & ~_MARK
    plain = np.where(atoms.aromatic[begin] & atoms.aromatic[end], _AROMATIC, _SINGLE)
    order = np.where(order > 0, order, plain)
    closure = np.arange(len(end)) >= len(children)

    key = end * len(atoms.at) + begin
    by_end = np.argsort(key, kind="stable")
    twice = np.flatnonzero(np.diff(key[by_end]) == 0)
    fragment = np.cumsum(atoms.root)
    astray = (fragment[begin] != fragment[end]) | (begin == end)
    unread[atoms.molecule[end[by_end[twice]]]] = True
    unread[atoms.molecule[end[astray]]] = True
    return _Bonds(
        begin=begin[by_end],
        end=end[by_end],
        order=order[by_end],
        marked=(symbol & _MARK > 0)[by_end],
        closure=closure[by_end],
        num_atoms=len(atoms.at),
    )


def _valence(atoms: _Atoms, degree: Ints, twice_order: Ints) -> tuple[Ints, Ints, Flags]:
    """Total valence, hydrogens, and whether RDKit's valence model allows the atom with a closed shell.

    An aromatic bond counts 1.5. An aromatic atom that exceeds a valence by at most 1.5 is taken to have that valence
    (the nitrogen of pyrrole, the fused carbon of naphthalene); without brackets, hydrogens fill up to the next one.
    """
    electrons = atoms.number - atoms.charge
    lowest, highest = _LOWEST[electrons], _HIGHEST[electrons]
    twice = twice_order + 2 * atoms.hydrogens
    excess = twice - 2 * lowest
    steps = np.where(atoms.aromatic, excess // 4, -(-excess // 4))
    valence = lowest + 2 * steps.clip(0, (highest - lowest) // 2)
    as_written = ~atoms.implicit & (~atoms.aromatic | (excess < 0))
    valence = np.where(as_written, twice // 2, valence)
    missing = 2 * valence - twice
    hydrogens = np.where(atoms.implicit, missing.clip(0) // 2, atoms.hydrogens)

    possible = (valence >= lowest) & (valence <= highest) & ((valence - lowest) % 2 == 0)
    possible &= missing >= np.where(atoms.aromatic, -3, 0)
    possible &= (missing % 2 == 0) | (atoms.aromatic & (degree == 3))
    possible &= valence + _OUTER[atoms.number] - atoms.charge >= 8
    return valence, hydrogens, possible


def _looped(text: _Text, atoms: _Atoms, closures: Ints, unread: Flags) -> Flags:
    """(A,) whether the bond from an atom to its parent lies in a ring.

    It does if some ring closure has exactly one end in the atom's subtree. Each closure of a molecule toggles a bit of
    its own at both ends; a subtree is a stretch of the text, so its toggles are the difference of two running XORs.
    """
    molecule = text.molecule[closures[:, 0]]
    counts = np.bincount(molecule)
    number = np.arange(len(molecule)) - np.repeat(np.cumsum(counts) - counts, counts)
    unread[molecule[number >= _MAX_CLOSURES]] = True
    bits = np.zeros(len(atoms.at) + 1, np.uint64)
    toggles = np.left_shift(np.uint64(1), (number % _MAX_CLOSURES).astype(np.uint64))
    np.bitwise_xor.at(bits, text.atom[closures] + 1, toggles[:, None])
    running = np.bitwise_xor.accumulate(bits)

    stops = np.flatnonzero((text.kind == _CLOSE) | (text.kind == _DOT) | (text.kind == _END))
    inside = text.level[stops] + (text.kind[stops] == _CLOSE)
    order, index = _find(inside, stops, atoms.level, atoms.at)
    subtree_end = text.atom[stops[order[index.clip(max=len(order) - 1)]]]
    looped: Flags = running[subtree_end + 1] != running[:-1]
    return looped


def _chirality(text: _Text, atoms: _Atoms, closures: Ints, num_children: Ints) -> Ints:
    """(A,) RDKit's chiral tag: the text's, turned if RDKit's order of bonds is an odd permutation of the text's.

    In the text ring closures stand before the branches, in RDKit after them, by their own order. A first atom's
    hydrogen stands before all neighbours instead of second.
    """
    rank = np.zeros(len(text.kind), np.int64)
    rank[closures] = np.arange(len(closures))[:, None]
    at = np.sort(closures, axis=None)
    owner, rank = text.atom[at], rank[at]
    swaps = np.bincount(owner, minlength=len(atoms.at)) * num_children
    for gap in (1, 2, 3):  # an atom with four substituents closes four rings at most
        swapped = (owner[gap:] == owner[:-gap]) & (rank[gap:] < rank[:-gap])
        swaps += np.bincount(owner[gap:][swapped], minlength=len(atoms.at))
    swaps += atoms.root & (atoms.hydrogens == 1)
    return np.where((atoms.tag > 0) & (swaps % 2 == 1), _CW + _CCW - atoms.tag, atoms.tag)


def _conjugated(atoms: _Atoms, bonds: _Bonds, valence: Ints, total_degree: Ints) -> Flags:
    """(E,) RDKit's conjugation: two bonds at one atom, one of them multiple, between three atoms that can take part.

    An atom can if it has at most three neighbours, is of the second row (or a terminal chalcogen) and, when neutral, is
    not hypervalent.
    """
    able = _SECOND_ROW[atoms.number] | (_CHALCOGEN[atoms.number] & (total_degree < 2))
    able &= (total_degree <= 3) & ((atoms.charge != 0) | (valence <= _LOWEST[atoms.number]))
    joined = able[bonds.begin] & able[bonds.end]
    multiple = joined & (bonds.order > _SINGLE)
    num_joined, num_multiple = bonds.per_atom(joined), bonds.per_atom(multiple)
    conjugated: Flags = bonds.order == _AROMATIC
    for hinge in (bonds.begin, bonds.end):
        others_multiple, others = num_multiple[hinge] - multiple, num_joined[hinge] - joined
        pair = (others_multiple > 0) | (multiple & (others > 0))
        conjugated |= joined & pair & (total_degree[hinge] > 1)
    return conjugated


def _keep_read(graphs: SmilesGraphs) -> SmilesGraphs:
    """Drop the atoms and bonds of unread molecules."""
    if not graphs.unread.any():
        return graphs
    atom_kept = ~graphs.unread[graphs.molecule]
    bond_kept = atom_kept[graphs.end]
    new = np.cumsum(atom_kept) - 1
    return SmilesGraphs(
        molecule=graphs.molecule[atom_kept],
        atoms={name: column[atom_kept] for name, column in graphs.atoms.items()},
        begin=new[graphs.begin[bond_kept]],
        end=new[graphs.end[bond_kept]],
        bonds={name: column[bond_kept] for name, column in graphs.bonds.items()},
        marked=graphs.marked[bond_kept],
        unread=graphs.unread,
    )
