"""Pictures and tables as HTML: drawn with matplotlib, put into the page as SVG, everything from data escaped."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#1f6feb", "#d9730d", "#1a7f37", "#8250df", "#bf3989", "#0e7490", "#9a6700", "#57606a", "#cf222e", "#116329")


def figure(width: float = 6.0, height: float = 3.4, columns: int = 1) -> tuple[Figure, Any]:
    """A figure in the house's style, without a screen.

    Args:
        width: Inches.
        height: Inches.
        columns: Plots side by side.

    Returns:
        The figure, and its axes (an array if there are several).
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(drawn)
    axes = drawn.subplots(1, columns)
    for ax in np.atleast_1d(axes):
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(color="#e3e7ec", linewidth=0.8)
        ax.set_axisbelow(True)
        ax.tick_params(labelsize=9)
    return drawn, axes


def svg(drawn: Figure) -> str:
    """A figure as inline SVG, its ids made unique so that several can share a page.

    Args:
        drawn: The figure.
    """
    import matplotlib as mpl

    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "font.family": "sans-serif", "svg.hashsalt": "polyfm"}):
        drawn.savefig(buffer, format="svg", dpi=130, metadata={"Date": None})
    return unique_ids(buffer.getvalue()[buffer.getvalue().index("<svg") :])


_drawn = 0


def unique_ids(picture: str) -> str:
    """An SVG whose ids clash with no other's on the page.

    Args:
        picture: SVG text.
    """
    global _drawn
    _drawn += 1
    prefix = f"p{_drawn}-"
    picture = re.sub(r"""\bid=(["'])""", rf"id=\1{prefix}", picture)
    picture = re.sub(r"""href=(["'])#""", rf"href=\1#{prefix}", picture)
    return re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}\1)", picture)


def plain(name: Any) -> str:
    """A name from data for a figure's text: matplotlib takes what stands between dollar signs for a formula.

    Args:
        name: Anything printable.
    """
    return str(name).replace("$", r"\$")


def text(value: Any) -> str:
    """A value as safe HTML; floats with four digits.

    Args:
        value: Anything printable.
    """
    if isinstance(value, float):
        return "–" if np.isnan(value) else f"{value:.4g}"
    return escape(str(value))


def table(header: Sequence[str], rows: Iterable[Sequence[Any]], classes: Sequence[str] = ()) -> str:
    """An HTML table.

    Args:
        header: Column names.
        rows: Cells.
        classes: A class per row (``best``, ``ours``), empty for none.
    """
    rows = list(rows)
    numeric = [bool(rows) and all(isinstance(row[i], int | float) for row in rows) for i in range(len(header))]
    head = "".join(
        f'<th class="number">{text(name)}</th>' if right else f"<th>{text(name)}</th>"
        for name, right in zip(header, numeric, strict=True)
    )
    body = []
    for i, row in enumerate(rows):
        kind = f' class="{classes[i]}"' if i < len(classes) and classes[i] else ""
        cells = "".join(
            f'<td class="number">{text(cell)}</td>' if isinstance(cell, int | float) else f"<td>{text(cell)}</td>"
            for cell in row
        )
        body.append(f"<tr{kind}>{cells}</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
