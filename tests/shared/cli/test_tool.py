"""`polyfm tool`: finding a domain's tools. What they do is tested with their domain."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from polyfm.domains.molecules import tools

Polyfm = Callable[..., Any]


def test_tools_of_a_domain_are_listed(polyfm: Polyfm) -> None:
    shown = polyfm("tool", "molecules")
    assert shown.code == 0
    assert [line.split()[3] for line in shown.out.splitlines()] == list(tools.TOOLS)


def test_a_tool_gets_its_words(polyfm: Polyfm, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[list[str]] = []
    monkeypatch.setitem(tools.TOOLS, "echo", given.append)
    assert polyfm("tool", "molecules", "echo", "a", "--b=c").code == 0
    assert given == [["a", "--b=c"]]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the domain is missing. polyfm tool DOMAIN NAME INPUT, with DOMAIN of: "),
        (["alchemy"], "there is no domain 'alchemy'"),
        (["molecule"], "there is no domain 'molecule'. Did you mean molecules? polyfm tool DOMAIN NAME INPUT"),
        (["molecules", "boil"], "molecules has no tool 'boil'. Choose one of: "),
        (["molecules", "propertys"], "molecules has no tool 'propertys'. Did you mean properties? Choose one of: "),
    ],
)
def test_wrong_words(polyfm: Polyfm, words: list[str], message: str) -> None:
    shown = polyfm("tool", *words)
    assert shown.code == 2
    assert message in shown.err
