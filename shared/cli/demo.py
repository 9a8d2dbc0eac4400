"""`polyfm demo DOMAIN`: the whole way from a file to a report, on data that an installed library brings along."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path

from polyfm.shared.cli.arguments import Arguments
from polyfm.shared.cli.list import domains
from polyfm.shared.errors import MissingExtraError, UsageError


def run(words: Sequence[str]) -> None:
    """Run the verb.

    Args:
        words: After ``demo``.
    """
    parser = Arguments("demo", "Pre-train, fine-tune and report on bundled data, in minutes on two cores.")
    parser.add_argument("domain", help=f"one of: {', '.join(domains())}")
    parser.add_argument("--out", default="", help="folder; runs/demo-DOMAIN by default")
    parser.add_argument("--seconds", type=int, default=0, help="of pre-training; 0 for the demo's own choice")
    ours = parser.parse(words)
    if ours.domain not in domains():
        raise UsageError(f"there is no domain {ours.domain!r}", remedy=f"Choose one of: {', '.join(domains())}")
    from polyfm.shared.training.run_folder import next_free

    out = Path(ours.out) if ours.out else next_free(Path("runs"), f"demo-{ours.domain}")
    try:
        demo = importlib.import_module(f"polyfm.domains.{ours.domain}.demo")
    except ModuleNotFoundError as error:
        if str(error.name).startswith("polyfm"):
            raise
        raise MissingExtraError(str(error.name), ours.domain) from error
    demo.run(out, seconds=ours.seconds)
