from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from rdkit import Chem

from polyfm.domains.molecules.structure_files import open_structures
from polyfm.shared.errors import DataError

SDF = """ethanol
  hand-written

  3  2  0  0  0  0  0  0  0  0999 V2000
    0.0000    0.0000    0.0000 C   0  0
    1.0000    0.0000    0.0000 C   0  0
    2.0000    0.0000    0.0000 O   0  0
  1  2  1  0
  2  3  1  0
M  END
>  <logP>  (1)
-0.31

> <note>
first line
second line

$$$$
water
  hand-written

  1  0  0  0  0  0  0  0  0  0999 V2000
    0.0000    0.0000    0.0000 O   0  0
M  END
>  <boils, C>
100

$$$$
"""


def test_smi_with_names_comments_and_blank_lines(tmp_path: Path) -> None:
    (tmp_path / "m.smi").write_text("CCO ethyl alcohol\n\n# a comment\nC\tmethane\r\nN,ammonia\nO\n")
    records = list(open_structures(tmp_path / "m.smi").records())
    assert [(r.number, r.structure, r.cells) for r in records] == [
        (1, "CCO", ("ethyl alcohol",)),
        (2, "C", ("methane",)),
        (3, "N", ("ammonia",)),
        (4, "O", ("",)),
    ]


@pytest.mark.parametrize("header", ["", "SMILES Name\n", "smiles\n"])
def test_smi_with_or_without_header(tmp_path: Path, header: str) -> None:
    (tmp_path / "m.smi.gz").write_bytes(gzip.compress(f"{header}C m\nCC\n".encode()))
    assert [r.structure for r in open_structures(tmp_path / "m.smi.gz").records()] == ["C", "CC"]


@pytest.mark.parametrize("packed", [False, True])
def test_sdf_properties_are_columns(tmp_path: Path, packed: bool) -> None:
    path = tmp_path / ("m.sdf.gz" if packed else "m.sdf")
    path.write_bytes(gzip.compress(SDF.encode()) if packed else SDF.encode())
    file = open_structures(path)
    assert file.mol_blocks
    assert file.table.columns == ("_Name", "logP", "note", "boils, C")
    ethanol, water = file.records()
    assert ethanol.cells == ("ethanol", "-0.31", "first line\nsecond line", "")
    assert (water.number, water.cells) == (2, ("water", "", "", "100"))
    assert Chem.MolToSmiles(Chem.MolFromMolBlock(ethanol.structure)) == "CCO"


def test_the_last_sdf_record_may_lack_its_end(tmp_path: Path) -> None:
    (tmp_path / "m.sdf").write_text(SDF.removesuffix("$$$$\n"))
    assert len(list(open_structures(tmp_path / "m.sdf").records())) == 2


def test_the_smiles_column_of_a_table_is_found_or_named(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("mol,structure_b,SMILES\nX,CC,C\n")
    assert open_structures(tmp_path / "m.csv").smiles_column == "SMILES"
    assert next(open_structures(tmp_path / "m.csv", "structure_b").records()).structure == "CC"


def test_a_table_without_a_likely_column_lists_what_it_has(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=r"'a', 'b'.*--data.smiles COLUMN"):
        open_structures(tmp_path / "m.csv")


@pytest.mark.parametrize("name", ["m.xlsx", "m", "m.txt.gz"])
def test_other_endings_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("C\n")
    with pytest.raises(DataError, match=r"\.csv.*\.sdf"):
        open_structures(tmp_path / name)


@pytest.mark.parametrize("name", ["m.smi", "m.sdf", "m.csv", "m.parquet"])
def test_missing_and_empty_files(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="no such file"):
        open_structures(tmp_path / name)
    (tmp_path / name).write_text("")
    with pytest.raises(DataError, match="empty"):
        open_structures(tmp_path / name)
