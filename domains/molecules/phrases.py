"""ChEBI's sentences as links of a knowledge graph: "It has a role as a dye and an allergen." → has role dye, allergen.

ChEBI writes its ontology out in fixed phrases, one relation a sentence, several targets joined by commas and "and".
What fits no phrase ("It is used as …", "A biological stain, it …") is left alone.
"""

from __future__ import annotations

import re

RELATIONS = (
    "is a",
    "has role",
    "derives from",
    "contains",
    "conjugate acid of",
    "conjugate base of",
    "enantiomer of",
    "tautomer of",
)
"""Relations that are read; a link holds the place here."""

# The first that a sentence begins with tells its relation.
_OPENINGS = (
    (re.compile(r"It has a role as (?=an? )"), "has role"),
    (re.compile(r"It derives from (?=an? |the )"), "derives from"),
    (re.compile(r"It contains (?=an? |the )"), "contains"),
    *(
        (re.compile(rf"It is an? {name.removesuffix(' of')} of (?=an? |the )"), name)
        for name in RELATIONS
        if name.endswith(" of")
    ),
    (re.compile(r"The molecule is (?=an? |the |member )"), "is a"),
    (re.compile(r"It is (?=an? |member )"), "is a"),
)
_SENTENCE = re.compile(r"(?<=[.;])\s+(?=[A-Z])")
# A comma inside a chemical name has no blank behind it.
_NEXT = re.compile(r",? and (?=an? |the |member )|, (?=an? |the |member )")
_ARTICLE = re.compile(r"^(?:an? |the )?(?:member of (?:the class of )?)?")
# Where a class ends and what tells this molecule from its other members begins.
_REST = re.compile(
    r",? (?:that|which|in which|where|whose|obtained|carrying|having|resulting|consisting|with|formed|derived|isolated"
    r"|comprising|composed|arising|bearing|containing|found|produced|substituted|used|and|or|of which|as|from)\b.*|, .*"
)


def read_links(text: str) -> list[tuple[int, str]]:
    """Links of a described molecule: relation and name of the target, each once, in the order of the text.

    Args:
        text: A description as ChEBI writes it.
    """
    links: dict[tuple[int, str], None] = {}
    for sentence in _SENTENCE.split(text.strip()):
        for opening, relation in _OPENINGS:
            begun = opening.match(sentence)
            if begun is None:
                continue
            targets = _NEXT.split(sentence[begun.end() :].rstrip(" .;"))
            # A definition has one class, and then tells of groups, chains and places.
            for target in targets[:1] if sentence.startswith("The ") else targets:
                name = _ARTICLE.sub("", _REST.sub("", target)).strip()
                if name:
                    links[RELATIONS.index(relation), name] = None
            break
    return list(links)
