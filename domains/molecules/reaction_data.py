"""`ReactionDataModule`: a file of reactions to batches of what is known and what is told of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from polyfm.domains.molecules.canonical import Refused
from polyfm.domains.molecules.data import MoleculeDataModule
from polyfm.domains.molecules.reactions import (
    DIRECTIONS,
    ReactionTable,
    parse_reactions,
    random_order,
    read_reactions,
)
from polyfm.domains.molecules.sample import ReactionSample
from polyfm.domains.molecules.structure_files import columns_of
from polyfm.domains.molecules.transforms import RegexTokenizer, SmilesTokenizer
from polyfm.shared.data.batch import Batch
from polyfm.shared.data.collate import group_ids, pack_ids, sample_key
from polyfm.shared.data.sampler import Key
from polyfm.shared.data.splits import Splits, column_split, random_split
from polyfm.shared.errors import DataError, require


class ReactionDataModule(MoleculeDataModule):
    """Reactions as pairs of SMILES: ``smiles``, what is known, and ``target``, what is to be told of it.

    Args:
        path: A table with a column of reactions (``a>>b`` or ``a>c>b``), or a .smi file with one a line.
        reaction: Column of the reactions; guessed from a documented list, and announced, if empty.
        id: Column of the ids; guessed, else file and row, if empty.
        direction: ``forward``, from reactants and agents to the product, or ``retro``, from the product to reactants.
        split: ``random``, by a hash of the source, so that one source is never on two sides, or the name of a column
            that holds train, valid or test.
        fractions: Of training, validation and test, for random.
        randomise: Share of the sources of a training pass that are written in another order of atoms.
        tokenizer: SMILES to ids, of both sides.
        max_tokens: Longer SMILES are cut there, and counted.
        isomeric: Keep stereochemistry and isotopes.
        batch_size: Reactions in a step, on each process.
        token_budget: Most tokens in a step, padding counted; 0 for none.
        num_workers: Processes that make batches; 0 makes them in the training process.
    """

    INHERITED = ("tokenizer", "isomeric")  # reactions are longer than molecules
    READING = ("reaction", "id")

    reactions: ReactionTable

    def __init__(
        self,
        path: str,
        reaction: str = "",
        id: str = "",
        direction: Literal["forward", "retro"] = "forward",
        split: str = "random",
        fractions: tuple[float, float, float] = (0.8, 0.1, 0.1),
        randomise: float = 0.5,
        tokenizer: Callable[[], SmilesTokenizer] = RegexTokenizer,
        max_tokens: int = 256,
        isomeric: bool = True,
        batch_size: int = 64,
        token_budget: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__(
            path,
            id=id,
            split=split,
            fractions=fractions,
            tokenizer=tokenizer,
            max_tokens=max_tokens,
            isomeric=isomeric,
            batch_size=batch_size,
            token_budget=token_budget,
            num_workers=num_workers,
        )
        require(direction in DIRECTIONS, "data.direction", f"one of {', '.join(DIRECTIONS)}", direction)
        require(0 <= randomise <= 1, "data.randomise", "a share from 0 to 1", randomise)
        self.reaction, self.direction, self.randomise = reaction, direction, randomise

    def read(self) -> Splits:
        """See `DataModule.read`."""
        by_column = self.split != "random"
        self.reactions = table = read_reactions(
            self.path,
            self.direction,
            reaction=self.reaction,
            id=self.id,
            split=self.split if by_column else "",
            isomeric=self.isomeric,
            limit=self.limit,
            workers=self.num_workers,
        )
        self._announce(table, self.path)
        sources = [reaction.source for reaction in table.reactions]
        names = (
            column_split(table.split or [])
            if by_column
            else random_split(sources, self.fractions, seed=self.split_seed)
        )
        return Splits(table.ids, sources, names)

    def _announce(self, table: ReactionTable, path: str | Path) -> None:
        self.quarantine, self.notices, self.source = table.quarantine, table.notices, str(path)
        self.remarks = [f"{role} taken from column {name!r}" for role, name in table.guesses.items()]

    def fit_transforms(self, train: np.ndarray) -> None:
        """See `DataModule.fit_transforms`."""
        pairs = [self.reactions.reactions[i] for i in train]
        self.tokenizer.fit([side for pair in pairs for side in (pair.source, pair.target)])

    @cached_property
    def _lengths(self) -> np.ndarray:
        sides = zip(*[(pair.source, pair.target) for pair in self.reactions.reactions], strict=True)
        lengths = np.array([[len(ids) for ids in self.tokenizer.encode(side)] for side in sides]).max(0)
        self._announce_cut(int((lengths > self.max_tokens).sum()))
        shortened: np.ndarray = np.minimum(lengths, self.max_tokens)
        return shortened

    def make_samples(self, keys: list[Key]) -> list[Any]:
        """See `DataModule.make_samples`; of the training part some sources are written anew in each pass."""
        return [self._sample(i, epoch) for i, epoch in keys]

    def _sample(self, index: int, epoch: int) -> ReactionSample:
        table = self.reactions
        source = table.reactions[index].source
        rng = np.random.default_rng([self.seed, epoch, sample_key(table.ids[index]) % 2**63])
        if self.splits.names[index] == "train" and rng.random() < self.randomise:
            source = random_order(source, int(rng.integers(2**31)), isomeric=self.isomeric)
        return ReactionSample(
            id=table.ids[index],
            group=self.splits.groups[index],
            row=int(table.rows[index]),
            source=source,
            target=table.reactions[index].target,
        )

    def samples_from(self, items: Any, **reading: Any) -> list[Any]:
        """See `DataModule.samples_from`.

        Args:
            items: Path of a file as of `read_reactions`, reaction SMILES, SMILES of sources alone, or samples.
            reading: Of a file: ``reaction`` and ``id``, its columns.

        Raises:
            DataError: A string is no reaction and no molecule. What a file holds of such goes to ``quarantine``.
        """
        if isinstance(items, str | Path):
            # The run's columns where this file has them, too; otherwise guessed anew.
            columns = columns_of(items) if self.reaction or self.id else ()
            own = {name: getattr(self, name) for name in self.READING if getattr(self, name) in columns}
            table = read_reactions(
                items,
                self.direction,
                **{**own, **reading},
                isomeric=self.isomeric,
                whole=False,
                workers=self.num_workers,
            )
            self._announce(table, items)
            found: list[Any] = list(table.reactions)
            ids, rows = table.ids, table.rows.tolist()
        else:
            given: list[Any] = list(items)
            if given and isinstance(given[0], ReactionSample):
                return given
            found = list(parse_reactions(given, self.direction, isomeric=self.isomeric, whole=False))
            for i, result in enumerate(found):
                if isinstance(result, Refused):
                    raise DataError(f"{given[i]!r} is no reaction: {result.kind}, {result.detail}", where=f"item {i}")
            rows = list(range(1, len(found) + 1))
            ids = [str(row) for row in rows]
        return [
            ReactionSample(id=id, group=pair.source, row=row, source=pair.source, target=pair.target or None)
            for id, row, pair in zip(ids, rows, found, strict=True)
        ]

    def collate(self, samples: Sequence[Any]) -> Batch:
        """See `DataModule.collate`."""
        targets = [None if sample.target is None else self.encode(sample.target) for sample in samples]
        return Batch(
            ids=[sample.id for sample in samples],
            keys=torch.tensor([sample_key(sample.id) for sample in samples], dtype=torch.int64),
            modalities={
                "smiles": pack_ids([self.encode(sample.source) for sample in samples]),
                "target": pack_ids(targets),
            },
            targets={},
            groups=group_ids([sample.group for sample in samples]),
        )

    def target_values(self, indices: np.ndarray) -> np.ndarray:
        """See `DataModule.target_values`: there are no labels."""
        return np.zeros((len(indices), 0))

    def class_names(self) -> list[str]:
        """See `DataModule.class_names`: there are none."""
        return []

    def evaluate(self, task: Any) -> tuple[dict[str, float], list[Any]]:
        """See `DataModule.evaluate`: answers by beam search, beside copying and the nearest reaction."""
        from polyfm.domains.molecules.reaction_prediction import evaluate_reactions

        return evaluate_reactions(task, self)
