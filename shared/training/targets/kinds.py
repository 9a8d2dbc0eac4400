"""From a word, or from the labels, to the target."""

from __future__ import annotations

from typing import Any

import numpy as np

from polyfm.shared.errors import DataError, RecipeError
from polyfm.shared.training.targets.binary import Binary
from polyfm.shared.training.targets.multi_class import MultiClass
from polyfm.shared.training.targets.regression import Regression
from polyfm.shared.training.targets.target import Target

KINDS: dict[str, type[Target]] = {"regression": Regression, "binary": Binary, "multiclass": MultiClass}
"""By the word a user writes for ``--model.kind``."""


def require_labels(names: list[str], option: str = "data.targets") -> None:
    """Refuse data without a label column.

    Args:
        names: Of the label columns, known before anything is read.
        option: By which a user names them.
    """
    if not names:
        raise DataError("no label column is given", remedy=f"Name one: --{option} COLUMN (several: [A,B])")


def fit_target(
    kind: str, names: list[str], values: np.ndarray, classes: list[str] | None = None, option: str = "data.targets"
) -> Target:
    """The target for training labels.

    Args:
        kind: A key of `KINDS`, or ``auto``: multiclass where the data name classes, binary for labels 0 and 1,
            regression else (of whole numbers, too: that they stand for classes must be said).
        names: Of the label columns.
        values: (n, tasks), NaN where missing.
        classes: Their names, where the data have them (`DataModule.class_names`).
        option: By which a user names them.
    """
    require_labels(names, option)
    if kind != "auto" and kind not in KINDS:
        raise RecipeError(f"there is no kind {kind!r}", where="model.kind", remedy=f"Known: auto, {', '.join(KINDS)}")
    if np.isnan(values).all():
        raise DataError(
            f"column {names[0]!r} has no label among the training rows",
            remedy="Choose another column, or split otherwise (--data.split)",
        )
    if kind == "auto":
        given = values[~np.isnan(values)]
        kind = "multiclass" if classes else "binary" if np.isin(given, (0, 1)).all() else "regression"
    if classes and kind != "multiclass":
        raise DataError(
            f"column {names[0]!r} names {len(classes)} classes in words, such as {classes[0]!r}",
            remedy=f"Leave out --model.kind {kind}, or write numbers into the column",
        )
    if kind == "multiclass":
        return MultiClass.fit(names, values, classes)
    return KINDS[kind].fit(names, values)


def kind_of(target: Target) -> str:
    """The word a user writes for it.

    Args:
        target: What is predicted.
    """
    return next(word for word, kind in KINDS.items() if isinstance(target, kind))


def announced(target: Target, kind: str) -> str:
    """One line: what is predicted, and as what.

    Args:
        target: What is predicted.
        kind: As the user wrote it.
    """
    guessed = "; judging by the labels, --model.kind says otherwise" if kind == "auto" else ""
    return f"to predict: {', '.join(target.names)} ({kind_of(target)}{guessed})"


def target_from_state(state: dict[str, Any]) -> Target:
    """The target that a checkpoint holds.

    Args:
        state: As made by `Target.state`.
    """
    state = dict(state)
    kinds = {kind.__name__: kind for kind in KINDS.values()}
    return kinds[state.pop("kind")](**state)
