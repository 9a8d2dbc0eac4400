"""Bemis-Murcko scaffolds, the groups of a scaffold split.

"Scaffold split" names at least five definitions. This one: the Murcko framework of RDKit (ring systems, the linkers
between them and the exocyclic double bonds on both), written as canonical SMILES **without** chirality, as MoleculeNet
does. All acyclic molecules share the empty scaffold and so form one group, again as in MoleculeNet.

Source: Bemis & Murcko, J. Med. Chem. 39, 2887-2893 (1996).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from polyfm.shared.errors import DataError, MissingExtraError

try:
    from rdkit import Chem, rdBase
    from rdkit.Chem.Scaffolds import MurckoScaffold
except ImportError as error:
    raise MissingExtraError("rdkit", "molecules") from error

_MURCKO: Any = MurckoScaffold  # has no types


def scaffolds(smiles: Sequence[str]) -> list[str]:
    """The scaffold of every molecule.

    Args:
        smiles: SMILES that RDKit accepts.

    Returns:
        As many canonical SMILES without stereochemistry; "" for an acyclic molecule.
    """
    with rdBase.BlockLogs():
        found = {text: _scaffold(text) for text in dict.fromkeys(smiles)}
    return [found[text] for text in smiles]


def _scaffold(smiles: str) -> str:
    mol = Chem.MolFromSmiles(smiles)
    if mol is None:
        raise DataError(
            f"RDKit refuses the SMILES {smiles!r}",
            remedy="Read the file with read_molecules, which sorts such rows out",
        )
    framework: str = _MURCKO.MurckoScaffoldSmiles(mol=mol, includeChirality=False)
    return framework
