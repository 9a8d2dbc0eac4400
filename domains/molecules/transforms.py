"""SMILES to token ids, descriptors to z-scores or normal scores. Fitted on the training part, kept as primitives."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import torch

from polyfm.shared.errors import DataError, require
from polyfm.shared.tokens.tokenizer import TextTokenizer

SPECIALS = ("[PAD]", "[CLS]", "[SEP]", "[MASK]")
PAD, CLS, SEP, MASK = range(len(SPECIALS))

# MoLFormer (Ross et al., Nature Machine Intelligence 2022): one token per atom, bond, ring closure or branch. Its `?`,
# which no SMILES holds, is `<` here, which dative bonds need; a lone % opens ring closures above 99.
PATTERN = re.compile(
    r"(\[[^\]]+]|Br?|Cl?|N|O|S|P|F|I|b|c|n|o|s|p|\(|\)|\.|=|#|-|\+|\\|\/|:|~|@|<|>|\*|\$|\%[0-9]{2}|\%|[0-9])"
)
# Every token of the pattern outside brackets, then the letters that spell a bracket atom that is not in the vocabulary.
ALPHABET = tuple(
    "B Br C Cl N O S P F I b c n o s p ( ) . = # - + \\ / : ~ @ < > * $ % [ ] 0 1 2 3 4 5 6 7 8 9".split()
    + [letter for letter in "ADEGHJKLMQRTUVWXYZadefghijklmqrtuvwxyz"]
)


class SmilesTokenizer:
    """Base: canonical SMILES to ids, [CLS] first and [SEP] last, and back without loss.

    Args:
        vocabulary: V, as of the embedder; the tokens learnt are at most so many.
    """

    alphabet: ClassVar[tuple[str, ...]] = ()
    """Tokens that are there whatever was learnt."""
    start, end = CLS, SEP

    def __init__(self, vocabulary: int) -> None:
        least = len(SPECIALS) + len(self.alphabet)
        require(vocabulary >= least, "data.tokenizer.vocabulary", f"at least {least}", vocabulary)
        self.vocabulary = vocabulary

    def __len__(self) -> int:
        """Ids that tokens may have."""
        return self.vocabulary

    def fit(self, smiles: Iterable[str]) -> Self:
        """Learn the vocabulary.

        Args:
            smiles: Canonical, of the training part.
        """
        raise TypeError(f"{type(self).__name__} has no fit")

    def encode(self, smiles: Sequence[str]) -> list[np.ndarray]:
        """Ids of each SMILES, int32.

        Args:
            smiles: Canonical.
        """
        raise TypeError(f"{type(self).__name__} has no encode")

    def decode(self, ids: Sequence[int]) -> str:
        """The SMILES of a sequence, special tokens left out.

        Args:
            ids: Up to [SEP], if there is one.
        """
        raise TypeError(f"{type(self).__name__} has no decode")

    def state(self) -> dict[str, Any]:
        """What was learnt, as primitives."""
        raise TypeError(f"{type(self).__name__} has no state")

    def load(self, state: dict[str, Any]) -> None:
        """Take over what was learnt.

        Args:
            state: As made by `state`.
        """
        raise TypeError(f"{type(self).__name__} has no load")


class RegexTokenizer(SmilesTokenizer):
    """One token per atom, bond, ring closure or branch, by MoLFormer's regular expression.

    Bracket atoms that are too rare for the vocabulary are spelled letter by letter: nothing is unknown, nothing lost.

    Args:
        vocabulary: V, at least the alphabet.
    """

    alphabet = ALPHABET

    def __init__(self, vocabulary: int = 300) -> None:
        super().__init__(vocabulary)
        self._learn([])

    def __len__(self) -> int:
        """See `SmilesTokenizer`: those that were learnt, and the alphabet."""
        return len(self.tokens)

    def _learn(self, extra: Sequence[str]) -> None:
        self.tokens = [*SPECIALS, *ALPHABET, *extra]
        self._ids = {token: i for i, token in enumerate(self.tokens)}

    def fit(self, smiles: Iterable[str]) -> Self:
        """See `SmilesTokenizer.fit`: the most frequent bracket atoms, ties by name."""
        counts = Counter(token for text in smiles for token in PATTERN.findall(text) if token not in ALPHABET)
        ranked = sorted(counts, key=lambda token: (-counts[token], token))
        self._learn(ranked[: self.vocabulary - len(SPECIALS) - len(ALPHABET)])
        return self

    def encode(self, smiles: Sequence[str]) -> list[np.ndarray]:
        """See `SmilesTokenizer.encode`."""
        out = []
        get = self._ids.__getitem__
        for text in smiles:
            tokens = PATTERN.findall(text)
            try:
                ids = list(map(get, tokens))
            except KeyError:
                ids = [i for token in tokens for i in self._spell(token)]
            out.append(np.array([CLS, *ids, SEP], dtype=np.int32))
        return out

    def _spell(self, token: str) -> list[int]:
        known = self._ids.get(token)
        return [self._ids[letter] for letter in token] if known is None else [known]

    def decode(self, ids: Sequence[int]) -> str:
        """See `SmilesTokenizer.decode`."""
        kept = []
        for i in ids:
            if i == SEP:
                break
            if i >= len(SPECIALS) and i < len(self.tokens):
                kept.append(self.tokens[i])
        return "".join(kept)

    def state(self) -> dict[str, Any]:
        """See `SmilesTokenizer.state`."""
        return {"tokens": self.tokens[len(SPECIALS) + len(ALPHABET) :]}

    def load(self, state: dict[str, Any]) -> None:
        """See `SmilesTokenizer.load`."""
        self._learn(state["tokens"])


class BpeTokenizer(SmilesTokenizer):
    """Byte-pair encoding learnt on SMILES characters (SPMM uses 300 entries).

    Args:
        vocabulary: V, at least the letters of the alphabet.
    """

    alphabet = tuple(sorted({letter for token in ALPHABET for letter in token}))

    def __init__(self, vocabulary: int = 300) -> None:
        super().__init__(vocabulary)
        self._tokenizer: Any = None

    def fit(self, smiles: Iterable[str]) -> Self:
        """See `SmilesTokenizer.fit`."""
        from tokenizers import Tokenizer, models, trainers

        tokenizer = Tokenizer(models.BPE())
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocabulary,
            special_tokens=list(SPECIALS),
            initial_alphabet=list(self.alphabet),
            show_progress=False,
        )
        tokenizer.train_from_iterator(smiles, trainer)
        self._tokenizer = tokenizer
        return self

    def encode(self, smiles: Sequence[str]) -> list[np.ndarray]:
        """See `SmilesTokenizer.encode`."""
        encodings = self._tokenizer.encode_batch(list(smiles), add_special_tokens=False)
        return [np.array([CLS, *encoding.ids, SEP], dtype=np.int32) for encoding in encodings]

    def decode(self, ids: Sequence[int]) -> str:
        """See `SmilesTokenizer.decode`."""
        kept = []
        for i in ids:
            if i == SEP:
                break
            if i >= len(SPECIALS):
                kept.append(self._tokenizer.id_to_token(i) or "")
        return "".join(kept)

    def state(self) -> dict[str, Any]:
        """See `SmilesTokenizer.state`."""
        return {"tokenizer": json.loads(self._tokenizer.to_str())}

    def load(self, state: dict[str, Any]) -> None:
        """See `SmilesTokenizer.load`."""
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_str(json.dumps(state["tokenizer"]))


class GivenTokenizer(SmilesTokenizer):
    """The tokenizer of a language model that reads SMILES (ChemBERTa …), as it came with the weights.

    Args:
        tokenizer: Whose ids the weights were trained with.
    """

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self.given = tokenizer
        self.start, self.end, self.vocabulary = tokenizer.start, tokenizer.end, len(tokenizer)

    def fit(self, smiles: Iterable[str]) -> Self:
        """See `SmilesTokenizer.fit`; there is nothing left to learn."""
        return self

    def encode(self, smiles: Sequence[str]) -> list[np.ndarray]:
        """See `SmilesTokenizer.encode`."""
        return self.given.encode(smiles)

    def decode(self, ids: Sequence[int]) -> str:
        """See `SmilesTokenizer.decode`."""
        return self.given.decode(ids)

    def state(self) -> dict[str, Any]:
        """See `SmilesTokenizer.state`."""
        return self.given.state()

    @classmethod
    def of(cls, state: dict[str, Any]) -> Self:
        """As it was.

        Args:
            state: As made by `state`.
        """
        tokenizer = TextTokenizer()
        tokenizer.load(state)
        return cls(tokenizer)


class Standardiser:
    """z-scores per column, fitted on the training part; unknown cells (NaN) stay unknown.

    Attributes:
        mean: (P,) in the columns' own units.
        scale: (P,) standard deviation; 1 where a column is constant.
    """

    def __init__(self) -> None:
        self.mean = np.zeros(0)
        self.scale = np.ones(0)

    def fit(self, table: np.ndarray) -> Self:
        """Learn mean and scale.

        Args:
            table: (n, P), own units, NaN where unknown.
        """
        self.mean = np.nanmean(table, axis=0)
        scale = np.nanstd(table, axis=0)
        self.scale = np.where(scale > 0, scale, 1.0)
        return self

    def apply(self, table: np.ndarray) -> np.ndarray:
        """To z-scores, clipped to ±10 so that a single monster molecule cannot blow up a batch.

        Args:
            table: (n, P), own units.
        """
        return np.clip((table - self.mean) / self.scale, -10.0, 10.0).astype(np.float32)

    def invert(self, table: np.ndarray) -> np.ndarray:
        """From z-scores to own units.

        Args:
            table: (n, P) z-scores.
        """
        return table * self.scale + self.mean

    def state(self) -> dict[str, list[float]]:
        """Numbers only."""
        return {"mean": self.mean.tolist(), "scale": self.scale.tolist()}

    def load(self, state: dict[str, list[float]]) -> None:
        """Take over.

        Args:
            state: As made by `state`.
        """
        self.mean, self.scale = np.array(state["mean"]), np.array(state["scale"])


class NormalScores:
    """Each column to the quantiles of a normal distribution, by ranks in the training part; unknown stays unknown.

    z = Φ⁻¹(mid-rank), linear between the values that were seen. Descriptors are counts with long tails: z-scores of
    them leave most molecules at one place and a few far out. A value that most molecules share lies near 0, not at the
    end of the scale where a quantile transform without mid-ranks would put it (most counts are 0).

    Args:
        knots: Most values per column that are kept.

    Attributes:
        values: For each of P columns, what was seen, ascending.
        scores: For each of P columns, z of those.
    """

    def __init__(self, knots: int = 128) -> None:
        self.knots = knots
        self.values: list[np.ndarray] = []
        self.scores: list[np.ndarray] = []

    def fit(self, table: np.ndarray) -> Self:
        """Learn the ranks.

        Args:
            table: (n, P), own units, NaN where unknown.
        """
        self.values, self.scores = [], []
        for column in table.T:
            values, counts = np.unique(column[~np.isnan(column)], return_counts=True)
            ranks = (counts.cumsum() - counts / 2) / max(counts.sum(), 1)
            kept = np.unique(np.linspace(0, len(values) - 1, min(self.knots, len(values))).round().astype(int))
            self.values.append(values[kept])
            self.scores.append(torch.special.ndtri(torch.from_numpy(ranks[kept])).numpy())
        return self

    def apply(self, table: np.ndarray) -> np.ndarray:
        """To normal scores; beyond what was seen they stay at the ends. 0 where a column was never known in training.

        Args:
            table: (n, P) or (P,), own units.
        """
        scores = np.empty(table.shape, dtype=np.float32)
        for i, (values, known) in enumerate(zip(self.values, self.scores, strict=True)):
            seen = np.interp(table[..., i], values, known) if len(values) else 0.0
            scores[..., i] = np.where(np.isnan(table[..., i]), np.nan, seen)
        return scores

    def state(self) -> dict[str, list[list[float]]]:
        """Numbers only."""
        return {"values": [v.tolist() for v in self.values], "scores": [z.tolist() for z in self.scores]}

    def load(self, state: dict[str, list[list[float]]]) -> None:
        """Take over.

        Args:
            state: As made by `state`.
        """
        self.values, self.scores = ([np.array(row) for row in state[name]] for name in ("values", "scores"))


class Words:
    """TF-IDF of words, with logarithmic counts, of unit length; fitted on the training part.

    Args:
        limit: V, most words; the rarest are left out, and with them what occurs in one text only.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.words: list[str] = []
        self.weights: list[float] = []

    def _vectoriser(self, **known: Any) -> Any:
        from sklearn.feature_extraction.text import TfidfVectorizer

        return TfidfVectorizer(sublinear_tf=True, **known)

    def fit(self, texts: Sequence[str]) -> Self:
        """Learn words and their weights.

        Args:
            texts: Of the training part.

        Raises:
            DataError: No word occurs in two of them.
        """
        try:
            made = self._vectoriser(max_features=self.limit, min_df=2).fit(texts)
        except ValueError as error:
            raise DataError(
                f"of {len(texts)} descriptions in the training part no two have a word in common",
                remedy="Name another column: --data.text COLUMN, or use more data",
            ) from error
        self.words, self.weights = made.get_feature_names_out().tolist(), made.idf_.tolist()
        return self

    def apply(self, texts: Sequence[str]) -> Any:
        """(n, V) sparse; columns without a word are 0.

        Args:
            texts: n.
        """
        from scipy.sparse import csr_array

        made = self._vectoriser(vocabulary=self.words)
        made.idf_ = np.array(self.weights)
        found = csr_array(made.transform(texts))
        found.resize((len(texts), self.limit))
        return found

    def state(self) -> dict[str, list[Any]]:
        """Words and numbers."""
        return {"words": self.words, "weights": self.weights}

    def load(self, state: dict[str, list[Any]]) -> None:
        """Take over.

        Args:
            state: As made by `state`.
        """
        self.words, self.weights = list(state["words"]), list(state["weights"])
