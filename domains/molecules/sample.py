"""`MoleculeSample` and `ReactionSample`: one molecule, one reaction as read, before any tokens."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from polyfm.domains.molecules.conformers import Conformer
from polyfm.domains.molecules.vectors import VectorRow
from polyfm.shared.data.carrier import Carrier


class MoleculeSample(Carrier):
    """One molecule with whatever is known of it; None marks a modality that is missing."""

    id: str
    """Name of the molecule in its file, unique within a data set."""
    group: str
    """Bemis-Murcko scaffold as SMILES without chirality, "" if acyclic: what a scaffold split never cuts."""
    row: int
    """Which record of the file it was, from 1."""
    smiles: str | None = None
    """Canonical SMILES."""
    properties: NDArray[np.float64] | None = None
    """(53,) RDKit descriptors in the order and the units of `descriptors.DESCRIPTORS`, NaN where not computable."""
    vectors: VectorRow | None = None
    """Where its rows of numbers stand: descriptors, fingerprint, words."""
    text: str | None = None
    """Description in natural language."""
    neighbours: NDArray[np.int64] | None = None
    """(n,) entities of the knowledge graph around it, the nearest first; never told by its own description."""
    facts: NDArray[np.int64] | None = None
    """(n, 3) what the graph says of it: entity, relation, entity. Of molecules of the training part only."""
    conformer: Conformer | None = None
    """Its atoms in space (Å)."""
    targets: dict[str, NDArray[np.float64]]
    """By name: (tasks,) measured values or 0/1 labels in the unit of the file, NaN where missing. Empty in
    pre-training."""


class ReactionSample(Carrier):
    """One reaction, in the direction that the run reads it."""

    id: str
    """Name of the reaction in its file, unique within a data set."""
    group: str
    """Canonical source: what a split never cuts."""
    row: int
    """Which record of the file it was, from 1."""
    source: str
    """SMILES of what is known, canonical or, in training, in another order of atoms."""
    target: str | None = None
    """Canonical SMILES of what is to be told; None where only the source was given."""
