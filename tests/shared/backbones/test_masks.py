"""`MaskSpec.allowed` against the rules written out as pictures."""

from __future__ import annotations

import pytest
import torch

from polyfm.shared.backbones.masks import CAUSAL, FULL, MaskSpec


@pytest.mark.parametrize(
    ("spec", "picture"),
    [
        (FULL, "1111 1111 1111 1111"),
        (CAUSAL, "1000 1100 1110 1111"),
        (MaskSpec(causal=True, prefix=2), "1100 1100 1110 1111"),
        (MaskSpec(window=1), "1100 1110 0111 0011"),
        (MaskSpec(causal=True, window=1), "1000 1100 0110 0011"),
        (MaskSpec(hide=((0, 1),)), "1100 1100 1111 1111"),
        (MaskSpec(causal=True, hide=((1, 0),)), "1000 1100 0010 0011"),
    ],
)
def test_rules(spec: MaskSpec, picture: str) -> None:
    place, modality = torch.arange(4), torch.tensor([0, 0, 1, 1])
    seen = spec.allowed(place[:, None], place, modality[:, None], modality)
    assert " ".join("".join(str(int(x)) for x in row) for row in seen.expand(4, 4)) == picture


def test_padding_is_never_seen_and_sees_nothing() -> None:
    place = torch.tensor([0, 1, -1])
    assert FULL.allowed(place[:, None], place).tolist() == [[True, True, False]] * 2 + [[False] * 3]


def test_hiding_needs_modalities() -> None:
    place = torch.arange(2)
    with pytest.raises(ValueError, match="modality"):
        MaskSpec(hide=((0, 1),)).allowed(place[:, None], place)


def test_specs_are_requests() -> None:
    """Equal rules are one request; only the default is trivial."""
    assert {MaskSpec(causal=True), CAUSAL} == {CAUSAL}
    assert FULL.trivial
    assert not MaskSpec(window=3).trivial
