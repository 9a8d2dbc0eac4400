"""Molecules in space: a file's own coordinates, those that RDKit makes, and batches of both."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from rdkit import Chem
from rdkit.Chem import rdMolTransforms
from torch import nn
from torch.utils._pytree import tree_leaves

from polyfm.domains.molecules import conformers
from polyfm.domains.molecules.conformers import (
    CLS,
    ELEMENTS,
    OTHER,
    SPECIALS,
    Conformer,
    ConformerBatch,
    file_conformers,
    made_conformers,
    pack_conformers,
    without_hydrogens,
)
from polyfm.domains.molecules.data import MoleculeDataModule

WATER = Conformer(np.array([8, 1, 1]), np.array([[0.0, 0, 0.1], [0, 0.75, -0.05], [0, -0.75, -0.05]], dtype=np.float32))


def write_sdf(path: Path, smiles: list[str], flat: tuple[int, ...] = ()) -> Path:
    """Records with hydrogens and coordinates, those in ``flat`` without the third dimension."""
    blocks = []
    for row, (text, one) in enumerate(zip(smiles, made_conformers(smiles), strict=True)):
        mol = Chem.AddHs(Chem.MolFromSmiles(text))
        placed = Chem.Conformer(mol.GetNumAtoms())
        placed.Set3D(row not in flat)
        places = one.coordinates.astype(float) + 5.0
        places[:, 2] *= row not in flat
        placed.SetPositions(places)
        mol.AddConformer(placed)
        blocks.append(Chem.MolToMolBlock(mol) + "$$$$\n")
    path.write_text("".join(blocks))
    return path


class Framed(nn.Module):
    def forward(self, batch: ConformerBatch) -> tuple[torch.Tensor, ...]:
        return batch.framed()


class TestMade:
    def test_bond_lengths_are_a_chemist_s(self) -> None:
        (ethanol,) = made_conformers(["CCO"])
        assert ethanol.numbers.tolist() == [6, 6, 8, 1, 1, 1, 1, 1, 1]
        assert np.linalg.norm(ethanol.coordinates[0] - ethanol.coordinates[1]) == pytest.approx(1.52, abs=0.03)
        assert np.linalg.norm(ethanol.coordinates[1] - ethanol.coordinates[2]) == pytest.approx(1.42, abs=0.03)
        np.testing.assert_allclose(ethanol.coordinates.mean(0), 0, atol=1e-5)

    def test_the_same_from_cache_from_workers_and_in_any_company(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        smiles = ["CCO", "c1ccccc1O", "CC(=O)NC"]
        monkeypatch.setenv("POLYFM_CACHE", str(tmp_path / "one"))
        first, again = made_conformers(smiles), made_conformers(smiles)
        monkeypatch.setenv("POLYFM_CACHE", str(tmp_path / "two"))
        monkeypatch.setattr("polyfm.domains.molecules.descriptors._MOLECULES_PER_JOB", 1)
        seen: list[tuple[int, int]] = []
        apart = made_conformers(smiles[::-1], workers=2, progress=lambda *done: seen.append(done))[::-1]
        for a, b, c in zip(first, again, apart, strict=True):
            assert a.coordinates.tobytes() == b.coordinates.tobytes() == c.coordinates.tobytes()
        assert seen == [(1, 3), (2, 3), (3, 3)]

    def test_what_cannot_be_placed_has_none_and_that_is_remembered(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(conformers, "LARGEST", 12)
        assert made_conformers(["CCCCCCCC", "C"])[0] is None
        monkeypatch.setattr(conformers, "_make", lambda smiles: pytest.fail("computed again"))
        assert [one is None for one in made_conformers(["CCCCCCCC", "C"])] == [True, False]

    def test_without_hydrogens_heavy_atoms_are_centred(self) -> None:
        (ethanol,) = made_conformers(["CCO"])
        heavy = without_hydrogens(ethanol)
        assert heavy.numbers.tolist() == [6, 6, 8]
        np.testing.assert_allclose(heavy.coordinates.mean(0), 0, atol=1e-6)
        hydrogen = Conformer(np.array([1, 1]), np.array([[0, 0, 0.37], [0, 0, -0.37]], dtype=np.float32))
        assert without_hydrogens(hydrogen) is hydrogen


class TestFiles:
    def test_the_file_s_own_are_taken_and_centred(self, tmp_path: Path) -> None:
        path = write_sdf(tmp_path / "a.sdf", ["CCO", "CC", "CN"], flat=(1,))
        ethanol, flat, amine = file_conformers(path, [1, 2, 3])
        assert flat is None
        assert len(ethanol.numbers), len(amine.numbers) == (9, 7)
        np.testing.assert_allclose(ethanol.coordinates, made_conformers(["CCO"])[0].coordinates, atol=2e-4)

    def test_of_a_salt_the_fragment_that_is_kept(self, tmp_path: Path) -> None:
        path = write_sdf(tmp_path / "a.sdf", ["CCO.Cl"])
        assert len(file_conformers(path, [1])[0].numbers) == 11
        assert len(file_conformers(path, [1], largest_fragment=True)[0].numbers) == 9

    def test_tables_have_none_whatever_their_columns_are_called(self, molecules: Path, tmp_path: Path) -> None:
        assert file_conformers(molecules, [1, 2]) == [None, None]
        (tmp_path / "a.csv").write_text("drug\nCCO\nCC\nC\n")
        data = MoleculeDataModule(
            str(tmp_path / "a.csv"), smiles="drug", split="random", fractions=(1, 0, 0), modalities=["conformer"]
        )
        data.setup()
        assert [len(one.numbers) for one in data.conformers] == [9, 8, 5]


class TestBatches:
    def test_types_frames_and_selection(self) -> None:
        odd = Conformer(np.array([92]), np.zeros((1, 3), dtype=np.float32))
        batch = pack_conformers([WATER, None, odd])
        oxygen, hydrogen = (SPECIALS + ELEMENTS.index(symbol) for symbol in ("O", "H"))
        assert batch.ids.tolist() == [oxygen, hydrogen, hydrogen, OTHER]
        assert batch.rows.tolist() == [0, 2]
        ids, places, mask = batch.framed()
        assert ids.tolist() == [[CLS, oxygen, hydrogen, hydrogen], [CLS, OTHER, CLS, CLS]]
        assert mask.tolist() == [[True] * 4, [True, True, False, False]]
        torch.testing.assert_close(places[0, 1:], torch.from_numpy(WATER.coordinates))
        torch.testing.assert_close(places[:, 0], torch.zeros(2, 3))
        moved = batch.replace(coordinates=batch.coordinates + 2)
        torch.testing.assert_close(moved.framed()[1][:, 0], torch.full((2, 3), 2.0))
        swapped = batch.select(torch.tensor([1, 0]))
        assert swapped.ids.tolist() == [OTHER, oxygen, hydrogen, hydrogen]
        assert swapped.cu_seqlens.tolist() == [0, 1, 4]

    def test_it_travels_as_one_thing(self) -> None:
        batch = pack_conformers([WATER])
        tensors = [leaf for leaf in tree_leaves(batch.to("meta")) if isinstance(leaf, torch.Tensor)]
        assert {tensor.device.type for tensor in tensors} == {"meta"}
        assert len(tensors) == 4
        export = torch.export.export(Framed(), (batch,))
        for told, made in zip(export.module()(batch), batch.framed(), strict=True):
            assert torch.equal(told, made)

    def test_nobody_has_one(self) -> None:
        ids, places, mask = pack_conformers([None, None]).framed()
        assert (ids.shape, places.shape, mask.shape) == ((0, 1), (0, 1, 3), (0, 1))


class TestDataModule:
    def test_a_molecule_without_is_noticed_and_lacks_the_modality(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(conformers, "LARGEST", 20)
        monkeypatch.setenv("POLYFM_CACHE", str(tmp_path))
        path = tmp_path / "a.smi"
        path.write_text("".join(f"{text}\n" for text in ("CCO", "CCCCCCCCCC", "CCN", "CCC")))
        data = MoleculeDataModule(str(path), split="random", fractions=(1.0, 0.0, 0.0), modalities=["conformer"])
        data.setup()
        assert data.notices.counts() == {"no conformer": 1}
        batch = next(iter(data.loader("train", shuffle=False)))
        assert len(batch) == 4
        assert batch.present("conformer").tolist() == [True, False, True, True]
        assert data.lengths().max() == 12  # tokens of the SMILES of decane

    def test_new_files_and_texts(self, molecules: Path, tmp_path: Path) -> None:
        data = MoleculeDataModule(str(molecules), modalities=["conformer"], hydrogens=False)
        data.setup()
        own, made = data.samples_from(write_sdf(tmp_path / "a.sdf", ["CCO"]))[0], data.samples_from(["CCO"])[0]
        np.testing.assert_allclose(own.conformer.coordinates, made.conformer.coordinates, atol=2e-4)
        assert data.collate([own, made])["conformer"].cu_seqlens.tolist() == [0, 3, 6]


@pytest.mark.realdata
def test_gdb1k_has_its_own(tmp_path: Path) -> None:
    path = Path(os.environ["POLYFM_DATA"]) / "molecules" / "gdb1k_3d.sdf.gz"
    data = MoleculeDataModule(str(path), modalities=["conformer"])
    data.setup()
    with gzip.open(path, "rt") as file:
        block = next(iter(file.read().split("$$$$\n")))
    mol = Chem.MolFromMolBlock(block, removeHs=False)
    want = rdMolTransforms.GetBondLength(mol.GetConformer(), 0, 1)
    first = data.conformers[0].coordinates
    assert np.linalg.norm(first[0] - first[1]) == pytest.approx(want, abs=1e-4)
    assert all(one is not None for one in data.conformers)
