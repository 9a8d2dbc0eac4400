"""What is measured of generated molecules and told properties (SPMM, Chang and Ye, Nat. Commun. 2024)."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from polyfm.domains.molecules.canonical import Canonical, Canonicaliser
from polyfm.domains.molecules.descriptors import descriptor_table


def generation_metrics(
    generated: Sequence[str],
    wanted: np.ndarray,
    known: Collection[str],
    scale: np.ndarray,
    *,
    isomeric: bool = False,
) -> dict[str, float]:
    """Validity, uniqueness, novelty and normalised error of molecules written for given properties.

    Args:
        generated: n SMILES as written, valid or not.
        wanted: (n, 53) the properties asked for, own units, NaN where none was.
        known: Canonical SMILES of the training part.
        scale: (53,) standard deviation of each property in training.
        isomeric: Whether the SMILES of ``known`` hold stereochemistry.

    Returns:
        ``validity`` (share that RDKit accepts), ``uniqueness`` (of the valid), ``novelty`` (of the unique, not in
        training), ``nrmse`` (root mean square over valid molecules and asked properties of the error in units of
        ``scale``, the properties recomputed on the output; absent if nothing is valid).
    """
    results = Canonicaliser(isomeric)(list(generated))
    valid = [(row, result.smiles) for row, result in enumerate(results) if isinstance(result, Canonical)]
    unique = {smiles for _, smiles in valid}
    metrics = {
        "validity": len(valid) / max(len(generated), 1),
        "uniqueness": len(unique) / max(len(valid), 1),
        "novelty": len(unique - set(known)) / max(len(unique), 1),
    }
    if valid:
        found = descriptor_table([smiles for _, smiles in valid])
        error = (found - wanted[[row for row, _ in valid]]) / scale
        metrics["nrmse"] = float(np.sqrt(np.nanmean(error**2)))
    return metrics


def r2_per_column(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """(P,) coefficient of determination per column; NaN where a column is constant or unknown.

    Args:
        predicted: (n, P).
        true: (n, P), NaN where unknown.
    """
    residual = np.nansum((predicted - true) ** 2, axis=0)
    total = np.nansum((true - np.nanmean(true, axis=0)) ** 2, axis=0)
    return np.where(total > 0, 1 - residual / np.where(total > 0, total, 1), np.nan)
