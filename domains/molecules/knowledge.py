"""A knowledge graph of molecules, built from the training part's descriptions, and a molecule's neighbours in it.

MolFM (Luo et al., arXiv 2307.09484) looks a molecule up in a knowledge base that was written independently of the text.
Here base and text are one: links read from a molecule's own description would tell the model the very text that it is
to find or write. So a description gives links to all molecules but its own. The neighbours of any molecule, trained on
or not, are the entities that the structurally nearest *other* molecules of the training part are linked with, as if its
own description had not been read. One rule holds in training, validation, test and for new molecules; where nothing is
near, a molecule has no neighbours.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from polyfm.domains.molecules.baselines import tanimoto
from polyfm.domains.molecules.phrases import read_links
from polyfm.domains.molecules.vectors import fingerprints
from polyfm.shared.errors import DataError

NEAREST = 8
"""Molecules of the graph that are asked."""
SIMILAR = 0.3
"""Least Tanimoto similarity of ECFP4 of those."""
MENTIONS = 2
"""Molecules that must be linked with a name, the asking one not counted: one that occurs once connects nothing."""
_BLOCK = 1024


class KnowledgeGraph:
    """Entities are names (classes, roles, relatives), then the molecules that they are linked with.

    Args:
        entities: V, as of the embedder; the rarest names, and molecules without a place, are left out.
        neighbours: Most entities that a molecule is told.
    """

    def __init__(self, entities: int, neighbours: int = 8) -> None:
        self.entities, self.limit = entities, neighbours
        self._take([], [], [])

    def fit(self, smiles: Sequence[str], texts: Sequence[str | None]) -> Self:
        """Build the graph.

        Args:
            smiles: n canonical, of the training part, all different.
            texts: n descriptions; None where there is none.
        """
        said = [read_links(text) if text else [] for text in texts]
        counts = Counter(name for links in said for name in {name for _, name in links})
        known = sorted((name for name in counts if counts[name] >= MENTIONS), key=lambda name: (-counts[name], name))
        place = {name: id for id, name in enumerate(known[: self.entities])}
        kept = [[(relation, place[name]) for relation, name in links if name in place] for links in said]
        linked = [i for i, links in enumerate(kept) if links]
        self._take(list(place), [smiles[i] for i in linked], [kept[i] for i in linked])
        return self

    def __len__(self) -> int:
        """Entities that have a place."""
        return min(len(self.names) + len(self.molecules), self.entities)

    def facts(self, smiles: str) -> NDArray[np.int64] | None:
        """(n, 3) triples (molecule, relation, name) of a molecule of the graph, for TransE; None of any other.

        Args:
            smiles: Canonical.
        """
        at = self._places.get(smiles)
        if at is None or len(self.names) + at >= self.entities:
            return None
        return np.array([(len(self.names) + at, relation, name) for relation, name in self.links[at]], dtype=np.int64)

    def neighbours(
        self, smiles: Sequence[str], progress: Callable[[int, int], None] | None = None
    ) -> list[NDArray[np.int64] | None]:
        """Entities around each molecule, those of most and nearest molecules first; None where there are none.

        Args:
            smiles: n canonical. What the graph says of a molecule itself is not among them.
            progress: Told how many are done, and of how many.
        """
        if not self.molecules:
            return [None] * len(smiles)
        found: list[NDArray[np.int64] | None] = []
        for start in range(0, len(smiles), _BLOCK):
            block = smiles[start : start + _BLOCK]
            similarities = tanimoto(fingerprints(block).astype(np.float32), self._bits)
            found += [self._vote(*pair) for pair in zip(block, similarities, strict=True)]
            if progress is not None:
                progress(len(found), len(smiles))
        return found

    def _vote(self, smiles: str, similar: NDArray[np.float32]) -> NDArray[np.int64] | None:
        own: set[int] = set()
        if smiles in self._places:
            similar[self._places[smiles]] = 0.0
            own = {name for _, name in self.links[self._places[smiles]]}
        near = np.argsort(-similar, kind="stable")[:NEAREST]
        votes: defaultdict[int, float] = defaultdict(float)
        for i in near[similar[near] >= SIMILAR]:
            for name in {name for _, name in self.links[i]}:
                if self._mentions[name] - (name in own) >= MENTIONS:
                    votes[name] += float(similar[i])
        best = sorted(votes, key=lambda name: (-votes[name], self.names[name]))[: self.limit]
        return np.array(best, dtype=np.int64) if best else None

    @cached_property
    def _bits(self) -> NDArray[np.float32]:
        """(molecules, 2048)."""
        return fingerprints(self.molecules).astype(np.float32)

    def state(self) -> dict[str, Any]:
        """What was built, as primitives."""
        return {"names": self.names, "molecules": self.molecules, "links": self.links}

    def load(self, state: dict[str, Any]) -> None:
        """Take over.

        Args:
            state: As made by `state`.

        Raises:
            DataError: Its links lead nowhere.
        """
        names, molecules, links = state["names"], state["molecules"], state["links"]
        targets = [name for own in links for _, name in own]
        if len(links) != len(molecules) or not all(0 <= name < len(names) for name in targets):
            raise DataError("the links of this knowledge graph do not fit its names and molecules")
        self._take(names, molecules, links)

    def _take(self, names: list[str], molecules: list[str], links: list[list[tuple[int, int]]]) -> None:
        self.names, self.molecules, self.links = names, molecules, links
        self._places = {smiles: at for at, smiles in enumerate(molecules)}
        self._mentions = Counter(name for own in links for name in {name for _, name in own})
        self.__dict__.pop("_bits", None)
