"""Files of molecules to one clean table, with a word on every row that was broken, doubled or ambiguous.

Formats: CSV and TSV (commas, semicolons or tabs; also .gz), Parquet, SMI (one SMILES a line, a name behind it) and SDF
(properties become columns), both also .gz.

Columns are options. Unless given, they are guessed by name, whatever the case, from these lists, and the guess is
announced in `MoleculeTable.guesses`:

* SMILES: smiles, canonical_smiles, isomeric_smiles, isosmiles, rdkit_smiles, compound_smiles, smi, structure, mol,
  molecule
* id: id, mol_id, molecule_id, compound_id, cmpd_chemblid, chembl_id, molecule_chembl_id, cid, name, title, _name (the
  name in an SMI or SDF file); taken only if all its values differ, else rows are named FILE:ROW
* text: description, caption, text; split: split

Targets are never guessed: ESOL's file has a column of predictions beside the measurements.

Duplicates, that is rows with one canonical SMILES, are merged into the first (`polyfm.domains.molecules.duplicates`
says how and why) and reported. ``duplicates="keep"`` leaves all rows, for parity with published benchmarks and for
prediction.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from polyfm.domains.molecules.canonical import Canonical, Canonicaliser, Refused, canonicalise
from polyfm.domains.molecules.duplicates import first_rows, merge_labels
from polyfm.domains.molecules.structure_files import TITLE, Record, StructureFile, open_structures
from polyfm.shared.data.labels import parse_labels
from polyfm.shared.data.manifest import Finding, Notices, Quarantine
from polyfm.shared.data.tabular import Table
from polyfm.shared.errors import DataError, UsageError

ID_COLUMNS = (
    "id", "mol_id", "molecule_id", "compound_id", "cmpd_chemblid", "chembl_id", "molecule_chembl_id", "cid", "name",
    "title", "_name",
)  # fmt: skip
TEXT_COLUMNS = ("description", "caption", "text")
SPLIT_COLUMNS = ("split",)

_GUESSED = {"id": ID_COLUMNS, "text": TEXT_COLUMNS, "split": SPLIT_COLUMNS}
_BLOCK_ROWS = 10_000


@dataclass(frozen=True, eq=False)
class MoleculeTable:
    """The n usable molecules of a file, column by column, in the order of the file."""

    smiles: list[str]
    """n canonical SMILES."""
    ids: list[str]
    """n names, all different."""
    rows: NDArray[np.int64]
    """(n,) which record of the file, from 1; of merged duplicates the first."""
    target_names: tuple[str, ...]
    """Columns that were asked for as targets."""
    targets: NDArray[np.float64]
    """(n, tasks) in the unit of the file, NaN where missing."""
    classes: list[str]
    """What the targets are indices of, where the only target column holds words; else empty."""
    text: list[str | None] | None
    """n descriptions, or None if the file has no such column."""
    split: list[str] | None
    """n entries of the split column as they stand, or None if the file has no such column."""
    guesses: dict[str, str]
    """By role (smiles, id, text, split): the column that was guessed."""
    quarantine: Quarantine
    """Rows that are broken and left out."""
    notices: Notices
    """Rows worth a look: duplicate, stereo-colliding, conflicting labels, disconnected, no label, repeated id."""

    def __len__(self) -> int:
        return len(self.smiles)


@dataclass(frozen=True, slots=True)
class MoleculeBlock:
    """What `stream_smiles` gives at a time."""

    smiles: list[str]
    """n canonical SMILES."""
    rows: NDArray[np.int64]
    """(n,) which record of the file, from 1."""
    broken: tuple[Finding, ...]
    """Rows of this block that are left out."""


def canonical(smiles: str, *, isomeric: bool = False) -> str | None:
    """The canonical SMILES of one SMILES, written as `read_molecules` does; None if it is no molecule.

    Args:
        smiles: Any text.
        isomeric: Keep stereochemistry and isotopes.
    """
    result = Canonicaliser(isomeric)([smiles])[0]
    return result.smiles if isinstance(result, Canonical) else None


def stream_smiles(
    path: str | Path,
    *,
    smiles: str | None = None,
    isomeric: bool = False,
    largest_fragment: bool = False,
    max_atoms: int = 1000,
    block_rows: int = _BLOCK_ROWS,
    workers: int = 0,
) -> Iterator[MoleculeBlock]:
    """Read canonical SMILES of a file of any length in little memory. Duplicates are kept.

    Args:
        path: The file; see the module for formats.
        smiles: Column with the SMILES; guessed unless given.
        isomeric: Keep stereochemistry and isotopes.
        largest_fragment: Of a disconnected structure keep the fragment of most heavy atoms.
        max_atoms: Leave out molecules of more heavy atoms.
        block_rows: Records per block.
        workers: Processes that parse; 0 parses in this one.
    """
    file = open_structures(path, smiles)
    canonicaliser = Canonicaliser(isomeric, largest_fragment, max_atoms, file.mol_blocks)
    for pairs in _canonical_blocks(file, canonicaliser, block_rows, workers):
        good = [(record.number, result.smiles) for record, result in pairs if isinstance(result, Canonical)]
        broken = tuple(_broken(file, record, result) for record, result in pairs if isinstance(result, Refused))
        numbers = np.array([number for number, _ in good], dtype=np.int64)
        yield MoleculeBlock([text for _, text in good], numbers, broken)


def read_molecules(
    path: str | Path,
    *,
    smiles: str | None = None,
    targets: Sequence[str] = (),
    id: str | None = None,
    split: str | None = None,
    text: str | None = None,
    isomeric: bool = False,
    largest_fragment: bool = False,
    max_atoms: int = 1000,
    duplicates: str = "merge",
    max_broken: float = 0.5,
    limit: int = 0,
    workers: int = 0,
) -> MoleculeTable:
    """Read a file of molecules.

    Args:
        path: The file; see the module for formats.
        smiles: Column with the SMILES; guessed unless given.
        targets: Columns with numbers, true/false, or nothing; a single one may hold words (see `parse_labels`).
        id: Column with names; guessed unless given.
        split: Column that says train, valid or test; guessed unless given.
        text: Column with descriptions; guessed unless given.
        isomeric: Keep stereochemistry and isotopes. Off, stereoisomers become one molecule, which is reported.
        largest_fragment: Of a disconnected structure (a salt) keep the fragment of most heavy atoms.
        max_atoms: Quarantine molecules of more heavy atoms.
        duplicates: "merge" or "keep"; see the module.
        max_broken: Largest share of broken rows to accept, 0 to 1.
        limit: Read only so many rows; 0 reads all.
        workers: Processes that parse; 0 parses in this one.

    Raises:
        DataError: The file, a column or a target cannot be read, or too many rows are broken.
    """
    if duplicates not in ("merge", "keep"):
        raise UsageError(f"duplicates is {duplicates!r}; expected 'merge' or 'keep'")
    file = open_structures(path, smiles)
    if targets and file.table.columns == (TITLE,):
        raise DataError(
            "the file holds molecules and their names, but no labels",
            where=file.table.path,
            remedy="Labels are read from columns of a table (.csv, .tsv, .parquet) or properties of an SDF",
        )
    task_columns = {name: file.table.column(name) for name in ([targets] if isinstance(targets, str) else targets)}
    columns, guesses = _choose(file.table, {"id": id, "text": text, "split": split})
    if smiles is None and file.smiles_column is not None:
        guesses = {"smiles": file.smiles_column, **guesses}

    numbers: list[int] = []
    molecules: list[Canonical] = []
    labels: dict[str, list[str]] = {name: [] for name in task_columns}
    texts: dict[str, list[str]] = {role: [] for role in columns}
    broken: list[Finding] = []
    canonicaliser = Canonicaliser(isomeric, largest_fragment, max_atoms, file.mol_blocks)
    for pairs in _canonical_blocks(file, canonicaliser, _BLOCK_ROWS, workers, limit):
        for record, result in pairs:
            if isinstance(result, Refused):
                broken.append(_broken(file, record, result))
                continue
            numbers.append(record.number)
            molecules.append(result)
            for name, at in task_columns.items():
                labels[name].append(record.cells[at])
            for role, at in columns.items():
                texts[role].append(record.cells[at].strip())
    quarantine = Quarantine(tuple(broken), len(molecules) + len(broken))
    quarantine.check(max_broken)

    rows = np.array(numbers, dtype=np.int64)
    matrix, classes = parse_labels(labels, numbers, file.table.path)
    notices = _Notices(file.table.path.name, rows, molecules)
    if "id" in guesses and not _all_differ(texts["id"]):
        del guesses["id"], texts["id"]
    ids = _unique(texts["id"], notices) if "id" in texts else [f"{_stem(file.table.path)}:{row}" for row in numbers]
    first = first_rows([molecule.smiles for molecule in molecules])
    notices.disconnected(largest_fragment)
    notices.without_label(matrix)
    notices.doubled(first)
    keep = np.arange(len(first))
    if duplicates == "merge":
        matrix, conflicts = merge_labels(matrix, first, discrete=bool(classes))
        for conflict in conflicts:
            made = "unknown" if math.isnan(conflict.merged) else f"{conflict.merged:.6g}"
            said = ", ".join(classes[int(value)] if classes else f"{value:g}" for value in conflict.values)
            task = list(task_columns)[conflict.task]
            notices.add(conflict.first, "conflicting labels", f"{task}: {said} become {made}")
        keep = np.flatnonzero(first == keep)
    return MoleculeTable(
        smiles=[molecules[index].smiles for index in keep],
        ids=[ids[index] for index in keep],
        rows=rows[keep],
        target_names=tuple(task_columns),
        targets=matrix[keep],
        classes=classes,
        text=[texts["text"][index] or None for index in keep] if "text" in texts else None,
        split=[texts["split"][index] for index in keep] if "split" in texts else None,
        guesses=guesses,
        quarantine=quarantine,
        notices=Notices(tuple(notices.items)),
    )


def _choose(table: Table, given: dict[str, str | None]) -> tuple[dict[str, int], dict[str, str]]:
    """By role the position of its column, as given or guessed; and what was guessed."""
    guessed = {role: table.guess(_GUESSED[role]) for role, name in given.items() if name is None}
    guesses = {role: name for role, name in guessed.items() if name is not None}
    chosen = {role: name for role, name in given.items() if name is not None} | guesses
    return {role: table.column(name) for role, name in chosen.items()}, guesses


def _canonical_blocks(
    file: StructureFile, canonicaliser: Canonicaliser, block_rows: int, workers: int, limit: int = 0
) -> Iterator[list[tuple[Record, Canonical | Refused]]]:
    records = itertools.islice(file.records(), limit or None)
    waiting: list[list[Record]] = []  # blocks sent off whose results are not back yet

    def texts() -> Iterator[list[str]]:
        while block := list(itertools.islice(records, block_rows)):
            waiting.append(block)
            yield [record.structure for record in block]

    for results in canonicalise(texts(), canonicaliser, workers=workers):
        yield [
            (record, Refused("malformed row", record.problem) if record.problem else result)
            for record, result in zip(waiting.pop(0), results, strict=True)
        ]


def _broken(file: StructureFile, record: Record, reason: Refused) -> Finding:
    item = record.structure.partition("\n")[0] if file.mol_blocks else record.structure
    return Finding(file.table.path.name, record.number, item, reason.kind, reason.detail)


def _stem(path: Path) -> str:
    return path.name.partition(".")[0]


def _all_differ(names: list[str]) -> bool:
    return all(names) and len(set(names)) == len(names)


def _unique(names: list[str], notices: _Notices) -> list[str]:
    """The names, those that are empty or were there before with their row appended."""
    seen: set[str] = set()
    unique = []
    for index, name in enumerate(names):
        fresh = name
        if not name or name in seen:
            fresh = f"{name}#{notices.rows[index]}"
            notices.add(index, "repeated id", f"{name!r} becomes {fresh!r}")
        seen.add(fresh)
        unique.append(fresh)
    return unique


class _Notices:
    """Collects what is noteworthy about the kept rows."""

    def __init__(self, source: str, rows: NDArray[np.int64], molecules: list[Canonical]) -> None:
        self.source, self.rows, self.molecules = source, rows, molecules
        self.items: list[Finding] = []

    def add(self, index: int | np.int64, kind: str, detail: str) -> None:
        self.items.append(Finding(self.source, int(self.rows[index]), self.molecules[index].smiles, kind, detail))

    def disconnected(self, largest_fragment: bool) -> None:
        for index, molecule in enumerate(self.molecules):
            if molecule.num_fragments > 1:
                fate = "the largest is kept" if largest_fragment else "all are kept"
                self.add(index, "disconnected", f"{molecule.num_fragments} fragments, {fate}")

    def without_label(self, matrix: NDArray[np.float64]) -> None:
        if matrix.shape[1]:
            for index in np.flatnonzero(np.isnan(matrix).all(1)):
                self.add(index, "no label", "no target has a value")

    def doubled(self, first: NDArray[np.int64]) -> None:
        for index in np.flatnonzero(first != np.arange(len(first))):
            known = self.molecules[first[index]]
            same = self.molecules[index].exact == known.exact
            kind = "duplicate" if same else "stereo-colliding"
            self.add(index, kind, f"of row {self.rows[first[index]]}" + ("" if same else f", which is {known.exact}"))
