from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from polyfm.domains.molecules.read import read_molecules
from polyfm.domains.molecules.scaffold import scaffolds
from polyfm.shared.data.splits import Splits, group_split
from polyfm.shared.errors import DataError


@pytest.mark.parametrize(
    ("smiles", "scaffold"),
    [
        ("Cc1cc(Oc2nccc(CCC)c2)ccc1", "c1ccc(Oc2ccccn2)cc1"),  # side chains go, the linker stays (RDKit's own example)
        ("CC(=O)Oc1ccccc1C(=O)O", "c1ccccc1"),  # aspirin
        ("O=C1CCCCC1C", "O=C1CCCCC1"),  # an exocyclic double bond stays
        ("CCO", ""),  # acyclic
        ("[Na+].[Cl-]", ""),
    ],
)
def test_known_frameworks(smiles: str, scaffold: str) -> None:
    assert scaffolds([smiles]) == [scaffold]


def test_stereoisomers_share_a_scaffold() -> None:
    left, right = scaffolds(["C[C@H]1CC[C@@H](N2CCCC2)CC1", "C[C@@H]1CC[C@@H](N2CCCC2)CC1"])
    assert left == right
    assert "@" not in left


def test_order_and_repeats() -> None:
    assert scaffolds(["CC", "c1ccccc1C", "CC"]) == ["", "c1ccccc1", ""]
    assert scaffolds([]) == []


def test_what_rdkit_refuses_is_named() -> None:
    with pytest.raises(DataError, match="'C1CC'"):
        scaffolds(["C1CC"])


@pytest.mark.realdata
def test_a_scaffold_split_of_bbbp_keeps_both_classes_in_every_part() -> None:
    table = read_molecules(Path(os.environ["POLYFM_DATA"]) / "molecules" / "bbbp.csv", targets=["p_np"])
    groups = scaffolds(table.smiles)
    splits = Splits(table.ids, groups, group_split(groups))
    assert splits.cut_groups() == []
    assert list(splits.counts().values()) == pytest.approx(
        [0.8 * len(table), 0.1 * len(table), 0.1 * len(table)], abs=5
    )
    for name in ("train", "valid", "test"):
        assert 0.2 < np.nanmean(table.targets[splits.indices(name), 0]) < 0.95
