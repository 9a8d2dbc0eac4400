"""`polyfm tool DOMAIN NAME INPUT`: tools that only one domain has."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Sequence

from polyfm.shared.cli.list import domains
from polyfm.shared.errors import MissingExtraError, UsageError


def run(words: Sequence[str]) -> None:
    """Run the verb.

    Args:
        words: After ``tool``.
    """
    if words and words[0] in ("-h", "--help"):
        print(
            f"usage: polyfm tool DOMAIN NAME INPUT\n\n`polyfm tool DOMAIN` lists the tools of: {', '.join(domains())}"
        )
        return
    known = domains()
    if not words or words[0] not in known:
        raise UsageError(
            f"there is no domain {words[0]!r}" if words else "the domain is missing",
            remedy=f"{_nearest(words[:1], known)}polyfm tool DOMAIN NAME INPUT, with DOMAIN of: {', '.join(known)}",
        )
    try:
        tools = importlib.import_module(f"polyfm.domains.{words[0]}.tools").TOOLS
    except ModuleNotFoundError as error:
        if str(error.name).startswith("polyfm"):
            raise
        raise MissingExtraError(str(error.name), words[0]) from error
    if len(words) < 2 or words[1] in ("-h", "--help"):
        for name, tool in tools.items():
            print(f"polyfm tool {words[0]} {name:<12} {tool.__doc__.splitlines()[0]}")
        return
    if words[1] not in tools:
        raise UsageError(
            f"{words[0]} has no tool {words[1]!r}",
            remedy=f"{_nearest(words[1:2], tools)}Choose one of: {', '.join(tools)}",
        )
    tools[words[1]](words[2:])


def _nearest(words: Sequence[str], known: Iterable[str]) -> str:
    near = [name for word in words for name in difflib.get_close_matches(word, list(known), n=1)]
    return f"Did you mean {near[0]}? " if near else ""
