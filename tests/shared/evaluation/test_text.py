"""Metrics of written text, by hand."""

from __future__ import annotations

import math

import pytest

from polyfm.shared.evaluation.text import bleu, edit_distance, text_metrics, words


def test_words_and_marks() -> None:
    assert words("It derives from a (2S)-flavanone.") == [
        "It",
        "derives",
        "from",
        "a",
        "(",
        "2S",
        ")",
        "-",
        "flavanone",
        ".",
    ]


def test_bleu_by_hand() -> None:
    """Counts are summed over the set: words 3/4 and 2/2, pairs 1/3 and 1/1; 6 written, 6 wanted."""
    written, wanted = [list("abxd"), list("ab")], [list("abcd"), list("ab")]
    assert bleu(written, wanted, 2) == pytest.approx(math.sqrt(5 / 6 * 2 / 4))
    assert bleu(written, wanted, 1) == pytest.approx(5 / 6)
    # Repeats count as often as wanted; brevity costs exp(1 - 4/2).
    assert bleu([list("aa")], [list("abcd")], 1) == pytest.approx(1 / 2 * math.exp(1 - 4 / 2))
    assert bleu([list("abcd")], [list("abcd")]) == pytest.approx(1)
    assert bleu([list("abcx")], [list("abcd")]) == 0  # no four in a row


def test_rouge_by_hand() -> None:
    found = text_metrics(["a b c d", "x"], ["a c b d", "y"])
    assert found["rouge1"] == pytest.approx((1 + 0) / 2)
    assert found["rouge2"] == 0
    assert found["rougeL"] == pytest.approx(3 / 4 / 2)  # a b d of four
    assert found["exact"] == 0
    # Of 4 written and 2 wanted: precision 2/4, recall 2/2.
    assert text_metrics(["a b c d"], ["a b"])["rouge1"] == pytest.approx(2 / 3)


def test_case_and_marks_count() -> None:
    found = text_metrics(["It is a dye."], ["it is a dye."])
    assert found["exact"] == 0
    assert found["rouge1"] == pytest.approx(4 / 5)
    assert text_metrics(["It is."], ["It is."]) == pytest.approx(
        {"bleu2": 1, "bleu4": 0, "rouge1": 1, "rouge2": 1, "rougeL": 1, "exact": 1}
    )


def test_nothing_written_is_nothing_right() -> None:
    assert set(text_metrics([""], ["a b"]).values()) == {0.0}


def test_edit_distance_by_hand() -> None:
    assert edit_distance(["kitten", "CCO"], ["sitting", "CCN"]) == (3 + 1) / 2
    assert edit_distance([""], ["abc"]) == 3
