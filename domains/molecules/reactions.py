"""Reactions: from ``a>>b`` and ``a>c>b`` to pairs of what is known and what is to be told.

The format of USPTO's sets (Lowe's patents): reactants, agents and products as SMILES between ``>``, often with atom
maps, which are removed. Forward, reactants and agents are known and the product is told; retro, the other way round,
the agents left out. SPMM (Chang and Ye, Nat. Commun. 2024) is fine-tuned on both.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from polyfm.domains.molecules.canonical import Canonical, Canonicaliser, Refused
from polyfm.domains.molecules.descriptors import in_jobs
from polyfm.domains.molecules.read import ID_COLUMNS
from polyfm.domains.molecules.structure_files import TABLES, TITLE, StructureFile, open_structures
from polyfm.shared.data.manifest import Finding, Notices, Quarantine
from polyfm.shared.data.progress import Progress
from polyfm.shared.data.tabular import open_table, suffix
from polyfm.shared.errors import DataError

REACTION_COLUMNS = (
    "reaction", "reaction_smiles", "rxn_smiles", "rxn", "rxnsmiles", "canonical_rxn", "mapped_rxn",
    "reactants>reagents>production", "reactants>reagents>product", "smiles",
)  # fmt: skip
"""Names under which a table's reactions are found, in this order; case, blanks and hyphens aside."""
DIRECTIONS = ("forward", "retro")

_MAP = re.compile(r":\d+\]")
_ARROW = re.compile(r"(?<!-)>")
"""Between the parts of a reaction; -> is a dative bond."""


@dataclass(frozen=True, slots=True)
class Reaction:
    """One reaction, canonical and without atom maps."""

    source: str
    """What is known: reactants and agents, or the product."""
    target: str
    """What is to be told: the product, or the reactants; empty where only the source was given."""


@dataclass(frozen=True, eq=False)
class ReactionTable:
    """The n usable reactions of a file, in its order."""

    reactions: list[Reaction]
    """n."""
    ids: list[str]
    """n names, all different."""
    rows: NDArray[np.int64]
    """(n,) which record of the file, from 1; of repeated ones the first."""
    split: list[str] | None
    """n entries of the split column, or None."""
    guesses: dict[str, str]
    """By role (reaction, id): the column that was guessed."""
    quarantine: Quarantine
    """Rows that are broken and left out."""
    notices: Notices
    """Rows that repeat an earlier one."""

    def __len__(self) -> int:
        return len(self.reactions)


def parse_reactions(
    texts: Sequence[str], direction: str, *, isomeric: bool = True, whole: bool = True
) -> list[Reaction | Refused]:
    """Reaction SMILES to what is known and what is told.

    Args:
        texts: n, as they stand in a file.
        direction: ``forward`` or ``retro``.
        isomeric: Keep stereochemistry and isotopes.
        whole: Refuse texts without ``>``; otherwise they are sources.

    Returns:
        n, in order.
    """
    sides: list[list[str]] = []  # source and target of each, as far as they are given
    refused: dict[int, Refused] = {}
    for row, text in enumerate(texts):
        bare, *_ = [*text.split(), ""]  # behind a blank stand extensions (|f:0.1|) and names
        parts = _ARROW.split(_MAP.sub("]", bare))
        if len(parts) == 1 and parts[0] and not whole:
            sides.append(parts)
            continue
        sides.append([])
        if len(parts) != 3:
            refused[row] = Refused("no reaction", f"{len(parts) - 1} signs '>', expected a>>b or a>c>b")
        elif not parts[0] or not parts[2]:
            refused[row] = Refused("one-sided reaction", f"there are no {'products' if parts[0] else 'reactants'}")
        elif direction == "forward":
            sides[-1] = [".".join(filter(None, parts[:2])), parts[2]]
        else:
            sides[-1] = [parts[2], parts[0]]
    canonical = iter(Canonicaliser(isomeric)(list(itertools.chain.from_iterable(sides))))
    out: list[Reaction | Refused] = []
    for row, given in enumerate(sides):
        found = [next(canonical) for _ in given]
        named = zip(("source", "target"), found, strict=False)
        broken = [(name, side) for name, side in named if isinstance(side, Refused)]
        good = [side.smiles for side in found if isinstance(side, Canonical)]
        if row in refused:
            out.append(refused[row])
        elif broken:
            out.append(Refused(broken[0][1].kind, "; ".join(f"{name}: {side.detail}" for name, side in broken)))
        elif len(good) == 2 and good[0] == good[1]:
            out.append(Refused("nothing reacts", "both sides are the same molecules"))
        else:
            out.append(Reaction(good[0], good[1] if len(good) == 2 else ""))
    return out


def read_reactions(
    path: str | Path,
    direction: str,
    *,
    reaction: str = "",
    id: str = "",
    split: str = "",
    isomeric: bool = True,
    whole: bool = True,
    max_broken: float = 0.5,
    limit: int = 0,
    workers: int = 0,
) -> ReactionTable:
    """Read a file of reactions.

    Args:
        path: A table (.csv, .tsv, .parquet) with a column of reactions, or a .smi file with one a line.
        direction: ``forward`` or ``retro``.
        reaction: Column of the reactions; guessed from `REACTION_COLUMNS` if empty.
        id: Column of the names; guessed if empty.
        split: Column that says train, valid or test; not read if empty.
        isomeric: Keep stereochemistry and isotopes.
        whole: Refuse sources without a target, and merge repeated reactions.
        max_broken: Largest share of broken rows to accept.
        limit: Read only so many rows; 0 reads all.
        workers: Processes that parse; 0 parses in this one.

    Raises:
        DataError: The file or a column cannot be read, or too many rows are broken.
    """
    file, guesses = _open(Path(path), reaction)
    columns, name = file.table.columns, file.table.path.name
    guessed = id or file.table.guess(ID_COLUMNS) or ""
    at = {role: file.table.column(column) for role, column in (("id", guessed), ("split", split)) if column}
    reactions: list[Reaction] = []
    numbers: list[int] = []
    texts: dict[str, list[str]] = {role: [] for role in at}
    broken: list[Finding] = []
    repeated: list[Finding] = []
    seen: dict[Reaction, int] = {}
    records = list(itertools.islice(file.records(), limit or None))
    parse = partial(parse_reactions, direction=direction, isomeric=isomeric, whole=whole)
    parsed: list[Reaction | Refused] = []
    with Progress("reactions") as bar:
        for _, some in in_jobs([record.structure for record in records], parse, workers):
            parsed += some
            bar.update(len(parsed), len(records))
    for record, result in zip(records, parsed, strict=True):
        told = Refused("malformed row", record.problem) if record.problem else result
        if isinstance(told, Refused):
            broken.append(Finding(name, record.number, record.structure, told.kind, told.detail))
        elif whole and told in seen:
            repeated.append(Finding(name, record.number, record.structure, "duplicate", f"of row {seen[told]}"))
        else:
            seen.setdefault(told, record.number)
            reactions.append(told)
            numbers.append(record.number)
            for role, column in at.items():
                texts[role].append(record.cells[column].strip())
    quarantine = Quarantine(tuple(broken), len(reactions) + len(broken) + len(repeated))
    quarantine.check(max_broken)
    ids = texts.get("id", [])
    if not all(ids) or len(set(ids)) != len(reactions):
        if id:
            raise DataError(
                f"the names in column {id!r} are not all different", where=path, remedy="Name another --data.id"
            )
        ids = [f"{name.partition('.')[0]}:{number}" for number in numbers]
    elif not id and columns != (TITLE,):
        guesses["id"] = guessed
    return ReactionTable(
        reactions=reactions,
        ids=ids,
        rows=np.array(numbers, dtype=np.int64),
        split=texts.get("split"),
        guesses=guesses,
        quarantine=quarantine,
        notices=Notices(tuple(repeated)),
    )


def _open(path: Path, reaction: str) -> tuple[StructureFile, dict[str, str]]:
    """The file as records whose structures are reactions, and what was guessed."""
    if suffix(path) not in TABLES:
        return open_structures(path), {}
    table = open_table(path)
    column = reaction or table.guess(REACTION_COLUMNS)
    if column is None:
        raise DataError(
            f"no column is named like reactions; the columns are {', '.join(map(repr, table.columns))}",
            where=path,
            remedy="Say which one it is with --data.reaction COLUMN",
        )
    return open_structures(path, column), {} if reaction else {"reaction": column}


def random_order(smiles: str, seed: int, *, isomeric: bool = True) -> str:
    """The same molecules as a SMILES that begins at other atoms.

    Args:
        smiles: Canonical, any number of molecules.
        seed: Another one, another order.
        isomeric: Whether the SMILES holds stereochemistry.
    """
    from rdkit import Chem

    rng = np.random.default_rng(seed)
    parts = []
    for part in smiles.split("."):
        mol = Chem.MolFromSmiles(part)
        order = rng.permutation(mol.GetNumAtoms()).tolist()
        turned = Chem.RenumberAtoms(mol, order)
        parts.append(Chem.MolToSmiles(turned, canonical=False, isomericSmiles=isomeric))
    return ".".join(parts[i] for i in rng.permutation(len(parts)))
