"""Files of cells to one table of everything but the counts, which are read when they are wanted.

Formats: AnnData (.h5ad, .zarr), Cell Ranger's folder (matrix.mtx, features.tsv or genes.tsv, barcodes.tsv; each may be
.gz) and its .h5 file. Several files become one corpus with one vocabulary of genes.

Columns of ``obs`` are options. Unless given, they are guessed by name, whatever the case, from these lists, and the
guess is announced in `CellTable.guesses`:

* group, what a split must not cut: donor_id, donor, patient_id, patient, individual, subject_id, subject, mouse_id,
  mouse.id, sample_id, sample, batch, library_id, library, channel, orig.ident; where no file has one, several files are
  a group each, and in a single file each cell is its own
* text: description, caption, text; split: split

Labels are never guessed. What X holds and where counts are is found out (`polyfm.domains.singlecell.layers`) and said
in `CellTable.remarks`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from polyfm.domains.singlecell.annotations import encode_labels, texts_of_columns, unique_names, words_of
from polyfm.domains.singlecell.cell_files import GENE, PROTEIN, CellFile, Features, Proteins, open_cells
from polyfm.domains.singlecell.expression import Expression, Scan, look
from polyfm.domains.singlecell.genes import GeneNames, GeneVocabulary, read_aliases
from polyfm.domains.singlecell.layers import Kind, find_counts
from polyfm.domains.singlecell.ontology import Ontology
from polyfm.domains.singlecell.quality import CellMetrics, QualityControl, is_mitochondrial
from polyfm.domains.singlecell.sample import CellBlock
from polyfm.domains.singlecell.store import CellStore
from polyfm.domains.singlecell.tenx import TenxFile, read_mtx
from polyfm.shared.data.manifest import Finding, Notices, Quarantine
from polyfm.shared.errors import DataError, UsageError, require

GROUP_COLUMNS = (
    "donor_id", "donor", "patient_id", "patient", "individual", "subject_id", "subject", "mouse_id", "mouse.id",
    "sample_id", "sample", "batch", "library_id", "library", "channel", "orig.ident",
)  # fmt: skip
TEXT_COLUMNS = ("description", "caption", "text")
SPLIT_COLUMNS = ("split",)
PROTEIN_KEYS = ("protein_expression", "proteins", "protein", "protein_counts", "antibody_capture", "adt", "cite")
LABELS = "labels"
"""Name of the targets of a block."""

SCANS = ("auto", "full", "sample")
_MOST_SCANNED = 500_000
"""Cells of a corpus that "auto" looks at one by one: some ten seconds of reading."""
_IN_MEMORY_BYTES = 256 << 20
"""Of all matrices of a corpus together, decompressed."""


@dataclass(frozen=True, eq=False)
class CellTable:
    """The n usable cells of some files, in their order; the counts stay in the files."""

    ids: list[str]
    """n names, all different."""
    groups: list[str]
    """n donors or batches: what a split never cuts."""
    files: NDArray[np.int32]
    """(n,) which of `matrices` a cell is in."""
    rows: NDArray[np.int64]
    """(n,) row in that file, from 0."""
    matrices: list[Expression]
    """One per file; `Expression.store` is its `CellStore`."""
    names: list[GeneNames]
    """One per file: what its genes are called."""
    vocabulary: GeneVocabulary
    """The genes that ids mean."""
    kind: Kind
    """What `CellBlock.values` are: counts or log-normalised."""
    target_names: tuple[str, ...]
    """Columns that were asked for as labels."""
    targets: NDArray[np.float64]
    """(n, tasks) in the unit of the file, or indices of classes; NaN where missing."""
    classes: list[str]
    """What the targets are indices of, where the only label column holds words; else empty."""
    text: list[str | None] | None
    """n descriptions, or None if there is no such column."""
    split: list[str] | None
    """n entries of the split column as they stand, or None if there is no such column."""
    proteins: NDArray[np.float32] | None
    """(n, P) counts of surface proteins, NaN where not measured; None if no file has any."""
    protein_names: list[str]
    """P names."""
    metrics: CellMetrics | None
    """Figures of quality control of the n cells; None if only a sample was looked at."""
    guesses: dict[str, str]
    """By role (group, text, split, protein): what was guessed."""
    quarantine: Quarantine
    """Cells that are left out."""
    notices: Notices
    """Cells worth a look: repeated id, no label."""
    remarks: list[str]
    """What is said of the files: where counts are, overlap of genes, quality."""

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, cells: slice) -> CellBlock:
        """Some cells with their counts: a table is a sequence of cells that are read when they are looked at."""
        return self.read(range(*cells.indices(len(self))))

    def choose_proteins(self, names: list[str]) -> CellTable:
        """The same cells with the proteins that a model knows; NaN where the files have none of that name.

        Args:
            names: P, in the model's order.
        """
        values = np.full((len(self), len(names)), np.nan, np.float32)
        if self.proteins is not None:
            place = {name: column for column, name in enumerate(self.protein_names)}
            for column, name in enumerate(names):
                if name in place:
                    values[:, column] = self.proteins[:, place[name]]
        return replace(self, proteins=values, protein_names=list(names))

    def narrow(self, keep: NDArray[np.int64]) -> CellTable:
        """The same cells with only some of the genes; the files are not read again.

        Args:
            keep: (k,) ids of the vocabulary, rising.
        """
        place = np.full(len(self.vocabulary) + 1, -1, np.int32)  # one more, for what is outside: its id is -1
        place[keep] = np.arange(len(keep))
        matrices = [copy.copy(matrix) for matrix in self.matrices]
        for matrix in matrices:
            matrix.number(place[matrix.ids[matrix.is_gene]])
        return replace(self, matrices=matrices, vocabulary=self.vocabulary.select(keep))

    def widen(self) -> CellTable:
        """The same cells with all genes that their files have, whatever a model knows; nothing is read again."""
        vocabulary = GeneVocabulary.build(self.names, aliases=self.vocabulary.aliases)
        matrices = [copy.copy(matrix) for matrix in self.matrices]
        _number(matrices, self.names, vocabulary, 0.0, [])
        return replace(self, matrices=matrices, vocabulary=vocabulary)

    @property
    def sources(self) -> list[CellStore]:
        """The stores of the files."""
        return [matrix.store for matrix in self.matrices]

    def read(self, items: ArrayLike) -> CellBlock:
        """Some cells with their counts.

        Args:
            items: (m,) indices into this table, rising; contiguous ones are read at once.

        Returns:
            m cells, in that order.
        """
        wanted = np.asarray(items, dtype=np.int64)
        files, rows = self.files[wanted], self.rows[wanted]
        if np.any((np.diff(files) < 0) | ((np.diff(files) == 0) & (np.diff(rows) <= 0))):
            raise UsageError("cells are read in the order of their files", remedy="Sort the indices")
        bounds = [0, *(np.flatnonzero(np.diff(files)) + 1).tolist(), len(wanted)]
        parts = [
            self.matrices[int(files[first])].read(rows[first:last]) for first, last in pairwise(bounds) if last > first
        ]
        lengths, genes, values, totals = (
            [part[0] if len(part) == 1 else np.concatenate(part) for part in zip(*parts, strict=True)]
            if parts
            else _nothing()
        )
        return CellBlock(
            ids=[self.ids[item] for item in wanted],
            groups=[self.groups[item] for item in wanted],
            rows=rows,
            indptr=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            genes=genes,
            values=values,
            totals=totals,
            texts=[None] * len(wanted) if self.text is None else [self.text[item] for item in wanted],
            proteins=None if self.proteins is None else self.proteins[wanted],
            counts=self.kind is Kind.COUNTS,
            targets={LABELS: self.targets[wanted]} if self.target_names else {},
        )


@dataclass(frozen=True)
class _Columns:
    """What is asked of every file, after guessing."""

    label: tuple[str, ...]
    text: tuple[str, ...]
    group: str | None
    split: str | None
    protein: str | None


def read_cells(
    paths: str | Path | Sequence[str | Path],
    *,
    label: str | Sequence[str] | None = None,
    text: str | Sequence[str] | None = None,
    group: str | None = None,
    split: str | None = None,
    protein: str | None = None,
    layer: str | None = None,
    genes: GeneVocabulary | None = None,
    coverage: float = 0.0,
    aliases: str | Path | None = None,
    ontology: Ontology | None = None,
    min_overlap: float = 0.5,
    quality: QualityControl | None = None,
    in_memory: bool | None = None,
    scan: str = "auto",
    max_broken: float = 0.5,
    limit: int = 0,
    with_proteins: bool = True,
) -> CellTable:
    """Read files of cells.

    Args:
        paths: A file or folder, or several; see the module for formats.
        label: Columns of ``obs`` with classes or numbers; several must be numbers.
        text: Columns of ``obs`` with words; several are joined, each behind its name. Guessed unless given.
        group: Column of ``obs`` that a split must not cut; guessed unless given.
        split: Column of ``obs`` that says train, valid or test; guessed unless given.
        protein: Entry of ``obsm`` with counts of surface proteins; guessed unless given. 10x's antibodies are found.
        layer: The matrix to read: X, raw, or a name in ``layers``; found out unless given.
        genes: The vocabulary of a model; built from the files unless given.
        coverage: Keep genes that this share of the files has: 0 keeps all, 1 those that all have.
        aliases: Table of two columns, other name and gene.
        ontology: Defines what the columns of texts name.
        min_overlap: Smallest share of genes that a file and the vocabulary, or the files before it, have in common.
        quality: Limits; none unless given.
        in_memory: Hold the matrices in memory; unless given, until they are 256 MiB together, decompressed.
        scan: "full" looks at every value before anything else, "sample" at some blocks, the rest when it is read;
            "auto" is full up to half a million cells.
        max_broken: Largest share of cells without counts to accept, 0 to 1.
        limit: Read only so many cells of each file; 0 reads all.
        with_proteins: Whether surface proteins are looked for.

    Raises:
        DataError: A file, its matrix, its genes or a column cannot be used, or too many cells are broken.
    """
    if scan not in SCANS:
        raise UsageError(f"scan is {scan!r}; expected one of {', '.join(SCANS)}")
    require(limit >= 0, "data.limit", "at least 1, or 0 for all", limit)
    for name, share in {"min_overlap": min_overlap, "coverage": coverage, "max_broken": max_broken}.items():
        require(0 <= share <= 1, f"data.{name}", "a share from 0 to 1", share)
    quality = quality or QualityControl()
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    if not given:
        raise UsageError("no file of cells is given")
    files = [open_cells(path) for path in given]
    if repeated := [file.path for index, file in enumerate(files) if file.path in [f.path for f in files[:index]]]:
        raise UsageError(f"{repeated[0]} is given twice")
    if empty := [file.path for file in files if not file.cell_names]:
        raise DataError("there are no cells", where=empty[0], remedy="Check that this is the right file")
    asked, guesses = _choose(files, label, text, group, split, protein)

    remarks: list[str] = []
    matrices, features = _open_matrices(files, layer, in_memory, remarks)
    if len({matrix.source.kind for matrix in matrices}) > 1:
        odd = next(at for at, matrix in enumerate(matrices) if matrix.source.kind != matrices[0].source.kind)
        raise DataError(
            f"this gives {matrices[odd].source.kind}, but {files[0].path.name} {matrices[0].source.kind}",
            where=files[odd].path,
            remedy="Use files that all hold counts, or read them apart",
        )
    known = read_aliases(aliases) if aliases is not None else {}
    names = [feature.genes for feature in features]
    vocabulary = genes or _common_vocabulary(names, coverage, known, min_overlap)
    if genes is not None and known:
        vocabulary = GeneVocabulary(
            genes.symbols, genes.ensembl, genes.species, known | genes.aliases, selected=genes.selected
        )
    _number(matrices, names, vocabulary, min_overlap, remarks)

    sizes = [min(len(file.cell_names), limit or len(file.cell_names)) for file in files]
    full = scan == "full" or bool(quality) or any(matrix.source.undo is not None for matrix in matrices)
    full = full or (scan == "auto" and sum(sizes) <= _MOST_SCANNED)
    antibodies = [np.flatnonzero([kind == PROTEIN for kind in feature.types]) for feature in features]
    scans: list[Scan] | None = None
    if full or any(len(columns) for columns in antibodies):
        scans = [
            matrix.scan(is_mitochondrial(feature.genes.symbols), quality, columns)
            for matrix, feature, columns in zip(matrices, features, antibodies, strict=True)
        ]
        if genes is None and quality.min_cells:
            vocabulary = _frequent(vocabulary, matrices, scans, quality.min_cells, remarks)
            _number(matrices, names, vocabulary, 0.0, [])
    else:
        remarks.append("values were looked at in some blocks only; the rest is checked when it is read")

    keep, broken, where = _judge(files, matrices, scans, sizes, quality, must_know=not vocabulary.selected)
    quarantine = Quarantine(tuple(broken), sum(sizes))
    quarantine.check(max_broken)
    of_file, rows = where[0][keep], where[1][keep]
    ids, notices = unique_names([file.cell_names[:size] for file, size in zip(files, sizes, strict=True)], files, keep)
    if notices and any(finding.kind == "repeated id" for finding in notices):
        remarks.append(f"{len(notices)} cells share their name with another of their file; #ROW is appended")

    def gathered(columns: Iterable[Sequence[Any]]) -> list[Any]:
        """One list of the cells that stay from one column per file."""
        whole = [cell for column, size in zip(columns, sizes, strict=True) for cell in list(column)[:size]]
        return [whole[at] for at in np.flatnonzero(keep)]

    if ontology is not None:
        for name in asked.text:
            remarks.append(ontology.told(name, gathered(words_of(file.column(name)) for file in files)))
    series = {name: [file.column(name)[:size] for file, size in zip(files, sizes, strict=True)] for name in asked.label}
    targets, classes = encode_labels(series, [file.path for file in files], keep)
    if asked.label:
        unlabelled = np.flatnonzero(np.isnan(targets).all(1))
        notices += [
            Finding(files[of_file[at]].path.name, int(rows[at]) + 1, ids[at], "no label", "no target has a value")
            for at in unlabelled
        ]
    proteins: NDArray[np.float32] | None = None
    protein_names: list[str] = []
    if with_proteins:
        proteins, protein_names = _proteins(files, asked.protein, scans, antibodies, features, sizes, keep)
    groups = _groups(files, asked.group, gathered, ids, of_file, guesses)
    metrics = None
    if scans is not None:
        metrics = CellMetrics.concat(
            [scan.metrics.select(np.arange(size)) for scan, size in zip(scans, sizes, strict=True)]
        ).select(keep)
        remarks.append(metrics.summary())
    return CellTable(
        ids=ids,
        groups=groups,
        files=of_file,
        rows=rows,
        matrices=matrices,
        names=names,
        vocabulary=vocabulary,
        kind=matrices[0].source.kind,
        target_names=asked.label,
        targets=targets,
        classes=classes,
        text=gathered(texts_of_columns(file, asked.text, ontology) for file in files) if asked.text else None,
        split=gathered([word or "" for word in words_of(file.column(asked.split))] for file in files)
        if asked.split
        else None,
        proteins=proteins,
        protein_names=protein_names,
        metrics=metrics,
        guesses=guesses,
        quarantine=quarantine,
        notices=Notices(tuple(notices)),
        remarks=remarks,
    )


def _choose(
    files: Sequence[CellFile],
    label: str | Sequence[str] | None,
    text: str | Sequence[str] | None,
    group: str | None,
    split: str | None,
    protein: str | None,
) -> tuple[_Columns, dict[str, str]]:
    """The columns as given or guessed; a guess must be in all files."""
    guesses: dict[str, str] = {}

    def guess(
        role: str,
        given: str | None,
        candidates: Sequence[str],
        there: list[tuple[str, ...]],
        tells: Callable[[str], bool] = lambda name: True,
    ) -> str | None:
        if given is not None:
            return given
        common = [name for name in there[0] if all(name in others for others in there[1:])]
        plain = {name.strip().lower().replace(" ", "_").replace("-", "_"): name for name in reversed(common)}
        found = [plain[name] for name in candidates if name in plain]
        if not found:
            return None
        guesses[role] = next((name for name in found if tells(name)), found[0])
        return guesses[role]

    def parts_cells(name: str) -> bool:
        return len({word for file in files for word in words_of(file.column(name))}) > 1

    columns = [file.columns for file in files]
    texts = (text,) if isinstance(text, str) else tuple(text or ())
    if not texts and (found := guess("text", None, TEXT_COLUMNS, columns)):
        texts = (found,)
    labels = (label,) if isinstance(label, str) else tuple(label or ())
    for name in (*labels, *texts):
        for file in files:
            file.column(name)
    chosen = _Columns(
        labels,
        texts,
        guess("group", group, GROUP_COLUMNS, columns, parts_cells),
        guess("split", split, SPLIT_COLUMNS, columns),
        protein or next((key for file in files for key in file.protein_keys if key.lower() in PROTEIN_KEYS), None),
    )
    if protein is None and chosen.protein is not None:
        guesses["protein"] = chosen.protein
    return chosen, guesses


def _open_matrices(
    files: Sequence[CellFile], layer: str | None, in_memory: bool | None, remarks: list[str]
) -> tuple[list[Expression], list[Features]]:
    """Of each file the matrix with counts, and what its columns are."""
    matrices, features = [], []
    left = _IN_MEMORY_BYTES
    for file in files:
        if isinstance(file, TenxFile) and file.path.is_dir():
            stores = {file.where: CellStore.of(read_mtx(file.path), file.path, file.where)}
        else:
            stores = {where: CellStore(file.path, where) for where in file.matrices}
        readers = {where: partial(look, store) for where, store in stores.items()}
        source = find_counts(readers, file.path, asked=layer, logarithm=file.logarithm)
        store = stores[source.where]
        is_dense = store.sizes() is None
        if not store.is_held and (store.num_bytes <= left if in_memory is None else in_memory):
            store = CellStore(file.path, source.where, in_memory=True)
        elif store.is_held and store.num_bytes > left and not in_memory:
            remarks.append(
                f"{file.path.name}: {source.where} is not stored by cells: {store.num_bytes / 1e6:,.0f} MB are held in "
                "memory; adata.X = adata.X.tocsr() makes a file that is read as it is needed"
            )
        left -= store.num_bytes if store.is_held else 0
        if is_dense:
            remarks.append(f"{file.path.name}: {source.where} is dense, and holds {source.kind}: zeros are left out")
        described = file.described(source.where)
        remarks += [f"{file.path.name}: {remark}" for remark in (source.remark, *described.genes.remarks) if remark]
        others = {kind: described.types.count(kind) for kind in sorted(set(described.types)) if kind != GENE}
        remarks += [f"{file.path.name}: {count} features are {kind}, no genes" for kind, count in others.items()]
        matrices.append(Expression(store, source, described.is_gene))
        features.append(described)
    return matrices, features


def _common_vocabulary(
    names: Sequence[GeneNames], coverage: float, aliases: dict[str, str], min_overlap: float
) -> GeneVocabulary:
    """One vocabulary of files that have genes in common, each with those before it."""
    for count in range(1, len(names)):
        GeneVocabulary.build(names[:count], aliases=aliases).match(names[count], min_overlap=min_overlap)
    return GeneVocabulary.build(names, coverage=coverage, aliases=aliases)


def _number(
    matrices: Sequence[Expression],
    names: Sequence[GeneNames],
    vocabulary: GeneVocabulary,
    min_overlap: float,
    remarks: list[str],
) -> None:
    for matrix, name in zip(matrices, names, strict=True):
        match = vocabulary.match(name, min_overlap=min_overlap)
        matrix.number(match.ids)
        remarks += [f"{name.path.name}: {remark}" for remark in match.remarks]


def _frequent(
    vocabulary: GeneVocabulary, matrices: Sequence[Expression], scans: Sequence[Scan], least: int, remarks: list[str]
) -> GeneVocabulary:
    """The vocabulary without genes that are in few cells."""
    seen = np.zeros(len(vocabulary), np.int64)
    for matrix, scan in zip(matrices, scans, strict=True):
        known = matrix.ids >= 0
        np.add.at(seen, matrix.ids[known], scan.seen[known])
    keep = np.flatnonzero(seen >= least)
    remarks.append(
        f"{len(vocabulary) - len(keep):,} of {len(vocabulary):,} genes are in fewer than {least} cells: left out"
    )
    if not len(keep):
        raise DataError(f"no gene is in {least} cells", where=matrices[0].store.path, remedy="Lower data.min_cells")
    return vocabulary.select(keep)


def _judge(
    files: Sequence[CellFile],
    matrices: Sequence[Expression],
    scans: Sequence[Scan] | None,
    sizes: Sequence[int],
    quality: QualityControl,
    *,
    must_know: bool,
) -> tuple[NDArray[np.bool_], list[Finding], tuple[NDArray[np.int32], NDArray[np.int64]]]:
    """Which cells stay, why the others do not, and of all cells file and row."""
    of_file = np.repeat(np.arange(len(files), dtype=np.int32), sizes)
    rows = np.concatenate([np.arange(size, dtype=np.int64) for size in sizes])
    keep, broken = np.ones(len(rows), bool), []
    for at, scan in enumerate(scans or ()):
        size, metrics, first = sizes[at], scan.metrics, sum(sizes[:at])
        # Only cells that may be left out are looked at one by one.
        poor = (metrics.n_genes_by_counts < max(quality.min_genes, 1)) | ~scan.recovered
        if must_know:
            poor |= scan.known == 0
        if quality.max_mt:
            poor |= metrics.pct_counts_mt > quality.max_mt
        for row in np.flatnonzero(poor[:size]):
            genes = int(metrics.n_genes_by_counts[row])
            if not scan.recovered[row]:
                kind, detail = "counts not recoverable", "its values are no multiples of one step"
            elif genes == 0:
                kind, detail = "empty cell", "no gene has a count"
            elif reason := quality.reason(genes, float(metrics.pct_counts_mt[row])):
                kind, detail = reason
            else:
                kind, detail = "no known gene", f"none of its {genes} genes is in the vocabulary"
            keep[first + row] = False
            broken.append(Finding(files[at].path.name, int(row) + 1, files[at].cell_names[row], kind, detail))
    return keep, broken, (of_file, rows)


def _proteins(
    files: Sequence[CellFile],
    key: str | None,
    scans: Sequence[Scan] | None,
    antibodies: Sequence[NDArray[np.int64]],
    features: Sequence[Features],
    sizes: Sequence[int],
    keep: NDArray[np.bool_],
) -> tuple[NDArray[np.float32] | None, list[str]]:
    """Proteins of all cells under the names that any file has; NaN where a file lacks them."""
    found: list[Proteins | None] = []
    for at, file in enumerate(files):
        if key is not None and (key in file.protein_keys or len(files) == 1):
            found.append(file.proteins(key))
        elif scans is not None and len(antibodies[at]):
            found.append(Proteins(scans[at].others, [features[at].names[column] for column in antibodies[at]]))
        else:
            found.append(None)
    columns = list(dict.fromkeys(name for proteins in found if proteins for name in proteins.names))
    if not columns:
        return None, []
    parts = []
    for proteins, size in zip(found, sizes, strict=True):
        part = np.full((size, len(columns)), np.nan, np.float32)
        if proteins is not None:
            part[:, [columns.index(name) for name in proteins.names]] = proteins.values[:size]
        parts.append(part)
    return np.concatenate(parts)[keep], columns


def _groups(
    files: Sequence[CellFile],
    column: str | None,
    gathered: Any,
    ids: list[str],
    of_file: NDArray[np.int32],
    guesses: dict[str, str],
) -> list[str]:
    if column is not None:
        known: list[str] = gathered([word or "" for word in words_of(file.column(column))] for file in files)
        return [group or name for group, name in zip(known, ids, strict=True)]
    if len(files) > 1:
        guesses["group"] = "the file"
        return [files[at].path.name for at in of_file]
    return ids


def _nothing() -> tuple[NDArray[Any], ...]:
    return np.empty(0, np.int64), np.empty(0, np.int32), np.empty(0, np.float32), np.empty(0, np.float32)
