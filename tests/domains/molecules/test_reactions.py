"""From reaction SMILES to what is known and what is told, with a word on every row that is broken."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rdkit import Chem

from polyfm.domains.molecules.canonical import Refused
from polyfm.domains.molecules.reactions import Reaction, parse_reactions, random_order, read_reactions
from polyfm.domains.molecules.synthetic import write_reactions
from polyfm.shared.errors import DataError

AMIDE = "[CH3:1][C:2](=[O:3])[OH:4].[NH2:5][CH3:6]>CCN(CC)CC>[CH3:1][C:2](=[O:3])[NH:5][CH3:6]"


class TestParsing:
    def test_forward_takes_agents_along_retro_leaves_them_out(self) -> None:
        assert parse_reactions([AMIDE], "forward") == [Reaction("CC(=O)O.CCN(CC)CC.CN", "CNC(C)=O")]
        assert parse_reactions([AMIDE], "retro") == [Reaction("CNC(C)=O", "CC(=O)O.CN")]

    def test_maps_and_mapped_hydrogens_go(self) -> None:
        assert parse_reactions(["[C:1]([H:2])([H:3])([H:4])[Br:5]>>[C:1]([H:2])([H:3])([H:4])[I:6]"], "forward") == [
            Reaction("CBr", "CI")
        ]

    def test_stereochemistry_as_asked_for(self) -> None:
        text = "C[C@H](O)F>>C[C@H](Cl)F"
        assert parse_reactions([text], "forward", isomeric=False) == [Reaction("CC(O)F", "CC(F)Cl")]
        assert "@" in parse_reactions([text], "forward")[0].source  # type: ignore[union-attr]

    def test_a_dative_bond_is_no_arrow_and_extensions_are_dropped(self) -> None:
        (found,) = parse_reactions(["N->[Cu].CBr>>CN |f:0.1|"], "forward")
        assert found == Reaction("CBr.[NH3]->[Cu]", "CN")

    @pytest.mark.parametrize(
        ("text", "kind", "detail"),
        [
            ("CCO", "no reaction", "0 signs '>'"),
            ("C>C", "no reaction", "1 signs '>'"),
            ("C>>C>>C", "no reaction", "4 signs"),
            (">>CCO", "one-sided reaction", "no reactants"),
            ("CCO>>", "one-sided reaction", "no products"),
            ("CCO>>OCC", "nothing reacts", "the same molecules"),
            ("C(C)(C)(C)(C)C>>C", "impossible valence", "source: "),
            ("C>>xyz", "unreadable structure", "target: "),
            ("", "no reaction", "0 signs"),
        ],
    )
    def test_what_is_broken_is_said(self, text: str, kind: str, detail: str) -> None:
        (found,) = parse_reactions([text], "forward")
        assert isinstance(found, Refused)
        assert found.kind == kind
        assert detail in found.detail

    def test_new_items_may_be_sources_alone(self) -> None:
        assert parse_reactions(["OCC", AMIDE], "retro", whole=False) == [
            Reaction("CCO", ""),
            Reaction("CNC(C)=O", "CC(=O)O.CN"),
        ]


class TestFiles:
    def test_columns_are_guessed_and_announced(self, tmp_path: Path) -> None:
        table = read_reactions(write_reactions(tmp_path, n=30), "forward")
        assert len(table) == 30
        assert table.guesses == {"reaction": "reaction", "id": "id"}
        assert table.ids[0] == "RXN-00001"
        assert table.split is None

    def test_the_column_of_uspto_50k_is_known(self, tmp_path: Path) -> None:
        path = tmp_path / "raw.csv"
        path.write_text(f"id,class,reactants>reagents>production\nUS1,1,{AMIDE}\n")
        table = read_reactions(path, "retro")
        assert table.reactions == [Reaction("CNC(C)=O", "CC(=O)O.CN")]
        assert table.guesses["reaction"] == "reactants>reagents>production"

    def test_broken_rows_and_repeated_ones(self, tmp_path: Path) -> None:
        path = tmp_path / "a.csv"
        rows = ["CCO>>CC=O", "OCC>>O=CC", "CCBr>>CCI", "CCO", "CC>>xyz", "CCO>>CC(=O)O"]
        path.write_text("rxn,part\n" + "".join(f"{row},train\n" for row in rows))
        table = read_reactions(path, "forward", split="part")
        assert table.rows.tolist() == [1, 3, 6]
        assert table.ids == ["a:1", "a:3", "a:6"]
        assert table.split == ["train"] * 3
        assert [(item.row, item.kind) for item in table.quarantine.items] == [
            (4, "no reaction"),
            (5, "unreadable structure"),
        ]
        assert table.quarantine.num_read == 6
        assert [(item.row, item.kind, item.detail) for item in table.notices.items] == [(2, "duplicate", "of row 1")]
        assert len(read_reactions(path, "forward", limit=2)) == 1
        assert read_reactions(path, "forward", split="part", workers=2).reactions == table.reactions

    def test_lines_of_a_smi_file(self, tmp_path: Path) -> None:
        path = tmp_path / "train.smi"
        path.write_text("CCO>>CC=O 1-2;3-4\nCCBr>>CCI 1-2\n")
        assert [pair.target for pair in read_reactions(path, "forward").reactions] == ["CC=O", "CCI"]

    def test_what_is_no_file_of_reactions_says_what_to_do(self, tmp_path: Path) -> None:
        path = tmp_path / "a.csv"
        path.write_text("name,value\nx,1\n")
        with pytest.raises(DataError, match="no column is named like reactions.*--data.reaction"):
            read_reactions(path, "forward")
        path.write_text("smiles\nCCO\nCCN\n")
        with pytest.raises(DataError, match="no reaction"):
            read_reactions(path, "forward")
        path.write_text("rxn,name\nCCO>>CC=O,x\nCCBr>>CCI,x\n")
        with pytest.raises(DataError, match="'name' are not all different"):
            read_reactions(path, "forward", id="name")
        assert read_reactions(path, "forward").ids == ["a:1", "a:2"]


@given(seed=st.integers(0, 2**31 - 1))
def test_another_order_is_the_same_molecules(seed: int) -> None:
    smiles = "CC(=O)Nc1ccc(O)cc1.C[C@H](N)C(=O)O"
    turned = random_order(smiles, seed)
    assert Chem.CanonSmiles(turned) == Chem.CanonSmiles(smiles)
    assert turned == random_order(smiles, seed)


def test_orders_differ() -> None:
    assert len({random_order("CC(=O)Nc1ccc(O)cc1", seed) for seed in range(20)}) > 10


@pytest.mark.realdata
@pytest.mark.parametrize("direction", ["forward", "retro"])
def test_a_hundred_mapped_reactions(direction: str) -> None:
    table = read_reactions(Path(os.environ["POLYFM_DATA"]) / "molecules" / "reactions_100.csv", direction)
    assert len(table) == 100
    assert not len(table.quarantine)
    assert not any(re.search(r":\d", pair.source + pair.target) for pair in table.reactions)
