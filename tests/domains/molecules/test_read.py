from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from polyfm.domains.molecules.read import canonical, read_molecules, stream_smiles
from polyfm.domains.molecules.synthetic import KINDS, synthetic_molecules, write_synthetic
from polyfm.shared.errors import DataError, UsageError


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_reads_back_what_was_written(tmp_path: Path, kind: str) -> None:
    truth = synthetic_molecules(30, seed=1)
    path = write_synthetic(tmp_path, kind=kind, n=30, seed=1)
    tabular = not kind.startswith("smi")
    table = read_molecules(path, targets=("activity", "assay_basic") if tabular else ())
    assert table.smiles == truth.smiles.tolist()
    assert table.ids == truth.id.tolist()
    assert table.rows.tolist() == list(range(1, 31))
    assert len(table.quarantine) == 0
    assert table.quarantine.num_read == 30
    if tabular:
        np.testing.assert_array_equal(table.targets, truth[["activity", "assay_basic"]])
        assert table.text == truth.description.tolist()


def test_guesses_are_announced_and_options_are_not(tmp_path: Path) -> None:
    path = write(
        tmp_path / "m.csv", "Compound ID,Canonical SMILES,Description,Split,y\na,C,gas,train,1\nb,CC,,test,2\n"
    )
    table = read_molecules(path)
    assert table.guesses == {
        "smiles": "Canonical SMILES", "id": "Compound ID", "text": "Description", "split": "Split",
    }  # fmt: skip
    assert table.text == ["gas", None]
    assert table.split == ["train", "test"]
    assert table.targets.shape == (2, 0)
    named = read_molecules(path, smiles="Canonical SMILES", id="y", targets=["y"], text="Compound ID", split="Split")
    assert named.guesses == {}
    assert (named.ids, named.text, named.target_names) == (["1", "2"], ["a", "b"], ("y",))


def test_broken_rows_are_quarantined_with_row_and_reason(tmp_path: Path) -> None:
    path = write(tmp_path / "m.csv", "smiles,y\nCCO,1\nCN(C)(C)C,2\n,3\nC1CC,4\nCC,5,6\nCCC,6\n")
    table = read_molecules(path, targets=["y"], max_broken=0.7)
    assert table.smiles == ["CCO", "CCC"]
    assert table.rows.tolist() == [1, 6]
    assert table.targets[:, 0].tolist() == [1.0, 6.0]
    assert table.ids == ["m:1", "m:6"]
    assert [(finding.row, finding.kind) for finding in table.quarantine.items] == [
        (2, "impossible valence"),
        (3, "empty"),
        (4, "unreadable structure"),
        (5, "malformed row"),
    ]
    assert table.quarantine.items[0].item == "CN(C)(C)C"
    assert "atom # 1 N, 4" in table.quarantine.items[0].detail
    assert table.quarantine.items[3].item == "CC | 5 | 6"
    assert table.quarantine.items[3].detail == "3 cells where the header has 2"


def test_a_target_of_a_broken_row_is_not_looked_at(tmp_path: Path) -> None:
    path = write(tmp_path / "m.csv", "smiles,y\nC,1\nC1CC,not measured\n")
    assert len(read_molecules(path, targets=["y"])) == 1


def test_too_many_broken_rows_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "m.csv", "smiles\nC\nX\nY\n")
    with pytest.raises(DataError, match="2 of 3 rows are broken, more than the allowed 50%"):
        read_molecules(path)
    assert read_molecules(path, max_broken=0.7).smiles == ["C"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("smiles\nX\nQ\n", "none of the 2 rows can be used"),
        ("smiles\n", "there are no rows"),
        ("smiles\nC>>CC\n", "reaction"),
    ],
)
def test_a_file_without_a_molecule_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read_molecules(write(tmp_path / "m.csv", text))


@pytest.mark.parametrize("cell", [">10", "high", "1,5", "inf"])
def test_a_target_that_is_no_number_is_named(tmp_path: Path, cell: str) -> None:
    path = write(tmp_path / "m.csv", f'smiles,pIC50\nC,1\nCC,"{cell}"\n')
    with pytest.raises(DataError, match=f"row 2, column 'pIC50' holds '{cell}'.*leave it empty"):
        read_molecules(path, targets=["pIC50"])


def test_missing_targets_and_flags(tmp_path: Path) -> None:
    path = write(tmp_path / "m.csv", "smiles,y,z\nC,True,\nCC,false,NA\nCCC,1e-3,nan\nCCCC,,\n")
    table = read_molecules(path, targets=["y", "z"])
    np.testing.assert_array_equal(table.targets[:, 0], [1.0, 0.0, 1e-3, np.nan])
    assert np.isnan(table.targets[:, 1]).all()
    assert [(notice.row, notice.kind) for notice in table.notices.items] == [(4, "no label")]


def test_a_missing_target_column_suggests_the_nearest(tmp_path: Path) -> None:
    path = write(tmp_path / "m.csv", "smiles,measured\nC,1\n")
    with pytest.raises(DataError, match="Did you mean 'measured'"):
        read_molecules(path, targets=["mesured"])


def test_duplicates_merge_or_stay(tmp_path: Path) -> None:
    path = write(tmp_path / "m.csv", "smiles,y\nOCC,1.5\nC,7\nCCO,2.5\nC(O)C,\n")
    merged = read_molecules(path, targets=["y"])
    assert (merged.smiles, merged.rows.tolist(), merged.targets[:, 0].tolist()) == (["CCO", "C"], [1, 2], [2.0, 7.0])
    assert [(n.row, n.kind, n.detail) for n in merged.notices.items] == [
        (4, "no label", "no target has a value"),
        (3, "duplicate", "of row 1"),
        (4, "duplicate", "of row 1"),
        (1, "conflicting labels", "y: 1.5, 2.5 become 2"),
    ]
    kept = read_molecules(path, targets=["y"], duplicates="keep")
    assert kept.smiles == ["CCO", "C", "CCO", "CCO"]
    assert kept.notices.counts() == {"duplicate": 2, "no label": 1}
    with pytest.raises(UsageError, match="'merge' or 'keep'"):
        read_molecules(path, duplicates="drop")


def test_stereoisomers_collide_only_without_stereochemistry(tmp_path: Path) -> None:
    path = write(tmp_path / "m.csv", "smiles,y\nC[C@H](N)O,1\nC[C@@H](N)O,0\nC[C@H](N)O,1\n")
    flat = read_molecules(path, targets=["y"])
    assert flat.smiles == ["CC(N)O"]
    assert np.isnan(flat.targets).all()
    assert flat.notices.counts() == {"stereo-colliding": 1, "duplicate": 1, "conflicting labels": 1}
    assert "which is C[C@H](N)O" in next(n.detail for n in flat.notices.items if n.kind == "stereo-colliding")
    kept = read_molecules(path, targets=["y"], isomeric=True)
    assert kept.smiles == ["C[C@H](N)O", "C[C@@H](N)O"]
    assert kept.notices.counts() == {"duplicate": 1}


def test_salts_are_reported(tmp_path: Path) -> None:
    path = write(tmp_path / "m.smi", "CCO\n[Na+].CC(=O)[O-]\n")
    assert read_molecules(path).notices.counts() == {"disconnected": 1}
    stripped = read_molecules(path, largest_fragment=True)
    assert stripped.smiles == ["CCO", "CC(=O)[O-]"]
    assert stripped.notices.items[0].detail == "2 fragments, the largest is kept"


def test_large_molecules_are_quarantined(tmp_path: Path) -> None:
    path = write(tmp_path / "m.smi", "CCO\n" + "C" * 1001 + "\nCCN\n")
    assert [finding.kind for finding in read_molecules(path).quarantine.items] == ["too large"]
    assert len(read_molecules(path, max_atoms=2000)) == 3


def test_guessed_ids_must_differ_and_named_ones_are_made_to(tmp_path: Path) -> None:
    path = write(tmp_path / "set.csv", "smiles,name\nC,a\nCC,a\nCCC,\nCCCC,b\n")
    guessed = read_molecules(path)
    assert guessed.ids == ["set:1", "set:2", "set:3", "set:4"]
    assert "id" not in guessed.guesses
    named = read_molecules(path, id="name")
    assert named.ids == ["a", "a#2", "#3", "b"]
    assert named.notices.counts() == {"repeated id": 2}


def test_a_limit_reads_the_first_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "m.smi", "C\nX\nCC\nCCC\n")
    table = read_molecules(path, limit=3)
    assert table.smiles == ["C", "CC"]
    assert table.quarantine.num_read == 3


def test_workers_change_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "m.smi", "C\nX\nCC\nCCC\n")
    alone, together = read_molecules(path), read_molecules(path, workers=2)
    assert (alone.smiles, alone.rows.tolist()) == (together.smiles, together.rows.tolist())
    assert alone.quarantine == together.quarantine


def test_one_smiles() -> None:
    assert canonical("OCC") == "CCO"
    assert canonical("C[C@H](N)O", isomeric=True) == "C[C@H](N)O"
    assert canonical("C1CC") is None
    assert canonical("") is None


def test_a_stream_gives_blocks_in_order(tmp_path: Path) -> None:
    path = write(tmp_path / "m.smi", "C\nX\nOC\nCCC\nC\n")
    blocks = list(stream_smiles(path, block_rows=2))
    assert [block.smiles for block in blocks] == [["C"], ["CO", "CCC"], ["C"]]
    assert [block.rows.tolist() for block in blocks] == [[1], [3, 4], [5]]
    assert [finding.row for block in blocks for finding in block.broken] == [2]


def test_a_stream_takes_no_more_memory_for_a_longer_file(tmp_path: Path) -> None:
    def peak(rows: int) -> int:
        path = write(tmp_path / f"{rows}.smi", "".join(f"{'C' * (index % 40 + 1)} m{index}\n" for index in range(rows)))
        tracemalloc.start()
        assert sum(len(block.smiles) for block in stream_smiles(path, block_rows=500)) == rows
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(500)  # what is loaded once
    short, long = peak(2_000), peak(12_000)
    assert long < 1.2 * short
    assert long < 4_000_000


REAL = {
    # file: (targets, rows, broken, molecules after merging)
    "bbbp.csv": (["p_np"], 2050, 11, 1953),
    "esol_delaney.csv": (["measured log solubility in mols per litre"], 1128, 0, 1115),
    "freesolv.csv": (["expt"], 642, 0, 639),
    "lipophilicity.csv": (["exp"], 4200, 0, 4102),
    "tox21.csv.gz": (["NR-AR", "SR-p53"], 8014, 8, 7701),
    "zinc250k_jtnn_valid.smi.gz": ([], 24445, 0, 24425),
    "gdb1k_3d.sdf.gz": ([], 1000, 0, 1000),
}


@pytest.mark.realdata
@pytest.mark.parametrize("name", REAL)
def test_real_files_read_with_the_numbers_that_are_known(name: str) -> None:
    targets, rows, broken, molecules = REAL[name]
    path = Path(os.environ["POLYFM_DATA"]) / "molecules" / name
    table = read_molecules(path, targets=targets)
    assert (table.quarantine.num_read, len(table.quarantine), len(table)) == (rows, broken, molecules)
    assert table.targets.shape == (molecules, len(targets))
    assert all(finding.kind == "impossible valence" for finding in table.quarantine.items)
    assert len(set(table.smiles)) == len(table)


@pytest.mark.realdata
def test_doubled_backslashes_of_chebi_are_gone() -> None:
    path = Path(os.environ["POLYFM_DATA"]) / "molecules" / "chebi20_validation.tsv.gz"
    table = read_molecules(path, isomeric=True)
    assert (table.quarantine.num_read, len(table)) == (3301, 3301)
    assert not any("\\\\" in smiles for smiles in table.smiles)
    assert sum("\\" in smiles for smiles in table.smiles) > 300
    assert table.guesses == {"smiles": "SMILES", "id": "CID", "text": "description"}
    assert all(text is not None and text.startswith("The molecule") for text in table.text or [])


@pytest.mark.realdata
def test_a_file_of_reactions_says_so() -> None:
    with pytest.raises(DataError, match="none of the 100 rows can be used: 100 x reaction"):
        read_molecules(Path(os.environ["POLYFM_DATA"]) / "molecules" / "reactions_100.csv")
