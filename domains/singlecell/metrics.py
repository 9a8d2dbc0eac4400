"""How well batches mix and types stay apart in a space of cells: silhouettes, ARI, NMI, LISI, kBET.

scIB (Luecken et al., Nature Methods 19, 41-50, 2022) scales all to 0 (bad) to 1 (good), and so does
`integration_metrics`. Silhouettes, ARI and NMI are scikit-learn's; LISI and kBET are ours:

* LISI (Korsunsky et al., Nature Methods 16, 1289-1296, 2019): over a cell's neighbours, weighted by a Gaussian whose
  width is set by the perplexity, 1 / Σ_b p_b² is how many labels are found there, effectively: 1 to their number.
* kBET (Büttner et al., Nature Methods 16, 43-49, 2019): whether the batches among a cell's k neighbours are as many as
  in the whole, by Pearson's χ² with (batches - 1) degrees of freedom; the share of cells where that is refused at 5 %.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

PERPLEXITY = 30.0
REFUSED_AT = 0.05
MOST = 20_000
"""Cells that are measured; of more, some are drawn."""


def neighbours(vectors: NDArray[np.floating], k: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """(n, k) Euclidean distances and indices of each cell's nearest others.

    Args:
        vectors: (n, D).
        k: How many.
    """
    from sklearn.neighbors import NearestNeighbors

    found = NearestNeighbors(n_neighbors=k + 1).fit(vectors)
    distances, indices = found.kneighbors(vectors)
    # A cell is its own neighbour, but of cells that are alike another one may stand first.
    own = indices == np.arange(len(vectors))[:, None]
    own[~own.any(1), -1] = True
    keep = ~own
    return distances[keep].reshape(-1, k), indices[keep].reshape(-1, k)


def lisi(
    distances: NDArray[np.floating],
    indices: NDArray[np.integer],
    labels: NDArray[np.integer],
    perplexity: float = PERPLEXITY,
) -> NDArray[np.float64]:
    """(n,) effective number of labels around each cell, 1 to their number.

    Args:
        distances: (n, k) to its neighbours, from the nearest; three times the perplexity is enough.
        indices: (n, k) which they are.
        labels: (n,) from 0.
        perplexity: How many neighbours count, effectively; less than k.
    """
    weights = _gaussian(np.asarray(distances, np.float64), min(perplexity, distances.shape[1] / 1.5))
    shares = np.stack([(weights * (labels[indices] == label)).sum(1) for label in range(int(labels.max()) + 1)], axis=1)
    effective: NDArray[np.float64] = 1 / (shares**2).sum(1)
    return effective


def _gaussian(distances: NDArray[np.float64], perplexity: float) -> NDArray[np.float64]:
    """(n, k) weights that sum to 1, of which the entropy is log(perplexity); by bisection, all cells at once."""
    squares = distances - distances[:, :1]  # as in t-SNE only differences count, and the nearest never vanishes
    low, high = np.zeros(len(squares)), np.full(len(squares), np.inf)
    beta = np.ones(len(squares))
    wanted = np.log(perplexity)
    for _ in range(60):
        weights = np.exp(-squares * beta[:, None])
        total = weights.sum(1)
        entropy = np.log(total) + beta * (squares * weights).sum(1) / total
        wide = entropy > wanted
        low, high = np.where(wide, beta, low), np.where(wide, high, beta)
        beta = np.where(np.isinf(high), beta * 2, (low + high) / 2)
    weights = np.exp(-squares * beta[:, None])
    normalised: NDArray[np.float64] = weights / weights.sum(1, keepdims=True)
    return normalised


def kbet(indices: NDArray[np.integer], batches: NDArray[np.integer]) -> float:
    """Share of cells whose neighbours' batches are not those of the whole.

    Args:
        indices: (n, k) neighbours of each cell.
        batches: (n,) from 0, at least two.
    """
    from scipy.stats import chi2

    share = np.bincount(batches) / len(batches)
    k = indices.shape[1]
    counts = np.stack([(batches[indices] == batch).sum(1) for batch in range(len(share))], axis=1)
    statistic = ((counts - k * share) ** 2 / (k * share)).sum(1)
    return float((chi2.sf(statistic, len(share) - 1) < REFUSED_AT).mean())


def integration_metrics(
    vectors: NDArray[np.floating], types: NDArray[np.integer] | None, batches: NDArray[np.integer], *, seed: int = 0
) -> dict[str, float]:
    """ScIB's measures of a space, each from 0 to 1, more is better; without types iLISI and kBET alone.

    Args:
        vectors: (n, D).
        types: (n,) of the cells, from 0; None where they are not known.
        batches: (n,) from 0, at least two.
        seed: Of clusters and of the cells drawn.
    """
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score, silhouette_samples, silhouette_score

    if len(vectors) > MOST:
        some = np.random.default_rng(seed).choice(len(vectors), MOST, replace=False)
        vectors, types, batches = vectors[some], None if types is None else types[some], batches[some]
    places, batches = np.unique(batches, return_inverse=True)
    k = int(min(3 * PERPLEXITY, len(vectors) - 1))
    distances, indices = neighbours(vectors, k)
    near = min(50, len(vectors) - 1)
    mixing = {
        "ilisi": (float(np.median(lisi(distances, indices, batches))) - 1) / max(len(places) - 1, 1),
        "kbet": 1 - kbet(indices[:, :near], batches),
    }
    if types is None:
        return mixing
    kinds, types = np.unique(types, return_inverse=True)
    clusters = KMeans(len(kinds), n_init=10, random_state=seed).fit_predict(vectors)
    mixed = []
    for kind in range(len(kinds)):  # within a type, batches should not part
        mine = types == kind
        if 1 < len(np.unique(batches[mine])) < mine.sum():
            mixed.append(float((1 - np.abs(silhouette_samples(vectors[mine], batches[mine]))).mean()))
    return {
        "silhouette_type": (float(silhouette_score(vectors, types)) + 1) / 2,
        "silhouette_batch": float(np.mean(mixed)) if mixed else float("nan"),
        "ari": float(adjusted_rand_score(types, clusters)),
        "nmi": float(normalized_mutual_info_score(types, clusters)),
        "clisi": 1 - (float(np.median(lisi(distances, indices, types))) - 1) / max(len(kinds) - 1, 1),
        **mixing,
    }
