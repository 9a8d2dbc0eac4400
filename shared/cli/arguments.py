"""The words that polyfm itself understands; all others go to Lightning's CLI."""

from __future__ import annotations

import argparse
import difflib
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from polyfm.shared.errors import UsageError

if TYPE_CHECKING:
    from polyfm.shared.data.datamodule import DataModule

READING = """how the file is read (unless given, columns are those of the run, or guessed by name):
  --data.KEY VALUE  as for `polyfm fit`, such as --data.smiles COLUMN"""


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

    def parse(self, words: Sequence[str], *, otherwise: str = "") -> argparse.Namespace:
        """Parse every word.

        Args:
            words: After the verb.
            otherwise: What to do about an unknown option that is near to none.
        """
        found, rest = self.parse_known_args(list(words))
        if rest:
            known = [option for action in self._actions for option in action.option_strings]
            near = difflib.get_close_matches(rest[0].partition("=")[0], known, n=1)
            hint = f"Did you mean {near[0]}? " if near else otherwise
            raise UsageError(f"unknown words: {' '.join(rest)}", remedy=f"{hint}`{self.prog} --help` shows how")
        return found

    def parse_some(self, words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
        """Parse ours, and return the flags for the recipe's parser.

        Args:
            words: After the verb.
        """
        return self.parse_known_args(list(words))

    def parse_reading(self, words: Sequence[str]) -> tuple[argparse.Namespace, dict[str, str]]:
        """Parse every word, and return apart what is said about reading a file of new items.

        Args:
            words: After the verb.

        Returns:
            Ours, and the values of ``--data.KEY VALUE`` by key, for `reading_options`.
        """
        ours: list[str] = []
        reading: dict[str, str] = {}
        rest = iter(words)
        for word in rest:
            option, given, value = word.partition("=")
            if not option.startswith("--data."):
                ours.append(word)
                continue
            value = value if given else next(rest, "")
            if not value or (not given and value.startswith("--")):
                self.error(f"{option} needs a value")
            reading[option.removeprefix("--data.")] = value
        return self.parse(ours, otherwise="How a file is read is said with --data.KEY VALUE; "), reading


def reading_options(given: dict[str, str], data: type[DataModule]) -> dict[str, Any]:
    """Keywords of ``data.samples_from`` for what a user says about reading a file.

    Args:
        given: From `Arguments.parse_reading`.
        data: Class of the run's data module, whose `READING` names what may be said.
    """
    hints = typing.get_type_hints(data.__init__)
    for name in given:
        if name not in data.READING:
            near = difflib.get_close_matches(name, data.READING, n=1)
            known = ", ".join(f"--data.{option}" for option in data.READING) or "there are none"
            trained = name in hints and not near
            raise UsageError(
                f"--data.{name} stays as the run was trained" if trained else f"there is no option --data.{name}",
                remedy=f"Did you mean --data.{near[0]}?" if near else f"Options about reading a file: {known}",
            )
    return {name: _as(hints[name], name, text) for name, text in given.items()}


def _as(kind: Any, name: str, text: str) -> Any:
    """What a user wrote, as the type of a keyword."""
    import yaml

    if kind is str:
        return text
    if kind not in (int, float):
        try:
            told = yaml.safe_load(text)
        except yaml.YAMLError:
            told = text
        return [str(item) for item in told] if isinstance(told, list) else [text]
    try:
        return kind(text)
    except ValueError:
        number = "a whole number" if kind is int else "a number"
        raise UsageError(f"expected {number}, not {text!r}", where=f"--data.{name}") from None


def result_file(out: str, source: str, suffixes: tuple[str, ...], example: str) -> Path:
    """The file that a result goes to; its folder is made.

    Args:
        out: As the user wrote it.
        source: The file that is read, which is not overwritten.
        suffixes: That the result may have.
        example: A name of such a file.
    """
    path = Path(out)
    if path.suffix not in suffixes:
        raise UsageError(
            f"the result is a {' or '.join(suffixes)} file", where=path, remedy=f"For example --out {example}"
        )
    if source and path.exists() and Path(source).exists() and path.samefile(source):
        raise UsageError("this is the file that is read", where=path, remedy="Give --out another name")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def tell_reading(data: DataModule, out: Path) -> None:
    """What was read of a file of new items, and a list of what was left out beside the result.

    Args:
        data: That read it.
        out: The result's file; the list is ``NAME.quarantine.csv``.
    """
    for line in data.summary():
        print(line)
    left_out = out.with_suffix(".quarantine.csv")
    left_out.unlink(missing_ok=True)  # of an earlier result of this name
    if len(data.quarantine):
        data.quarantine.to_csv(left_out)
        print(f"rows left out, with reasons: {left_out}")


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
