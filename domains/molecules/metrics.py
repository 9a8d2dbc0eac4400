"""What is measured of generated molecules (SPMM, Chang and Ye 2024: validity, uniqueness, novelty, normalised RMSE)."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from polyfm.domains.molecules.read import canonical


def generation_metrics(
    generated: Sequence[str], wanted: np.ndarray, found: np.ndarray, known: Collection[str], scale: np.ndarray
) -> dict[str, float]:
    """Metrics of molecules generated for given properties.

    Args:
        generated: n SMILES as generated, valid or not.
        wanted: (n, 53) the properties asked for, own units, NaN where none was.
        found: (n, 53) the properties recomputed on the output, NaN rows where it is invalid.
        known: Canonical SMILES of the training part.
        scale: (53,) standard deviation of each property in training, for the normalisation.
    """
    valid = [text for text in map(canonical, generated) if text is not None]
    unique = set(valid)
    error = (found - wanted) / scale
    given = ~np.isnan(error)
    return {
        "validity": len(valid) / max(len(generated), 1),
        "uniqueness": len(unique) / max(len(valid), 1),
        "novelty": len(unique - set(known)) / max(len(unique), 1),
        "nrmse": float(np.sqrt(np.mean(error[given] ** 2))) if given.any() else float("nan"),
    }


def r2_per_column(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """(P,) coefficient of determination per column; NaN where a column is constant.

    Args:
        predicted: (n, P).
        true: (n, P).
    """
    residual = np.nansum((predicted - true) ** 2, axis=0)
    total = np.nansum((true - np.nanmean(true, axis=0)) ** 2, axis=0)
    return np.where(total > 0, 1 - residual / np.where(total > 0, total, 1), np.nan)
