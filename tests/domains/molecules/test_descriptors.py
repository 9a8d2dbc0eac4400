from __future__ import annotations

import os
import random
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import Descriptors

from polyfm.domains.molecules import descriptors as module
from polyfm.domains.molecules.descriptors import (
    DESCRIPTORS,
    DESCRIPTORS_2D,
    descriptor_table,
    descriptor_table_2d,
    descriptors,
)
from polyfm.domains.molecules.read import read_molecules
from polyfm.domains.molecules.synthetic import synthetic_molecules
from polyfm.shared.errors import DataError

# SPMM's list as its paper's code has it (calc_property.py), one string so that a slip in the tuple shows.
SPMM = (
    "BalabanJ BertzCT Chi0 Chi0n Chi0v Chi1 Chi1n Chi1v Chi2n Chi2v Chi3n Chi3v Chi4n Chi4v ExactMolWt "
    "FpDensityMorgan1 FpDensityMorgan2 FpDensityMorgan3 FractionCSP3 HallKierAlpha HeavyAtomCount "
    "HeavyAtomMolWt Kappa1 Kappa2 Kappa3 LabuteASA MaxAbsEStateIndex MaxEStateIndex MinAbsEStateIndex "
    "MinEStateIndex MolLogP MolMR MolWt NHOHCount NOCount NumAliphaticCarbocycles NumAliphaticHeterocycles "
    "NumAliphaticRings NumAromaticCarbocycles NumAromaticHeterocycles NumAromaticRings NumHAcceptors "
    "NumHDonors NumHeteroatoms NumRadicalElectrons NumRotatableBonds NumSaturatedCarbocycles "
    "NumSaturatedHeterocycles NumSaturatedRings NumValenceElectrons RingCount TPSA QED"
)

HARD = (
    "C", "[H][H]", "[2H]C", "[H+]", "[He]", "*", "C*c1ccccc1", "[Na+].[Cl-]", "[Fe+2]", "c1ccccc1->[Fe]", "[Og]", "[C]",
    "[NH3]->[Pt](<-[NH3])(Cl)Cl", "C12C3C4C1C5C2C3C45", "C1C2CC12", "F[P-](F)(F)(F)(F)F", "O=[Os](=O)(=O)=O", "[13CH4]",
    "N1C2=CC=CC=C2SC3=C1C=CC4=C3C=CC=C4", "CC(C)C1=CC2=C(C)C=CC2=C(C)C=C1", "C1CCCCCCCCCCCCCCCCC1", "C" * 120,
    "CC(=O)Oc1ccccc1C(=O)O", "CN1C=NC2=C1C(=O)N(C(=O)N2C)C", "O.O.[Cl-].[Cl-].[Ca+2]", "C[N+](C)(C)CC(=O)[O-]",
)  # fmt: skip


def naive(smiles: str) -> np.ndarray:
    """RDKit's functions one by one on a fresh molecule."""
    mol = Chem.MolFromSmiles(smiles)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.array(
            [getattr(Descriptors, name.replace("QED", "qed"))(mol) for name in DESCRIPTORS], dtype=np.float64
        )


def assert_bit_equal(smiles: str) -> None:
    ours, theirs = descriptors(Chem.MolFromSmiles(smiles)), naive(smiles)
    differ = np.flatnonzero(ours.view(np.int64) != theirs.view(np.int64))
    assert not len(differ), f"{smiles}: {[(DESCRIPTORS[i], ours[i], theirs[i]) for i in differ]}"


def test_names_and_order_are_those_of_spmm() -> None:
    assert tuple(SPMM.split()) == DESCRIPTORS
    assert len(DESCRIPTORS) == 53


@pytest.mark.parametrize("smiles", HARD)
def test_hard_molecules_are_bit_equal_to_rdkit(smiles: str) -> None:
    assert_bit_equal(smiles)


def test_ordinary_molecules_are_bit_equal_to_rdkit() -> None:
    for smiles in synthetic_molecules(150, seed=5).smiles:
        assert_bit_equal(smiles)


def test_aspirin_by_name() -> None:
    values = dict(zip(DESCRIPTORS, descriptors(Chem.MolFromSmiles("CC(=O)Oc1ccccc1C(=O)O")), strict=True))
    assert values["MolWt"] == pytest.approx(180.159, abs=1e-3)
    assert values["TPSA"] == pytest.approx(63.6)
    assert (values["HeavyAtomCount"], values["NumHDonors"], values["NumAromaticRings"]) == (13, 1, 1)
    assert values["QED"] == pytest.approx(0.550, abs=1e-3)


def test_a_molecule_without_atoms_is_refused() -> None:
    with pytest.raises(DataError, match="without atoms"):
        descriptors(Chem.MolFromSmiles(""))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("POLYFM_CACHE", str(tmp_path))
    return tmp_path


def test_the_table_is_the_same_computed_and_cached(cache: Path) -> None:
    smiles = ["CCO", "c1ccccc1", "CCO", "[2H]C"]
    first = descriptor_table(smiles)
    assert first.shape == (4, 53)
    assert first.tobytes() == np.stack([naive(text) for text in smiles]).tobytes()
    assert descriptor_table(smiles).tobytes() == first.tobytes()
    assert len(list(cache.rglob("*.sqlite"))) == 1
    assert module.__version__ in next(cache.rglob("*.sqlite")).name


@pytest.mark.usefixtures("cache")
def test_only_what_is_missing_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    descriptor_table(["CCO", "CC"])
    asked: list[str] = []
    monkeypatch.setattr(module, "_row", lambda smiles: asked.append(smiles) or np.zeros(53))
    descriptor_table(["CC", "CCC", "CCO", "CCC"])
    assert asked == ["CCC"]


@pytest.mark.usefixtures("cache")
def test_an_interrupted_build_goes_on_where_it_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    smiles = synthetic_molecules(40).smiles.tolist()
    monkeypatch.setattr(module, "_MOLECULES_PER_JOB", 10)
    monkeypatch.setattr(module, "_ROWS_PER_COMMIT", 10)
    with pytest.raises(KeyboardInterrupt):
        descriptor_table(smiles, progress=_stop_at(20))
    done: list[tuple[int, int]] = []
    descriptor_table(smiles, progress=lambda *state: done.append(state))
    assert done == [(10, 20), (20, 20)]


def _stop_at(rows: int):
    def progress(done: int, total: int) -> None:
        if done >= rows:
            raise KeyboardInterrupt

    return progress


@pytest.mark.usefixtures("cache")
def test_what_cannot_be_computed_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail_or_overflow(mol: Chem.Mol) -> np.ndarray:
        if mol.GetNumAtoms() == 1:
            raise RuntimeError("Pre-condition Violation")
        return np.append(np.ones(52), np.inf)

    monkeypatch.setattr(module, "descriptors", fail_or_overflow)
    table = descriptor_table(["C", "CC"])
    assert np.isnan(table[0]).all()
    assert np.isnan(table[1]).tolist() == [False] * 52 + [True]


@pytest.mark.usefixtures("cache")
def test_a_bad_smiles_is_named() -> None:
    with pytest.raises(DataError, match=r"'C1CC'.*read_molecules"):
        descriptor_table(["C", "C1CC"])


@pytest.mark.usefixtures("cache")
def test_nothing_asked_nothing_given() -> None:
    assert descriptor_table([]).shape == (0, 53)


def test_workers_compute_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smiles = synthetic_molecules(30).smiles.tolist()
    monkeypatch.setattr(module, "_MOLECULES_PER_JOB", 10)
    monkeypatch.setenv("POLYFM_CACHE", str(tmp_path / "one"))
    alone = descriptor_table(smiles)
    monkeypatch.setenv("POLYFM_CACHE", str(tmp_path / "two"))
    assert descriptor_table(smiles, workers=2).tobytes() == alone.tobytes()


@pytest.mark.usefixtures("cache")
def test_looking_up_is_many_times_faster_than_computing() -> None:
    smiles = synthetic_molecules(300, seed=6).smiles.tolist()
    start = time.perf_counter()
    descriptor_table(smiles)
    computed, start = time.perf_counter() - start, time.perf_counter()
    descriptor_table(smiles)
    # benchmarks/molecules.py measures it; this only notices when the cache stops being one.
    assert computed > 20 * (time.perf_counter() - start)


@pytest.mark.realdata
@pytest.mark.parametrize("name", ["zinc250k_jtnn_valid.smi.gz", "hiv.csv.gz", "chebi20_validation.tsv.gz"])
def test_real_molecules_are_bit_equal_to_rdkit(name: str) -> None:
    path = Path(os.environ["POLYFM_DATA"]) / "molecules" / name
    for smiles in random.Random(0).sample(read_molecules(path, limit=4000).smiles, 150):
        assert_bit_equal(smiles)


def test_all_2d_descriptors_are_rdkit_s_and_what_is_infinite_or_absurd_is_unknown() -> None:
    found = descriptor_table_2d(["CCO", "[Na+].[Cl-]", "CCO"])
    assert found.shape == (3, len(DESCRIPTORS_2D))
    own = Descriptors.CalcMolDescriptors(Chem.MolFromSmiles("CCO"))
    assert list(own) == list(DESCRIPTORS_2D)
    expected = [np.nan if not abs(value) < 1e9 else value for value in own.values()]
    np.testing.assert_allclose(found[0], expected)
    np.testing.assert_array_equal(found[0], found[2])
    assert not np.isinf(found).any()
    np.testing.assert_array_equal(descriptor_table_2d(["CCO"])[0], found[0])  # from the cache, unknown ones, too
