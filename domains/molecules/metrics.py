"""What is measured of written molecules and told properties.

For wanted properties as SPMM (Chang and Ye, Nat. Commun. 2024), for a described molecule as MolT5 (Edwards et al.,
EMNLP 2022) and MolFM.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from polyfm.domains.molecules.canonical import Canonical, Canonicaliser
from polyfm.domains.molecules.descriptors import descriptor_table
from polyfm.shared.evaluation.text import bleu, edit_distance


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


def translation_metrics(written: Sequence[str], wanted: Sequence[str]) -> dict[str, float]:
    """How near molecules written for a text are to those that it describes: MolT5's metrics but for FCD and Text2Mol.

    Args:
        written: n SMILES as written, valid or not, n at least 1.
        wanted: n canonical SMILES.

    Returns:
        ``exact`` (share of equal InChI, whatever the SMILES), ``bleu`` (of single letters, up to 4 in a row),
        ``levenshtein`` (mean, in letters), ``validity``, and over the valid ones, absent if there are none, the mean
        Tanimoto similarity of MACCS keys, RDKit's path fingerprint and Morgan counts of radius 2.
    """
    from rdkit import Chem, DataStructs, rdBase
    from rdkit.Chem import MACCSkeys, rdFingerprintGenerator

    makers: dict[str, Any] = {
        "maccs": MACCSkeys.GenMACCSKeys,  # type: ignore[attr-defined]
        "rdk": rdFingerprintGenerator.GetRDKitFPGenerator().GetFingerprint,
        "morgan": rdFingerprintGenerator.GetMorganGenerator(radius=2).GetSparseCountFingerprint,
    }
    inchi: Any = Chem.MolToInchi
    similar: dict[str, list[float]] = {name: [] for name in makers}
    exact = 0
    with rdBase.BlockLogs():
        for text, right in zip(written, wanted, strict=True):
            mol, other = Chem.MolFromSmiles(text) if text else None, Chem.MolFromSmiles(right)
            if mol is None:
                continue
            exact += inchi(mol) == inchi(other)
            for name, make in makers.items():
                similar[name].append(DataStructs.TanimotoSimilarity(make(mol), make(other)))
    return {
        "exact": exact / len(written),
        "bleu": bleu([list(text) for text in written], [list(text) for text in wanted]),
        "levenshtein": edit_distance(written, wanted),
        "validity": len(similar["maccs"]) / len(written),
        **{f"{name}_similarity": float(np.mean(values)) for name, values in similar.items() if values},
    }


def r2_per_column(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """(P,) coefficient of determination per column; NaN where a column is constant or unknown.

    Args:
        predicted: (n, P).
        true: (n, P), NaN where unknown.
    """
    residual = np.nansum((predicted - true) ** 2, axis=0)
    total = np.nansum((true - np.nanmean(true, axis=0)) ** 2, axis=0)
    return np.where(total > 0, 1 - residual / np.where(total > 0, total, 1), np.nan)
