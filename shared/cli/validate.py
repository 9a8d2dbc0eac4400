"""`polyfm validate RUN`: metrics of the best checkpoint on the validation part."""

from __future__ import annotations

from collections.abc import Sequence

from polyfm.shared.cli.test import run as run_part


def run(words: Sequence[str]) -> None:
    """Run the verb.

    Args:
        words: After ``validate``.
    """
    run_part(words, part="valid")
