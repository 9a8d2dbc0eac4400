"""The knowledge graph: what it holds, who is a neighbour, and above all that no molecule is told its own description."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from polyfm.domains.molecules.data import MoleculeDataModule
from polyfm.domains.molecules.knowledge import KnowledgeGraph
from polyfm.domains.molecules.phrases import RELATIONS
from polyfm.domains.molecules.synthetic import synthetic_molecules
from polyfm.shared.data.sampler import Key
from polyfm.shared.errors import DataError

IS_A, HAS_ROLE = RELATIONS.index("is a"), RELATIONS.index("has role")
ALCOHOLS = ["CCCCCCO", "CCCCCCCO", "CCCCCCCCO"]
TEXTS = [
    "The molecule is a fatty alcohol. It has a role as a dye.",
    "The molecule is a fatty alcohol. It has a role as a plant metabolite.",
    "The molecule is a fatty alcohol. It has a role as a plant metabolite.",
]


@pytest.fixture
def graph() -> KnowledgeGraph:
    return KnowledgeGraph(20).fit([*ALCOHOLS, "c1ccccc1"], [*TEXTS, None])


def names(graph: KnowledgeGraph, found: np.ndarray | None) -> list[str]:
    return [] if found is None else [graph.names[i] for i in found]


def test_names_that_connect_and_the_molecules_that_have_them(graph: KnowledgeGraph) -> None:
    """`dye` occurs once; benzene has no description."""
    assert graph.names == ["fatty alcohol", "plant metabolite"]
    assert graph.molecules == ALCOHOLS
    assert len(graph) == 5
    assert graph.facts("CCCCCCO").tolist() == [[2, IS_A, 0]]
    assert graph.facts("CCCCCCCO").tolist() == [[3, IS_A, 0], [3, HAS_ROLE, 1]]
    assert graph.facts("c1ccccc1") is None


def test_neighbours_by_hand(graph: KnowledgeGraph) -> None:
    """Similar alcohols vote; benzene has no relative; a molecule of the graph is not asked about itself."""
    assert names(graph, graph.neighbours(["CCCCCO"])[0]) == ["fatty alcohol", "plant metabolite"]
    assert graph.neighbours(["c1ccccc1", "N"]) == [None, None]
    # For the second alcohol only one molecule is left that is a plant metabolite: as if its own text were not there.
    assert names(graph, graph.neighbours([ALCOHOLS[1]])[0]) == ["fatty alcohol"]
    assert names(graph, graph.neighbours([ALCOHOLS[0]])[0]) == ["fatty alcohol", "plant metabolite"]


def test_nearer_molecules_weigh_more() -> None:
    smiles = ["CCCCCCO", "CCCCCCCO", "CCCCCCN", "CCCCCCCN"]
    graph = KnowledgeGraph(20).fit(smiles, ["It is an alcohol."] * 2 + ["It is an amine."] * 2)
    assert names(graph, graph.neighbours(["CCCCCCCCO"])[0])[0] == "alcohol"
    assert names(graph, graph.neighbours(["CCCCCCCCN"])[0])[0] == "amine"
    narrow = KnowledgeGraph(20, neighbours=1)
    narrow.load(graph.state())
    assert names(narrow, narrow.neighbours(["CCCCCCCCN"])[0]) == ["amine"]


def test_one_at_a_time_or_all_at_once(graph: KnowledgeGraph, monkeypatch: pytest.MonkeyPatch) -> None:
    table = synthetic_molecules(60)
    graph.fit(list(table.smiles), list(table.description))
    whole = graph.neighbours(list(table.smiles))
    assert any(found is not None for found in whole)
    monkeypatch.setattr("polyfm.domains.molecules.knowledge._BLOCK", 7)
    for ours, theirs in zip(graph.neighbours(list(table.smiles)), whole, strict=True):
        assert (ours is None) == (theirs is None)
        assert ours is None or theirs is None or ours.tolist() == theirs.tolist()


def test_rare_names_and_late_molecules_give_way_to_the_limit() -> None:
    small = KnowledgeGraph(3).fit(ALCOHOLS, TEXTS)
    assert (small.names, len(small)) == (["fatty alcohol", "plant metabolite"], 3)
    assert small.facts(ALCOHOLS[0]) is not None
    assert small.facts(ALCOHOLS[1]) is None
    assert names(small, small.neighbours(["CCCCCO"])[0]) == ["fatty alcohol", "plant metabolite"]
    assert KnowledgeGraph(1).fit(ALCOHOLS, TEXTS).names == ["fatty alcohol"]


def test_state_is_plain_and_gives_the_same(graph: KnowledgeGraph) -> None:
    again = KnowledgeGraph(20)
    again.load(json.loads(json.dumps(graph.state())))
    assert names(again, again.neighbours(["CCCCCO"])[0]) == ["fatty alcohol", "plant metabolite"]
    assert again.facts("CCCCCCCO").tolist() == graph.facts("CCCCCCCO").tolist()


def test_a_state_that_fits_not_together_is_refused(graph: KnowledgeGraph) -> None:
    for wrong in ({"names": []}, {"molecules": ALCOHOLS[:1]}, {"links": [[(0, -1)]] * 3}):
        with pytest.raises(DataError, match="do not fit its names and molecules"):
            KnowledgeGraph(20).load({**graph.state(), **wrong})


def test_nothing_described_is_an_empty_graph() -> None:
    graph = KnowledgeGraph(20).fit(ALCOHOLS, [None] * 3)
    assert len(graph) == 0
    assert graph.neighbours(ALCOHOLS) == [None] * 3
    assert graph.neighbours([]) == []


class TestNoLeak:
    """Neighbours and descriptions come from one text: a molecule must never be told its own."""

    def modules(self, tmp_path: Path, part: str) -> tuple[MoleculeDataModule, MoleculeDataModule, int]:
        """The same file twice, the second with another description of one molecule of a part."""
        table = synthetic_molecules(80)
        table["fold"] = ["train"] * 60 + ["valid"] * 10 + ["test"] * 10
        row = {"train": 5, "valid": 65, "test": 75}[part]
        modules = []
        for name in ("first", "second"):
            path = str(tmp_path / f"{name}.csv")
            if name == "second":
                table.loc[row, "description"] = (
                    "The molecule is a member of the class of indoles. It has a role as a dye."
                )
            table.to_csv(path, index=False)
            data = MoleculeDataModule(
                path, split="fold", modalities=["graph", "text", "knowledge"], text_vocabulary=300
            )
            data.setup()
            modules.append(data)
        return modules[0], modules[1], row

    @pytest.mark.parametrize("part", ["train", "valid", "test"])
    def test_neighbours_do_not_depend_on_one_s_own_description(self, tmp_path: Path, part: str) -> None:
        first, second, row = self.modules(tmp_path, part)
        assert first.table.text is not None
        assert second.table.text is not None
        assert first.table.text[row] != second.table.text[row]
        ours, theirs = first.neighbours[row], second.neighbours[row]
        assert ours is not None
        assert theirs is not None
        assert [first.knowledge.names[i] for i in ours] == [second.knowledge.names[i] for i in theirs]

    def test_the_rule_is_that_of_a_graph_without_the_description(self) -> None:
        """For every molecule: told the same as by a graph that was built without its text."""
        table = synthetic_molecules(70)
        smiles, texts = list(table.smiles), list(table.description)
        whole = KnowledgeGraph(200).fit(smiles, texts)
        for row, found in enumerate(whole.neighbours(smiles)):
            without = KnowledgeGraph(200).fit(smiles, [*texts[:row], None, *texts[row + 1 :]])
            assert names(whole, found) == names(without, without.neighbours([smiles[row]])[0])

    @pytest.mark.parametrize("part", ["valid", "test"])
    def test_the_graph_knows_nothing_of_what_is_kept_out(self, tmp_path: Path, part: str) -> None:
        first, second, _ = self.modules(tmp_path, part)
        assert first.knowledge.state() == second.knowledge.state()
        kept_out = [first.table.smiles[i] for i in first.part(part)]
        assert all(first.knowledge.facts(smiles) is None for smiles in kept_out)
        assert not set(kept_out) & set(first.knowledge.molecules)
        samples = first.make_samples([Key(int(row), 0) for row in first.part(part)])
        assert len(first.collate(samples)["facts"].rows) == 0
