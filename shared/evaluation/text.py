"""What is measured of written text against the text that was wanted: captions, reports.

Texts are compared as words and marks of punctuation, case kept; figures of papers that cut texts by another tokenizer
are not comparable. BLEU (Papineni et al., ACL 2002) is over the whole set, without smoothing; ROUGE (Lin, ACL 2004) is
the mean F1 of the pairs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_WORD = re.compile(r"\w+|[^\w\s]")


def words(text: str) -> list[str]:
    """Words and marks of punctuation.

    Args:
        text: Any.
    """
    return _WORD.findall(text)


def text_metrics(written: Sequence[str], wanted: Sequence[str]) -> dict[str, float]:
    """BLEU-2, BLEU-4, ROUGE-1, ROUGE-2, ROUGE-L and the share that is right word by word.

    Args:
        written: n texts, n at least 1.
        wanted: n texts.
    """
    from torchmetrics.functional.text import rouge_score

    rouge = rouge_score(
        list(written), list(wanted), tokenizer=words, normalizer=str, rouge_keys=("rouge1", "rouge2", "rougeL")
    )
    return {
        "bleu2": bleu([words(text) for text in written], [words(text) for text in wanted], 2),
        "bleu4": bleu([words(text) for text in written], [words(text) for text in wanted], 4),
        **{name: float(rouge[f"{name}_fmeasure"]) for name in ("rouge1", "rouge2", "rougeL")},
        "exact": sum(a == b for a, b in zip(written, wanted, strict=True)) / len(written),
    }


def bleu(written: Sequence[Sequence[str]], wanted: Sequence[Sequence[str]], n: int = 4) -> float:
    """BLEU-n of a set: the geometric mean of its n-gram precisions, times what brevity costs.

    Args:
        written: Texts in pieces, none of which holds a blank.
        wanted: One for each.
        n: Longest n-grams.
    """
    from torchmetrics.functional.text import bleu_score

    joined = [" ".join(pieces) for pieces in written]
    return float(bleu_score(joined, [[" ".join(pieces)] for pieces in wanted], n_gram=n))


def edit_distance(written: Sequence[str], wanted: Sequence[str]) -> float:
    """Mean Levenshtein distance: letters to insert, delete or replace.

    Args:
        written: n texts.
        wanted: n texts.
    """
    from torchmetrics.functional.text import edit_distance as distance

    return float(distance(list(written), list(wanted)))
