"""Structure texts to canonical SMILES, block by block, each refusal with RDKit's own reason.

Every SMILES of a file goes through RDKit before a tokenizer sees it: files write one molecule in many ways, and some
(ChEBI-20) double each backslash, which RDKit accepts and a tokenizer would not.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import re
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

from polyfm.shared.errors import MissingExtraError

try:
    from rdkit import Chem, rdBase
    from rdkit.Chem import rdMolDescriptors
except ImportError as error:
    raise MissingExtraError("rdkit", "molecules") from error

_STEREO_OR_ISOTOPE = re.compile(r"[@/\\]|\[\d")
_LOG_PREFIX = re.compile(r"^\[[\d:]+\] (SMILES Parse Error: )?")
_CHARACTERS_PER_ATOM = 100
_KINDS = {
    "AtomValenceException": "impossible valence",
    "AtomKekulizeException": "aromatic system without Kekulé form",
    "KekulizeException": "aromatic system without Kekulé form",
}


class Canonical(NamedTuple):
    """A molecule that RDKit accepts."""

    smiles: str
    """Canonical SMILES, as asked for."""
    exact: str
    """Canonical SMILES with stereochemistry and isotopes: differs between molecules that `smiles` makes one."""
    num_fragments: int
    """Parts of the structure that no bond joins; 1 for most molecules."""


class Refused(NamedTuple):
    """A structure that cannot be used."""

    kind: str
    """Why, in a few words that many share."""
    detail: str
    """Why this one, in RDKit's words where it has any."""


@dataclass(frozen=True, slots=True)
class Canonicaliser:
    """Makes canonical SMILES of structure texts; can be sent to worker processes."""

    isomeric: bool = False
    """Keep stereochemistry and isotopes. SPMM leaves them out."""
    largest_fragment: bool = False
    """Of a disconnected structure (a salt) keep the fragment of most heavy atoms."""
    max_atoms: int = 1000
    """Refuse more heavy atoms than that."""
    mol_blocks: bool = False
    """Texts are MDL mol blocks (SDF) instead of SMILES."""

    def __call__(self, texts: list[str]) -> list[Canonical | Refused]:
        """One result per text, in order.

        Args:
            texts: SMILES or mol blocks.
        """
        with rdBase.BlockLogs():
            results = [self._canonical(text) for text in texts]
        # Reasons are read from RDKit's log, so they are looked for after the block above has ended.
        return [self._refusal(text) if result is None else result for text, result in zip(texts, results, strict=True)]

    def _canonical(self, text: str) -> Canonical | Refused | None:
        text = text if self.mol_blocks else text.strip()
        if not text:
            return Refused("empty", "there is no structure")
        # A SMILES has at most one atom per character: most need no second look at their length.
        if len(text) > self.max_atoms and (too_long := self._too_long(text)):
            return too_long
        try:
            mol = self._parse(text)
            if mol is None:
                return None
            num_fragments = 1
            smiles = Chem.MolToSmiles(mol, isomericSmiles=self.isomeric)
            if "." in smiles:
                num_fragments = len(Chem.GetMolFrags(mol))
                if self.largest_fragment:
                    mol = largest(mol)
                    smiles = Chem.MolToSmiles(mol, isomericSmiles=self.isomeric)
            exact = smiles
            if not self.isomeric and (self.mol_blocks or _STEREO_OR_ISOTOPE.search(text)):
                exact = Chem.MolToSmiles(mol)
        except (RuntimeError, ValueError) as error:
            return Refused("RDKit error", str(error).strip().splitlines()[0])
        return Canonical(smiles, exact, num_fragments) if smiles else Refused("empty", "there are no atoms")

    def _parse(self, text: str, *, sanitize: bool = True) -> Any:
        if self.mol_blocks:
            return Chem.MolFromMolBlock(text, sanitize=sanitize)
        return Chem.MolFromSmiles(text, sanitize=sanitize)

    def _too_long(self, text: str) -> Refused | None:
        # Far beyond the limit not even an unchecked parse is worth its time and memory.
        if len(text) > _CHARACTERS_PER_ATOM * (self.max_atoms + 100):
            return Refused("too large", f"{len(text)} characters")
        mol = self._parse(text, sanitize=False)
        num_atoms = mol.GetNumHeavyAtoms() if mol is not None else 0
        if num_atoms <= self.max_atoms:
            return None
        return Refused("too large", f"{num_atoms} atoms, more than {self.max_atoms}")

    def _refusal(self, text: str) -> Refused:
        text = text if self.mol_blocks else text.strip()
        if not self.mol_blocks and ">" in text.split()[0]:
            return Refused("reaction", "a reaction SMILES (a>>b), not a molecule")
        with rdBase.BlockLogs():
            unchecked = self._parse(text, sanitize=False)
            problems = list(Chem.DetectChemistryProblems(unchecked)) if unchecked is not None else []
        if problems:
            kind = _KINDS.get(problems[0].GetType(), "impossible chemistry")
            return Refused(kind, "; ".join(" ".join(problem.Message().split()) for problem in problems))
        return Refused("unreadable structure", self._first_words(text))

    def _first_words(self, text: str) -> str:
        """What RDKit logs when it refuses a text, in short."""
        log = io.StringIO()
        rdBase.LogToPythonStderr()
        try:
            with contextlib.redirect_stderr(log):
                self._parse(text)
        finally:
            rdBase.LogToCppStreams()
        lines = [_LOG_PREFIX.sub("", line) for line in log.getvalue().splitlines() if line.strip()]
        if not lines:
            return "RDKit gives no reason"
        words = re.split(r" (?:for input|while parsing):", lines[0])[0]
        position = re.search(r"position (\d+)", log.getvalue())
        return f"{words} at character {position[1]}" if position else words


def largest(mol: Any) -> Any:
    """The fragment of most heavy atoms, then of most mass.

    Args:
        mol: RDKit's.
    """
    return max(Chem.GetMolFrags(mol, asMols=True), key=_size)


def _size(mol: Any) -> tuple[int, float, str]:
    """Heavy atoms, then mass (g/mol), then name: a choice that does not depend on how the file was written."""
    return mol.GetNumHeavyAtoms(), rdMolDescriptors.CalcExactMolWt(mol), Chem.MolToSmiles(mol)


def canonicalise(
    blocks: Iterable[list[str]], canonicaliser: Canonicaliser, *, workers: int = 0
) -> Iterator[list[Canonical | Refused]]:
    """Canonicalise a stream of blocks, in order and in little memory.

    Args:
        blocks: Lists of texts, read as they are needed.
        canonicaliser: What to do with each.
        workers: Processes; 0 works in this one. The result is the same.
    """
    if workers == 0:
        yield from map(canonicaliser, blocks)
        return
    # spawn: a fork of a process that holds torch's threads can hang. The queue bounds what waits in memory.
    waiting: deque[Future[list[Canonical | Refused]]] = deque()
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for block in blocks:
            waiting.append(pool.submit(canonicaliser, block))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
