"""`ClipPatches`: what parity with CLIP (tests/shared/training/test_init_from.py) does not show."""

from __future__ import annotations

import pytest
import torch

from polyfm.shared.data.batch import Grids
from polyfm.shared.errors import DataError
from polyfm.shared.tokens.clip_patches import ClipPatches


def images(n: int, height: int = 8, width: int = 12) -> Grids:
    return Grids(rows=torch.arange(n), values=torch.randn(n, 3, height, width), spacing=torch.full((n, 2), 0.5))


def test_patches_stand_where_their_centres_are_after_cls() -> None:
    tokens = ClipPatches(16, grid=[2, 3], patch=[4, 4])(images(2))
    assert tokens.x.shape == (2, 7, 16)
    assert tokens.prefix == 1
    assert tokens.positions[0, 1:].tolist() == [[1, 1], [1, 3], [1, 5], [3, 1], [3, 3], [3, 5]]


def test_no_image_gives_no_token_and_no_gradient() -> None:
    model = ClipPatches(16, grid=[2, 3], patch=[4, 4])
    tokens = model(images(0))
    assert tokens.x.shape == (0, 7, 16)
    tokens.x.sum().backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in model.parameters())


def test_an_image_of_another_size_is_refused() -> None:
    with pytest.raises(DataError, match="an image of 2 x 2 patches meets a model for 2 x 3. Resize the images"):
        ClipPatches(16, grid=[2, 3], patch=[4, 4])(images(1, width=8))
