"""The words that polyfm itself understands; all others go to Lightning's CLI."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

from polyfm.shared.errors import UsageError


class Arguments(argparse.ArgumentParser):
    """A parser whose errors are ours: one line with what to do, exit code 2, no abbreviations.

    Args:
        verb: That is being run.
        description: One line.
        epilog: Examples.
    """

    def __init__(self, verb: str, description: str, epilog: str = "") -> None:
        super().__init__(
            prog=f"polyfm {verb}",
            description=description,
            epilog=epilog,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        """Say what is wrong."""
        raise UsageError(message, remedy=f"`{self.prog} --help` shows how")

    def parse(self, words: Sequence[str]) -> argparse.Namespace:
        """Parse every word.

        Args:
            words: After the verb.
        """
        found, rest = self.parse_known_args(list(words))
        if rest:
            self.error(f"unknown words: {' '.join(rest)}")
        return found

    def parse_some(self, words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
        """Parse ours, and return the flags for the recipe's parser.

        Args:
            words: After the verb.
        """
        return self.parse_known_args(list(words))


def choose_size(size: str) -> str:
    """The size to run: ``paper`` with a GPU; on a CPU the choice must be made.

    Args:
        size: As given, or empty.
    """
    if size:
        return size
    import torch

    if torch.cuda.is_available():
        return "paper"
    raise UsageError(
        "without a GPU the size must be chosen",
        remedy="Add --size small (minutes on a CPU), or --size paper if you mean it",
    )
