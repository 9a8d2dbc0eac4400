"""One row of numbers for a whole molecule, or for its whole description: what a chemist would give a forest.

Each is a modality of its own:

- ``descriptors``: all of RDKit's 2-D descriptors as normal scores.
- ``fingerprint``: log(1 + count) of each substructure of ECFP4: how often matters less the more often.
- ``features``: both, side by side.
- ``words``: TF-IDF of the description's words, fitted on the training part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, vstack

from polyfm.domains.molecules.descriptors import DESCRIPTORS_2D, descriptor_table_2d
from polyfm.domains.molecules.transforms import NormalScores, Words
from polyfm.shared.data.progress import Progress
from polyfm.shared.errors import MissingExtraError

try:
    from rdkit import Chem, rdBase
    from rdkit.Chem import rdFingerprintGenerator
except ImportError as error:
    raise MissingExtraError("rdkit", "molecules") from error

FINGERPRINT = 2048
"""Bits that substructures are hashed to."""
_BLOCK = 1000


def fingerprints(smiles: Sequence[str], *, counts: bool = False) -> np.ndarray:
    """(n, 2048) ECFP4 (Morgan radius 2; Rogers and Hahn, 10.1021/ci100050t).

    Args:
        smiles: Canonical.
        counts: How often each substructure occurs (uint32), not whether (uint8).
    """
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=FINGERPRINT)
    make = generator.GetCountFingerprintAsNumPy if counts else generator.GetFingerprintAsNumPy
    with rdBase.BlockLogs():
        return np.array([make(Chem.MolFromSmiles(text)) for text in smiles]).reshape(len(smiles), FINGERPRINT)


class MoleculeVectors:
    """Makes the rows of those modalities that a recipe has.

    Args:
        modalities: Of the recipe; others are ignored.
        words: Most words that are told apart.
    """

    def __init__(self, modalities: Sequence[str], words: int) -> None:
        columns = {
            "descriptors": len(DESCRIPTORS_2D),
            "fingerprint": FINGERPRINT,
            "features": FINGERPRINT + len(DESCRIPTORS_2D),
            "words": words,
        }
        self.columns = {name: columns[name] for name in columns if name in modalities}
        """P by modality."""
        self._described = not {"descriptors", "features"}.isdisjoint(modalities)
        self._hashed = not {"fingerprint", "features"}.isdisjoint(modalities)
        self.scores, self.words = NormalScores(), Words(words)

    def fit(self, smiles: Sequence[str], texts: Sequence[str | None], workers: int = 0) -> Self:
        """Learn ranks of descriptors and weights of words.

        Args:
            smiles: n canonical, of the training part.
            texts: n descriptions; None where there is none.
            workers: Processes for descriptors that are not known yet.
        """
        if self._described:
            self.scores.fit(_described(smiles, workers))
        if "words" in self.columns:
            self.words.fit([text for text in texts if text is not None])
        return self

    def make(self, smiles: Sequence[str], texts: Sequence[str | None] | None, workers: int = 0) -> VectorTable:
        """The rows of molecules.

        Args:
            smiles: n canonical.
            texts: n descriptions, None where there is none; None if nobody has one.
            workers: Processes for descriptors that are not known yet.
        """
        parts: dict[str, Any] = {}
        if self._described:
            parts["descriptors"] = self.scores.apply(_described(smiles, workers))
        if self._hashed:  # of a fingerprint's cells two in a hundred are not 0
            blocks = [smiles[start : start + _BLOCK] for start in range(0, len(smiles), _BLOCK)] or [[]]
            parts["fingerprint"] = vstack([csr_array(fingerprints(block, counts=True)) for block in blocks]).log1p()
        lacking = np.ones(len(smiles), dtype=bool)
        if "words" in self.columns and texts is not None:
            parts["words"] = self.words.apply([text or "" for text in texts])
            lacking = np.array([text is None for text in texts], dtype=bool)
        return VectorTable(self.columns, parts, lacking)

    def state(self) -> dict[str, Any]:
        """What was learnt, as primitives."""
        ranks = {"normal_scores": self.scores.state()} if self._described else {}
        return ranks | ({"words": self.words.state()} if "words" in self.columns else {})


class VectorTable:
    """Rows of n molecules, sparse ones kept sparse.

    Args:
        columns: P by modality.
        parts: (n, P) of descriptors, of fingerprint and of words, as far as needed.
        textless: (n,) bool: there is no description.
    """

    def __init__(self, columns: Mapping[str, int], parts: Mapping[str, Any], textless: NDArray[np.bool_]) -> None:
        self.columns, self.parts, self.textless = columns, parts, textless

    def row(self, index: int) -> VectorRow:
        """Of one molecule; nothing is made of it yet.

        Args:
            index: Which.
        """
        return VectorRow(self, index)

    def dense(self, indices: Sequence[int]) -> list[dict[str, NDArray[np.float32]]]:
        """Numbers of each molecule asked for.

        Args:
            indices: Which molecules.

        Returns:
            (P,) by modality; without words where it has no description.
        """
        chosen = list(indices)
        parts = {name: part[chosen] for name, part in self.parts.items()}
        parts = {name: part if isinstance(part, np.ndarray) else part.toarray() for name, part in parts.items()}
        if "features" in self.columns:
            parts["features"] = np.concatenate([parts["fingerprint"], parts["descriptors"]], axis=1)
        made = {name: parts[name].astype(np.float32) for name in self.columns if name in parts}
        return [
            {name: table[i] for name, table in made.items() if name != "words" or not self.textless[index]}
            for i, index in enumerate(chosen)
        ]


class VectorRow(NamedTuple):
    """A molecule's place in a table: as rows of numbers, a file of molecules would not fit into memory."""

    table: VectorTable
    """Of its file."""
    place: int
    """In it."""


def dense_rows(rows: Sequence[VectorRow | None]) -> list[dict[str, NDArray[np.float32]]]:
    """Numbers of a batch, made of each table at once.

    Args:
        rows: One per molecule.

    Returns:
        (P,) by modality, of each; nothing for a molecule that is in no table.
    """
    made: list[dict[str, NDArray[np.float32]]] = [{} for _ in rows]
    tables = {id(row.table): row.table for row in rows if row is not None}
    for key, table in tables.items():
        places = [(i, row.place) for i, row in enumerate(rows) if row is not None and id(row.table) == key]
        for (i, _), numbers in zip(places, table.dense([place for _, place in places]), strict=True):
            made[i] = numbers
    return made


def _described(smiles: Sequence[str], workers: int) -> np.ndarray:
    with Progress("2-D descriptors") as bar:
        return descriptor_table_2d(smiles, workers=workers, progress=bar.update)
