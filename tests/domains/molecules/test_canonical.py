from __future__ import annotations

import subprocess
import sys

import pytest

from polyfm.domains.molecules.canonical import Canonical, Canonicaliser, Refused, canonicalise


def one(text: str, **options: object) -> Canonical | Refused:
    return Canonicaliser(**options)([text])[0]  # type: ignore[arg-type]


def test_many_spellings_one_name() -> None:
    spellings = ["OCC", "C(O)C", "[CH3][CH2][OH]", " CCO ", "CCO ethanol"]
    assert {one(text).smiles for text in spellings} == {"CCO"}  # type: ignore[union-attr]


def test_stereochemistry_and_isotopes_go_unless_asked_for() -> None:
    flat, kept = one("C[C@H](N)C(=O)O"), one("C[C@H](N)C(=O)O", isomeric=True)
    assert flat == Canonical("CC(N)C(=O)O", "C[C@H](N)C(=O)O", 1)
    assert kept == Canonical("C[C@H](N)C(=O)O", "C[C@H](N)C(=O)O", 1)
    assert one("[13CH4]") == Canonical("C", "[13CH4]", 1)


def test_doubled_backslashes_are_read_as_one() -> None:
    assert one("C/C=C\\\\C", isomeric=True) == one("C/C=C\\C", isomeric=True)
    assert one("C/C=C\\\\C", isomeric=True).smiles == "C/C=C\\C"  # type: ignore[union-attr]


def test_salts_are_kept_or_stripped() -> None:
    assert one("[Na+].CC(=O)[O-]") == Canonical("CC(=O)[O-].[Na+]", "CC(=O)[O-].[Na+]", 2)
    assert one("[Na+].CC(=O)[O-]", largest_fragment=True) == Canonical("CC(=O)[O-]", "CC(=O)[O-]", 2)


def test_of_equally_large_fragments_the_choice_is_the_same_in_any_order() -> None:
    assert one("CCO.CCN", largest_fragment=True) == one("CCN.CCO", largest_fragment=True)
    assert one("CCO.CCN", largest_fragment=True).smiles == "CCO"  # type: ignore[union-attr]  # the heavier


@pytest.mark.parametrize(
    ("text", "kind", "detail"),
    [
        ("", "empty", "there is no structure"),
        ("  ", "empty", "there is no structure"),
        ("CN(C)(C)C", "impossible valence", "Explicit valence for atom # 1 N, 4, is greater than permitted"),
        ("c1cccc1", "aromatic system without Kekulé form", "Can't kekulize mol. Unkekulized atoms: 0 1 2 3 4"),
        ("C1CC", "unreadable structure", "unclosed ring"),
        ("CC(", "unreadable structure", "syntax error at character 3"),
        ("Xx", "unreadable structure", "syntax error at character 1"),
        ("CC>>CCO", "reaction", "a reaction SMILES (a>>b), not a molecule"),
        ("C" * 1001, "too large", "1001 atoms, more than 1000"),
        ("C" * 2_000_000, "too large", "2000000 characters"),
    ],
)
def test_refusals_say_why(text: str, kind: str, detail: str) -> None:
    assert one(text) == Refused(kind, detail)


def test_long_texts_of_few_atoms_are_fine() -> None:
    assert isinstance(one("[CH2]" * 400), Canonical)


def test_a_bad_mol_block_is_refused() -> None:
    refused = one("name\n\n\n  1  0  0  0  0  0  0  0  0  0999 V2000\nM  END\n", mol_blocks=True)
    assert isinstance(refused, Refused)
    assert refused.kind == "unreadable structure"


def test_rdkit_stays_quiet_and_its_log_works_again_afterwards() -> None:
    # C++ writes to the process's own stderr, so another process is needed to see it.
    code = (
        "from polyfm.domains.molecules.canonical import Canonicaliser\n"
        "Canonicaliser()(['CN(C)(C)C', 'C1CC', 'c1cccc1', 'Xx'])\n"
        "import sys; print('quiet until here', file=sys.stderr, flush=True)\n"
        "from rdkit import Chem; Chem.MolFromSmiles('C1CC')\n"
    )
    stderr = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr
    before, after = stderr.split("quiet until here")
    assert before == ""
    assert "unclosed ring" in after


def test_workers_give_the_same_in_the_same_order() -> None:
    blocks = [["CCO", "C1CC"], ["OCC.Cl"], [], ["c1ccccc1", "N"]]
    assert list(canonicalise(blocks, Canonicaliser(), workers=2)) == list(canonicalise(blocks, Canonicaliser()))
