"""Texts to ids: nothing lost, kept in a checkpoint, and equal to what transformers makes of a folder that it wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from polyfm.shared.errors import DataError, RecipeError
from polyfm.shared.tokens.tokenizer import END, MASK, PAD, START, TextTokenizer, read_pretrained

TEXTS = [
    "The molecule is a member of the class of phenols carrying two hydroxy groups.",
    "It has a role as a plant metabolite. It derives from a (2S)-flavanone.",
    "The molecule is a dipeptide. It is a conjugate base of a L-α-alanine(1+).",
]


@pytest.fixture(scope="module")
def fitted() -> TextTokenizer:
    return TextTokenizer(400).fit(TEXTS)


@given(text=st.text())
def test_any_text_comes_back(fitted: TextTokenizer, text: str) -> None:
    ids = fitted.encode([text])[0]
    assert ids[0] == START
    assert ids[-1] == END
    assert fitted.decode(ids[1:]) == text


def test_special_tokens_in_a_text_are_text(fitted: TextTokenizer) -> None:
    ids = fitted.encode(["a [MASK] and [SEP]"])[0]
    assert not {PAD, START, END, MASK} & set(ids[1:-1].tolist())
    assert fitted.decode(ids[1:]) == "a [MASK] and [SEP]"


def test_learnt_on_the_texts_within_the_vocabulary(fitted: TextTokenizer) -> None:
    assert len(fitted) <= 400
    whole = fitted.encode([" molecule"])[0]
    assert len(whole) == 3  # a frequent word is one token
    assert (fitted.start, fitted.end, fitted.mask, fitted.specials) == (START, END, MASK, END + 1)


def test_cut_texts_keep_their_end(fitted: TextTokenizer) -> None:
    ids = fitted.encode(TEXTS, longest=6)
    assert [len(row) for row in ids] == [6, 6, 6]
    assert all(row[-1] == END for row in ids)
    assert (ids[0][:5] == fitted.encode(TEXTS)[0][:5]).all()


def test_decoding_stops_at_the_end(fitted: TextTokenizer) -> None:
    ids = fitted.encode(["It has"])[0].tolist()
    assert fitted.decode([*ids[1:], *ids[1:]]) == "It has"
    assert fitted.decode([MASK, *ids[1:-1]]) == "It has"


def test_state_is_plain_and_gives_the_same(fitted: TextTokenizer) -> None:
    state = json.loads(json.dumps(fitted.state()))
    again = TextTokenizer(400)
    again.load(state)
    for ours, theirs in zip(again.encode(TEXTS), fitted.encode(TEXTS), strict=True):
        assert np.array_equal(ours, theirs)
    assert (
        again.fit(["something else"]).encode(["something else"])[0].tolist()
        != fitted.encode(["something else"])[0].tolist()
    )


@pytest.mark.parametrize("state", [{"tokenizer": 3}, {"tokenizer": {"model": 1}}, {}])
def test_what_is_no_state_is_refused(state: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="no state of a tokenizer"):
        TextTokenizer().load(state)


def test_the_same_texts_give_the_same_vocabulary() -> None:
    assert TextTokenizer(350).fit(TEXTS).state() == TextTokenizer(350).fit(TEXTS).state()


def test_texts_that_come_back_are_not_cut_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = TextTokenizer(400).fit(TEXTS[:2])
    monkeypatch.setattr("polyfm.shared.tokens.tokenizer.KEPT", 2)
    first = [tokenizer.encode(TEXTS, longest) for longest in (0, 7)]
    assert len(tokenizer._known) == 2
    again = [tokenizer.encode(TEXTS[::-1], longest)[::-1] for longest in (0, 7)]
    for before, after in zip(first, again, strict=True):
        assert [ids.tolist() for ids in before] == [ids.tolist() for ids in after]
    assert [len(ids) for ids in first[1]] == [7, 7, 7]
    other = TextTokenizer(300).fit(TEXTS)
    tokenizer.load(other.state())  # what was kept is of the tokenizer that was
    assert tokenizer.encode(TEXTS)[0].tolist() == other.encode(TEXTS)[0].tolist()


def test_what_cannot_be() -> None:
    with pytest.raises(RecipeError, match=r"data.text_vocabulary: expected at least 260, all bytes, not 100"):
        TextTokenizer(100)
    with pytest.raises(DataError, match="has learnt nothing yet"):
        TextTokenizer().encode(["x"])


WORDS = ["[PAD]", "[unused1]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "mole", "##cule", "role", "dye", ",", ".", "D"]


def bert(folder: Path, **settings: Any) -> Any:
    """A tokenizer of transformers, saved as users find it."""
    words = folder / "words"
    words.mkdir(parents=True)
    (words / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    made = transformers.BertTokenizerFast.from_pretrained(str(words), **settings)
    made.save_pretrained(folder)
    return made


@pytest.mark.parametrize("file", ["tokenizer.json", "vocab.txt"])
@pytest.mark.parametrize("lower", [True, False])
def test_bert_s_is_read_from_either_file(tmp_path: Path, file: str, lower: bool) -> None:
    theirs = bert(tmp_path, do_lower_case=lower)
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    for other in {"tokenizer.json", "vocab.txt"} - {file}:
        (tmp_path / other).unlink(missing_ok=True)
    ours = read_pretrained(tmp_path)
    for text in ("A molecule, a dye.", "a D role", "molecules"):
        assert ours.encode([text])[0].tolist() == theirs(text)["input_ids"]
    assert (ours.start, ours.end, ours.mask, ours.specials) == (3, 4, 5, 5)
    assert ours.decode(ours.encode(["a molecule"])[0][1:]) == "a molecule"
    assert ours.encode(["[MASK]"])[0].tolist().count(5) == 0


def test_a_given_tokenizer_is_not_learnt_anew(tmp_path: Path) -> None:
    bert(tmp_path)
    ours = read_pretrained(tmp_path)
    before = ours.encode(["a dye"])[0].tolist()
    assert ours.fit(TEXTS).encode(["a dye"])[0].tolist() == before
    again = TextTokenizer()
    again.load(ours.state())
    assert again.fit(TEXTS).encode(["a dye"])[0].tolist() == before


def test_roberta_s_special_tokens_are_found(tmp_path: Path) -> None:
    vocabulary = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}
    for letter in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocabulary[letter] = len(vocabulary)
    vocabulary["<mask>"] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.enable_truncation(4)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    ours = read_pretrained(tmp_path)
    assert (ours.start, ours.end, ours.mask, ours.specials) == (0, 2, vocabulary["<mask>"], 3)
    assert len(ours.encode(["abcdefgh"])[0]) == 10  # its truncation is not ours


def test_folders_without_a_usable_tokenizer_say_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="neither tokenizer.json nor vocab.txt.*save_pretrained"):
        read_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match="no tokenizer that can be read"):
        read_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.txt").write_text("a\nb\n[UNK]\n")
    with pytest.raises(DataError, match="has no start token. Known are \\[CLS\\], <s>"):
        read_pretrained(tmp_path)
