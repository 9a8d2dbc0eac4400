"""Definitions of cell types, tissues and the like, from ontologies in the OBO format (Cell Ontology, UBERON, ...)."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from polyfm.shared.errors import DataError, MissingExtraError

_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')


@dataclasses.dataclass(frozen=True)
class Ontology:
    """Terms by whatever columns call them: id, name, or exact synonym, in any case."""

    terms: Mapping[str, str]
    """By one of these in lower case: ``name: definition``, or the name where nothing defines it."""
    sources: tuple[str, ...] = ()
    """Names of the files."""

    @classmethod
    def read(cls, paths: Sequence[str | Path]) -> Ontology:
        """Read files; of a word that several terms claim ids go first, then names, then synonyms, earlier files first.

        Args:
            paths: OBO 1.2 or 1.4, as the OBO Foundry offers them (``cl.obo``, ``uberon-basic.obo``).

        Raises:
            DataError: There is no such file, or it holds no terms.
        """
        claims: list[dict[str, str]] = [{}, {}, {}]
        for path in paths:
            for id, term in _terms(Path(path)).items():
                name = _plain(term["name"])
                meaning = _unquoted(term.get("def", ""))
                defined = f"{name}: {meaning}" if meaning else name
                synonyms = [_unquoted(said) for said in term.get("synonym", []) if re.search(r'"\s+EXACT\b', said)]
                for claim, words in zip(claims, ([id, *term.get("alt_id", [])], [name], synonyms), strict=True):
                    for word in words:
                        claim.setdefault(word.lower(), defined)
        ids, names, synonyms_of = claims
        return cls({**synonyms_of, **names, **ids}, tuple(Path(path).name for path in paths))

    def describe(self, words: Sequence[str | None]) -> list[str | None]:
        """What terms are called and how they are defined; other words as they stand.

        Args:
            words: Of a column.
        """
        return [None if word is None else self.terms.get(word.lower(), word) for word in words]

    def told(self, column: str, words: Iterable[str | None]) -> str:
        """How many values of a column are terms, and some that are not.

        Args:
            column: Its name.
            words: Of it.
        """
        values = sorted({word for word in words if word is not None})
        strange = [value for value in values if value.lower() not in self.terms]
        told = f"{len(values) - len(strange)} of {len(values)} values of {column!r} are in {', '.join(self.sources)}"
        return f"{told}; not {', '.join(map(repr, strange[:3]))}" if strange else told


def _terms(path: Path) -> dict[str, dict[str, Any]]:
    """Terms of a file that are not obsolete."""
    try:
        import obonet
    except ImportError as error:
        raise MissingExtraError("obonet", "singlecell") from error
    wrong = DataError(
        "this is no ontology in the OBO format",
        where=path,
        remedy="Give a file such as cl.obo; OWL and JSON files of the same ontologies are not read",
    )
    try:
        with path.open(encoding="utf-8") as file:  # never its name: the library would open a URL
            graph = obonet.read_obo(file)
    except OSError as error:
        raise DataError(
            f"cannot be read ({error.strerror})", where=path, remedy="Check --data.ontology, or leave it out: []"
        ) from error
    except (ValueError, KeyError, AttributeError, TypeError) as error:  # of a text that is none
        raise wrong from error
    terms = {str(id): term for id, term in graph.nodes(data=True) if "name" in term}
    if not terms:
        raise wrong
    return terms


def _unquoted(text: str) -> str:
    """What stands in the first quotes of ``"text" [references]``; nothing where they are not closed."""
    found = _QUOTED.search(text)
    return _plain(found.group(1)) if found else ""


def _plain(text: str) -> str:
    r"""Backslashes of OBO undone: ``\n``, ``\t`` and ``\W`` are blanks, all else itself."""
    return " ".join(re.sub(r"\\(.)", lambda found: " " if found[1] in "ntW" else found[1], text).split())
