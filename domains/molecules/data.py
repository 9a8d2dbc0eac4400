"""`MoleculeDataModule`: a file of molecules to batches of SMILES, descriptors, graphs, conformers, texts, knowledge."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from polyfm.domains.molecules.atom_graph import FIELD_SETS, atom_graphs
from polyfm.domains.molecules.baselines import baselines
from polyfm.domains.molecules.canonical import Canonicaliser, Refused
from polyfm.domains.molecules.conformers import (
    LARGEST,
    Conformer,
    file_conformers,
    made_conformers,
    pack_conformers,
    without_hydrogens,
)
from polyfm.domains.molecules.descriptors import DESCRIPTORS, descriptor_table
from polyfm.domains.molecules.knowledge import KnowledgeGraph
from polyfm.domains.molecules.read import MoleculeTable, read_molecules
from polyfm.domains.molecules.sample import MoleculeSample
from polyfm.domains.molecules.scaffold import scaffolds
from polyfm.domains.molecules.structure_files import columns_of
from polyfm.domains.molecules.transforms import GivenTokenizer, RegexTokenizer, SmilesTokenizer, Standardiser
from polyfm.domains.molecules.vectors import MoleculeVectors, VectorTable, dense_rows
from polyfm.shared.data.batch import Batch, ModalityBatch
from polyfm.shared.data.collate import group_ids, pack_ids, pack_triples, sample_key, stack_values
from polyfm.shared.data.datamodule import DataModule
from polyfm.shared.data.manifest import Finding, Notices
from polyfm.shared.data.progress import Progress
from polyfm.shared.data.sampler import Key
from polyfm.shared.data.splits import Splits, column_split, group_split, random_split
from polyfm.shared.errors import DataError, RecipeError, require
from polyfm.shared.tokens.tokenizer import TextTokenizer

MODALITIES = (
    *("smiles", "properties", "descriptors", "fingerprint", "features", "graph", "conformer"),
    *("text", "words", "knowledge"),
)


class MoleculeDataModule(DataModule):
    """Molecules from CSV, TSV, Parquet, SMI or SDF.

    Args:
        path: What to read.
        smiles: Column of the SMILES; guessed from a documented list, and announced, if empty.
        targets: Columns of the labels; none in pre-training.
        id: Column of the ids; guessed, else file and row, if empty.
        split: ``scaffold`` (Bemis-Murcko without chirality, groups by size, ties by sha256), ``random``, or the name of
            a column that holds train, valid or test.
        fractions: Of training, validation and test, for scaffold and random.
        modalities: What is made of each molecule: smiles, properties (SPMM's 53), descriptors (all of RDKit's 2-D
            ones), fingerprint (ECFP4), features (both), graph, conformer, text, words (of the text), knowledge. A
            molecule may lack any.
        tokenizer: SMILES to ids.
        max_tokens: Longer SMILES are cut there, and counted.
        fields: Which features an atom graph has: ``gin`` or ``full``.
        largest_fragment: Keep only the largest fragment of salts and mixtures.
        isomeric: Keep stereochemistry and isotopes in SMILES and graphs.
        hydrogens: Whether conformers have them.
        text: Column of the descriptions; guessed, and announced, if empty.
        text_vocabulary: Most tokens that the tokenizer of the texts learns, and most words that are told apart;
            pre-trained weights bring their own tokens.
        max_text_tokens: Longer texts are cut there, and counted.
        entities: Most entities of the knowledge graph, as of the embedder.
        batch_size: Samples in a step, on each process.
        token_budget: Most tokens in a step, padding counted; 0 for none.
        num_workers: Processes that make batches (and parse the file); 0 works in the training process.
    """

    INHERITED: ClassVar[tuple[str, ...]] = (
        *("tokenizer", "max_tokens", "fields", "isomeric", "largest_fragment", "hydrogens"),
        *("text_vocabulary", "max_text_tokens", "entities"),
    )
    READING: ClassVar[tuple[str, ...]] = ("smiles", "id", "text")

    table: MoleculeTable

    def __init__(
        self,
        path: str,
        smiles: str = "",
        targets: list[str] = [],  # noqa: B006 - read only
        id: str = "",
        split: str = "scaffold",
        fractions: tuple[float, float, float] = (0.8, 0.1, 0.1),
        modalities: list[str] = ["smiles"],  # noqa: B006 - read only
        tokenizer: Callable[[], SmilesTokenizer] = RegexTokenizer,
        max_tokens: int = 256,
        fields: str = "full",
        largest_fragment: bool = False,
        isomeric: bool = False,
        hydrogens: bool = True,
        text: str = "",
        text_vocabulary: int = 4000,
        max_text_tokens: int = 128,
        entities: int = 8000,
        batch_size: int = 64,
        token_budget: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__(path, batch_size, token_budget, num_workers)
        self.smiles, self.targets, self.id, self.split, self.fractions = smiles, list(targets), id, split, fractions
        unknown = sorted(set(modalities) - set(MODALITIES))
        if unknown:
            raise RecipeError(
                f"molecules have no modality {unknown[0]!r}",
                where="data.modalities",
                remedy=f"Choose from: {', '.join(MODALITIES)}",
            )
        if len(set(self.targets)) < len(self.targets):
            raise RecipeError(f"a label column is named twice: {', '.join(self.targets)}", where="data.targets")
        require(fields in FIELD_SETS, "data.fields", f"one of {', '.join(FIELD_SETS)}", fields)
        require(max_tokens >= 3, "data.max_tokens", "at least 3, of which two stand for begin and end", max_tokens)
        require(max_text_tokens >= 3, "data.max_text_tokens", "at least 3, as of max_tokens", max_text_tokens)
        require(entities >= 1, "data.entities", "at least 1", entities)
        self.modalities, self.fields = list(modalities), fields
        self.tokenizer: SmilesTokenizer = tokenizer()
        self.max_tokens = max_tokens
        self.largest_fragment, self.isomeric, self.hydrogens = largest_fragment, isomeric, hydrogens
        self.standardiser = Standardiser()
        self.vectors = MoleculeVectors(modalities, text_vocabulary)
        self.text, self.max_text_tokens = text, max_text_tokens
        self.text_tokenizer = TextTokenizer(text_vocabulary)
        self.knowledge = KnowledgeGraph(entities)

    def setup(self, stage: str | None = None) -> None:
        """See `DataModule.setup`. Neighbours are looked up here, once, not by each process that makes batches."""
        if self._ready:
            return
        super().setup(stage)
        if "knowledge" in self.modalities:
            names, molecules = len(self.knowledge.names), len(self.knowledge.molecules)
            self.remarks.append(f"the knowledge graph links {molecules:,} molecules of training with {names:,} names")
            _ = self.neighbours

    # Reading --------------------------------------------------------------------------------------------------------

    def read(self) -> Splits:
        """See `DataModule.read`."""
        by_column = self.split not in ("scaffold", "random")
        self.table = table = read_molecules(
            self.path,
            smiles=self.smiles or None,
            targets=self.targets,
            id=self.id or None,
            split=self.split if by_column else None,
            text=self.text or None,
            largest_fragment=self.largest_fragment,
            isomeric=self.isomeric,
            limit=self.limit,
            workers=self.num_workers,
        )
        self.quarantine, self.notices = table.quarantine, table.notices
        self.source = self.path
        self.remarks = _announced(table, self._roles)
        if table.text is None and self._reads_text:
            raise DataError(
                "no column of descriptions was found", remedy="Name it: --data.text COLUMN, or use data that have one"
            )
        if self._reads_text and not any(text and re.search(r"[^\W\d_]{2}", text) for text in table.text or []):
            raise DataError(
                f"the column of descriptions ({self.text or table.guesses['text']}) holds no words",
                remedy="Name the right one: --data.text COLUMN",
            )
        self.conformers = self._conformers(table.smiles, self.path, table.rows.tolist())
        groups = scaffolds(table.smiles)
        if by_column:
            names = column_split(table.split or [])
        elif self.split == "random":
            names = random_split(table.smiles, self.fractions, seed=self.split_seed)
        else:
            names = group_split(groups, self.fractions)
        return Splits(table.ids, groups, names)

    def fit_transforms(self, train: np.ndarray) -> None:
        """See `DataModule.fit_transforms`."""
        self.tokenizer.fit([self.table.smiles[i] for i in train])
        if "properties" in self.modalities:
            self.standardiser.fit(self.descriptors[train])
        texts = [None if self.table.text is None else self.table.text[i] for i in train]
        self.vectors.fit([self.table.smiles[i] for i in train], texts, self.num_workers)
        if "text" in self.modalities:
            self.text_tokenizer.fit(text for text in texts if text is not None)
        if "knowledge" in self.modalities:
            self.knowledge.fit([self.table.smiles[i] for i in train], texts)

    @property
    def _reads_text(self) -> bool:
        return not {"text", "words", "knowledge"}.isdisjoint(self.modalities)

    @property
    def _roles(self) -> tuple[str, ...]:
        """Columns that this run makes use of."""
        return ("smiles", "id", "text") if self._reads_text else ("smiles", "id")

    @cached_property
    def neighbours(self) -> list[np.ndarray | None]:
        """Entities around each of the n molecules; see `KnowledgeGraph.neighbours`."""
        with Progress("neighbours") as bar:
            return self.knowledge.neighbours(self.table.smiles, progress=bar.update)

    @cached_property
    def descriptors(self) -> np.ndarray:
        """(n, 53) descriptors of every molecule, own units; from the disk cache where known."""
        with Progress("descriptors") as bar:
            return descriptor_table(self.table.smiles, workers=self.num_workers, progress=bar.update)

    @cached_property
    def _vector_table(self) -> VectorTable:
        """Rows of numbers of every molecule."""
        return self.vectors.make(self.table.smiles, self.table.text, self.num_workers)

    def _conformers(self, smiles: list[str], path: str | Path = "", rows: Sequence[int] = ()) -> list[Conformer | None]:
        """Of each molecule, if they are asked for; those of a file that have none are noticed."""
        if "conformer" not in self.modalities:
            return [None] * len(smiles)
        own = file_conformers(path, rows, largest_fragment=self.largest_fragment) if path else [None] * len(smiles)
        lacking = [text for text, one in zip(smiles, own, strict=True) if one is None]
        with Progress("conformers") as bar:
            made = iter(made_conformers(lacking, workers=self.num_workers, progress=bar.update))
        found = [next(made) if one is None else one for one in own]
        why = f"RDKit finds no places for its atoms, or they are more than {LARGEST}"
        self.notices += Notices(
            tuple(
                Finding(Path(path).name, int(row), text, "no conformer", why)
                for row, text, one in zip(rows, smiles, found, strict=False)
                if one is None
            )
        )
        return found if self.hydrogens else [None if one is None else without_hydrogens(one) for one in found]

    def transforms_state(self) -> dict[str, Any]:
        """See `DataModule.transforms_state`."""
        state: dict[str, Any] = {"tokenizer": self.tokenizer.state(), **self.vectors.state()}
        if "properties" in self.modalities:
            state["standardiser"] = self.standardiser.state()
        if "text" in self.modalities:
            state["text_tokenizer"] = self.text_tokenizer.state()
        if "knowledge" in self.modalities:
            state["knowledge"] = self.knowledge.state()
        return state

    def load_transforms(self, state: dict[str, Any]) -> None:
        """See `DataModule.load_transforms`."""
        if "given" in state["tokenizer"]:
            self.tokenizer = GivenTokenizer.of(state["tokenizer"])
        else:
            self.tokenizer.load(state["tokenizer"])
        fitted: dict[str, tuple[set[str], Any, str]] = {
            "standardiser": ({"properties"}, self.standardiser, "means and scales of the descriptors"),
            "normal_scores": ({"descriptors", "features"}, self.vectors.scores, "ranks of the 2-D descriptors"),
            "words": ({"words"}, self.vectors.words, "weights of words"),
            "text_tokenizer": ({"text"}, self.text_tokenizer, "tokenizer of texts"),
            "knowledge": ({"knowledge"}, self.knowledge, "knowledge graph"),
        }
        for name, (modalities, transform, what) in fitted.items():
            if name in state:
                transform.load(state[name])
            elif not modalities.isdisjoint(self.modalities):
                raise DataError(f"the run that this starts from has no {what}")

    def take_tokenizer(self, modality: str, tokenizer: TextTokenizer) -> None:
        """See `DataModule.take_tokenizer`."""
        if modality == "smiles":
            self.tokenizer = GivenTokenizer(tokenizer)
        elif modality == "text":
            self.text_tokenizer.load(tokenizer.state())
        else:
            super().take_tokenizer(modality, tokenizer)

    # Batches --------------------------------------------------------------------------------------------------------

    def extents(self) -> dict[str, int]:
        """See `DataModule.extents`."""
        known = {"smiles": len(self.tokenizer), **self.vectors.columns}
        if "text" in self.modalities:
            known["text"] = len(self.text_tokenizer)
        if "knowledge" in self.modalities:
            known["knowledge"] = len(self.knowledge)
        return known

    @cached_property
    def _lengths(self) -> np.ndarray:
        lengths = np.array([len(ids) for ids in self.tokenizer.encode(self.table.smiles)])
        self._announce_cut(int((lengths > self.max_tokens).sum()))
        shortened: np.ndarray = np.minimum(lengths, self.max_tokens)
        if "conformer" in self.modalities:  # a batch is as long as its longest sequence of either
            atoms = np.array([0 if one is None else len(one.numbers) for one in self.conformers])
            shortened = np.maximum(shortened, atoms)
        if "text" in self.modalities:
            whole = np.array([len(ids) for ids in self.text_tokenizer.encode([t or "" for t in self.table.text or []])])
            if cut := int((whole > self.max_text_tokens).sum()):
                limit = f"{self.max_text_tokens} tokens and are cut there (data.max_text_tokens)"
                self.remarks.append(f"{cut} texts have more than {limit}")
            shortened = np.maximum(shortened, np.minimum(whole, self.max_text_tokens))
        return shortened

    def _announce_cut(self, count: int) -> None:
        if count and "smiles" in self.modalities:
            self.remarks.append(
                f"{count} SMILES have more than {self.max_tokens} tokens and are cut there (data.max_tokens)"
            )

    def lengths(self) -> np.ndarray:
        """See `DataModule.lengths`."""
        return self._lengths

    def make_samples(self, keys: list[Key]) -> list[MoleculeSample]:
        """See `DataModule.make_samples`."""
        table = self.table
        properties = self.descriptors if "properties" in self.modalities else None
        told = "knowledge" in self.modalities
        return [
            MoleculeSample(
                id=table.ids[i],
                group=self.splits.groups[i],
                row=int(table.rows[i]),
                smiles=table.smiles[i],
                properties=None if properties is None else properties[i],
                vectors=self._vector_table.row(i),
                conformer=self.conformers[i],
                text=None if table.text is None else table.text[i],
                neighbours=self.neighbours[i] if told else None,
                facts=self.knowledge.facts(table.smiles[i]) if told else None,
                targets={"labels": table.targets[i]} if self.targets else {},
            )
            for i, _ in keys
        ]

    def samples_from(self, items: Any, **reading: Any) -> list[MoleculeSample]:
        """See `DataModule.samples_from`.

        Args:
            items: Path of a file in any format that `read_molecules` reads, SMILES strings, or samples.
            reading: Of a file; see `read_new`.

        Raises:
            DataError: A string is no molecule. What a file holds of such goes to ``quarantine`` instead.
        """
        if isinstance(items, str | Path):
            table = self.read_new(items, **reading)
            smiles, ids, rows, texts = table.smiles, table.ids, table.rows.tolist(), table.text
            conformers = self._conformers(smiles, items, rows)
            if "smiles" in self.modalities:  # a token is at least one character: few need to be looked at
                long = self.tokenizer.encode([text for text in smiles if len(text) + 2 > self.max_tokens])
                self._announce_cut(sum(len(tokens) > self.max_tokens for tokens in long))
        else:
            if hasattr(items, "columns"):
                raise DataError("this is a whole table", remedy="Give its column of SMILES, such as table['smiles']")
            if not isinstance(items, Iterable):
                raise DataError(f"{items!r} is no list of SMILES", remedy="Give a path, or SMILES strings in a list")
            items = list(items)  # a column of a table and an array are as good as a list
            if items and isinstance(items[0], MoleculeSample):
                samples: list[MoleculeSample] = items
                return samples
            wrong = next((i for i, item in enumerate(items) if not isinstance(item, str)), None)
            if wrong is not None:
                raise DataError(f"{items[wrong]!r} is no SMILES string", where=f"item {wrong}")
            results = Canonicaliser(self.isomeric, self.largest_fragment)(list(items))
            smiles, rows = [], list(range(1, len(results) + 1))
            for i, result in enumerate(results):
                if isinstance(result, Refused):
                    raise DataError(f"{items[i]!r} is no molecule: {result.kind}, {result.detail}", where=f"item {i}")
                smiles.append(result.smiles)
            ids, texts = [str(row) for row in rows], None
            conformers = self._conformers(smiles)
        properties: Sequence[Any] = [None] * len(smiles)
        if "properties" in self.modalities:
            with Progress("descriptors") as bar:
                properties = list(descriptor_table(smiles, progress=bar.update))
        vectors = self.vectors.make(smiles, texts)
        nothing = [None] * len(smiles)
        neighbours = self.knowledge.neighbours(smiles) if "knowledge" in self.modalities else nothing
        return [
            MoleculeSample(
                id=id,
                group="",
                row=row,
                smiles=text,
                properties=values,
                vectors=vectors.row(place),
                conformer=conformer,
                text=said,
                neighbours=near,
                targets={},
            )
            for place, (id, row, text, values, conformer, said, near) in enumerate(
                zip(ids, rows, smiles, properties, conformers, texts or nothing, neighbours, strict=True)
            )
        ]

    def read_new(self, path: str | Path, *, smiles: str = "", id: str = "", text: str = "") -> MoleculeTable:
        """New molecules as those of the run were read, every usable row; ``quarantine`` has the others.

        Args:
            path: A file in any format that `read_molecules` reads.
            smiles: Column of the SMILES; if empty the run's, where this file has it, too, else guessed anew.
            id: Column of the ids; the same.
            text: Column of the descriptions; the same. There need not be one.
        """
        columns = columns_of(path) if self.smiles or self.id or self.text else ()
        table = read_molecules(
            path,
            smiles=smiles or (self.smiles if self.smiles in columns else None),
            id=id or (self.id if self.id in columns else None),
            text=text or (self.text if self.text in columns else None),
            largest_fragment=self.largest_fragment,
            isomeric=self.isomeric,
            duplicates="keep",
            workers=self.num_workers,
        )
        self.source, self.remarks = str(path), _announced(table, self._roles)
        self.quarantine, self.notices = table.quarantine, table.notices
        return table

    def collate(self, samples: Sequence[MoleculeSample]) -> Batch:
        """See `DataModule.collate`."""
        smiles = [sample.smiles for sample in samples]
        modalities: dict[str, ModalityBatch] = {}
        if "smiles" in self.modalities:
            modalities["smiles"] = pack_ids([None if text is None else self.encode(text) for text in smiles])
        if "properties" in self.modalities:
            rows = [None if s.properties is None else self.standardiser.apply(s.properties) for s in samples]
            modalities["properties"] = stack_values(rows, len(DESCRIPTORS))
        numbers = dense_rows([sample.vectors for sample in samples])
        for name, columns in self.vectors.columns.items():
            modalities[name] = stack_values([rows.get(name) for rows in numbers], columns)
        if "graph" in self.modalities:
            rows_present = [row for row, text in enumerate(smiles) if text is not None]
            graphs = atom_graphs([text for text in smiles if text is not None], self.fields)
            modalities["graph"] = graphs.replace(rows=torch.tensor(rows_present, dtype=torch.int64))
        if "conformer" in self.modalities:
            modalities["conformer"] = pack_conformers([sample.conformer for sample in samples])
        if "text" in self.modalities:
            modalities["text"] = pack_ids([None if s.text is None else self.encode_text(s.text) for s in samples])
        if "knowledge" in self.modalities:
            modalities["knowledge"] = pack_ids([sample.neighbours for sample in samples])
            modalities["facts"] = pack_triples([sample.facts for sample in samples], len(self.knowledge))
        targets = {}
        if samples and "labels" in samples[0].targets:
            labels = np.stack([sample.targets["labels"] for sample in samples])
            targets["labels"] = torch.from_numpy(labels.astype(np.float32))
        return Batch(
            ids=[sample.id for sample in samples],
            keys=torch.tensor([sample_key(sample.id) for sample in samples], dtype=torch.int64),
            modalities=modalities,
            targets=targets,
            groups=group_ids([text or sample.id for text, sample in zip(smiles, samples, strict=True)]),
        )

    def encode(self, smiles: str) -> np.ndarray:
        """Token ids of a SMILES, cut at ``max_tokens``.

        Args:
            smiles: Canonical.
        """
        ids = self.tokenizer.encode([smiles])[0]
        return ids if len(ids) <= self.max_tokens else np.append(ids[: self.max_tokens - 1], self.tokenizer.end)

    def encode_text(self, text: str) -> np.ndarray:
        """Token ids of a description, cut at ``max_text_tokens``.

        Args:
            text: In natural language.
        """
        return self.text_tokenizer.encode([text], self.max_text_tokens)[0]

    # Labels, baselines, evaluation ----------------------------------------------------------------------------------

    def target_names(self) -> list[str]:
        """See `DataModule.target_names`."""
        return self.targets

    def target_values(self, indices: np.ndarray) -> np.ndarray:
        """See `DataModule.target_values`."""
        values: np.ndarray = self.table.targets[indices]
        return values

    def class_names(self) -> list[str]:
        """See `DataModule.class_names`."""
        return self.table.classes

    def baselines(self, target: Any) -> dict[str, Callable[..., np.ndarray]]:
        """See `DataModule.baselines`."""
        parts = self.part("train"), self.part("test")
        return baselines(self.table.smiles, self.table.targets, *parts, target, self.seed)

    def evaluate(self, task: Any) -> tuple[dict[str, float], list[Any]]:
        """See `DataModule.evaluate`: retrieval both ways, the map, generation where the recipe can."""
        from polyfm.domains.molecules.evaluate import evaluate

        return evaluate(task, self)


def _announced(table: MoleculeTable, roles: tuple[str, ...]) -> list[str]:
    """What was guessed for the roles that are used."""
    return [f"{role} taken from column {name!r}" for role, name in table.guesses.items() if role in roles]
