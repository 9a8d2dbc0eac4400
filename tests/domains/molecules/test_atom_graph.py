from __future__ import annotations

import csv
import gzip
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rdkit import Chem, RDConfig, rdBase
from rdkit.Chem.EnumerateStereoisomers import EnumerateStereoisomers, StereoEnumerationOptions

from polyfm.domains.molecules.atom_graph import (
    ATOM_FIELDS,
    BOND_FIELDS,
    FIELD_SETS,
    AtomGraph,
    atom_graph,
    atom_graphs,
    field_set,
)
from polyfm.domains.molecules.smiles_graph import read_smiles
from polyfm.shared.data.batch import Graphs
from polyfm.shared.errors import DataError, RecipeError


def reference(smiles: str) -> tuple[list[list[int]], dict[tuple[int, int], list[int]]]:
    """Full features from RDKit's objects one by one: by atom, and by pair of atoms in both directions."""

    def category(value: int, values: list[int]) -> int:
        return values.index(value) if value in values else len(values)

    mol = Chem.MolFromSmiles(smiles)
    table = Chem.GetPeriodicTable()
    nodes = []
    for atom in mol.GetAtoms():
        shift = atom.GetIsotope() - round(table.GetAtomicWeight(atom.GetAtomicNum()))
        nodes.append(
            [
                category(atom.GetAtomicNum(), list(range(1, 119))),
                category(int(atom.GetChiralTag()), [0, 1, 2, 3]),
                category(atom.GetTotalDegree(), [0, 1, 2, 3, 4, 5, 6]),
                category(atom.GetFormalCharge(), [-3, -2, -1, 0, 1, 2, 3]),
                category(atom.GetTotalNumHs(), [0, 1, 2, 3, 4]),
                category(int(atom.GetHybridization()), [1, 2, 3, 4, 5, 6, 7]),
                int(atom.GetIsAromatic()),
                int(atom.IsInRing()),
                4 if atom.GetIsotope() == 0 else category(shift + (shift >= 0), list(range(-4, 6))),
            ]
        )
    edges = {}
    for bond in mol.GetBonds():
        features = [
            category(int(bond.GetBondType()), [1, 2, 3, 12]),
            category(int(bond.GetStereo()), [0, 1, 2, 3, 4, 5]),
            int(bond.GetIsConjugated()),
            int(bond.IsInRing()),
        ]
        begin, end = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
        edges[begin, end] = edges[end, begin] = features
    return nodes, edges


def unpack(graphs: Graphs) -> Iterator[AtomGraph]:
    """The graphs of a batch one by one."""
    bounds = graphs.cu_nodes.tolist()
    for low, high in itertools.pairwise(bounds):
        inside = (graphs.edge_index[0] >= low) & (graphs.edge_index[0] < high)
        assert torch.equal(inside, (graphs.edge_index[1] >= low) & (graphs.edge_index[1] < high))
        yield AtomGraph(
            graphs.node_features[low:high].numpy(),
            (graphs.edge_index[:, inside] - low).numpy(),
            graphs.edge_features[inside].numpy(),
        )


def assert_same(one: AtomGraph, other: AtomGraph, smiles: str) -> None:
    for part, expected in zip(one, other, strict=True):
        np.testing.assert_array_equal(part, expected, err_msg=smiles)


def assert_equals_rdkit(smiles: list[str]) -> None:
    """Hold a whole set against the reference, in batches."""
    for start in range(0, len(smiles), 500):
        batch = smiles[start : start + 500]
        for text, graph in zip(batch, unpack(atom_graphs(batch)), strict=True):
            nodes, edges = reference(text)
            assert graph.node_features.tolist() == nodes, text
            found = zip(map(tuple, graph.edge_index.T.tolist()), graph.edge_features.tolist(), strict=True)
            assert dict(found) == edges, text
            assert graph.edge_index.shape[1] == len(edges), text


@pytest.fixture(scope="module")
def nci() -> list[str]:
    """RDKit's own file, canonical, with stereoisomers of every tenth molecule, since the file has none."""
    options = StereoEnumerationOptions(maxIsomers=4, rand=0)
    found = []
    with rdBase.BlockLogs(), (Path(RDConfig.RDDataDir) / "NCI" / "first_5K.smi").open() as lines:
        for index, line in enumerate(lines):
            mol = Chem.MolFromSmiles(line.split()[0])
            if mol is None:
                continue
            found.append(Chem.MolToSmiles(mol))
            if index % 10 == 0:
                found += [Chem.MolToSmiles(isomer) for isomer in EnumerateStereoisomers(mol, options=options)]
    return found


def test_ethanol_by_hand() -> None:
    graph = atom_graph(Chem.MolFromSmiles("CCO"))
    assert graph.node_features.tolist() == [  # Z, chiral, degree, charge, H, sp3, aromatic, ring, isotope
        [5, 0, 4, 3, 3, 3, 0, 0, 4],
        [5, 0, 4, 3, 2, 3, 0, 0, 4],
        [7, 0, 2, 3, 1, 3, 0, 0, 4],
    ]
    assert graph.edge_index.tolist() == [[0, 1, 1, 2], [1, 0, 2, 1]]
    assert graph.edge_features.tolist() == [[0, 0, 0, 0]] * 4  # single, no stereo, not conjugated, no ring


def test_benzene_by_hand() -> None:
    (graph,) = unpack(atom_graphs(["c1ccccc1"]))
    assert graph.node_features.tolist() == [[5, 0, 3, 3, 1, 2, 1, 1, 4]] * 6
    assert graph.edge_index[:, ::2].T.tolist() == [[0, 1], [1, 2], [2, 3], [3, 4], [0, 5], [4, 5]]
    assert graph.edge_features.tolist() == [[3, 0, 1, 1]] * 12  # aromatic, conjugated, in a ring


@pytest.mark.parametrize(
    ("smiles", "tags"),
    [
        ("C[C@H](N)O", [0, 2, 0, 0]),
        ("C[C@@H](N)O", [0, 1, 0, 0]),
        ("[C@H](C)(N)O", [1, 0, 0, 0]),  # the hydrogen comes first here, which is one swap
        ("C[C@]1(O)CN1", [0, 2, 0, 0, 0]),  # one closure after two branches: two swaps
        ("C[C@]1(F)CO1", [0, 2, 0, 0, 0]),
        ("C[C@@H]1CO1", [0, 2, 0, 0]),
    ],
)
def test_chiral_tags_follow_the_order_of_bonds(smiles: str, tags: list[int]) -> None:
    (graph,) = unpack(atom_graphs([smiles], "gin"))
    assert graph.node_features[:, 1].tolist() == tags
    assert tags == [int(atom.GetChiralTag()) for atom in Chem.MolFromSmiles(smiles).GetAtoms()]


def test_double_bond_stereo() -> None:
    trans, cis, open_ = unpack(atom_graphs(["C/C=C/F", "C/C=C\\F", "CC=CF"]))
    assert trans.edge_features[::2, :2].tolist() == [[0, 0], [1, 3], [0, 0]]  # E
    assert cis.edge_features[::2, :2].tolist() == [[0, 0], [1, 2], [0, 0]]  # Z
    assert open_.edge_features[::2, :2].tolist() == [[0, 0], [1, 0], [0, 0]]
    (directed,) = unpack(atom_graphs(["C/C=C\\F"], "gin"))
    assert directed.edge_features[::2].tolist() == [[0, 1], [1, 0], [0, 2]]  # up, none, down


def test_charges_and_labels() -> None:
    ammonium, carboxylate, heavy, light = unpack(atom_graphs(["C[NH3+]", "CC(=O)[O-]", "[2H]C", "[11CH4]"]))
    assert ammonium.node_features[1].tolist() == [6, 0, 4, 4, 3, 3, 0, 0, 4]
    assert carboxylate.node_features[3].tolist() == [7, 0, 1, 2, 0, 2, 0, 0, 4]  # a lone pair beside C=O: sp2
    assert carboxylate.edge_features[::2].tolist() == [[0, 0, 0, 0], [1, 0, 1, 0], [0, 0, 1, 0]]
    assert heavy.node_features[0].tolist() == [0, 0, 1, 3, 0, 0, 0, 0, 6]
    assert light.node_features[0, -1] == 3


def test_single_atom_and_empty_list() -> None:
    (argon,) = unpack(atom_graphs(["[Ar]"]))
    assert argon.edge_index.shape == (2, 0)
    assert argon.edge_features.shape == (0, 4)
    (methane,) = unpack(atom_graphs(["C"]))
    assert methane.node_features.shape == (1, len(ATOM_FIELDS))
    empty = atom_graphs([])
    assert empty.cu_nodes.tolist() == [0]
    assert empty.node_features.shape == (0, len(ATOM_FIELDS))
    assert empty.edge_index.shape == (2, 0)


def test_fields_count_their_categories() -> None:
    assert [field.size for field in ATOM_FIELDS] == [119, 5, 8, 8, 6, 8, 3, 3, 11]
    assert [field.size for field in BOND_FIELDS] == [5, 4, 7, 3, 3]
    gin = FIELD_SETS["gin"]
    assert [field.name for field in gin.atoms] == ["atomic_number", "chirality"]
    assert [field.name for field in gin.bonds] == ["type", "direction"]
    for field in (*ATOM_FIELDS, *BOND_FIELDS):
        outside = [min(field.values) - 9, max(field.values) + 1, max(field.values) + 900]
        numbers = np.array([*field.values, *outside])
        assert field.categories(numbers).tolist() == [*range(len(field.values)), *[len(field.values)] * 3]


def test_unknown_feature_set() -> None:
    with pytest.raises(RecipeError, match="^fields: expected one of gin, full, not 'all'$"):
        field_set("all")


def test_equals_rdkit_on_thousands(nci: list[str]) -> None:
    assert len(nci) > 5_000
    assert sum("@" in text for text in nci) > 200
    assert sum("/" in text for text in nci) > 100
    assert_equals_rdkit(nci)
    # The comparison means something only if the fast reader did the work.
    assert read_smiles(nci).unread.mean() < 0.06


def test_one_molecule_equals_its_place_in_a_batch(nci: list[str]) -> None:
    for fields in FIELD_SETS:
        batch = nci[::20]
        for text, graph in zip(batch, unpack(atom_graphs(batch, fields)), strict=True):
            assert_same(graph, atom_graph(Chem.MolFromSmiles(text), fields), text)


# Read from the text, asked from RDKit (metal, radical, boron, isotope), stereo, fragments, one atom.
POOL = "CCO c1ccncc1 C[C@H](N)O F/C=C/F C[Mg]C [CH3] OB(O)c1ccccc1 [2H]C [Na+].[Cl-] C C1CC2CC12".split()


@given(st.lists(st.sampled_from(POOL), max_size=12), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_packing(batch: list[str], random: object) -> None:
    graphs = atom_graphs(batch)
    assert len(graphs.cu_nodes) == len(batch) + 1
    assert graphs.cu_nodes.dtype == torch.int32
    assert graphs.rows.tolist() == list(range(len(batch)))
    parts = list(unpack(graphs))
    for text, part in zip(batch, parts, strict=True):
        assert_same(part, atom_graph(Chem.MolFromSmiles(text)), text)
        np.testing.assert_array_equal(part.edge_index[:, ::2], part.edge_index[::-1, 1::2])  # edge i ^ 1 is i backwards
    order = list(range(len(batch)))
    random.shuffle(order)  # type: ignore[attr-defined]
    for index, part in zip(order, unpack(atom_graphs([batch[i] for i in order])), strict=True):
        assert_same(part, parts[index], batch[index])


@pytest.mark.parametrize(
    "wrong", ["", "C(", "C)C", "C1CC", "C(C)(C)(C)(C)C", "nonsense", "C[Zz]", "c1ccccc", "C==C", "cC"]
)
def test_a_wrong_smiles_is_named(wrong: str) -> None:
    with pytest.raises(DataError, match="molecule 1 of the batch") as caught:
        atom_graphs(["CCO", wrong, "c1ccccc1"])
    assert repr(wrong) in str(caught.value)


def test_a_line_break_is_named() -> None:
    with pytest.raises(DataError, match="one line") as caught:
        atom_graphs(["CCO", "C\nC"])
    assert repr("C\nC") in str(caught.value)


@pytest.mark.realdata
@pytest.mark.parametrize(
    "name", ["zinc250k_jtnn_valid.smi.gz", "chebi20_validation.tsv.gz", "bbbp.csv", "lipophilicity.csv"]
)
def test_equals_rdkit_on_real_sets(name: str) -> None:
    path = Path(os.environ["POLYFM_DATA"]) / "molecules" / name
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        if ".smi" in name:
            texts = [line.split()[0] for line in file]
        else:
            rows = csv.DictReader(file, delimiter="\t" if ".tsv" in name else ",")
            column = next(key for key in rows.fieldnames or () if key.lower() == "smiles")
            texts = [row[column] for row in rows]
    with rdBase.BlockLogs():
        mols = [Chem.MolFromSmiles(text) for text in texts[:1500]]
        for isomeric in (True, False):
            assert_equals_rdkit([Chem.MolToSmiles(mol, isomericSmiles=isomeric) for mol in mols if mol is not None])
