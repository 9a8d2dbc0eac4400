"""What genes are called: symbols and Ensembl ids, the species they tell, and one vocabulary for files that differ.

Nothing is downloaded. What a name also means comes from the files themselves, which often bring symbols beside Ensembl
ids, and from a table of two columns (alias, gene) that the user gives. Names are compared as they are, but for blanks
around them and the version of an Ensembl id (``ENSG00000141510.17``). Never whatever their case: ``Actb`` is mouse and
``ACTB`` human, and to take one for the other would be a translation between species that nobody asked for.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from polyfm.shared.data.tabular import open_table
from polyfm.shared.errors import DataError

SYMBOL_COLUMNS = (
    "gene_symbols", "gene_symbol", "symbol", "gene_name", "gene_names", "feature_name", "gene_short_name",
    "hgnc_symbol",
)  # fmt: skip
ENSEMBL_COLUMNS = (
    "gene_ids", "gene_id", "ensembl_id", "ensembl_ids", "ensembl", "ensembl_gene_id", "feature_id", "ensg",
)  # fmt: skip

_ENSEMBL = re.compile(r"(ENS[A-Z]{0,5}G\d{6,})(\.\d+)?")
_SPECIES = {"ENSG": "human", "ENSMUSG": "mouse", "ENSRNOG": "rat", "ENSDARG": "zebrafish"}
_HUMAN = re.compile(r"[A-Z0-9][A-Z0-9.\-@_/]*|C[0-9XY]+orf[0-9]+[A-Z0-9\-]*")
_MOUSE = re.compile(r"[A-Z][a-z0-9.\-]*[a-z][A-Za-z0-9.\-()]*|mt-[A-Z][A-Za-z0-9]+|[0-9]+[A-Z0-9]*Rik")
_PLACEHOLDER = re.compile(r"(gene|feature|var|g)[_\-. ]?\d+", re.IGNORECASE)
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")
_DATE = re.compile(r"\d{1,2}-(Mar|Sep|Dec|Oct)|(Mar|Sep|Dec|Oct)-\d{1,2}|\d{4}-\d\d-\d\d.*")
_SUFFIX = re.compile(r"(.+)-\d+")
_MOST = 0.7
"""The share of telling names that decides what all are."""
_SHOWN = 4


@dataclass(frozen=True)
class GeneNames:
    """The genes of one file, by symbol and by Ensembl id, "" where unknown."""

    path: Path
    """The file."""
    symbols: list[str]
    """G symbols."""
    ensembl: list[str]
    """G Ensembl ids, without version."""
    species: str
    """human, mouse, rat, zebrafish, or "" where the names do not tell."""
    remarks: tuple[str, ...] = ()
    """What is odd about the names."""

    def __len__(self) -> int:
        return len(self.symbols)

    def name(self, gene: int) -> str:
        """What to call a gene.

        Args:
            gene: Its column, from 0.
        """
        return self.symbols[gene] or self.ensembl[gene]

    @classmethod
    def of(cls, names: Sequence[str], columns: Mapping[str, Sequence[str]], path: Path) -> Self:
        """Tell symbols and Ensembl ids apart.

        Args:
            names: G ``var_names``.
            columns: What else the file says of its genes, by column.
            path: Of the file.

        Raises:
            DataError: There are no genes, or no column names them.
        """
        if not len(names):
            raise DataError("there are no genes", where=path, remedy="Check that this is the right file")
        remarks = []
        if blank := sum(name != name.strip() for name in names):
            remarks.append(f"{blank} gene names have blanks around them, which are left out")
        names = [name.strip() for name in names]
        plain = {name.strip().lower().replace(" ", "_"): name for name in reversed(list(columns))}
        beside = {
            kind: next((columns[plain[name]] for name in candidates if name in plain), None)
            for kind, candidates in (("symbols", SYMBOL_COLUMNS), ("ensembl", ENSEMBL_COLUMNS))
        }
        told = {kind: [str(cell).strip() for cell in found] for kind, found in beside.items() if found is not None}
        if "ensembl" in told and not _most(told["ensembl"], _ENSEMBL):
            del told["ensembl"]
        unnamed = _unnamed(names)
        if unnamed and not told:
            raise DataError(
                unnamed, where=path, remedy="Let var_names be gene symbols or Ensembl ids: adata.var_names = SYMBOLS"
            )
        if unnamed:
            remarks.append(f"{unnamed}; genes are named by another column of var")
            symbols, ensembl = told.get("symbols", [""] * len(names)), told.get("ensembl", [""] * len(names))
        elif _most(names, _ENSEMBL):
            symbols, ensembl = told.get("symbols", [""] * len(names)), names
        else:
            symbols, ensembl = names, told.get("ensembl", [""] * len(names))
        ensembl = [match[1] if (match := _ENSEMBL.fullmatch(cell)) else "" for cell in ensembl]
        # A symbol column repeats the Ensembl id where there is no symbol; "nan" is what AnnData makes of nothing.
        symbols = ["" if _ENSEMBL.fullmatch(cell) or cell in ("nan", "None") else cell for cell in symbols]
        # What is neither is the name as it stands: spike-ins, transgenes.
        symbols = [s or ("" if e else names[gene]) for gene, (s, e) in enumerate(zip(symbols, ensembl, strict=True))]
        remarks += _odd(symbols)
        return cls(path, symbols, ensembl, _species(symbols, ensembl), tuple(remarks))


@dataclass(frozen=True)
class GeneMatch:
    """Where the genes of a file stand in a vocabulary."""

    ids: NDArray[np.int32]
    """(G_file,) ids, -1 outside the vocabulary. Of genes with one id the counts are summed."""
    overlap: float
    """Genes found over those of the smaller side, 0 to 1."""
    remarks: tuple[str, ...]
    """What to tell the user: overlap, aliases, duplicates."""


@dataclass
class GeneVocabulary:
    """The genes of a model, numbered from 0."""

    symbols: list[str]
    """G names: the symbol, or the Ensembl id where there is none."""
    ensembl: list[str]
    """G Ensembl ids, "" where unknown."""
    species: str = ""
    """As of `GeneNames`."""
    aliases: dict[str, str] = field(default_factory=dict)
    """By another name: a name of the vocabulary, or one that the user's table gives."""
    selected: bool = False
    """Whether genes were left out on purpose: a cell may then have none of those that are left."""

    def __post_init__(self) -> None:
        self._by_symbol = {symbol: gene for gene, symbol in enumerate(self.symbols) if symbol}
        self._by_ensembl = {name: gene for gene, name in enumerate(self.ensembl) if name}
        # A vocabulary from before a table of aliases may hold the name that the table calls old.
        for alias, name in self.aliases.items():
            if name not in self._by_symbol and name not in self._by_ensembl and alias in self._by_symbol:
                self._by_symbol[name] = self._by_symbol[alias]

    def __len__(self) -> int:
        return len(self.symbols)

    @classmethod
    def build(
        cls, files: Sequence[GeneNames], *, coverage: float = 0.0, aliases: Mapping[str, str] | None = None
    ) -> Self:
        """The genes of several files, in the order in which they first occur.

        Args:
            files: At least one.
            coverage: Keep genes that at least this share of the files has: 0 keeps all, 1 those that all have.
            aliases: By another name: a gene.

        Raises:
            DataError: The files are of different species, or no gene is in enough of them.
        """
        built = cls([], [], "", dict(aliases or {}))
        current = set(built.aliases.values())
        seen: list[int] = []
        for names in files:
            built.same_species(names)
            built.species = built.species or names.species
            # A name that the table calls old is taken for the new one, unless it is the new one of another gene.
            symbols = [name if name in current else built.aliases.get(name, name) for name in names.symbols]
            here = {built._add(symbol, stable) for symbol, stable in zip(symbols, names.ensembl, strict=True)}
            seen += [0] * (len(built.symbols) - len(seen))
            for gene in here:
                seen[gene] += 1
        keep = [gene for gene, count in enumerate(seen) if count >= coverage * len(files)]
        if not keep:
            raise DataError(
                f"no gene is in {coverage:.0%} of the {len(files)} files",
                where=files[-1].path,
                remedy="Lower the coverage, or give a table of aliases if the files name genes differently",
            )
        symbols = [built.symbols[gene] or built.ensembl[gene] for gene in keep]
        return cls(symbols, [built.ensembl[gene] for gene in keep], built.species, built.aliases)

    def select(self, keep: Iterable[int]) -> Self:
        """Only some of the genes, numbered anew.

        Args:
            keep: Their ids, in order.
        """
        genes = [int(gene) for gene in keep]
        symbols, ensembl = [self.symbols[gene] for gene in genes], [self.ensembl[gene] for gene in genes]
        return type(self)(symbols, ensembl, self.species, dict(self.aliases), selected=True)

    def _add(self, symbol: str, stable: str) -> int:
        """The gene of that name, new if need be, with what is learnt of its other name."""
        gene = self.find(symbol, stable)
        if gene < 0:
            gene = len(self.symbols)
            self.symbols.append(symbol)
            self.ensembl.append(stable)
        if symbol and not self.symbols[gene]:
            self.symbols[gene] = symbol
        if stable and not self.ensembl[gene]:
            self.ensembl[gene] = stable
        for name, known, index in (
            (symbol, self.symbols[gene], self._by_symbol),
            (stable, self.ensembl[gene], self._by_ensembl),
        ):
            if name and name == known:
                index.setdefault(name, gene)
            elif name and name not in index:
                self.aliases.setdefault(name, known)
        return gene

    def find(self, symbol: str, stable: str = "") -> int:
        """The id of a gene, -1 if there is none.

        Args:
            symbol: Its symbol, or "".
            stable: Its Ensembl id, or "".
        """
        for name in (symbol, stable):
            gene = self._by_ensembl.get(name, self._by_symbol.get(name, -1)) if name else -1
            # The symbol of one gene may be the former symbol of another: the Ensembl id decides.
            if gene >= 0 and not (name == symbol and stable in self._by_ensembl):
                return gene
        for name in (symbol, stable):
            other = self.aliases.get(name, "") if name else ""
            if other:
                return self._by_symbol.get(other, self._by_ensembl.get(other, -1))
        return -1

    def same_species(self, names: GeneNames) -> None:
        """Refuse genes of another species.

        Args:
            names: Of a file.
        """
        if self.species and names.species and self.species != names.species:
            examples = ", ".join(list(dict.fromkeys(filter(None, names.symbols)))[:3] or names.ensembl[:3])
            raise DataError(
                f"the genes are named as in {names.species} ({examples}), those of the model or of the other files as "
                f"in {self.species}",
                where=names.path,
                remedy=f"Use files of {self.species}, or translate the genes to its orthologs first",
            )

    def match(self, names: GeneNames, *, min_overlap: float = 0.5) -> GeneMatch:
        """Where the genes of a file stand in the vocabulary.

        Args:
            names: Of a file.
            min_overlap: Smallest share of the genes of the smaller side to accept.

        Raises:
            DataError: The file is of another species, or too few of its genes are known.
        """
        self.same_species(names)
        ids = np.full(len(names), -1, dtype=np.int32)
        aliased = []
        present = set(names.symbols)
        for gene, (symbol, stable) in enumerate(zip(names.symbols, names.ensembl, strict=True)):
            found = self.find(symbol, stable)
            if found < 0 and (base := _SUFFIX.fullmatch(symbol)) and base[1] in present:
                found = self.find(base[1])  # var_names_make_unique calls the second TBCE "TBCE-1"
            ids[gene] = found
            if found >= 0 and symbol and symbol != self.symbols[found] and self._by_ensembl.get(stable) != found:
                aliased.append(f"{symbol} is {self.symbols[found]}")
        known = ids[ids >= 0]
        distinct = len(np.unique(known))
        smaller = min(len(names), len(self))
        overlap = distinct / smaller if smaller else 0.0
        said = (
            f"{overlap:.1%} of the genes overlap: {len(known):,} of the file's {len(names):,}, "
            f"{distinct:,} of the vocabulary's {len(self):,}"
        )
        if overlap < min_overlap:
            unknown = _few(names.name(int(gene)) for gene in np.flatnonzero(ids < 0))
            raise DataError(
                f"{said}; at least {min_overlap:.0%} is expected (the file has {unknown}; the vocabulary "
                f"{_few(self.symbols)})",
                where=names.path,
                remedy="Name genes as the vocabulary does, or give a table of two columns, alias and gene",
            )
        remarks = [said]
        if aliased:
            remarks.append(f"{len(aliased)} genes are known by another name: {_few(aliased)}")
        if repeated := [gene for gene, count in Counter(known.tolist()).items() if count > 1]:
            remarks.append(
                f"{len(repeated)} genes stand in several columns, which are summed: "
                + _few(self.symbols[gene] for gene in repeated)
            )
        return GeneMatch(ids, overlap, tuple(remarks))

    def state_dict(self) -> dict[str, Any]:
        """Primitives, for a checkpoint."""
        return {
            "symbols": list(self.symbols),
            "ensembl": list(self.ensembl),
            "species": self.species,
            "aliases": dict(self.aliases),
            "selected": self.selected,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """A vocabulary as it was.

        Args:
            state: What `state_dict` gave.
        """
        names = list(state["symbols"]), list(state["ensembl"])
        return cls(*names, state["species"], dict(state["aliases"]), selected=bool(state["selected"]))


def read_aliases(path: str | Path) -> dict[str, str]:
    """A table that says what genes are also called.

    Args:
        path: CSV, TSV or Parquet with a header; the first column is the alias, the second the gene.

    Returns:
        By alias: the gene.

    Raises:
        DataError: It has fewer than two columns, or one alias names two genes.
    """
    table = open_table(path)
    if len(table.columns) < 2:
        raise DataError("there is one column; expected two, alias and gene", where=path, remedy=table.misread or None)
    aliases: dict[str, str] = {}
    for row in table.rows():
        if row.problem:
            raise DataError(f"row {row.number} has {row.problem}", where=path, remedy="Correct the row")
        alias, gene = row.cells[0].strip(), row.cells[1].strip()
        if alias and gene and aliases.setdefault(alias, gene) != gene:
            raise DataError(
                f"row {row.number} says that {alias!r} is {gene!r}, an earlier row that it is {aliases[alias]!r}",
                where=path,
                remedy="Keep one of them: counts cannot be given to two genes",
            )
    return aliases


def _most(names: Sequence[str], pattern: re.Pattern[str]) -> bool:
    named = [name for name in names if name]
    return bool(named) and sum(bool(pattern.fullmatch(name)) for name in named) >= _MOST * len(named)


def _unnamed(names: Sequence[str]) -> str:
    """Why these are no names; empty if they are."""
    if not any(names):
        return "the genes have no names"
    if all(name == str(gene) for gene, name in enumerate(names)):
        return "the genes have no names: they are called 0, 1, 2, …"
    if _most(names, _NUMBER):
        return f"the genes are called by numbers ({_few(names)}), such as Entrez ids"
    return ""


def _odd(symbols: Sequence[str]) -> list[str]:
    remarks = []
    if _most(symbols, _PLACEHOLDER):
        remarks.append(f"genes are called {_few(symbols)}: a model that learns them fits no other file")
    if dates := [symbol for symbol in symbols if _DATE.fullmatch(symbol)]:
        remarks.append(f"{len(dates)} gene names were turned into dates by a spreadsheet: {_few(dates)}")
    return remarks


def _species(symbols: Sequence[str], ensembl: Sequence[str]) -> str:
    """What the names tell: by the prefix of Ensembl ids, else by the case of symbols."""
    prefixes = Counter(re.match(r"ENS[A-Z]*?G(?=\d)", name)[0] for name in ensembl if name)  # type: ignore[index]
    if prefixes:
        prefix, count = prefixes.most_common(1)[0]
        return _SPECIES.get(prefix, prefix) if count >= _MOST * prefixes.total() else ""
    telling = [name for name in symbols if re.search(r"[A-Za-z]", name) and not _PLACEHOLDER.fullmatch(name)]
    if _most(telling, _HUMAN):
        return "human"
    return "mouse" if _most(telling, _MOUSE) else ""


def _few(items: Iterable[str]) -> str:
    shown = list(items)
    return ", ".join(shown[:_SHOWN]) + (", …" if len(shown) > _SHOWN else "")
