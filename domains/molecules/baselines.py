"""What a chemist would try first, on the same split: fingerprints or descriptors with a forest or a linear model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from polyfm.shared.training.targets import MultiClass, Regression, Target

TREES = 500


def fingerprints(smiles: Sequence[str]) -> np.ndarray:
    """(n, 2048) uint8 ECFP4 (Morgan radius 2; Rogers and Hahn, 10.1021/ci100050t).

    Args:
        smiles: Canonical.
    """
    from rdkit import Chem
    from rdkit.Chem import rdFingerprintGenerator

    generator = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=2048)
    return np.stack([generator.GetFingerprintAsNumPy(Chem.MolFromSmiles(text)) for text in smiles])


def descriptors_2d(smiles: Sequence[str]) -> np.ndarray:
    """(n, P) all of RDKit's 2-D descriptors; infinite and undefined values are NaN.

    Args:
        smiles: Canonical.
    """
    from sklearn.utils.parallel import Parallel, delayed

    parts = [smiles[start : start + 1000] for start in range(0, len(smiles), 1000)]
    # A worker process costs seconds to start: not for a few thousand molecules.
    rows = Parallel(n_jobs=-1 if len(parts) > 4 else 1)(delayed(_describe)(part) for part in parts)
    table = np.concatenate(rows)
    return np.where(np.abs(table) < 1e9, table, np.nan)


def _describe(smiles: Sequence[str]) -> np.ndarray:
    from rdkit import Chem
    from rdkit.Chem import Descriptors

    describe: Any = Descriptors.CalcMolDescriptors
    return np.array([list(describe(Chem.MolFromSmiles(text)).values()) for text in smiles])


def baselines(
    smiles: Sequence[str], values: np.ndarray, train: np.ndarray, test: np.ndarray, target: Target, seed: int
) -> dict[str, Callable[[], np.ndarray]]:
    """Each baseline by name; called, it returns (n_test, outputs) in the form of ``target.decode``.

    Args:
        smiles: Canonical, all rows.
        values: (n, tasks) labels, all rows; NaN where missing.
        train: Indices of the training part, the only labels used.
        test: Indices of the test part.
        target: What is predicted.
        seed: Of the forests.
    """
    kept: dict[str, np.ndarray] = {}

    def features(kind: str) -> np.ndarray:
        if kind not in kept:
            make = fingerprints if kind == "ecfp4" else descriptors_2d
            kept[kind] = make([smiles[i] for i in [*train, *test]])
        return kept[kind]

    def fit_predict(kind: str, make: Callable[[], Any]) -> np.ndarray:
        x = features(kind)
        x_train, x_test = x[: len(train)], x[len(train) :]
        columns = []
        for column in range(values.shape[1]):
            y = values[train, column]
            given = ~np.isnan(y)
            if not isinstance(target, Regression) and len(np.unique(y[given])) < 2:
                # One class, or no label at all, in the training part: its share is all there is to say.
                columns.append(np.full(len(test), y[given].mean() if given.any() else 0.5))
                continue
            model = make().fit(x_train[given], y[given])
            if isinstance(target, MultiClass):
                whole = np.zeros((len(test), target.outputs))
                whole[:, model.classes_.astype(int)] = model.predict_proba(x_test)
                return whole
            said = model.predict(x_test) if isinstance(target, Regression) else model.predict_proba(x_test)[:, 1]
            columns.append(said)
        return np.stack(columns, axis=1)

    return {
        "ecfp4_forest": partial(fit_predict, "ecfp4", partial(_forest, target, seed)),
        "ecfp4_linear": partial(fit_predict, "ecfp4", partial(_linear, target)),
        "rdkit2d_forest": partial(fit_predict, "rdkit2d", partial(_forest, target, seed)),
    }


def _forest(target: Target, seed: int) -> Any:
    from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline

    kind = RandomForestRegressor if isinstance(target, Regression) else RandomForestClassifier
    return make_pipeline(SimpleImputer(strategy="median"), kind(TREES, n_jobs=-1, random_state=seed))


def _linear(target: Target) -> Any:
    from sklearn.linear_model import LogisticRegression, RidgeCV

    if isinstance(target, Regression):
        return RidgeCV(alphas=np.logspace(-1, 3, 9))
    if isinstance(target, MultiClass):
        return LogisticRegression(C=0.1, max_iter=2000)
    # liblinear skips the zeros: of a fingerprint's bits two in a hundred are set. It knows two classes only.
    return LogisticRegression(C=0.1, solver="liblinear")
