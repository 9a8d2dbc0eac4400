"""What anyone would try first on annotated cells, on the same split: linear models, neighbours, the commonest type."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from polyfm.shared.data.sampler import some_of
from polyfm.shared.training.targets.multi_class import MultiClass
from polyfm.shared.training.targets.regression import Regression
from polyfm.shared.training.targets.target import Target

COMPONENTS = 50
NEIGHBOURS = 15
MOST = 50_000
"""Training cells; more are drawn from, and linear models are hardly the better for them."""
AT_ONCE = 20_000
"""Cells that are in memory while something is said of all."""


def baselines(
    expression: Callable[[np.ndarray], Any],
    all_genes: Callable[[np.ndarray], Any],
    values: np.ndarray,
    train: np.ndarray,
    test: np.ndarray,
    target: Target,
    seed: int,
) -> dict[str, Callable[..., np.ndarray]]:
    """Each method by name; trained when it is first called.

    Logistic regression (ridge for numbers) on all genes of the data, the same on 50 principal components of those that
    the model knows, 15 nearest neighbours on these, and what is commonest. Called, each returns (n_test, outputs) in
    the form of ``target.decode``; called with indices of rows, the same of those.

    Args:
        expression: Reads cells by their indices: (n, G) sparse log1p of counts per 10,000, genes that the model knows.
        all_genes: The same of all genes of the data.
        values: (n, tasks) labels, all cells; NaN where missing.
        train: Indices of the training part, the only labels used.
        test: Indices of the test part.
        target: What is predicted.
        seed: Of the decomposition and of the cells drawn.
    """
    some = some_of(train[~np.isnan(values[train]).all(1)], MOST, seed)

    @cache
    def components() -> Any:
        from sklearn.decomposition import TruncatedSVD

        table = expression(some)
        size = min(COMPONENTS, len(some) - 1, table.shape[1] - 1)
        return TruncatedSVD(size, random_state=seed).fit(table)

    def reduced(rows: np.ndarray) -> Any:
        return components().transform(expression(rows))

    def method(features: Callable[[np.ndarray], Any], make: Callable[[int], Any]) -> Callable[..., np.ndarray]:
        @cache
        def models() -> list[Any]:
            known = features(some)
            return [_fit(make, known, column, target) for column in values[some].T]

        def predict(rows: np.ndarray = test) -> np.ndarray:
            parts = np.split(rows, range(AT_ONCE, len(rows), AT_ONCE))
            return np.concatenate([_predict_all(models(), features(part), target) for part in parts])

        return predict

    return {
        "logistic_genes": method(all_genes, lambda _: _linear(target, sparse=True)),
        "logistic_pca": method(reduced, lambda _: _linear(target, sparse=False)),
        "knn_pca": method(reduced, lambda cells: _neighbours(target, cells)),
        "commonest": method(lambda rows: np.zeros((len(rows), 1)), lambda _: _commonest(target)),
    }


def _fit(make: Callable[[int], Any], x: Any, y: np.ndarray, target: Target) -> Any:
    """A model of one column; of a column with one class in training its share, of one without labels any number."""
    given = np.flatnonzero(~np.isnan(y))
    if not len(given):
        return 0.5
    if not isinstance(target, Regression) and len(np.unique(y[given])) < 2:
        return float(y[given].mean())
    return make(len(given)).fit(x[given], y[given])


def _predict_all(models: list[Any], x: Any, target: Target) -> np.ndarray:
    return np.concatenate([_predict(model, x, target) for model in models], axis=1)


def _predict(model: Any, x: Any, target: Target) -> np.ndarray:
    """(n, 1) predictions of one column, or (n, classes)."""
    if isinstance(target, MultiClass):
        whole = np.zeros((x.shape[0], target.outputs))
        if isinstance(model, float):
            whole[:, int(model)] = 1.0
        else:
            whole[:, model.classes_.astype(int)] = model.predict_proba(x)
        return whole
    if isinstance(model, float):
        return np.full((x.shape[0], 1), model)
    if isinstance(target, Regression):
        said: np.ndarray = model.predict(x)[:, None]
        return said
    probabilities: np.ndarray = model.predict_proba(x)
    return probabilities[:, 1:]


def _linear(target: Target, *, sparse: bool) -> Any:
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import MaxAbsScaler, StandardScaler

    scale = MaxAbsScaler() if sparse else StandardScaler()
    model = Ridge() if isinstance(target, Regression) else LogisticRegression(C=1.0, max_iter=500)
    return make_pipeline(scale, model)


def _neighbours(target: Target, cells: int) -> Any:
    from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor

    kind = KNeighborsRegressor if isinstance(target, Regression) else KNeighborsClassifier
    return kind(min(NEIGHBOURS, cells))


def _commonest(target: Target) -> Any:
    from sklearn.dummy import DummyClassifier, DummyRegressor

    return DummyRegressor() if isinstance(target, Regression) else DummyClassifier(strategy="prior")
