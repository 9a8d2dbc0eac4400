"""The exceptions that users see: each says where, what was expected, and what to do."""

from __future__ import annotations

from pathlib import Path


class PolyfmError(Exception):
    """Base of every error that a user can cause; printed without a traceback.

    Args:
        message: What is wrong and what was expected.
        where: The file, row or key at fault. A constructor, which does not know where in a recipe it stands, says
            ``Class.argument``.
        remedy: What to change.
        given: The value at fault, where it tells one part of a recipe from others.
    """

    exit_code = 1

    def __init__(
        self, message: str, *, where: str | Path | None = None, remedy: str | None = None, given: object = None
    ) -> None:
        self.message, self.where, self.remedy, self.given = message, where, remedy, given
        super().__init__(message)

    def __str__(self) -> str:
        """One line: ``where: message. remedy``."""
        text = f"{self.where}: {self.message}" if self.where is not None else self.message
        if not self.remedy:
            return text
        return f"{text} {self.remedy}" if text.endswith(("?", "!")) else f"{text.rstrip('.')}. {self.remedy}"


class UsageError(PolyfmError):
    """A wrong verb, argument or option on the command line."""

    exit_code = 2


class DataError(PolyfmError):
    """A file, column or value that cannot be read as what it should be."""

    exit_code = 3


class RecipeError(PolyfmError):
    """A recipe with an unknown key, a wrong type or a part that is not allowed."""

    exit_code = 4


def require(holds: bool, where: str, expected: str, given: object) -> None:
    """Refuse a value that a constructor cannot use.

    Args:
        holds: Whether it can.
        where: The recipe's key that sets it, such as ``data.batch_size``, or ``Class.argument`` of a part.
        expected: What it should be.
        given: What it is.
    """
    if not holds:
        raise RecipeError(f"expected {expected}, not {given!r}", where=where, given=given)


class DivergenceError(PolyfmError):
    """A training whose loss is no number any more."""


class StorageError(PolyfmError):
    """A file that a run leaves cannot be written: the disk is full, or the folder read-only."""


class MissingExtraError(PolyfmError, ImportError):
    """A library of an extra is not installed."""

    exit_code = 2

    def __init__(self, library: str, extra: str) -> None:
        super().__init__(
            f"this needs {library}, which is not installed", remedy=f"Install it with: pip install 'polyfm[{extra}]'"
        )
