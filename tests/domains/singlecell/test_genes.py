from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from polyfm.domains.singlecell.genes import GeneNames, GeneVocabulary, read_aliases
from polyfm.shared.errors import DataError

HUMAN = ["TP53", "ACTB", "CD3E", "C1orf112", "HLA-A", "MT-ND1"]
MOUSE = ["Trp53", "Actb", "Cd3e", "mt-Nd1", "1700001A01Rik", "H2-K1"]
IDS = ["ENSG00000141510", "ENSG00000075624", "ENSG00000198851"]


def names(symbols: Sequence[str], path: str = "a.h5ad", **columns: Sequence[str]) -> GeneNames:
    return GeneNames.of(symbols, columns, Path(path))


@pytest.mark.parametrize(
    ("symbols", "species"),
    [
        (HUMAN, "human"),
        (MOUSE, "mouse"),
        (IDS, "human"),
        (["ENSMUSG00000059552", "ENSMUSG00000029580.12"], "mouse"),
        (["ENSRNOG00000010756"], "rat"),
        (["gene0", "gene1", "gene2"], ""),
        (["tp53", "actb1", "cd4-1"], ""),
    ],
)
def test_names_tell_the_species(symbols: list[str], species: str) -> None:
    assert names(symbols).species == species


def test_symbols_and_ensembl_ids_are_told_apart() -> None:
    by_id = names([f"{IDS[0]}.17", IDS[1]], feature_name=["TP53", IDS[1]])
    assert (by_id.symbols, by_id.ensembl) == (["TP53", ""], IDS[:2])
    assert [by_id.name(0), by_id.name(1)] == ["TP53", IDS[1]]
    by_symbol = names(HUMAN[:3], **{"Gene IDs": IDS})
    assert (by_symbol.symbols, by_symbol.ensembl) == (HUMAN[:3], IDS)
    spiked = names([*IDS, "ERCC-00002"])
    assert spiked.symbols == ["", "", "", "ERCC-00002"]
    assert spiked.ensembl == [*IDS, ""]


def test_blanks_around_names_are_left_out_and_said() -> None:
    found = names(["TP53 ", " ACTB", "CD3E"])
    assert found.symbols == ["TP53", "ACTB", "CD3E"]
    assert found.remarks == ("2 gene names have blanks around them, which are left out",)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ([], "there are no genes"),
        (["", "", ""], "the genes have no names"),
        (["0", "1", "2"], "the genes have no names: they are called 0, 1, 2, …"),
        (["7157", "60", "916"], "the genes are called by numbers (7157, 60, 916), such as Entrez ids"),
    ],
)
def test_what_is_no_name_is_refused(given: list[str], problem: str) -> None:
    with pytest.raises(DataError) as refused:
        names(given)
    assert problem in str(refused.value)
    if given:
        assert "adata.var_names = SYMBOLS" in str(refused.value)
        found = names(given, gene_symbols=HUMAN[:3])
        assert found.symbols == HUMAN[:3]
        assert found.remarks[0].endswith("genes are named by another column of var")


def test_odd_names_are_said() -> None:
    assert (
        "gene0, gene1, gene2, gene3, …: a model that learns them fits no other file"
        in names([f"gene{i}" for i in range(9)]).remarks[0]
    )
    assert names([*HUMAN, "1-Mar", "9-Sep"]).remarks == (
        "2 gene names were turned into dates by a spreadsheet: 1-Mar, 9-Sep",
    )


def test_a_vocabulary_of_files_with_different_genes() -> None:
    first, second = names(["A1", "B2", "C3"]), names(["C3", "D4", "A1"], "b.h5ad")
    union = GeneVocabulary.build([first, second])
    assert union.symbols == ["A1", "B2", "C3", "D4"]
    assert union.match(second).ids.tolist() == [2, 3, 0]
    assert GeneVocabulary.build([first, second], coverage=1.0).symbols == ["A1", "C3"]
    third = names(["D4", "E5"], "c.h5ad")
    assert GeneVocabulary.build([first, second, third], coverage=0.6).symbols == ["A1", "C3", "D4"]
    with pytest.raises(DataError, match=r"c\.h5ad: no gene is in 100% of the 3 files\. Lower the coverage"):
        GeneVocabulary.build([first, second, third], coverage=1.0)


def test_files_that_bring_both_names_join_those_that_bring_one() -> None:
    both = names(["TP53", "ACTB", "CD3E"], gene_ids=IDS)
    by_id, renamed = names(IDS, "b.h5ad"), names(["P53", "ACTB"], "c.h5ad", gene_ids=IDS[:2])
    for files in ([both, by_id, renamed], [by_id, both, renamed]):
        built = GeneVocabulary.build(files)
        assert (built.symbols, built.ensembl) == (["TP53", "ACTB", "CD3E"], IDS)
        assert built.match(by_id).ids.tolist() == [0, 1, 2]
        assert built.match(names(["P53", "CD3E"])).ids.tolist() == [0, 2]


def test_duplicates_are_summed_and_said() -> None:
    twice = names(["TBCE", "ACTB", "TBCE", "TBCE-1", "HLA-1"], gene_ids=[*IDS, "", ""])
    built = GeneVocabulary(["TBCE", "ACTB", "CD3E"], ["", "", ""])
    found = built.match(twice)
    assert found.ids.tolist() == [0, 1, 0, 0, -1]
    assert "1 genes stand in several columns, which are summed: TBCE" in found.remarks
    assert GeneVocabulary.build([names(["TBCE", "TBCE"], gene_ids=IDS[:2])]).symbols == ["TBCE"]


def test_a_table_of_aliases(tmp_path: Path) -> None:
    path = tmp_path / "aliases.tsv"
    path.write_text("alias\tsymbol\nP53\tTP53\nT3E\tCD3E\n")
    aliases = read_aliases(path)
    assert aliases == {"P53": "TP53", "T3E": "CD3E"}
    built = GeneVocabulary.build([names(["P53", "ACTB"]), names(["TP53", "CD3E"], "b.h5ad")], aliases=aliases)
    assert built.symbols == ["TP53", "ACTB", "CD3E"]
    found = built.match(names(["T3E", "P53"]))
    assert found.ids.tolist() == [2, 0]
    assert "2 genes are known by another name: T3E is CD3E, P53 is TP53" in found.remarks
    # A model from before the table, which learnt the old name.
    assert GeneVocabulary(["P53"], [""], "human", aliases).match(names(["TP53"])).ids.tolist() == [0]


def test_a_table_of_aliases_that_says_two_things_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "aliases.csv"
    path.write_text("alias,symbol\nP53,TP53\nP53,TP63\n")
    with pytest.raises(DataError, match="row 2 says that 'P53' is 'TP63', an earlier row that it is 'TP53'. Keep one"):
        read_aliases(path)
    path.write_text("alias\nP53\n")
    with pytest.raises(DataError, match="there is one column; expected two, alias and gene"):
        read_aliases(path)


def test_overlap_is_told_in_percent_and_fails_below_a_threshold() -> None:
    model = GeneVocabulary(["A1", "B2", "C3", "D4"], [""] * 4, "human")
    found = model.match(names(["A1", "B2", "X9"]))
    assert found.overlap == pytest.approx(2 / 3)
    assert found.remarks[0] == "66.7% of the genes overlap: 2 of the file's 3, 2 of the vocabulary's 4"
    # A file of many genes for a model of few, and the reverse, overlap in full.
    assert model.match(names([*model.symbols, *HUMAN])).overlap == 1
    assert model.match(names(["A1"])).overlap == 1
    with pytest.raises(DataError) as refused:
        model.match(names(["X7", "X8", "X9"]))
    assert str(refused.value) == (
        "a.h5ad: 0.0% of the genes overlap: 0 of the file's 3, 0 of the vocabulary's 4; at least 50% is expected (the "
        "file has X7, X8, X9; the vocabulary A1, B2, C3, D4). Name genes as the vocabulary does, or give a table of two "
        "columns, alias and gene"
    )


def test_mouse_genes_for_a_human_model_are_refused() -> None:
    model = GeneVocabulary.build([names(HUMAN)])
    for mouse in (names(MOUSE, "m.h5ad"), names(["ENSMUSG00000059552"], "m.h5ad")):
        with pytest.raises(
            DataError,
            match=r"m\.h5ad: the genes are named as in mouse \(.*\), those .* as in human\. Use files of human",
        ):
            model.match(mouse)
    with pytest.raises(DataError, match="named as in mouse"):
        GeneVocabulary.build([names(HUMAN), names(MOUSE)])


def test_the_state_is_primitive() -> None:
    built = GeneVocabulary.build([names(HUMAN[:3], gene_ids=IDS)], aliases={"P53": "TP53"})
    state = built.state_dict()
    assert {type(value) for value in state.values()} == {list, str, dict, bool}
    again = GeneVocabulary.from_state(state)
    assert again.match(names(["P53", IDS[1]])).ids.tolist() == [0, 1]
