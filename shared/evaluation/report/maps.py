"""Vectors in two dimensions, coloured in several ways."""

from __future__ import annotations

from typing import Any

import numpy as np

from polyfm.shared.data.sampler import some_of
from polyfm.shared.evaluation.report.figures import COLOURS, figure, plain, svg
from polyfm.shared.evaluation.report.page import Panel

MAPPED = 2000
OTHERS = "#d0d7de"


def map_panel(vectors: np.ndarray, colours: dict[str, np.ndarray], *, title: str, seed: int = 0) -> Panel:
    """A two-dimensional map of embeddings (t-SNE on 50 principal components), coloured in several ways.

    Args:
        vectors: (n, D); of more than `MAPPED` some are drawn.
        colours: By title: (n,) names, of which the ten most frequent get a colour, or numbers.
        title: Of the panel.
        seed: Of t-SNE, and of the draw.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    shown = some_of(np.arange(len(vectors)), MAPPED, seed)
    vectors = vectors[shown]
    reduced = PCA(min(50, *vectors.shape), random_state=seed).fit_transform(vectors)
    perplexity = min(30.0, max((len(vectors) - 1) / 3, 1.0))
    flat = TSNE(random_state=seed, perplexity=perplexity, init="pca", max_iter=500).fit_transform(reduced)
    body = scatter(flat, {name: labels[shown] for name, labels in colours.items()})
    note = f"{len(shown):,} items. t-SNE on 50 principal components: near is alike, far means little."
    return Panel(title=title, body=body, note=note, wide=True)


def scatter(flat: np.ndarray, colours: dict[str, np.ndarray], marked: dict[str, np.ndarray] | None = None) -> str:
    """Points in the plane as a picture, one plot for each colouring.

    Args:
        flat: (n, 2).
        colours: By title: (n,) names, of which the ten most frequent get a colour, or numbers.
        marked: By a name of the first colouring: (2,) a star of its colour, in that plot.
    """
    drawn, axes = figure(5.2 * len(colours), 4.6, columns=len(colours))
    for ax, (name, labels) in zip(np.atleast_1d(axes), colours.items(), strict=True):
        ax.grid(visible=False)
        ax.set_xticks([])
        ax.set_yticks([])
        ax.set_title(name, fontsize=10, loc="left")
        if np.issubdtype(labels.dtype, np.number):
            drawn.colorbar(_dots(ax, flat, c=labels, s=9, cmap="viridis"), ax=ax)
            continue
        common = _coloured(labels)
        rest = ~np.isin(labels, list(common))
        _dots(ax, flat[rest], s=7, color=OTHERS, label="others" if rest.any() else None)
        for label, colour in common.items():
            _dots(ax, flat[labels == label], s=9, color=colour, label=plain(str(label)[:28]))
        ax.legend(fontsize=7, frameon=False, markerscale=2, loc="upper center", bbox_to_anchor=(0.5, -0.02), ncols=2)
    for name, point in (marked or {}).items():
        colour = _coloured(next(iter(colours.values()))).get(name, OTHERS)
        np.atleast_1d(axes)[0].plot(*point, marker="*", markersize=13, color=colour, markeredgecolor="black")
    return svg(drawn)


def _coloured(labels: np.ndarray) -> dict[str, str]:
    """Colours of the most frequent names."""
    names, counts = np.unique(labels, return_counts=True)
    return dict(zip(names[np.argsort(-counts, kind="stable")].tolist(), COLOURS, strict=False))


def _dots(ax: Any, points: np.ndarray, **style: Any) -> Any:
    return ax.scatter(*points.T, linewidths=0, rasterized=True, **style)
