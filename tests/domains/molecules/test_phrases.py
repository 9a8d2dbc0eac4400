"""ChEBI's sentences to links: texts of the data set, by hand."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from polyfm.domains.molecules.phrases import RELATIONS, read_links
from polyfm.domains.molecules.read import read_molecules
from polyfm.domains.molecules.synthetic import synthetic_molecules

CASES = {
    "The molecule is a member of the class of pterocarpans carrying two hydroxy substituents at positions 6a and 9 as "
    "well as prenyl. It has a role as a plant metabolite. It is a member of pterocarpans, a member of phenols and an "
    "aromatic ether.": {
        "is a": ["pterocarpans", "phenols", "aromatic ether"],
        "has role": ["plant metabolite"],
    },
    "The molecule is an S-ethylhomocysteine that has S-configuration at the chiral centre. It has a role as an "
    "antimetabolite and a carcinogenic agent. It is an enantiomer of a D-ethionine.": {
        "is a": ["S-ethylhomocysteine"],
        "has role": ["antimetabolite", "carcinogenic agent"],
        "enantiomer of": ["D-ethionine"],
    },
    "The molecule is an (S)-3-hydroxyacyl-CoA resulting from the formal condensation of the thiol group of coenzyme A with "
    "the 1-carboxy group of (S)-3-hydroxytetradecanedioic acid. It derives from a tetradecanedioic acid. It is a conjugate "
    "acid of a (3S)-hydroxytetradecanedioyl-CoA(5-).": {
        "is a": ["(S)-3-hydroxyacyl-CoA"],
        "derives from": ["tetradecanedioic acid"],
        "conjugate acid of": ["(3S)-hydroxytetradecanedioyl-CoA(5-)"],
    },
    "The molecule is a bis(azo) compound that is naphthalene-2,7-disulfonic acid. A biological stain, it can be used as a "
    "dye. It is a conjugate base of a 4-amino-5-hydroxy-3-[(p-nitrophenyl)azo]-6-(phenylazo)-naphthalene-2,7-disulfonic "
    "acid. It is a tautomer of an L-homocarnosine zwitterion. It contains a neutral red(1+).": {
        "is a": ["bis(azo) compound"],
        "conjugate base of": ["4-amino-5-hydroxy-3-[(p-nitrophenyl)azo]-6-(phenylazo)-naphthalene-2,7-disulfonic acid"],
        "tautomer of": ["L-homocarnosine zwitterion"],
        "contains": ["neutral red(1+)"],
    },
    "It derives from an icosanoic acid and an all-cis-5,8,11,14,17-icosapentaenoic acid.": {
        "derives from": ["icosanoic acid", "all-cis-5,8,11,14,17-icosapentaenoic acid"],
    },
    "It is used as a dye. It is isolated from plants. The molecule is dianion of citric acid.": {},
    "": {},
}


@pytest.mark.parametrize("text", CASES)
def test_by_hand(text: str) -> None:
    found: dict[str, list[str]] = {}
    for relation, name in read_links(text):
        found.setdefault(RELATIONS[relation], []).append(name)
    assert found == CASES[text]


def test_a_link_said_twice_is_one() -> None:
    said = "The molecule is a sulfinyl halide in which both are chlorines. It is a sulfinyl halide and a chlorine molecular entity."
    assert [name for _, name in read_links(said)] == ["sulfinyl halide", "chlorine molecular entity"]


def test_invented_descriptions_are_read_too() -> None:
    for text in synthetic_molecules(20).description:
        links = {(RELATIONS[relation], name) for relation, name in read_links(text)}
        assert ("has role", "synthetic example") in links
        assert len(links) == 2


@pytest.mark.realdata
def test_chebi_s_phrases() -> None:
    path = Path(os.environ["POLYFM_DATA"]) / "molecules" / "chebi20_validation.tsv.gz"
    links = [read_links(text or "") for text in read_molecules(path, isomeric=True).text or []]
    assert sum(bool(found) for found in links) == 3295  # of 3,301
    counts = Counter(RELATIONS[relation] for found in links for relation, _ in found)
    assert counts == {
        "is a": 7668,
        "has role": 3335,
        "derives from": 1300,
        "conjugate base of": 617,
        "conjugate acid of": 605,
        "contains": 144,
        "enantiomer of": 134,
        "tautomer of": 125,
    }
    # Names are names: no sentence was taken for one.
    names = [name for found in links for _, name in found]
    assert sum(len(name) > 120 for name in names) < 0.01 * len(names)
