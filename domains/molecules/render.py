"""Molecules as pictures for reports."""

from __future__ import annotations

from typing import Any

from polyfm.shared.evaluation.report.figures import text, unique_ids


def draw(smiles: str, width: int = 150, height: int = 110) -> str:
    """A molecule as inline SVG; the text itself where RDKit cannot read it.

    Args:
        smiles: Of the molecule.
        width: Pixels.
        height: Pixels.
    """
    from rdkit import Chem, rdBase
    from rdkit.Chem.Draw import rdMolDraw2D

    with rdBase.BlockLogs():
        mol = Chem.MolFromSmiles(smiles) if smiles else None
    if mol is None:
        return f"<code>{text(smiles or '(empty)')}</code>"
    drawer = rdMolDraw2D.MolDraw2DSVG(width, height)
    options: Any = drawer.drawOptions()
    options.clearBackground = False
    rdMolDraw2D.PrepareAndDrawMolecule(drawer, mol)
    drawer.FinishDrawing()
    svg = drawer.GetDrawingText()
    return unique_ids(svg[svg.index("<svg") :])


def card(smiles: str, caption: str, kind: str = "") -> str:
    """A drawn molecule with a line under it.

    Args:
        smiles: Of the molecule.
        caption: Under the picture.
        kind: ``right`` or ``wrong`` for a border, empty for none.
    """
    return f'<div class="card {kind}">{draw(smiles)}<div>{text(caption)}</div></div>'


def text_card(description: str, caption: str, kind: str = "", letters: int = 200) -> str:
    """The beginning of a description with a line under it.

    Args:
        description: In natural language.
        caption: Under it.
        kind: ``right`` or ``wrong`` for a border, empty for none.
        letters: Of the beginning.
    """
    beginning = description if len(description) <= letters else description[: letters - 1] + "…"
    return f'<div class="card {kind}"><p>{text(beginning)}</p><div>{text(caption)}</div></div>'
