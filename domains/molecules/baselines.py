"""What a chemist would try first, on the same split: fingerprints or descriptors with a forest or a linear model.

For texts: a linear map from words to substructures, and copies of what belongs to the nearest training item.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import numpy as np

from polyfm.domains.molecules.descriptors import descriptor_table_2d
from polyfm.domains.molecules.vectors import FINGERPRINT, fingerprints
from polyfm.shared.data.cache import BlobCache, cache_dir
from polyfm.shared.training.targets.multi_class import MultiClass
from polyfm.shared.training.targets.regression import Regression
from polyfm.shared.training.targets.target import Target

TREES = 500
MANY = 4000
"""Molecules from which on starting processes costs less than it saves."""


def text_vectors(
    smiles: Sequence[str], texts: Sequence[str], train: np.ndarray, test: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors of texts and of molecules in one space: ridge from TF-IDF of words to principal ECFP4 counts.

    Args:
        smiles: n canonical.
        texts: n descriptions.
        train: Indices of the pairs that are fitted.
        test: Indices of the pairs that get vectors.
        seed: Of the decomposition.

    Returns:
        (n_test, d) of the texts and (n_test, d) of the molecules.
    """
    from sklearn.decomposition import TruncatedSVD
    from sklearn.linear_model import Ridge
    from sklearn.preprocessing import normalize

    counts = np.log1p(fingerprints([smiles[i] for i in np.concatenate([train, test])], counts=True))
    components = min(256, len(train) - 1)
    parts = TruncatedSVD(components, random_state=seed).fit(counts[: len(train)])
    words = _words([texts[i] for i in train])
    known = words.transform([texts[i] for i in train])
    ridge = Ridge().fit(known, parts.transform(counts[: len(train)]))
    said: np.ndarray = normalize(ridge.predict(words.transform([texts[i] for i in test])))
    drawn: np.ndarray = normalize(parts.transform(counts[len(train) :]))
    return said, drawn


def _words(texts: Sequence[str]) -> Any:
    """TF-IDF of words, fitted; of letters, where no text has a word."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    try:
        return TfidfVectorizer(sublinear_tf=True).fit(texts)
    except ValueError:
        return TfidfVectorizer(sublinear_tf=True, analyzer="char").fit(texts)


def tanimoto(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """(n, m) Tanimoto similarities: bits in common, divided by those that either has.

    Args:
        ours: (n, bits) float32, 0 or 1.
        theirs: (m, bits) float32.
    """
    common = ours @ theirs.T
    similarities: np.ndarray = common / (ours.sum(1)[:, None] + theirs.sum(1) - common).clip(min=1)
    return similarities


def nearest_structures(smiles: Sequence[str], train: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """(n,) training molecules most similar in structure (Tanimoto of ECFP4).

    Args:
        smiles: Canonical, all rows.
        train: Indices of the molecules to choose from.
        asked: (n,) indices of the molecules asked about.
    """
    ours, theirs = (fingerprints([smiles[i] for i in rows]).astype(np.float32) for rows in (asked, train))
    nearest: np.ndarray = train[tanimoto(ours, theirs).argmax(1)]
    return nearest


def nearest_texts(texts: Sequence[str], train: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """(n,) training descriptions most similar in words (cosine of TF-IDF).

    Args:
        texts: Descriptions, all rows.
        train: Indices of the descriptions to choose from.
        asked: (n,) indices of the descriptions asked about.
    """
    words = _words([texts[i] for i in train])
    known = words.transform([texts[i] for i in train])
    nearest: np.ndarray = train[(words.transform([texts[i] for i in asked]) @ known.T).toarray().argmax(1)]
    return nearest


def baselines(
    smiles: Sequence[str], values: np.ndarray, train: np.ndarray, test: np.ndarray, target: Target, seed: int
) -> dict[str, Callable[..., np.ndarray]]:
    """Each baseline by name; trained when it is first called, unless it answered the same question before.

    Whoever tunes a model runs it many times on one split: answers are kept on disk. Called, each returns (n_test,
    outputs) in the form of ``target.decode``; called with indices of rows (validation, to choose thresholds on), the
    same of those.

    Args:
        smiles: Canonical, all rows.
        values: (n, tasks) labels, all rows; NaN where missing.
        train: Indices of the training part, the only labels used.
        test: Indices of the test part.
        target: What is predicted.
        seed: Of the forests.
    """
    answers = BlobCache(cache_dir("molecules") / "baselines.sqlite")
    kept: dict[tuple[str, bytes], np.ndarray] = {}

    def features(kind: str, rows: np.ndarray) -> np.ndarray:
        if (kind, rows.tobytes()) not in kept:
            make = fingerprints if kind == "ecfp4" else _descriptors
            kept[kind, rows.tobytes()] = make([smiles[i] for i in rows])
        return kept[kind, rows.tobytes()]

    def method(kind: str, make: Callable[[], Any]) -> Callable[..., np.ndarray]:
        untrained = cache(make)

        @cache
        def models() -> list[Any]:
            return [_fit(untrained(), features(kind, train), y, target) for y in values[train].T]

        def predict(rows: np.ndarray = test) -> np.ndarray:
            asked = [smiles[i] for i in rows]
            question = _question(f"{kind}/{untrained()!r}", target, [smiles[i] for i in train], values[train], asked)
            known = np.frombuffer(answers.get_blobs([question]).get(question, b""))
            if len(rows) and known.size == len(rows) * target.outputs:
                return known.reshape(len(rows), -1)
            found = np.concatenate([_predict(model, features(kind, rows), target) for model in models()], axis=1)
            answers.put_blobs({question: found.astype(np.float64).tobytes()})
            return found

        return predict

    return {
        "ecfp4_forest": method("ecfp4", partial(_forest, target, seed)),
        "ecfp4_linear": method("ecfp4", partial(_linear, target)),
        "rdkit2d_forest": method("rdkit2d", partial(_forest, target, seed)),
    }


def _descriptors(smiles: Sequence[str]) -> np.ndarray:
    return descriptor_table_2d(smiles, workers=(os.cpu_count() or 1) if len(smiles) > MANY else 0)


def _question(method: str, target: Target, known: Sequence[str], labels: np.ndarray, asked: Sequence[str]) -> str:
    """A key of all that an answer depends on: method and settings, libraries, training part, molecules asked about."""
    import sklearn
    from rdkit import __version__ as rdkit

    task = f"{type(target).__name__}/{target.outputs}"
    parts = [method, str(FINGERPRINT), sklearn.__version__, rdkit, task, "\n".join(known), "\n".join(asked)]
    digest = hashlib.blake2b("\0".join(parts).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(labels, dtype=np.float64).tobytes())
    return digest.hexdigest()


def _fit(untrained: Any, x: np.ndarray, y: np.ndarray, target: Target) -> Any:
    """A model of one column; of a column that has one class or no label at all in training, its share."""
    from sklearn.base import clone

    given = ~np.isnan(y)
    if not isinstance(target, Regression) and len(np.unique(y[given])) < 2:
        return float(y[given].mean()) if given.any() else 0.5
    return clone(untrained).fit(x[given], y[given])


def _predict(model: Any, x: np.ndarray, target: Target) -> np.ndarray:
    """(n, 1) predictions of one column, or (n, classes)."""
    if isinstance(model, float):
        return np.full((len(x), 1), model)
    if isinstance(target, Regression):
        said: np.ndarray = model.predict(x)[:, None]
        return said
    probabilities: np.ndarray = model.predict_proba(x)
    if isinstance(target, MultiClass):
        whole = np.zeros((len(x), target.outputs))
        whole[:, model.classes_.astype(int)] = probabilities
        return whole
    return probabilities[:, 1:]


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
