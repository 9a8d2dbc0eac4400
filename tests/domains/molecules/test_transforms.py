"""SMILES to ids and back without loss; z-scores fitted on training molecules."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rdkit import Chem, RDConfig

from polyfm.domains.molecules.read import stream_smiles
from polyfm.domains.molecules.transforms import (
    ALPHABET,
    CLS,
    MASK,
    PAD,
    SEP,
    SPECIALS,
    BpeTokenizer,
    NormalScores,
    RegexTokenizer,
    SmilesTokenizer,
    Standardiser,
    Words,
)
from polyfm.shared.errors import DataError, RecipeError

RARE = [
    "[Og]", "[2H]C([2H])([2H])O", "[13CH4]", "C[C@@H](O)[C@H](N)C", "F/C=C\\F", "[NH3+]CC([O-])=O", "[Fe+2].[Cl-].[Cl-]",
    "N->[Cu]<-N", "C%10CCCCC%10", "[te]1cccc1", "*C", "C$C", "[se]1cccc1", "c1cc2ccccc2[nH]1", "[Si](C)(C)(C)C", "B(O)O",
    "[U+6]", "C:C", "[nH]1nnnc1",
]  # fmt: skip


@pytest.fixture(scope="module")
def nci() -> list[str]:
    """All molecules of RDKit's sample of the NCI's open compounds."""
    path = Path(RDConfig.RDDataDir) / "NCI" / "first_5K.smi"
    return [text for block in stream_smiles(path) for text in block.smiles]


@pytest.mark.parametrize("make", [RegexTokenizer, BpeTokenizer])
class TestBoth:
    def test_every_molecule_comes_back(self, make: Callable[[], SmilesTokenizer], nci: list[str]) -> None:
        assert len(nci) > 4800
        tokenizer = make().fit(nci[:4000])
        encoded = tokenizer.encode(nci)
        assert [tokenizer.decode(ids.tolist()) for ids in encoded] == nci
        assert all(ids[0] == CLS and ids[-1] == SEP and ids.min() > PAD and ids.max() < 300 for ids in encoded)
        assert all(not {CLS, SEP, MASK, PAD} & set(ids[1:-1].tolist()) for ids in encoded)

    def test_rare_atoms_and_bonds_come_back(self, make: Callable[[], SmilesTokenizer]) -> None:
        tokenizer = make().fit(["CCO", "c1ccccc1"])
        assert [tokenizer.decode(ids.tolist()) for ids in tokenizer.encode(RARE)] == RARE

    def test_what_was_learnt_goes_through_json(self, make: Callable[[], SmilesTokenizer], nci: list[str]) -> None:
        tokenizer, again = make().fit(nci[:500]), make()
        again.load(json.loads(json.dumps(tokenizer.state())))
        for first, second in zip(tokenizer.encode(nci[:200]), again.encode(nci[:200]), strict=True):
            np.testing.assert_array_equal(first, second)

    def test_learning_does_not_depend_on_the_order(self, make: Callable[[], SmilesTokenizer], nci: list[str]) -> None:
        assert make().fit(nci[:300]).state() == make().fit(nci[:300][::-1]).state()

    def test_the_end_is_the_end(self, make: Callable[[], SmilesTokenizer]) -> None:
        tokenizer = make().fit(["CCO"])
        ids = tokenizer.encode(["CCO"])[0].tolist()
        assert tokenizer.decode([*ids, *ids]) == "CCO"
        assert tokenizer.decode([CLS]) == ""
        assert tokenizer.decode([CLS, MASK, PAD, *ids[1:]]) == "CCO"

    def test_nothing_to_encode(self, make: Callable[[], SmilesTokenizer]) -> None:
        assert make().fit(["CCO"]).encode([]) == []


class TestRegex:
    def test_tokens_of_moformer_s_expression_by_hand(self) -> None:
        tokenizer = RegexTokenizer().fit(["C[C@@H](Br)c1cc(Cl)ccc1%12"])
        (ids,) = tokenizer.encode(["C[C@@H](Br)c1cc(Cl)ccc1"])
        assert [tokenizer.tokens[i] for i in ids] == [
            "[CLS]", "C", "[C@@H]", "(", "Br", ")", "c", "1", "c", "c", "(", "Cl", ")", "c", "c", "c", "1", "[SEP]",
        ]  # fmt: skip

    def test_bracket_atoms_beyond_the_vocabulary_are_spelled(self) -> None:
        room = len(SPECIALS) + len(ALPHABET) + 1
        tokenizer = RegexTokenizer(room).fit(["[nH]1cccc1", "[nH]1cccc1", "[13C]"])
        assert tokenizer.tokens[-1] == "[nH]"  # the more frequent one
        (ids,) = tokenizer.encode(["[13C]"])
        assert [tokenizer.tokens[i] for i in ids[1:-1]] == ["[", "1", "3", "C", "]"]

    def test_ties_are_decided_by_name(self) -> None:
        room = len(SPECIALS) + len(ALPHABET) + 1
        assert RegexTokenizer(room).fit(["[Zn]", "[Ag]"]).tokens[-1] == "[Ag]"

    def test_alphabet_spells_every_element_and_digit(self) -> None:
        letters = set(ALPHABET)
        for number in range(1, 119):
            assert set(Chem.GetPeriodicTable().GetElementSymbol(number)) <= letters
        assert len(ALPHABET) == len(letters)
        assert SPECIALS[CLS] == "[CLS]"

    def test_a_vocabulary_that_cannot_spell_is_refused(self) -> None:
        for kind in (RegexTokenizer, BpeTokenizer):
            with pytest.raises(RecipeError, match=r"data.tokenizer.vocabulary: expected at least \d+, not 20"):
                kind(20)

    @given(st.text(alphabet="CNOPScnop()[]=#@+-1234567890%/\\.HBrFIl<>:*$", max_size=40))
    def test_whatever_it_can_read_it_gives_back(self, text: str) -> None:
        """Only what is no SMILES at all loses letters; what does not is a prefix of nothing else."""
        tokenizer = RegexTokenizer()
        back = tokenizer.decode(tokenizer.encode([text])[0].tolist())
        if Chem.MolFromSmiles(text, sanitize=False) is not None:
            assert back == text


class TestBpe:
    def test_frequent_pieces_are_merged(self, nci: list[str]) -> None:
        tokenizer = BpeTokenizer().fit(nci[:1000])
        regex = RegexTokenizer().fit(nci[:1000])
        shorter = [len(a) < len(b) for a, b in zip(tokenizer.encode(nci[:200]), regex.encode(nci[:200]), strict=True)]
        assert np.mean(shorter) > 0.9

    def test_a_smaller_vocabulary_is_kept(self, nci: list[str]) -> None:
        encoded = BpeTokenizer(100).fit(nci[:500]).encode(nci[:100])
        assert max(int(ids.max()) for ids in encoded) < 100


class TestStandardiser:
    TABLE = np.array([[1.0, 5.0, np.nan], [3.0, 5.0, 2.0], [5.0, 5.0, 4.0]])

    def test_z_scores_by_hand(self) -> None:
        standardiser = Standardiser().fit(self.TABLE)
        assert standardiser.mean.tolist() == [3.0, 5.0, 3.0]
        np.testing.assert_allclose(standardiser.scale, [np.sqrt(8 / 3), 1.0, 1.0])  # a constant column has scale 1
        z = standardiser.apply(self.TABLE)
        np.testing.assert_allclose(z[:, 1], 0)
        assert np.isnan(z[0, 2])
        assert z.dtype == np.float32

    def test_a_monster_is_clipped(self) -> None:
        z = Standardiser().fit(self.TABLE).apply(np.array([[1e9, 5.0, -1e9]]))
        assert z.tolist() == [[10.0, 0.0, -10.0]]

    @given(st.lists(st.floats(-50, 50), min_size=3, max_size=3))
    def test_there_and_back(self, row: list[float]) -> None:
        standardiser = Standardiser().fit(np.random.default_rng(0).standard_normal((50, 3)) * 20)
        np.testing.assert_allclose(standardiser.invert(standardiser.apply(np.array([row]))), [row], atol=1e-4)

    def test_numbers_go_through_json(self) -> None:
        first, again = Standardiser().fit(self.TABLE), Standardiser()
        again.load(json.loads(json.dumps(first.state())))
        np.testing.assert_array_equal(again.apply(self.TABLE), first.apply(self.TABLE))


class TestNormalScores:
    def test_scores_by_hand(self) -> None:
        """Of 1, 2, 2, 4 the mid-ranks are 1/8, 1/2, 7/8; a cell between two values lies between their scores."""
        scores = NormalScores().fit(np.array([[1.0], [2.0], [2.0], [4.0], [np.nan]]))
        end = 1.150349  # the normal quantile of 7/8
        found = scores.apply(np.array([[1.0], [2.0], [3.0], [4.0], [99.0], [-99.0], [np.nan]]))[:, 0]
        np.testing.assert_allclose(found, [-end, 0, end / 2, end, end, -end, np.nan], atol=1e-5)
        assert found.dtype == np.float32

    def test_what_most_share_lies_near_the_middle(self) -> None:
        counts = np.array([[0.0]] * 98 + [[1.0]] * 2)
        found = NormalScores().fit(counts).apply(np.array([[0.0], [1.0]]))[:, 0]
        assert -0.1 < found[0] < 0
        assert found[1] > 2

    def test_a_column_never_known_is_zero_and_a_constant_one_too(self) -> None:
        scores = NormalScores().fit(np.array([[np.nan, 7.0], [np.nan, 7.0]]))
        assert scores.apply(np.array([[3.0, 7.0]])).tolist() == [[0.0, 0.0]]

    def test_few_knots_are_near_to_all_of_them(self) -> None:
        table = np.random.default_rng(0).lognormal(size=(5000, 1))
        few, all_of_them = NormalScores(128).fit(table), NormalScores(10_000).fit(table)
        assert len(few.values[0]) == 128
        assert np.abs(few.apply(table) - all_of_them.apply(table)).max() < 0.5  # in the tail
        assert np.abs(few.apply(table) - all_of_them.apply(table)).mean() < 0.01

    @given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=30))
    def test_order_is_kept(self, cells: list[float]) -> None:
        table = np.array(cells)[:, None]
        found = NormalScores().fit(table).apply(np.sort(table, axis=0))[:, 0]
        assert (np.diff(found) >= 0).all()

    def test_numbers_go_through_json(self) -> None:
        table = np.random.default_rng(0).standard_normal((40, 3))
        first, again = NormalScores().fit(table), NormalScores()
        again.load(json.loads(json.dumps(first.state())))
        np.testing.assert_array_equal(again.apply(table), first.apply(table))
        np.testing.assert_array_equal(first.apply(table[3]), first.apply(table)[3])


class TestWords:
    TEXTS = ("an acid and an ester", "an acid", "a ketone acid")

    def test_weights_by_hand(self) -> None:
        """Of three texts acid is in all and an in two, so ln(4/4) + 1 and ln(4/3) + 1; the others are in one only."""
        found = Words(5).fit(self.TEXTS).apply(["an an acid", "ester", ""]).toarray()
        acid, an = 1.0, np.log(4 / 3) + 1
        row = np.array([acid, an * (1 + np.log(2)), 0, 0, 0])
        np.testing.assert_allclose(found, [row / np.linalg.norm(row), np.zeros(5), np.zeros(5)])

    @pytest.mark.parametrize("texts", [[], [""], ["acid", "base"], ["!", "! ?"]])
    def test_texts_without_a_word_in_common_are_one_message(self, texts: list[str]) -> None:
        with pytest.raises(DataError, match=f"of {len(texts)} descriptions .* no two have a word in common"):
            Words(5).fit(texts)

    def test_the_rarest_are_left_out(self) -> None:
        assert Words(1).fit(self.TEXTS).words == ["acid"]

    def test_words_go_through_json(self) -> None:
        first, again = Words(5).fit(self.TEXTS), Words(5)
        again.load(json.loads(json.dumps(first.state())))
        np.testing.assert_array_equal(again.apply(self.TEXTS).toarray(), first.apply(self.TEXTS).toarray())


def test_base_says_what_is_missing() -> None:
    base: Any = SmilesTokenizer(10)
    for call in (
        lambda: base.fit([]),
        lambda: base.encode([]),
        lambda: base.decode([]),
        base.state,
        lambda: base.load({}),
    ):
        with pytest.raises(TypeError, match="SmilesTokenizer has no"):
            call()
