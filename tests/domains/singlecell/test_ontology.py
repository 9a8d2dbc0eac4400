"""Definitions of what columns name."""

from __future__ import annotations

from pathlib import Path

import pytest
from anndata import AnnData

from polyfm.domains.singlecell.data import CellDataModule
from polyfm.domains.singlecell.ontology import Ontology
from polyfm.domains.singlecell.synthetic import synthetic_cells
from polyfm.shared.errors import DataError

OBO = r"""format-version: 1.4
ontology: cl

[Term]
id: CL:0000236
name: B cell
alt_id: CL:0000999
def: "A lymphocyte of B lineage, \"bursa\" derived. It\nmakes \W antibodies." [GOC:add, "ISBN:1"]
synonym: "B lymphocyte" EXACT []
synonym: "bursal cell" RELATED []
is_a: CL:0000945 ! lymphocyte of B lineage

[Term]
id: CL:0000084
name: T cell
synonym: "b CELL" EXACT []

[Term]
id: CL:0000001
name: old cell
def: "Gone." []
is_obsolete: true

[Typedef]
id: part_of
name: part of
"""
B = 'B cell: A lymphocyte of B lineage, "bursa" derived. It makes antibodies.'


@pytest.fixture
def obo(tmp_path: Path) -> Path:
    path = tmp_path / "cl.obo"
    path.write_text(OBO)
    return path


def test_ids_names_and_exact_synonyms_are_defined(obo: Path) -> None:
    ontology = Ontology.read([obo])
    said = ["CL:0000236", "cl:0000999", "B cell", "B Lymphocyte", "bursal cell", "T cell", "old cell", None, ""]
    assert ontology.describe(said) == [B, B, B, B, "bursal cell", "T cell", "old cell", None, ""]


def test_earlier_files_go_first_and_names_before_synonyms(obo: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.obo"
    other.write_text(
        'ontology: x\n\n[Term]\nid: X:1\nname: T cell\ndef: "Another." []\n\n[Term]\nid: X:2\nname: cell\n'
    )
    both = Ontology.read([other, obo])
    assert both.describe(["T cell", "X:2", "B cell", "CL:0000084"]) == ["T cell: Another.", "cell", B, "T cell"]
    assert both.sources == ("other.obo", "cl.obo")


def test_what_is_found_is_told(obo: Path) -> None:
    ontology = Ontology.read([obo])
    assert ontology.told("kind", ["B cell", "B cell", None]) == "1 of 1 values of 'kind' are in cl.obo"
    assert ontology.told("kind", ["B cell", "x"]) == "1 of 2 values of 'kind' are in cl.obo; not 'x'"


def test_escapes_are_undone_and_what_is_not_closed_defines_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.obo"
    path.write_text(
        'ontology: x\n\n[Term]\nid: X:1\nname: a \\{b\\}\ndef: "Tab\\tand\\nline." []\n\n[Term]\nid: X:2\nname: c\n'
        'def: "Watch out ! now" []\n\n[Term]\nid: X:3\nname: d\ndef: "" []\n'
    )
    assert Ontology.read([path]).describe(["a {b}", "c", "d"]) == ["a {b}: Tab and line.", "c", "d"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read \\(No such file or directory\\). Check --data.ontology, or leave it out: \\[\\]"),
        ('{"graphs": []}', "this is no ontology in the OBO format. Give a file such as cl.obo"),
        ("", "this is no ontology in the OBO format"),
        ("[Term]\nnonsense\n", "this is no ontology in the OBO format"),
        ("\x00\ud800", "this is no ontology in the OBO format"),
    ],
    ids=["missing", "json", "empty", "broken", "no text"],
)
def test_other_files_are_refused(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "cl.obo"
    if text is not None:
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(DataError, match=f"^{path}: {message}"):
        Ontology.read([path])


def test_a_url_is_not_opened() -> None:
    with pytest.raises(DataError, match="cannot be read"):
        Ontology.read(["https://example.org/cl.obo"])


def test_texts_of_cells_hold_definitions(obo: Path, tmp_path: Path) -> None:
    cells: AnnData = synthetic_cells(60)
    cells.obs["kind"] = ["CL:0000236", "stranger"] * 30
    cells.obs["tissue"] = "spleen"
    cells.write_h5ad(tmp_path / "cells.h5ad")
    data = CellDataModule(
        str(tmp_path / "cells.h5ad"), text=["kind", "tissue"], modalities=["genes", "text"], ontology=[str(obo)]
    )
    data.setup()
    texts = set(data.table.text or [])
    assert texts == {f"kind: {B} tissue: spleen", "kind: stranger. tissue: spleen"}
    assert "1 of 2 values of 'kind' are in cl.obo; not 'stranger'" in data.remarks
    assert "0 of 1 values of 'tissue' are in cl.obo; not 'spleen'" in data.remarks
    asked = data.samples_from(tmp_path / "cells.h5ad", ontology=str(obo))
    assert set(asked.text) == texts
