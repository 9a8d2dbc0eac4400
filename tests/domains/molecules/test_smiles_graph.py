from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rdkit import Chem, rdBase

from polyfm.domains.molecules.smiles_graph import SmilesGraphs, read_smiles


def one(smiles: str) -> SmilesGraphs:
    graphs = read_smiles([smiles])
    assert not graphs.unread.any()
    return graphs


def test_branches_and_closures() -> None:
    graphs = one("CC(C(F)Cl)(N)C1NC=1")
    pairs = list(zip(graphs.begin.tolist(), graphs.end.tolist(), strict=True))
    assert pairs == [(0, 1), (1, 2), (2, 3), (2, 4), (1, 5), (1, 6), (6, 7), (6, 8), (7, 8)]
    assert graphs.bonds["type"].tolist() == [1, 1, 1, 1, 1, 1, 1, 2, 1]
    assert graphs.bonds["in_ring"].tolist() == [False] * 6 + [True] * 3


@pytest.mark.parametrize(
    ("smiles", "hydrogens"),
    [
        ("CS(=O)(=O)N", [3, 0, 0, 0, 2]),
        ("CSP(C)I", [3, 0, 0, 3, 0]),
        ("O=P(O)(O)Br", [0, 0, 1, 1, 0]),
        ("c1cc[nH]c1", [1, 1, 1, 1, 1]),
        ("Cn1ccc2c1cco2", [3, 0, 1, 1, 0, 0, 1, 1, 0]),
        ("O=c1ccs[nH]1", [0, 0, 1, 1, 0, 1]),
        ("C[n+]1ccccc1", [3, 0, 1, 1, 1, 1, 1]),
        ("c1ccn2cccc2c1", [1, 1, 1, 0, 1, 1, 1, 0, 1]),
        ("C#C[N+](C)(C)C", [1, 0, 0, 3, 3, 3]),
    ],
)
def test_hydrogens(smiles: str, hydrogens: list[int]) -> None:
    assert one(smiles).atoms["hydrogens"].tolist() == hydrogens
    assert hydrogens == [atom.GetTotalNumHs() for atom in Chem.MolFromSmiles(smiles).GetAtoms()]


def test_a_bridge_between_rings_is_not_in_a_ring() -> None:
    graphs = one("C1CC1CC1CC1")
    outside = ~graphs.bonds["in_ring"]
    assert list(zip(graphs.begin[outside], graphs.end[outside], strict=True)) == [(2, 3), (3, 4)]
    assert graphs.atoms["in_ring"].tolist() == [True, True, True, False, True, True, True]


def test_ring_numbers_are_used_again() -> None:
    graphs = one("C1CC1C1CC1C%10CC%10")
    assert sum(graphs.bonds["in_ring"].tolist()) == 9
    assert len(graphs.end) == 11


def test_many_rings_in_one_molecule() -> None:
    chain = "C1CC1" * 64  # more closures than that do not fit the bits
    assert int(one(chain).bonds["in_ring"].sum()) == 3 * 64
    assert read_smiles([chain + "C1CC1"]).unread.tolist() == [True]


@pytest.mark.parametrize(
    ("smiles", "conjugated"),
    [
        ("C=CC=C", [True, True, True]),
        ("C=CCC=C", [False] * 4),
        ("CC(=O)O", [False, True, True]),
        ("CS(=O)(=O)N", [False] * 4),  # hypervalent sulfur takes no part
        ("NC(N)=S", [True, True, True]),
        ("C[N+](=O)[O-]", [False, True, True]),
        ("C=CP", [False, False]),
        ("C=[N+]=[N-]", [True, True]),
    ],
)
def test_conjugation(smiles: str, conjugated: list[bool]) -> None:
    assert one(smiles).bonds["conjugated"].tolist() == conjugated
    assert conjugated == [bond.GetIsConjugated() for bond in Chem.MolFromSmiles(smiles).GetBonds()]


OTHER_CHEMISTRY = "[Fe] [CH3] C[BH2] [13CH4] [H]C [CH4:1] C* C[S@](=O)N [Cu]->N C$C C~C".split()
WRONG_SYNTAX = (
    "C( C)C (C) C()C C((C))C C. .C C..C C(C.C) C= =C C==C C1 1CC1 C(C)1CC1 C(=1)C1 "
    "C11 C1C1 C12CC12 C1.C1 C%1C [C C] [] @ C@C C[Q] C[NH %% é"
).split()
WRONG_VALENCE = "C(C)(C)(C)(C)C [CH5] F=C [O+] [PH4] [C+9] N(=O)(=O)C cC c1ccccc1c1ccccc1".split()


@pytest.mark.parametrize("smiles", ["", " ", *OTHER_CHEMISTRY, *WRONG_SYNTAX, *WRONG_VALENCE])
def test_left_to_rdkit(smiles: str) -> None:
    graphs = read_smiles(["CCO", smiles, "c1ccccc1"])
    assert graphs.unread.tolist() == [False, True, False]
    assert graphs.molecule.tolist() == [0] * 3 + [2] * 6
    assert graphs.atoms["hydrogens"].tolist() == [3, 2, 1] + [1] * 6
    assert graphs.begin.tolist() == [0, 1, 3, 4, 5, 6, 3, 7]


TOKENS = [*r"CCCCNOSPFccnoB((()))==#11223-/\.", *"Cl Br [nH] [N+] [O-] [C@H] [C@@] %11 [Na+]".split()]


@given(st.lists(st.lists(st.sampled_from(TOKENS), max_size=14).map("".join), max_size=6))
@settings(max_examples=300, deadline=None)
def test_any_text(batch: list[str]) -> None:
    """Never an exception, never a neighbour disturbed; and without lower case, what is read is what RDKit accepts."""
    graphs = read_smiles(batch)
    for index, text in enumerate(batch):
        alone = read_smiles([text])
        assert alone.unread[0] == graphs.unread[index]
        mine = graphs.molecule == index
        for name, column in alone.atoms.items():
            np.testing.assert_array_equal(column, graphs.atoms[name][mine], err_msg=text)
        if graphs.unread[index] or any(letter in text for letter in "cnos"):
            continue
        with rdBase.BlockLogs():
            mol = Chem.MolFromSmiles(text)
        assert mol is not None, text
        for name, ask in (("hydrogens", "GetTotalNumHs"), ("degree", "GetTotalDegree"), ("in_ring", "IsInRing")):
            assert graphs.atoms[name][mine].tolist() == [getattr(atom, ask)() for atom in mol.GetAtoms()], text
