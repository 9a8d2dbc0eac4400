"""`CellDataModule`: files of cells to batches of genes with values or ranks, texts, surface proteins."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch.utils.data import Dataset

from polyfm.domains.singlecell.baselines import baselines
from polyfm.domains.singlecell.binning import BINS, bin_counts, bin_values
from polyfm.domains.singlecell.blocks import Array, cell_keys
from polyfm.domains.singlecell.donors import donor_split
from polyfm.domains.singlecell.genes import GeneVocabulary
from polyfm.domains.singlecell.ontology import Ontology
from polyfm.domains.singlecell.quality import QualityControl
from polyfm.domains.singlecell.read import CellTable, read_cells
from polyfm.domains.singlecell.sample import CLS, SPECIALS, CellBlock, Genes
from polyfm.domains.singlecell.tenx import is_tenx
from polyfm.domains.singlecell.transforms import (
    Medians,
    ProteinScores,
    most_variable,
    normalise,
    rank_genes,
    sample_genes,
    top_genes,
)
from polyfm.domains.singlecell.zarr_folder import is_zarr
from polyfm.shared.data.batch import Batch, ModalityBatch, TokenIds
from polyfm.shared.data.collate import group_ids, pack_ids, sample_key
from polyfm.shared.data.datamodule import DataModule
from polyfm.shared.data.progress import Progress
from polyfm.shared.data.sampler import Key, Passes, some_of
from polyfm.shared.data.splits import Splits, column_split, random_split
from polyfm.shared.data.streaming import BlockOrder, PooledReads
from polyfm.shared.errors import DataError, RecipeError, UsageError, require
from polyfm.shared.tokens.tokenizer import TextTokenizer

MODALITIES = ("genes", "text", "proteins")
LOOKED_AT = 20_000
"""Cells of the training part by which genes are chosen."""
AT_ONCE = 4096
"""Cells that are in memory while something is fitted to all of them."""


class CellDataModule(DataModule):
    """Cells from AnnData (.h5ad, .zarr) and 10x (.h5, folder); counts are read from the files as they are needed.

    Args:
        path: A file, a 10x folder, or a folder of such files, which are one corpus.
        label: Columns of ``obs`` to be predicted; none in pre-training.
        text: Columns of ``obs`` that describe a cell, several joined; guessed, and announced, if empty.
        group: Column of ``obs`` that a split must not cut (donor, batch); guessed, and announced, if empty.
        split: ``donor`` (whole groups; cells by themselves where no group is known), ``random``, or the name of a
            column that holds train, valid or test.
        fractions: Of training, validation and test, for donor and random.
        batches: Whether batches of training (the groups) are numbered, for objectives about them.
        modalities: What is made of each cell: genes, text, proteins. A cell may lack text and proteins.
        values: What stands beside a gene: ``binned`` (quantile bins of the cell's counts, scGPT), ``continuous``
            (log1p of counts per 10,000), or ``rank`` (nothing: the genes' order tells, Geneformer).
        bins: Of binned values, with that of zero.
        max_genes: Most genes of a cell.
        choose: Which genes of a cell that has more: ``sample`` draws anew in each pass, ``top`` takes the largest
            values. Ranks always keep the first.
        layer: Matrix with the values: X, raw, or a name in ``layers``; found out, and announced, if empty.
        protein: Entry of ``obsm`` with counts of surface proteins; guessed, and announced, if empty.
        coverage: Keep genes that this share of the files has.
        aliases: Table of two columns, other name and gene; none if empty.
        ontology: OBO files (cl.obo, uberon-basic.obo): what the columns of texts name by id, name or exact synonym is
            told with its definition.
        min_overlap: Smallest share of genes that files, or a file and the model, have in common.
        variable_genes: Keep so many genes, those that vary most over the training part (scanpy's
            ``highly_variable_genes``); 0 keeps all.
        min_genes: Leave out cells of fewer genes; 0 for none.
        min_cells: Leave out genes that are in fewer cells; 0 for none.
        max_mt: Leave out cells with a larger percentage of mitochondrial counts; 0 for none.
        text_vocabulary: Most tokens that the tokenizer of the texts learns.
        max_text_tokens: Longer texts are cut there.
        batch_size: Cells in a step, on each process.
        num_workers: Threads that read ahead; 0 reads when a batch is asked for.
        block: Neighbouring cells that are read together.
        pool: Blocks that are held and shuffled together.
    """

    INHERITED: ClassVar[tuple[str, ...]] = (
        *("values", "bins", "max_genes", "choose"),
        *("text_vocabulary", "max_text_tokens"),
    )
    READING: ClassVar[tuple[str, ...]] = ("layer", "text", "group", "protein", "aliases", "ontology", "min_overlap")
    FILES: ClassVar[tuple[str, ...]] = ("path", "aliases", "ontology")
    LABELS: ClassVar[str] = "data.label"
    THREADS: ClassVar[bool] = True
    SAVES: ClassVar[tuple[str, ...]] = (".h5ad",)

    table: CellTable

    def __init__(
        self,
        path: str,
        label: list[str] = [],  # noqa: B006 - read only
        text: list[str] = [],  # noqa: B006 - read only
        group: str = "",
        split: str = "donor",
        fractions: tuple[float, float, float] = (0.8, 0.1, 0.1),
        batches: bool = False,
        modalities: list[str] = ["genes"],  # noqa: B006 - read only
        values: Literal["binned", "continuous", "rank"] = "binned",
        bins: int = BINS,
        max_genes: int = 1200,
        choose: Literal["sample", "top"] = "sample",
        layer: str = "",
        protein: str = "",
        coverage: float = 0.0,
        aliases: str = "",
        ontology: list[str] = [],  # noqa: B006 - read only
        min_overlap: float = 0.5,
        variable_genes: int = 0,
        min_genes: int = 0,
        min_cells: int = 0,
        max_mt: float = 0.0,
        text_vocabulary: int = 4000,
        max_text_tokens: int = 128,
        batch_size: int = 64,
        num_workers: int = 0,
        block: int = 64,
        pool: int = 64,
    ) -> None:
        super().__init__(path, batch_size, num_workers=num_workers)
        for name, value in {"max_genes": max_genes, "block": block, "pool": pool}.items():
            require(value >= 1, f"data.{name}", "at least 1", value)
        require(3 <= bins <= 256, "data.bins", "from 3 to 256", bins)
        require(max_text_tokens >= 3, "data.max_text_tokens", "at least 3, two of them begin and end", max_text_tokens)
        require(variable_genes >= 0, "data.variable_genes", "at least 1, or 0 for all", variable_genes)
        require(0 <= coverage <= 1, "data.coverage", "a share from 0 to 1", coverage)
        require(0 <= min_overlap <= 1, "data.min_overlap", "a share from 0 to 1", min_overlap)
        unknown = sorted(set(modalities) - set(MODALITIES))
        if unknown:
            raise RecipeError(
                f"cells have no modality {unknown[0]!r}",
                where="data.modalities",
                remedy=f"Choose from: {', '.join(MODALITIES)}",
            )
        self.label, self.text, self.group, self.split, self.fractions = list(label), list(text), group, split, fractions
        self.modalities, self.values, self.bins, self.max_genes = list(modalities), values, bins, max_genes
        self.choose, self.layer, self.protein, self.coverage = choose, layer, protein, coverage
        self.aliases, self.min_overlap, self.variable_genes = aliases, min_overlap, variable_genes
        self.ontology = list(ontology)
        self.quality = QualityControl(min_genes, min_cells, max_mt)
        self.max_text_tokens, self.block, self.pool = max_text_tokens, block, pool
        self.batches = batches
        self.batch_names: dict[str, int] = {}
        self.vocabulary: GeneVocabulary | None = None
        self.medians = Medians(0)
        self.proteins = ProteinScores()
        self.text_tokenizer = TextTokenizer(text_vocabulary)

    # Reading --------------------------------------------------------------------------------------------------------

    def files(self, path: str | Path) -> list[Path]:
        """The files of a corpus: those of a folder that is none itself.

        Args:
            path: What a user named.
        """
        return corpus(Path(path))[0]

    def read(self) -> Splits:
        """See `DataModule.read`. A run that starts from another one reads the genes that this knows."""
        known = self.vocabulary
        if known is None and "vocabulary" in self._taken_over:
            known = GeneVocabulary.from_state(self._taken_over["vocabulary"])
        by_column = self.split not in ("donor", "random")
        self.table = table = read_cells(
            self.files(self.path),
            label=self.label,
            text=self.text,
            group=self.group or None,
            split=self.split if by_column else None,
            protein=self.protein or None,
            layer=self.layer or None,
            genes=known,
            coverage=self.coverage,
            aliases=self.aliases or None,
            ontology=self._ontology(self.ontology),
            min_overlap=self.min_overlap,
            quality=self.quality,
            limit=self.limit,
            with_proteins="proteins" in self.modalities,
        )
        self.quarantine, self.notices, self.source = table.quarantine, table.notices, self.path
        self.remarks = self._announced(table, training=True)
        if "text" in self.modalities and table.text is None:
            raise DataError("no column of descriptions was found", remedy="Name one or several: --data.text COLUMN")
        if "proteins" in self.modalities and table.proteins is None:
            raise DataError("no surface proteins were found", remedy="Name their entry of obsm: --data.protein KEY")
        known_proteins = self.proteins.names or self._taken_over.get("proteins", {}).get("names")
        if "proteins" in self.modalities and known_proteins:
            self.table = table = table.choose_proteins(list(known_proteins))
        alike = self.split == "donor" and "group" in table.guesses and len(set(table.groups)) == 1
        if alike:
            self.remarks.append(f"{table.guesses['group']!r} says the same of all cells, so they are drawn one by one")
        if by_column:
            names = column_split(table.split or [])
        elif self.split == "random" or alike or table.groups == table.ids or self.limit:
            # Of a part of the data also: the first cells may be of one donor.
            names = random_split(table.ids, self.fractions, seed=self.split_seed)
        else:
            names, how = donor_split(table.groups, table.ids, self.fractions, seed=self.split_seed)
            self.remarks.append(how)
        return Splits(table.ids, table.groups, names)

    def _ontology(self, paths: str | Sequence[str]) -> Ontology | None:
        files = [paths] if isinstance(paths, str) else paths
        return Ontology.read(files) if files and "text" in self.modalities else None

    def _announced(self, table: CellTable, *, training: bool = False) -> list[str]:
        """What was guessed and found, of what this run makes use of."""
        used = {"text": "text" in self.modalities, "protein": "proteins" in self.modalities, "group": training}
        used |= {"split": self.split not in ("donor", "random")}
        passed_over = corpus(Path(self.source))[1]
        told = [f"of the folder these are not read: {', '.join(passed_over)}"] if passed_over else []
        told += [f"{role} is read from {name!r}" for role, name in table.guesses.items() if used.get(role, True)]
        if len(table.matrices) == 1:  # the summary names the file
            name = f"{table.sources[0].path.name}: "
            return [*told, *(remark.removeprefix(name) for remark in table.remarks)]
        return [*told, *table.remarks]

    def fit_transforms(self, train: np.ndarray) -> None:
        """See `DataModule.fit_transforms`."""
        known = "vocabulary" in self._taken_over
        if not known and 0 < self.variable_genes < len(self.table.vocabulary):
            whole = len(self.table.vocabulary)
            looked_at = self.expression(some_of(train, LOOKED_AT, self.seed))
            self.table = self.table.narrow(most_variable(looked_at, self.variable_genes))
            self.remarks.append(f"{self.variable_genes:,} of {whole:,} genes are kept, the most variable")
        self.vocabulary = self.table.vocabulary
        if self.values == "rank":
            self.medians = Medians(len(self.vocabulary))
            with Progress("medians of genes") as bar:
                for start in range(0, len(train), AT_ONCE):
                    some = self.table.read(train[start : start + AT_ONCE])
                    counts = some.values if some.counts else np.expm1(some.values)
                    self.medians.add(some.indptr, some.genes, counts, some.totals)
                    bar.update(start + len(some), len(train))
            self.medians.fit()
        if self.batches:
            if self.table.groups == self.table.ids:
                raise DataError("no column of batches was found", remedy="Name it: --data.group COLUMN")
            names = sorted({self.table.groups[i] for i in train})
            if len(names) < 2:
                raise DataError(
                    f"all cells of the training part are of one batch, {names[0]!r}: there is nothing to integrate",
                    remedy="Name the column of batches: --data.group COLUMN",
                )
            self.batch_names = {name: number for number, name in enumerate(names)}
        if "text" in self.modalities:
            self.text_tokenizer.fit(text for i in train if (text := (self.table.text or [])[i]) is not None)
        taken_over = "proteins" in self._taken_over
        if "proteins" in self.modalities and self.table.proteins is not None and not taken_over:
            self.proteins.fit(self.table.proteins[train], self.table.protein_names)

    def take_over(self, state_dict: dict[str, Any]) -> None:
        """See `DataModule.take_over`. Batches are those of the new data: no other data have the run's."""
        super().take_over(state_dict)
        self._taken_over.pop("batches", None)

    def transforms_state(self) -> dict[str, Any]:
        """See `DataModule.transforms_state`."""
        state: dict[str, Any] = {"vocabulary": self.vocabulary.state_dict()} if self.vocabulary is not None else {}
        if self.values == "rank":
            state["medians"] = self.medians.state()
        if self.batches:
            state["batches"] = list(self.batch_names)
        if "text" in self.modalities:
            state["text_tokenizer"] = self.text_tokenizer.state()
        if "proteins" in self.modalities:
            state["proteins"] = self.proteins.state()
        return state

    def load_transforms(self, state: dict[str, Any]) -> None:
        """See `DataModule.load_transforms`."""
        self.vocabulary = GeneVocabulary.from_state(state["vocabulary"])
        self.batch_names = {name: number for number, name in enumerate(state.get("batches", []))}
        fitted: dict[str, tuple[bool, Any, str]] = {
            "medians": (self.values == "rank", self.medians, "medians of genes"),
            "text_tokenizer": ("text" in self.modalities, self.text_tokenizer, "tokenizer of texts"),
            "proteins": ("proteins" in self.modalities, self.proteins, "means of proteins"),
        }
        for name, (wanted, transform, what) in fitted.items():
            if name in state:
                transform.load(state[name])
            elif wanted:
                raise DataError(f"the run that this starts from has no {what}")

    def take_tokenizer(self, modality: str, tokenizer: TextTokenizer) -> None:
        """See `DataModule.take_tokenizer`."""
        if modality != "text":
            super().take_tokenizer(modality, tokenizer)
        self.text_tokenizer.load(tokenizer.state())

    def require_room(self, encoders: Mapping[str, Any]) -> None:
        """See `DataModule.require_room`; and ranks go with embedders that read no values."""
        super().require_room(encoders)
        if "genes" in encoders and hasattr(encoders["genes"].embedder, "genes") == (self.values == "rank"):
            kind = type(encoders["genes"].embedder).__name__
            raise RecipeError(
                f"{kind} does not read genes with data.values {self.values}",
                where="model.encoders.genes.embedder",
                remedy="GeneTokens reads binned and continuous values, TextTokens ranks; leave out --data.values",
            )

    def extents(self) -> dict[str, int]:
        """See `DataModule.extents`."""
        known = {"genes": len(self.vocabulary or ()) + SPECIALS, "proteins": len(self.proteins.names) + SPECIALS}
        if "text" in self.modalities:
            known["text"] = len(self.text_tokenizer)
        return {name: known[name] for name in self.modalities}

    # Batches --------------------------------------------------------------------------------------------------------

    def lengths(self) -> np.ndarray:
        """See `DataModule.lengths`; of dense matrices, whose zeros nobody has counted, the most there may be."""
        lengths = np.full(len(self.table), self.max_genes)
        for at, store in enumerate(self.table.sources):
            if (sizes := store.sizes()) is not None:
                mine = self.table.files == at
                lengths[mine] = np.minimum(sizes[self.table.rows[mine]], self.max_genes)
        return lengths + 1

    def ordered(self, indices: np.ndarray, *, shuffle: bool, rank: int, world: int) -> tuple[Dataset[Any], Passes]:
        """See `DataModule.ordered`: blocks of neighbours, pools of them shuffled."""
        order = BlockOrder(
            len(indices),
            batch_size=max(min(self.batch_size, len(indices) // world), 1),
            block=self.block,
            pool=self.pool,
            shuffle=shuffle,
            seed=self.seed,
            rank=rank,
            world=world,
        )
        read, take = partial(self._read_part, indices), partial(_taken, shuffle)
        return PooledReads(order, read, take, readers=self.num_workers), order

    def _read_part(self, indices: np.ndarray, places: np.ndarray) -> CellBlock:
        return self.table.read(indices[places])

    def make_samples(self, keys: list[Key]) -> CellBlock:  # type: ignore[override]  # a block of n cells is n samples
        """See `DataModule.make_samples`."""
        wanted = np.array([key.index for key in keys], np.int64)
        items, places = np.unique(wanted, return_inverse=True)
        return self.table.read(items).select(places)

    def samples_from(self, items: Any, **reading: Any) -> CellTable | CellBlock:  # type: ignore[override]
        """See `DataModule.samples_from`: a table whose counts are read batch by batch.

        Args:
            items: Path of a file, of a 10x folder, or of a folder of files; an AnnData; or cells.
            reading: By the names in `READING`.

        Raises:
            DataError: They are none, or too few of the model's genes are in them.
        """
        unknown = sorted(set(reading) - {*self.READING, "in_memory"})
        if unknown:
            known = ", ".join(self.READING)
            raise UsageError(f"{unknown[0]!r} says nothing of how cells are read", remedy=f"Choose from: {known}")
        if isinstance(items, CellTable | CellBlock):
            return items
        if type(items).__name__ == "AnnData":
            from polyfm.domains.singlecell.anndata_object import read_object

            return read_object(items, partial(self.samples_from, **reading), reading.get("protein", self.protein))
        if not isinstance(items, str | Path):
            raise DataError(
                f"{type(items).__name__} is no file of cells",
                remedy="Give the path of an .h5ad, .zarr or 10x file, or one AnnData",
            )
        given = {"aliases": self.aliases, "ontology": self.ontology, "min_overlap": self.min_overlap, **reading}
        require(0 <= given["min_overlap"] <= 1, "data.min_overlap", "a share from 0 to 1", given["min_overlap"])
        text = given.get("text", self.text if "text" in self.modalities else [])
        table = read_cells(
            self.files(items),
            text=text if isinstance(text, list) else [text],
            group=given.get("group") or None,
            protein=given.get("protein", self.protein) or None,
            layer=given.get("layer") or None,
            genes=self.vocabulary,
            aliases=given["aliases"] or None,
            ontology=self._ontology(given["ontology"]),
            min_overlap=given["min_overlap"],
            quality=self.quality,
            with_proteins="proteins" in self.modalities,
            in_memory=given.get("in_memory"),
        )
        if self.proteins.names and table.proteins is not None:
            table = table.choose_proteins(self.proteins.names)
        self.quarantine, self.notices = table.quarantine, table.notices
        self.source = str(items)
        self.remarks = self._announced(table)
        return table

    def ids_of(self, samples: Any) -> list[str]:
        """See `DataModule.ids_of`."""
        return list(samples.ids)

    def save_vectors(
        self, model: Any, source: Path, out: Path, samples: Any, modality: str, *, projected: bool = False
    ) -> np.ndarray:
        """See `DataModule.save_vectors`: the file itself with the vectors in it, ready for scanpy."""
        from polyfm.domains.singlecell.annotated import VECTORS, annotate, write_annotated

        if len(samples.matrices) > 1:
            raise UsageError(
                "several files have no AnnData of their own",
                where=source,
                remedy="Embed them one by one, or write .parquet",
            )
        found = annotate(model, samples, modality, projected=projected)
        write_annotated(self.files(source)[0], out, found)
        if lost := samples.quarantine.num_read - len(samples):
            self.remarks.append(
                f"cells that were left out ({lost:,}) have NaN, which scanpy does not take; leave them out there, too: "
                f"adata = adata[~np.isnan(adata.obsm[{VECTORS!r}]).any(1)].copy()"
            )
        vectors: np.ndarray = found.obsm[VECTORS][samples.rows]
        return vectors

    def collate(self, samples: CellBlock | Sequence[CellBlock]) -> Batch:
        """See `DataModule.collate`."""
        block = samples if isinstance(samples, CellBlock) else CellBlock.concat(list(samples))
        keys = np.array([sample_key(id) for id in block.ids], dtype=np.int64)
        modalities: dict[str, ModalityBatch] = {}
        if "genes" in self.modalities:
            modalities["genes"] = self._ranks(block) if self.values == "rank" else self._genes(block, keys)
        if "text" in self.modalities:
            modalities["text"] = pack_ids([None if text is None else self.encode_text(text) for text in block.texts])
        if "proteins" in self.modalities:
            modalities["proteins"] = self._proteins(block)
        targets = {name: torch.from_numpy(values).float() for name, values in block.targets.items()}
        if self.batches:
            targets["batch"] = torch.tensor([self.batch_names.get(group, math.nan) for group in block.groups])
        texts = block.texts if "text" in self.modalities else block.ids
        return Batch(
            ids=block.ids,
            keys=torch.from_numpy(keys),
            modalities=modalities,
            targets=targets,
            groups=group_ids([text or id for text, id in zip(texts, block.ids, strict=True)]),
        )

    def _ranks(self, block: CellBlock) -> TokenIds:
        """Genes in the order of their ranks, [CLS] first."""
        values = block.values if block.counts else np.expm1(block.values)
        indptr, genes = rank_genes(block.indptr, block.genes, values, self.medians.divisors, self.max_genes)
        indptr, ids = _with_cls(indptr, genes)
        return TokenIds(**_packed(indptr), ids=torch.from_numpy(ids))

    def _genes(self, block: CellBlock, keys: Array) -> Genes:
        """Genes with their values, [CLS] first, whose value is 0."""
        draws = cell_keys(self.seed, block.drawn, keys)
        if self.values == "binned":
            bin_them = bin_counts if block.counts else bin_values
            values: Array = bin_them(block.indptr, block.genes, block.values, draws, self.bins)
        else:
            values = normalise(block.indptr, block.values, block.totals) if block.counts else block.values
        if self.choose == "top":
            indptr, kept = top_genes(block.indptr, block.values, self.max_genes)
        else:
            indptr, kept = sample_genes(block.indptr, block.genes, draws, self.max_genes)
        with_cls, ids = _with_cls(indptr, block.genes[kept])
        beside = np.zeros(len(ids), np.float32)
        beside[ids != CLS] = values[kept]
        return Genes(**_packed(with_cls), ids=torch.from_numpy(ids), values=torch.from_numpy(beside))

    def _proteins(self, block: CellBlock) -> Genes:
        """Proteins that were measured with their scores, [CLS] first; cells without any are left out."""
        scores = np.full((len(block), len(self.proteins.names)), np.nan, np.float32)
        if block.proteins is not None:
            scores = self.proteins.apply(block.proteins)
        measured = ~np.isnan(scores)
        rows = np.flatnonzero(measured.any(1))
        _, columns = np.nonzero(measured)
        indptr, ids = _with_cls(np.concatenate([[0], np.cumsum(measured[rows].sum(1))]), columns)
        values = np.zeros(len(ids), np.float32)
        values[ids != CLS] = scores[measured]
        packed = {**_packed(indptr), "rows": torch.from_numpy(rows)}
        return Genes(**packed, ids=torch.from_numpy(ids), values=torch.from_numpy(values))

    def encode_text(self, text: str) -> np.ndarray:
        """Token ids of a description, cut at ``max_text_tokens``.

        Args:
            text: In natural language.
        """
        return self.text_tokenizer.encode([text], self.max_text_tokens)[0]

    # Labels, baselines, evaluation ----------------------------------------------------------------------------------

    def target_names(self) -> list[str]:
        """See `DataModule.target_names`."""
        return self.label

    def target_values(self, indices: np.ndarray) -> np.ndarray:
        """See `DataModule.target_values`."""
        values: np.ndarray = self.table.targets[indices]
        return values

    def class_names(self) -> list[str]:
        """See `DataModule.class_names`."""
        return self.table.classes

    def expression(self, cells: np.ndarray, table: CellTable | None = None) -> Any:
        """(n, G) sparse log1p of counts per 10,000, for simple methods. Read anew each time: all may be too many.

        Args:
            cells: (n,) indices.
            table: The same cells with other genes; this run's own by default.
        """
        from scipy.sparse import csr_array

        items, places = np.unique(cells, return_inverse=True)
        table = table or self.table
        block = table.read(items)
        values = normalise(block.indptr, block.values, block.totals) if block.counts else block.values
        found = csr_array((values, block.genes, block.indptr), shape=(len(block), len(table.vocabulary)))
        return found if len(items) == len(cells) and (np.diff(places) > 0).all() else found[places]

    def baselines(self, target: Any) -> dict[str, Callable[..., np.ndarray]]:
        """See `DataModule.baselines`."""
        train, test = self.part("train"), self.part("test")
        all_genes = partial(self.expression, table=self.table.widen())
        return baselines(self.expression, all_genes, self.table.targets, train, test, target, self.seed)

    def evaluate(self, task: Any) -> tuple[dict[str, float], list[Any]]:
        """See `DataModule.evaluate`."""
        from polyfm.domains.singlecell.evaluate import evaluate

        return evaluate(task, self)

    def source_files(self) -> list[Path]:
        """See `DataModule.source_files`."""
        found = [inner for file in self.files(self.path) for inner in (sorted(file.rglob("*")) or [file])]
        return [file for file in found if file.is_file()]


def corpus(path: Path) -> tuple[list[Path], list[str]]:
    """The files and folders of cells that a path means, and the names of what else is in the folder.

    A folder of 10x is none of a corpus beside its own .h5, which holds the same; nor are raw droplets beside those of
    them that Cell Ranger kept as cells.

    Args:
        path: A file of cells, a folder that is one itself, or a folder of files.
    """
    if not path.is_dir() or is_zarr(path):
        return [path], []
    inside = [child for child in sorted(path.iterdir()) if not child.name.startswith(".")]
    files = [child for child in inside if child.suffix in (".h5ad", ".zarr", ".h5")]
    if not files and is_tenx(path):
        return [path], []
    folders = [child for child in inside if child not in files and is_tenx(child)]
    files += [folder for folder in folders if folder.with_name(f"{folder.name}.h5") not in files]
    kept = {file.name for file in files}
    files = [file for file in files if file.name.replace("raw_", "filtered_", 1) not in kept - {file.name}]
    return sorted(files) or [path], [child.name for child in inside if child not in files] if files else []


def _taken(shuffle: bool, held: CellBlock, places: np.ndarray, keys: list[Key]) -> CellBlock:
    """A batch of a pool. Validation is the same in every pass."""
    return held.select(places).replace(drawn=keys[0].epoch + 1 if shuffle else 0)


def _with_cls(indptr: Array, genes: Array) -> tuple[Array, Array]:
    """Token ids of cells, [CLS] before each."""
    ids = np.full(len(genes) + len(indptr) - 1, CLS, np.int64)
    cells = np.arange(1, len(indptr))
    ids[np.arange(len(genes)) + np.repeat(cells, np.diff(indptr))] = genes + SPECIALS
    return indptr + np.arange(len(indptr)), ids


def _packed(indptr: Array) -> dict[str, Any]:
    """Rows and boundaries of n sequences that are all there."""
    return {
        "rows": torch.arange(len(indptr) - 1),
        "cu_seqlens": torch.from_numpy(indptr.astype(np.int32)),
        "longest": int(np.diff(indptr).max(initial=0)),
    }
