from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from rdkit import Chem
from sklearn.ensemble import RandomForestRegressor

from polyfm.domains.molecules.descriptors import descriptors
from polyfm.domains.molecules.scaffold import scaffolds
from polyfm.domains.molecules.synthetic import COLUMNS, KINDS, synthetic_molecules, write_synthetic
from polyfm.shared.errors import UsageError


def test_molecules_are_canonical_and_differ() -> None:
    table = synthetic_molecules(300)
    assert tuple(table.columns) == COLUMNS
    assert table.smiles.is_unique
    assert table.id.is_unique
    assert [Chem.CanonSmiles(smiles) for smiles in table.smiles] == table.smiles.tolist()
    assert len(set(scaffolds(table.smiles.tolist()))) > 100, "enough groups for a scaffold split"
    assert "" in scaffolds(table.smiles.tolist()), "some are acyclic"


def test_labels_are_balanced_missing_and_described() -> None:
    table = synthetic_molecules(400)
    assert table.active.mean() == pytest.approx(0.5)
    for name in ("assay_amide", "assay_halogen", "assay_basic"):
        assert table[name].isna().mean() == pytest.approx(0.3, abs=0.08)
        assert set(table[name].dropna()) == {0.0, 1.0}
    assert table.description.str.match(r"The molecule is a member of the class of \w+").all()


def test_activity_can_be_learnt_from_the_structure() -> None:
    table = synthetic_molecules(300, seed=2)
    features = np.stack([descriptors(Chem.MolFromSmiles(smiles)) for smiles in table.smiles])
    model = RandomForestRegressor(50, random_state=0).fit(features[:240], table.activity[:240])
    assert model.score(features[240:], table.activity[240:]) > 0.7


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_arguments_give_the_same_bytes(tmp_path: Path, kind: str) -> None:
    first = write_synthetic(tmp_path / "a", kind=kind, n=5, seed=3)
    assert first.name == f"molecules.{kind}"
    assert first.read_bytes() == write_synthetic(tmp_path / "b", kind=kind, n=5, seed=3).read_bytes()
    assert first.read_bytes() != write_synthetic(tmp_path / "c", kind=kind, n=5, seed=4).read_bytes()


def test_sdf_is_read_by_rdkit(tmp_path: Path) -> None:
    path = write_synthetic(tmp_path, kind="sdf", n=10)
    mols = list(Chem.SDMolSupplier(str(path)))
    assert [Chem.MolToSmiles(mol) for mol in mols] == synthetic_molecules(10).smiles.tolist()
    assert float(mols[0].GetProp("activity")) == synthetic_molecules(10).activity[0]


def test_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"csv\.gz"):
        write_synthetic(tmp_path, kind="xlsx")
