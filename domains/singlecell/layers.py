"""What a matrix of expression holds, where a file keeps its counts, and how they come back from what was made of them.

A file of cells often holds several matrices: ``X``, ``layers/NAME`` and ``raw/X``. Models here want counts. What a
matrix holds is told by its values:

* counts: whole numbers, none negative
* scaled: negative numbers, as z-scores have
* log-normalised: fractions up to 25, since log2(1 + counts per million) is at most 20
* normalised: larger fractions

Normalising divides a cell's counts by one number and the logarithm is undone by its inverse, so in each cell the values
are multiples of one step: dividing by the smallest gives whole numbers again (`find_steps`). If all counts of a cell
share a divisor, the counts come back without it. Scaled values do not have this structure: gene by gene, mean and
spread are lost.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from polyfm.shared.errors import DataError

LARGEST_LOGARITHM = 25.0
_WHOLE = 1e-3
"""Distance from a whole number that is rounding."""
_NEARLY_WHOLE = 0.9
"""Share of whole numbers from which on the others are mistakes among counts, not the other way round."""
_TRUSTED = 100
"""Counts up to here must be found exactly; the rounding of the logarithm hides larger ones."""
_FAR, _MEAN = 0.2, 0.05
"""Largest and mean distance from whole numbers in a cell whose counts came back."""
_DIVISORS = (1, 2, 3, 4, 5, 6)
"""What the smallest count of a cell may be."""
_MIN_RECOVERED = 0.95
_LIKELY_COUNTS = ("counts", "raw_counts", "count", "umi", "raw")


class Kind(StrEnum):
    """What a matrix holds."""

    COUNTS = "counts"
    LOG_NORMALISED = "log-normalised"
    NORMALISED = "normalised"
    SCALED = "scaled"


UNDO: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "log1p": np.expm1,
    "log2(1 + x)": lambda values: np.exp2(values) - 1,
    "log10(1 + x)": lambda values: np.power(10.0, values) - 1,
    "": lambda values: values,
}
"""By the logarithm that was taken: its inverse."""


@dataclass(frozen=True)
class Rows:
    """Some cells of a matrix as sparse rows."""

    indptr: NDArray[np.int64]
    """(n + 1,)"""
    values: NDArray[np.float64]
    """(nnz,) stored values."""
    rows: NDArray[np.int64] | None = None
    """(n,) which cells of the matrix; None where nobody needs to know."""

    def row_of(self, wrong: NDArray[np.bool_]) -> str:
        """What messages say of the first value that is wrong.

        Args:
            wrong: (nnz,).
        """
        if self.rows is None or not wrong.any():
            return ""
        entry = int(np.flatnonzero(wrong)[0])
        return f", row {int(self.rows[np.searchsorted(self.indptr, entry, side='right') - 1]) + 1}"


@dataclass(frozen=True)
class Source:
    """The matrix that is read, and what it takes to make of it what models want."""

    where: str
    """"X", "raw/X", "layers/NAME" or "matrix"."""
    kind: Kind
    """What it gives: counts or log-normalised."""
    undo: str | None
    """Counts come back by undoing this logarithm ("" is none) and dividing by each cell's step; None: as they stand."""
    remark: str
    """What is said to the user; empty where X holds counts."""


def kind_of(values: NDArray[np.float64]) -> Kind:
    """What a matrix holds.

    Args:
        values: Values of it; zeros may be left out.

    Raises:
        DataError: Values that are not finite, or whole numbers of which some are negative.
    """
    if not len(values):
        return Kind.COUNTS
    if not np.isfinite(values).all():
        raise not_finite(values)
    whole = bool(_whole(values).all())
    if values.min() < 0:
        if whole:
            raise negative(values)
        return Kind.SCALED
    if whole:
        return Kind.COUNTS
    return Kind.LOG_NORMALISED if values.max() <= LARGEST_LOGARITHM else Kind.NORMALISED


def _whole(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    near: NDArray[np.bool_] = np.abs(values - np.rint(values)) <= _WHOLE
    return near


def not_finite(values: NDArray[np.floating]) -> DataError:
    """What is said of NaN and infinities.

    Args:
        values: Values, some of them not finite.
    """
    if np.isnan(values).any():
        return DataError(
            "some values are NaN",
            remedy="Where nothing was measured, counts are 0: np.nan_to_num(adata.X.data, copy=False) if X is sparse",
        )
    return DataError(
        "some values are infinite: an overflow",
        remedy="Write the file anew from the counts; np.expm1 of what is no logarithm overflows, and so does float16",
    )


def negative(values: NDArray[np.floating]) -> DataError:
    """What is said of counts below zero.

    Args:
        values: Values, some of them negative.
    """
    return DataError(
        f"there are negative counts, down to {values.min():g}",
        remedy="Counts are 0 or more: look for an overflow of integers or a subtraction where the file was written",
    )


def find_steps(indptr: NDArray[np.int64], values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The step of which all values of a cell are multiples, which is what one count became.

    It begins as the smallest value (or a half of it, a third, ...) and is fitted by least squares to ever larger
    multiples, with the weights of values that were rounded as logarithms.

    Args:
        indptr: (n + 1,) where cells begin and end.
        values: (nnz,) positive, logarithms undone.

    Returns:
        (n,) steps, 1 for empty cells; and (n,) whether the multiples are whole numbers.
    """
    n = len(indptr) - 1
    steps, found = np.ones(n), np.ones(n, dtype=bool)
    full = np.flatnonzero(np.diff(indptr) > 0)
    if not len(full):
        return steps, found
    starts, lengths = indptr[full], np.diff(indptr)[full]
    weights = 1 / np.square(1 + values)

    def sums(terms: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.add.reduceat(terms, starts)

    smallest = np.minimum.reduceat(values, starts)
    best, good = smallest.copy(), np.zeros(len(full), dtype=bool)
    for divisor in _DIVISORS:
        if good.all():
            break
        step = smallest / divisor
        for largest in (10, _TRUSTED, math.inf):
            counts = np.rint(values / np.repeat(step, lengths))
            weighted = np.where(counts <= largest, weights * counts, 0.0)
            norm = sums(weighted * counts)
            step = np.where(norm > 0, sums(weighted * values) / np.where(norm > 0, norm, 1), step)
        quotients = values / np.repeat(step, lengths)
        counts = np.rint(quotients)
        trusted = counts <= _TRUSTED
        away = np.where(trusted, np.abs(quotients - counts), 0.0)
        allowed = _MEAN * np.maximum(sums(trusted.astype(np.float64)), 1)
        fits = (np.maximum.reduceat(away, starts) <= _FAR) & (sums(away) <= allowed)
        fits &= np.minimum.reduceat(counts, starts) >= 1
        fresh = fits & ~good
        best[fresh], good = step[fresh], good | fits
    steps[full], found[full] = best, good
    return steps, found


def recover(values: NDArray[np.float64], undo: str, steps: NDArray[np.float64]) -> NDArray[np.float32]:
    """Counts from what was made of them.

    Args:
        values: (nnz,) as they stand in the file.
        undo: The logarithm that was taken, a key of `UNDO`.
        steps: (nnz,) the step of each value's cell.
    """
    return np.rint(UNDO[undo](values) / steps).astype(np.float32)


def find_counts(
    matrices: Mapping[str, Callable[[], Rows]], path: Path, *, asked: str | None = None, logarithm: str | None = None
) -> Source:
    """Choose the matrix of a file to read.

    Counts as they stand win, X before layers before raw; then counts that come back from X, raw or a layer; then
    log-normalised values as they are.

    Args:
        matrices: By place: reads some cells of it.
        path: Of the file, for messages.
        asked: The place that the user names.
        logarithm: Which one the file says was taken, a key of `UNDO`.

    Raises:
        DataError: The place is not there, or nothing in the file is or becomes counts or log-normalised values.
    """
    places = _in_order(matrices, asked, path)
    first, kinds, looked = places[0], dict[str, Kind](), dict[str, Rows]()
    for where in places:
        rows = looked[where] = matrices[where]()
        try:
            kinds[where] = kind_of(rows.values)
        except DataError as error:
            wrong = ~np.isfinite(rows.values)
            row = rows.row_of(wrong if wrong.any() else rows.values < 0)
            raise DataError(f"{where}{row}: {error.message}", where=path, remedy=error.remedy) from error
        if kinds[where] == Kind.COUNTS:
            said = "" if where == first else f"{first} is {kinds[first]}; counts are read from {where}"
            return Source(where, kinds[where], None, said)
    for where, kind in kinds.items():
        if kind != Kind.SCALED and _whole(looked[where].values).mean() >= _NEARLY_WHOLE:
            return Source(where, Kind.COUNTS, None, "")  # the others are refused, with their row, when they are read
    for where, kind in kinds.items():
        if kind != Kind.SCALED and (undo := _undone(kind, looked[where], logarithm)) is not None:
            how = f"undoing {undo} and the" if undo else "undoing the"
            place = "it" if where == first else f"{where}, which is {kind}"
            remark = f"counts are recovered from {place}, by {how} normalisation cell by cell"
            return Source(where, Kind.COUNTS, undo, f"{first} is {kinds[first]}; {remark}")
    for where, kind in kinds.items():
        if kind == Kind.LOG_NORMALISED:
            place = "" if where == first else f"; {where} is log-normalised"
            remark = f"{first} is {kinds[first]}{place} and read as it is: no counts can be recovered from it"
            return Source(where, kind, None, remark)
    raise _nothing(kinds, first, path)


def _nothing(kinds: Mapping[str, Kind], first: str, path: Path) -> DataError:
    if kinds[first] == Kind.SCALED:
        others = f" ({', '.join(f'{where} is {kind}' for where, kind in kinds.items() if where != first)})"
        return DataError(
            f"{first} is scaled, and counts are neither in layers nor in raw" + (others if len(kinds) > 1 else ""),
            where=path,
            remedy="Use the file from before sc.pp.scale, or keep counts when you scale: "
            "adata.layers['counts'] = adata.X.copy() at first",
        )
    return DataError(
        f"{first} is {kinds[first]} without a logarithm, and no counts can be recovered from it",
        where=path,
        remedy="If these are estimated counts, round them: adata.X = np.rint(adata.X); otherwise sc.pp.log1p(adata)",
    )


def _undone(kind: Kind, rows: Rows, logarithm: str | None) -> str | None:
    """The logarithm whose inverse gives multiples of a step in nearly all cells; None if none does."""
    tries: Sequence[str] = [""] if kind == Kind.NORMALISED else [logarithm] if logarithm in UNDO else list(UNDO)
    positive = rows.values > 0
    indptr = np.concatenate([[0], np.cumsum(positive)])[rows.indptr]
    # A cell with a single value is a multiple of itself: it proves nothing.
    telling = np.diff(indptr) > 1
    for undo in tries:
        _, found = find_steps(indptr, UNDO[undo](rows.values[positive]))
        if telling.any() and found[telling].mean() >= _MIN_RECOVERED:
            return undo
    return None


def _in_order(matrices: Mapping[str, object], asked: str | None, path: Path) -> list[str]:
    """The places to look at, likeliest first."""
    if asked is not None:
        names = [asked, f"layers/{asked}", *(["raw/X"] if asked == "raw" else [])]
        there = [name for name in names if name in matrices]
        if not there:
            layers = [name.removeprefix("layers/") for name in matrices]
            raise DataError(
                f"there is no layer {asked!r}; there are {', '.join(map(repr, layers))}",
                where=path,
                remedy="Name one of these",
            )
        return there[:1]
    layers = [where for where in matrices if where.startswith("layers/")]
    likely = {f"layers/{name}": rank for rank, name in enumerate(_LIKELY_COUNTS)}
    # Spliced and unspliced counts are parts of the counts, which stand elsewhere.
    whole = [where for where in layers if not where.endswith(("spliced", "ambiguous", "matrix"))]
    first = [where for where in matrices if where != "raw/X" and where not in layers]
    chosen = sorted((where for where in whole if where.lower() in likely), key=lambda name: likely[name.lower()])
    rest = [where for where in whole if where not in chosen]
    order = [*first, *chosen, *(where for where in ("raw/X",) if where in matrices), *rest]
    return order or layers
