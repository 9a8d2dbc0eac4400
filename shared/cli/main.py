"""`polyfm <verb> TARGET [INPUT] [--key.subkey value]`. Nothing heavy is imported before the verb is known."""

from __future__ import annotations

import difflib
import errno
import importlib
import sys
from collections.abc import Sequence

from polyfm.shared.errors import PolyfmError, UsageError

VERBS = {
    "demo": "polyfm demo DOMAIN                    pre-train, fine-tune and report on bundled data",
    "list": "polyfm list                           domains, recipes and data sets",
    "describe": "polyfm describe RECIPE                paper, claim, inputs, sizes, parameters",
    "check": "polyfm check RECIPE --data.path X     read 8 samples, one step, time and memory",
    "fit": "polyfm fit RECIPE --data.path X       train, then test the best checkpoint",
    "validate": "polyfm validate RUN                   metrics on the validation part",
    "test": "polyfm test RUN                       metrics on the test part",
    "predict": "polyfm predict RUN INPUT --out FILE   predictions for new items",
    "embed": "polyfm embed RUN INPUT --out FILE     vectors for new items (.parquet, .npz)",
    "tool": "polyfm tool DOMAIN NAME INPUT         tools of a domain (`polyfm tool DOMAIN` lists them)",
    "doctor": "polyfm doctor                         what is missing or too old here, and what mends it",
}

USAGE = f"""usage: polyfm <verb> TARGET [INPUT] [--key.subkey value]

Domain-specialised foundation models on your own data.

{chr(10).join("  " + line for line in VERBS.values())}

TARGET is a recipe (molecules/spmm, or a YAML file) for check, describe and fit;
a domain for demo; the folder of a run for validate, test, predict and embed.

  --size small|paper   which of a recipe's sizes (must be chosen on a CPU)
  --out DIR            where a run or a result goes
  --debug              show the traceback of an error
  --version            print the version

Start with:  polyfm demo molecules
Options of a verb:  polyfm <verb> --help
Exit codes: 2 usage, 3 data, 4 recipe, 130 interrupted, 143 pre-empted, 1 other"""


def main(argv: Sequence[str]) -> int:
    """Run a verb.

    Args:
        argv: Words after ``polyfm``.

    Returns:
        The exit code.
    """
    words = [word for word in argv if word != "--debug"]
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0 if words else UsageError.exit_code
    if words[0] == "--version":
        from polyfm import __version__

        print(__version__)
        return 0
    try:
        verb = words[0]
        if verb not in VERBS:
            near = difflib.get_close_matches(verb, VERBS, n=1)
            hint = f"Did you mean `polyfm {near[0]}`?" if near else f"Verbs: {', '.join(VERBS)}"
            raise UsageError(f"there is no verb {verb!r}", remedy=hint)
        module = importlib.import_module(f"polyfm.shared.cli.{verb}")
        module.run(words[1:])
    except PolyfmError as error:
        if "--debug" in argv:
            raise
        print(f"polyfm: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("\npolyfm: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 0
    except Exception as error:
        if "--debug" in argv:
            raise
        print(f"polyfm: {_told(error)}", file=sys.stderr)
        return PolyfmError.exit_code
    return 0


def _told(error: Exception) -> str:
    """One line of an error that nobody foresaw."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if isinstance(error, OSError) and (full or error.filename):
        where = f"{error.filename}: " if error.filename else ""
        return where + ("the disk is full. Free some space, then try again" if full else f"{error.strerror}")
    said = " ".join(str(error).split())
    return f"{type(error).__name__}: {said}. This was not foreseen: with --debug the command shows where it comes from"
