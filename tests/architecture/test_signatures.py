"""A new paper may add a part; it may not add an argument to `Transformer` or `Block`."""

from __future__ import annotations

import inspect

import pytest

from polyfm.shared.backbones.block import Block
from polyfm.shared.backbones.transformer import Transformer


@pytest.mark.parametrize(
    ("part", "parameters"),
    [
        (Transformer, ("width", "depth", "block", "every")),
        (Block, ("width", "attention", "feed_forward", "cross", "norm", "placement")),
    ],
)
def test_signature_is_frozen(part: type, parameters: tuple[str, ...]) -> None:
    assert tuple(inspect.signature(part).parameters) == parameters
