"""Natural language to token ids: a small tokenizer learnt on the training part, or one that transformers wrote."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from polyfm.shared.errors import DataError, require

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PAD, START, END, MASK = range(4)
SPECIALS = ("[PAD]", "[CLS]", "[SEP]", "[MASK]")
"""Of a tokenizer of our own, whose ids are their places here."""
KEPT = 100_000
"""Texts whose ids a tokenizer keeps: some 25 MB."""
_ROLES = {
    "start": ("[CLS]", "<s>", "<|startoftext|>"),
    "end": ("[SEP]", "</s>", "<|endoftext|>"),
    "mask": ("[MASK]", "<mask>"),
    "pad": ("[PAD]", "<pad>"),
}
"""What families of models call the same special token."""


class TextTokenizer:
    """Byte pairs down to bytes (Sennrich et al., arXiv 1508.07909; GPT-2): nothing is unknown, nothing lost.

    Args:
        vocabulary: V, as of the embedder; the tokens learnt are at most so many.
    """

    def __init__(self, vocabulary: int = 4000) -> None:
        least = len(SPECIALS) + 256
        require(vocabulary >= least, "data.text_vocabulary", f"at least {least}, all bytes", vocabulary)
        self.vocabulary = vocabulary
        self.given = False
        """Whether it came with pre-trained weights, and is not to be learnt."""
        self.start, self.end, self.mask = START, END, MASK
        self._tokenizer: Tokenizer | None = None
        self._known: dict[str, np.ndarray] = {}
        """Ids of texts that were cut before: a text comes back in every pass."""

    def fit(self, texts: Iterable[str]) -> Self:
        """Learn the vocabulary, unless it came with the weights.

        Args:
            texts: Of the training part.
        """
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        if self.given:
            return self
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocabulary,
            special_tokens=list(SPECIALS),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        self._take(tokenizer)
        return self

    def encode(self, texts: Sequence[str], longest: int = 0) -> list[np.ndarray]:
        """Ids of each text, int32, the start token first and the end token last.

        Args:
            texts: Any. What looks like a special token is text.
            longest: Most tokens; what is behind is cut. 0 for no limit.
        """
        fresh = [text for text in dict.fromkeys(texts) if text not in self._known]
        encodings = self._fitted.encode_batch(fresh, add_special_tokens=False)
        found = {text: np.array(encoding.ids, dtype=np.int32) for text, encoding in zip(fresh, encodings, strict=True)}
        self._known |= itertools.islice(found.items(), max(KEPT - len(self._known), 0))
        found |= {text: self._known[text] for text in texts if text in self._known}
        cut = longest - 2 if longest else None
        first, last = np.array([self.start], dtype=np.int32), np.array([self.end], dtype=np.int32)
        return [np.concatenate([first, found[text][:cut], last]) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a sequence, special tokens left out.

        Args:
            ids: Up to the end token, if there is one.
        """
        ids = list(ids)
        written = ids[: ids.index(self.end)] if self.end in ids else ids
        return str(self._fitted.decode(written, skip_special_tokens=True))

    def __len__(self) -> int:
        """Tokens that it knows."""
        return int(self._fitted.get_vocab_size())

    def state(self) -> dict[str, Any]:
        """What was learnt, as primitives."""
        return {"tokenizer": json.loads(self._fitted.to_str()), "given": self.given}

    def load(self, state: dict[str, Any]) -> None:
        """Take over what was learnt.

        Args:
            state: As made by `state`.

        Raises:
            DataError: It is none.
        """
        from tokenizers import Tokenizer

        try:
            tokenizer = Tokenizer.from_str(json.dumps(state["tokenizer"]))
        except Exception as error:  # the library raises plain Exception
            raise DataError(f"this is no state of a tokenizer ({error})") from error
        self.given = bool(state["given"])
        self._take(tokenizer)

    @property
    def specials(self) -> int:
        """Ids below are special tokens, or stand among them: masking leaves them alone. [MASK] itself is no input."""
        found = [_find(self._fitted, role) for role in ("start", "end", "pad")]
        return 1 + max(id for id in found if id is not None)

    @property
    def _fitted(self) -> Tokenizer:
        if self._tokenizer is None:
            raise DataError("the tokenizer of the texts has learnt nothing yet", remedy="Set the data up first")
        return self._tokenizer

    def _take(self, tokenizer: Tokenizer) -> None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        tokenizer.encode_special_tokens = True  # "[SEP]" in a text is five letters
        start, end, mask = (_find(tokenizer, role) for role in ("start", "end", "mask"))
        if start is None or end is None:
            lacking = "start" if start is None else "end"
            raise DataError(f"this tokenizer has no {lacking} token", remedy=f"Known are {', '.join(_ROLES[lacking])}")
        self.start, self.end, self.mask = start, end, start if mask is None else mask
        self._tokenizer, self._known = tokenizer, {}


def read_pretrained(folder: Path) -> TextTokenizer:
    """The tokenizer that transformers saved beside a model's weights.

    Args:
        folder: With ``tokenizer.json``, or with BERT's ``vocab.txt``.

    Raises:
        DataError: There is neither, or it cannot be read.
    """
    from tokenizers import Tokenizer

    whole, words = folder / "tokenizer.json", folder / "vocab.txt"
    if not whole.is_file() and not words.is_file():
        raise DataError(
            "there is neither tokenizer.json nor vocab.txt",
            where=folder,
            remedy="Weights without their tokens mean nothing: write it with the tokenizer's save_pretrained",
        )
    file = whole if whole.is_file() else words
    try:
        tokenizer = Tokenizer.from_file(str(whole)) if file is whole else _word_piece(folder)
    except Exception as error:  # the library raises plain Exception
        raise DataError(f"this is no tokenizer that can be read ({error})", where=file) from error
    found = TextTokenizer()
    found._take(tokenizer)
    found.given, found.vocabulary = True, len(found)
    return found


def _word_piece(folder: Path) -> Tokenizer:
    """BERT's (Devlin et al., arXiv 1810.04805), from a list of words."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

    lines = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    settings = folder / "tokenizer_config.json"
    config = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
    tokenizer = Tokenizer(models.WordPiece({word: id for id, word in enumerate(lines)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=bool(config.get("do_lower_case", True)))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in ("[UNK]", *SPECIALS) if word in lines])
    return tokenizer


def _find(tokenizer: Tokenizer, role: str) -> int | None:
    return next((id for name in _ROLES[role] if (id := tokenizer.token_to_id(name)) is not None), None)
