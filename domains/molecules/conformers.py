"""Molecules in space: a file's own 3-D coordinates, or those that RDKit makes of SMILES, and batches of them.

What RDKit makes is one conformer per molecule: ETKDGv3 (Wang et al., 10.1021/acs.jcim.0c00025) from a seed that is a
function of the SMILES, then MMFF94. A molecule that cannot be placed lacks the modality.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polyfm.domains.molecules.canonical import largest
from polyfm.domains.molecules.descriptors import in_jobs
from polyfm.domains.molecules.structure_files import TABLES, open_structures
from polyfm.shared.data import ragged
from polyfm.shared.data.batch import ModalityBatch
from polyfm.shared.data.cache import BlobCache, cache_dir
from polyfm.shared.data.tabular import suffix
from polyfm.shared.errors import DataError, MissingExtraError

try:
    from rdkit import Chem, __version__, rdBase
    from rdkit.Chem import rdDistGeom, rdForceFieldHelpers
except ImportError as error:
    raise MissingExtraError("rdkit", "molecules") from error

ELEMENTS = (
    "H", "Li", "B", "C", "N", "O", "F", "Na", "Al", "Si", "P", "S", "Cl", "K", "Ca", "Cr", "Fe", "Zn", "As", "Se", "Br",
    "Sn", "I", "Gd", "Au", "Hg",
)  # fmt: skip
"""Elements with a type of their own, those of Uni-Mol's dictionary; the rest share one."""
CLS, MASK, OTHER = range(3)
SPECIALS = 3
"""Types below are no element of their own: never hidden, never drawn."""
TYPES = SPECIALS + len(ELEMENTS)
"""V."""
LARGEST = 256
"""Atoms, hydrogens included; Uni-Mol cuts there, here such a molecule has no conformer."""

_TYPE_OF = np.full(256, OTHER, dtype=np.int64)
for _type, _symbol in enumerate(ELEMENTS, start=SPECIALS):
    _TYPE_OF[Chem.GetPeriodicTable().GetAtomicNumber(_symbol)] = _type
_MOLECULES_PER_COMMIT = 1000
_MOST_STEPS = 500
"""Of MMFF94; a conformer that has not settled by then is taken as it is."""


class Conformer(NamedTuple):
    """The atoms of one molecule in space."""

    numbers: NDArray[np.int64]
    """(A,) atomic numbers."""
    coordinates: NDArray[np.float32]
    """(A, 3) Å, the centroid at the origin."""

    def centred(self, keep: NDArray[np.bool_]) -> Conformer:
        """Some of the atoms, the centroid at the origin.

        Args:
            keep: (A,) which.
        """
        coordinates = self.coordinates[keep]
        return Conformer(self.numbers[keep], coordinates - coordinates.mean(0))


class ConformerBatch(ModalityBatch):
    """Atoms in space, molecule after molecule without padding."""

    ids: Tensor
    """(A,) int64 types: `CLS`, `MASK`, `OTHER`, or `SPECIALS` plus the place in `ELEMENTS`."""
    coordinates: Tensor
    """(A, 3) float32 Å."""
    cu_seqlens: Tensor
    """(B_m+1,) int32: atoms of molecule i are ``cu_seqlens[i]:cu_seqlens[i+1]``."""
    longest: int | None = None
    """No molecule has more atoms. Optional: where given, padding need not read the lengths (export, no stalls)."""

    def select(self, keep: Tensor) -> ConformerBatch:
        """The same molecules, only some of them (or some twice)."""
        atoms, cu_seqlens = ragged.take(self.cu_seqlens, keep)
        return ConformerBatch(
            rows=self.rows[keep], ids=self.ids[atoms], coordinates=self.coordinates[atoms], cu_seqlens=cu_seqlens
        )

    def framed(self) -> tuple[Tensor, Tensor, Tensor]:
        """Padded rows, in each a [CLS] at the centroid before the atoms.

        Returns:
            (B, N) types, (B, N, 3) Å, and (B, N) bool: True where there is an atom or the [CLS].
        """
        lengths, total = self.cu_seqlens.diff().long(), len(self.ids)
        size = 1 + (self.longest if self.longest is not None else int(lengths.max()) if len(lengths) else 0)
        owner = ragged.owners(self.cu_seqlens, total)
        slots = owner * size + ragged.places(self.cu_seqlens, total) + 1
        ids = self.ids.new_full((len(lengths) * size,), CLS).index_copy(0, slots, self.ids).view(-1, size)
        centre = self.coordinates.new_zeros(len(lengths), 3).index_add(0, owner, self.coordinates)
        places = self.coordinates.new_zeros(len(lengths) * size, 3).index_copy(0, slots, self.coordinates)
        places = places.view(-1, size, 3)
        places[:, 0] = centre / lengths.clamp(min=1)[:, None]
        return ids, places, torch.arange(size, device=ids.device) <= lengths[:, None]


def pack_conformers(conformers: Sequence[Conformer | None]) -> ConformerBatch:
    """Molecules end to end; None where a sample lacks the modality.

    Args:
        conformers: One per sample.
    """
    present = [(row, conformer) for row, conformer in enumerate(conformers) if conformer is not None]
    numbers = np.concatenate([np.zeros(0, dtype=np.int64), *(one.numbers for _, one in present)])
    coordinates = np.concatenate([np.zeros((0, 3), dtype=np.float32), *(one.coordinates for _, one in present)])
    return ConformerBatch(
        rows=torch.tensor([row for row, _ in present], dtype=torch.int64),
        ids=torch.from_numpy(_TYPE_OF[numbers]),
        coordinates=torch.from_numpy(coordinates),
        cu_seqlens=ragged.boundaries(torch.tensor([len(one.numbers) for _, one in present], dtype=torch.int64)),
        longest=max((len(one.numbers) for _, one in present), default=0),
    )


def file_conformers(path: str | Path, rows: Sequence[int], *, largest_fragment: bool = False) -> list[Conformer | None]:
    """The coordinates that stand in an SDF.

    Args:
        path: Any file of molecules.
        rows: n records of it, from 1, ascending.
        largest_fragment: Keep only the largest fragment.

    Returns:
        n conformers with all atoms of the records; None where a record has no 3-D coordinates.
    """
    nothing: list[Conformer | None] = [None] * len(rows)
    if suffix(Path(path)) in TABLES:
        return nothing
    file = open_structures(path)
    if not file.mol_blocks:
        return nothing
    wanted = set(rows)
    found: dict[int, Conformer | None] = {}
    with rdBase.BlockLogs():
        for record in file.records():
            if record.number in wanted:
                mol = Chem.MolFromMolBlock(record.structure, removeHs=False)
                # With its hydrogens a record may be refused that is accepted without them.
                found[record.number] = None if mol is None else _conformer(largest(mol) if largest_fragment else mol)
    return [found[row] for row in rows]


def made_conformers(
    smiles: Sequence[str], *, workers: int = 0, progress: Callable[[int, int], None] | None = None
) -> list[Conformer | None]:
    """One conformer of each molecule by RDKit, hydrogens included; looked up on disk first.

    Args:
        smiles: n, canonical.
        workers: Processes that compute what the cache lacks; 0 computes in this one. The result is the same.
        progress: Called with (molecules done, molecules to compute) from time to time.

    Returns:
        n conformers; None where RDKit finds no places for the atoms, or there are more than `LARGEST`.
    """
    cache = BlobCache(cache_dir("molecules") / f"conformers-rdkit-{__version__}.sqlite")
    blobs = cache.get_blobs(smiles)
    missing = [text for text in dict.fromkeys(smiles) if text not in blobs]
    pending: dict[str, bytes] = {}
    done = 0
    for job, made in in_jobs(missing, _make_all, workers):
        pending |= dict(zip(job, made, strict=True))
        done += len(job)
        if len(pending) >= _MOLECULES_PER_COMMIT or done == len(missing):
            cache.put_blobs(pending)
            blobs |= pending
            pending = {}
        if progress is not None:
            progress(done, len(missing))
    return [_unpack(blobs[text]) for text in smiles]


def without_hydrogens(conformer: Conformer) -> Conformer:
    """The heavy atoms; all of them if there is nothing else.

    Args:
        conformer: With hydrogens.
    """
    heavy = conformer.numbers > 1
    return conformer.centred(heavy) if heavy.any() else conformer


def _conformer(mol: Any) -> Conformer | None:
    """Of a molecule with hydrogens and coordinates."""
    if not mol.GetNumAtoms() or not mol.GetNumConformers() or not mol.GetConformer().Is3D():
        return None
    numbers = np.array([atom.GetAtomicNum() for atom in mol.GetAtoms()], dtype=np.int64)
    conformer = Conformer(numbers, mol.GetConformer().GetPositions().astype(np.float32))
    placed = len(numbers) <= LARGEST and np.isfinite(conformer.coordinates).all()
    return conformer.centred(np.ones(len(numbers), dtype=bool)) if placed else None


def _make_all(smiles: Sequence[str]) -> list[bytes]:
    with rdBase.BlockLogs():
        return [_pack(_make(text)) for text in smiles]


def _make(smiles: str) -> Conformer | None:
    mol = Chem.MolFromSmiles(smiles)
    if mol is None:
        raise DataError(
            f"RDKit refuses the SMILES {smiles!r}",
            remedy="Read the file with read_molecules, which sorts such rows out",
        )
    mol = Chem.AddHs(mol)
    if mol.GetNumAtoms() > LARGEST:
        return None
    settings: Any = rdDistGeom.ETKDGv3()  # its fields have wrong types
    settings.randomSeed = int.from_bytes(hashlib.sha256(smiles.encode()).digest()[:4], "little") >> 1
    try:
        if rdDistGeom.EmbedMolecule(mol, settings) < 0:
            settings.useRandomCoords = True  # slower, and finds places for what is folded or strained
            if rdDistGeom.EmbedMolecule(mol, settings) < 0:
                return None
        if rdForceFieldHelpers.MMFFHasAllMoleculeParams(mol):
            rdForceFieldHelpers.MMFFOptimizeMolecule(mol, maxIters=_MOST_STEPS)
    except (RuntimeError, ValueError):
        return None
    return _conformer(mol)


def _pack(conformer: Conformer | None) -> bytes:
    """As bytes: a row of atomic number and coordinates (float32) for each atom; none at all for no conformer."""
    if conformer is None:
        return b""
    return np.column_stack([conformer.numbers, conformer.coordinates]).astype("<f4").tobytes()


def _unpack(blob: bytes) -> Conformer | None:
    table = np.frombuffer(blob, dtype="<f4").reshape(-1, 4)
    return Conformer(table[:, 0].astype(np.int64), table[:, 1:].astype(np.float32)) if len(table) else None
