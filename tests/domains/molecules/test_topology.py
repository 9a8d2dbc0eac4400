from __future__ import annotations

import math

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import GraphDescriptors, rdMolDescriptors
from rdkit.Chem.EState import EState

from polyfm.domains.molecules import topology
from polyfm.domains.molecules.topology import Skeleton

# Rings of three and four, fused, bridged, spiro; fragments; metals, wildcards, radicals, charges.
HARD = (
    "C", "CC", "C1CC1", "C1CCC1", "CC1CC1", "C1CC1C", "C1CC12CC2", "C1C2CC12", "C1C2C1C2", "C12C3C4C1C5C2C3C45",
    "P12P3P1P23", "[Na+].[Cl-]", "CC(=O)[O-].[Na+]", "O.O.[Cl-].[Cl-].[Ca+2]", "*", "*C*", "[Fe+2]", "[CH2]C",
    "[NH3]->[Pt](<-[NH3])(Cl)Cl", "S(F)(F)(F)(F)(F)F", "C[N+](C)(C)C", "c1ccc2c(c1)ccc1ccccc12", "C#CC#C", "C$C",
)  # fmt: skip


def graph(smiles: str) -> Skeleton:
    return Skeleton.of(Chem.MolFromSmiles(smiles))


def weighted(smiles: str) -> topology.Floats:
    return Chem.GetDistanceMatrix(Chem.MolFromSmiles(smiles), useBO=True)


def test_the_graph_of_acetamide() -> None:
    acetamide = graph("CC(=O)N")
    assert acetamide.numbers.tolist() == [6, 6, 8, 7]
    assert acetamide.degrees.tolist() == [1, 3, 1, 1]
    assert acetamide.hydrogens.tolist() == [3, 0, 0, 2]
    assert acetamide.bonds.tolist() == [[0, 1], [1, 2], [1, 3]]
    assert acetamide.neighbours[1] == [(0, 1.0), (2, 2.0), (3, 1.0)]
    assert acetamide.valence_electrons == 4 + 4 + 6 + 5 + 5  # heavy atoms, then hydrogens


def test_chi_of_propane_by_hand() -> None:
    propane = graph("CCC")
    assert topology.chi_simple(propane) == pytest.approx((2 + 1 / math.sqrt(2), 2 / math.sqrt(2)))
    plain, valence = topology.chi_weights(propane)
    assert plain.tolist() == pytest.approx([1, 1 / math.sqrt(2), 1])
    assert topology.path_indices(propane, plain, valence).chi[:2] == pytest.approx((1 / math.sqrt(2),) * 2)


def test_estate_of_ethanol_by_hand() -> None:
    # Intrinsic states 2, 1.5, 6; each gains (own - other) / (distance + 1)^2.
    expected = [2 + 0.5 / 4 - 4 / 9, 1.5 - 0.5 / 4 - 4.5 / 4, 6 + 4 / 9 + 4.5 / 4]
    distances = Chem.GetDistanceMatrix(Chem.MolFromSmiles("CCO"))
    assert topology.estate(graph("CCO"), distances).tolist() == pytest.approx(expected)


def test_balaban_of_propane_by_hand() -> None:
    # Distance sums 3, 2, 3; no cycle: J = 2 (1/sqrt(6) + 1/sqrt(6)).
    assert topology.balaban_j(graph("CCC"), weighted("CCC")) == pytest.approx(4 / math.sqrt(6))


def test_kappa_without_paths_is_zero() -> None:
    assert topology.kappa(2, 0, 1, 0.0) == 0.0


@pytest.mark.parametrize("smiles", HARD)
def test_paths_are_those_of_rdkit(smiles: str) -> None:
    mol = Chem.MolFromSmiles(smiles)
    skeleton = Skeleton.of(mol)
    found = topology.path_indices(skeleton, *topology.chi_weights(skeleton))
    assert found.num_paths == tuple(len(Chem.FindAllPathsOfLengthN(mol, bonds)) for bonds in (2, 3))


@pytest.mark.parametrize("smiles", HARD)
def test_every_index_is_bit_equal_to_rdkit(smiles: str) -> None:
    mol = Chem.MolFromSmiles(smiles)
    skeleton = Skeleton.of(mol)
    with np.errstate(all="raise"):
        paths = topology.path_indices(skeleton, *topology.chi_weights(skeleton))
        estate = topology.estate(skeleton, Chem.GetDistanceMatrix(mol))
        ours = [
            *topology.chi_simple(skeleton),
            topology.balaban_j(skeleton, weighted(smiles)),
            topology.bertz_ct(skeleton, weighted(smiles)),
            *paths.chi,
            topology.kappa(2, paths.num_paths[0], mol.GetNumHeavyAtoms(), rdMolDescriptors.CalcHallKierAlpha(mol)),
            topology.kappa(3, paths.num_paths[1], mol.GetNumHeavyAtoms(), rdMolDescriptors.CalcHallKierAlpha(mol)),
        ]
    names = [
        "Chi0", "Chi1", "BalabanJ", "BertzCT", "Chi2n", "Chi2v", "Chi3n", "Chi3v", "Chi4n", "Chi4v", "Kappa2", "Kappa3",
    ]  # fmt: skip
    theirs = [getattr(GraphDescriptors, name)(Chem.MolFromSmiles(smiles)) for name in names]
    assert np.array(ours, dtype=np.float64).tobytes() == np.array(theirs, dtype=np.float64).tobytes()
    assert estate.tobytes() == EState.EStateIndices(mol).tobytes()
