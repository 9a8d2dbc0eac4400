"""Small valid files of every format, made of invented molecules: for tests, notebooks and first tries.

Molecules are grown from a grammar of ring systems, linkers and substituents, so they are drug-like in size, chemically
valid and all different. Their labels are computed from the structure, with noise, so there is something to learn. None
of it is measured.
"""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from polyfm.shared.errors import MissingExtraError, UsageError

try:
    from rdkit import Chem
    from rdkit.Chem import rdDepictor, rdMolDescriptors
except ImportError as error:
    raise MissingExtraError("rdkit", "molecules") from error

# Ring systems with open places, and what ChEBI calls their family. Ring-closure digits 1 and 2.
_CORES = {
    "c1ccc({})cc1{}": "benzenes",
    "c1cc({})cc({})c1": "benzenes",
    "c1cc({})nc({})c1": "pyridines",
    "c1nc({})cc({})n1": "pyrimidines",
    "c1cc({})sc1{}": "thiophenes",
    "c1c({})n(C)nc1{}": "pyrazoles",
    "C1CN({})CCC1{}": "piperidines",
    "C1CN({})CCN1{}": "piperazines",
    "c1ccc2c({})cc({})cc2c1": "naphthalenes",
    "c1ccc2[nH]c({})c({})c2c1": "indoles",
    "c1ccc2nc({})cc({})c2c1": "quinolines",
    "C1CCC({})CC1{}": "cyclohexanes",
    "CCC({})CC{}": "alkanes",
    "CN({})CCC{}": "tertiary amines",
}
# Groups at an open place and their name in a description; all can stand on carbon or nitrogen.
_GROUPS = {
    "C": "a methyl group",
    "CC": "an ethyl group",
    "C(C)C": "an isopropyl group",
    "CCO": "a hydroxyethyl group",
    "CC#N": "a cyanomethyl group",
    "C(=O)C": "an acetyl group",
    "C(=O)N": "a carboxamide group",
    "C(=O)OC": "a methoxycarbonyl group",
    "CC(=O)O": "a carboxymethyl group",
    "CC(F)(F)F": "a trifluoroethyl group",
    "S(=O)(=O)C": "a methylsulfonyl group",
    "CCCl": "a chloroethyl group",
    "CCN(C)C": "a dimethylaminoethyl group",
    "CCOC": "a methoxyethyl group",
}
# A second ring behind a linker. Ring-closure digits from 3, since the core's may be open.
_LINKERS = {"C": "methylene", "CC": "ethylene", "C(=O)": "carbonyl", "CO": "oxymethylene", "S(=O)(=O)": "sulfonyl"}
_RINGS = {
    "c3ccc({})cc3": "phenyl",
    "c3ccnc({})c3": "pyridyl",
    "c3ccc({})o3": "furyl",
    "C3CCC({})CC3": "cyclohexyl",
    "c3ccc(F)c({})c3": "fluorophenyl",
    "c3cc(Cl)cc({})c3": "chlorophenyl",
}
_SHARE_LINKED = 0.4
_SHARE_MISSING = 0.3
_NOISE = 0.2
_TRIES_PER_MOLECULE = 50

COLUMNS = ("id", "smiles", "activity", "active", "assay_amide", "assay_halogen", "assay_basic", "description")
"""Columns of every table: ``activity`` is a number (log10 units), ``active`` 0 or 1, the assays 0, 1 or missing."""


def synthetic_molecules(n: int, *, seed: int = 0) -> pd.DataFrame:
    """Invent molecules with labels and descriptions.

    Args:
        n: How many, all different; some ten million exist.
        seed: Another seed, other molecules.

    Returns:
        n rows of `COLUMNS`, missing assay labels NaN.
    """
    random = np.random.default_rng(seed)
    found: dict[str, str] = {}
    for _ in range(_TRIES_PER_MOLECULE * n):
        if len(found) == n:
            break
        text, description = _grow(random)
        found.setdefault(Chem.MolToSmiles(Chem.MolFromSmiles(text)), description)
    if len(found) < n:
        raise UsageError(f"the grammar gave {len(found)} different molecules, not {n}", remedy="Ask for fewer")
    mols = [Chem.MolFromSmiles(smiles) for smiles in found]
    log_p = np.array([rdMolDescriptors.CalcCrippenDescriptors(mol)[0] for mol in mols])
    polar_area = np.array([rdMolDescriptors.CalcTPSA(mol) for mol in mols])
    activity = 5 + 0.8 * log_p - 0.02 * polar_area + _NOISE * random.standard_normal(n)
    table: dict[str, object] = {
        "id": [f"SYN-{index:05d}" for index in range(1, n + 1)],
        "smiles": list(found),
        "activity": activity.round(3),
        "active": (activity > np.median(activity)).astype(int),
    }
    for name, smarts in {"amide": "[NX3]C=O", "halogen": "[F,Cl]", "basic": "[NX3;!$(N[C,S]=O);!$(Nc)]"}.items():
        pattern = Chem.MolFromSmarts(smarts)
        labels = np.array([mol.HasSubstructMatch(pattern) for mol in mols], dtype=np.float64)
        table[f"assay_{name}"] = np.where(random.random(n) < _SHARE_MISSING, np.nan, labels)
    table["description"] = list(found.values())
    return pd.DataFrame(table)


def write_synthetic(folder: str | Path, *, kind: str = "csv", n: int = 200, seed: int = 0) -> Path:
    """Write one file of invented molecules, the same bytes for the same arguments.

    Args:
        folder: Where to; created if needed. The file is named ``molecules.<kind>``.
        kind: One of `KINDS`.
        n: Molecules.
        seed: Another seed, other molecules.

    Returns:
        The file.
    """
    if kind not in KINDS:
        raise UsageError(f"kind is {kind!r}; expected one of {', '.join(KINDS)}")
    path = Path(folder) / f"molecules.{kind}"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = _WRITERS[kind.removesuffix(".gz")](synthetic_molecules(n, seed=seed))
    # No time stamp: the same molecules give the same bytes.
    path.write_bytes(gzip.compress(content, mtime=0) if kind.endswith(".gz") else content)
    return path


def _grow(random: np.random.Generator) -> tuple[str, str]:
    """A SMILES and a sentence about it."""
    core = _pick(random, _CORES)
    places = [_substituent(random) for _ in range(2)]
    text = core.format(*(smiles for smiles, _ in places))
    description = (
        f"The molecule is a member of the class of {_CORES[core]} carrying {places[0][1]} and {places[1][1]}. "
        "It has a role as a synthetic example."
    )
    return text, description


def _substituent(random: np.random.Generator) -> tuple[str, str]:
    group = _pick(random, _GROUPS)
    if random.random() >= _SHARE_LINKED:
        return group, _GROUPS[group]
    linker, ring = _pick(random, _LINKERS), _pick(random, _RINGS)
    name = f"a {_RINGS[ring]} ring behind {_LINKERS[linker]}, itself with {_GROUPS[group]}"
    return linker + ring.format(group), name


def _pick(random: np.random.Generator, choices: dict[str, str]) -> str:
    return list(choices)[random.integers(len(choices))]


def _delimited(separator: str) -> Callable[[pd.DataFrame], bytes]:
    def write(table: pd.DataFrame) -> bytes:
        return table.to_csv(sep=separator, index=False, quoting=csv.QUOTE_MINIMAL, lineterminator="\n").encode()

    return write


def _parquet(table: pd.DataFrame) -> bytes:
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    return buffer.getvalue()


def _smi(table: pd.DataFrame) -> bytes:
    return "".join(f"{smiles} {name}\n" for smiles, name in zip(table.smiles, table.id, strict=True)).encode()


def _sdf(table: pd.DataFrame) -> bytes:
    text = io.StringIO()
    with Chem.SDWriter(text) as writer:
        for row in table.to_dict("records"):
            mol = Chem.MolFromSmiles(row["smiles"])
            rdDepictor.Compute2DCoords(mol)
            mol.SetProp("_Name", row["id"])
            for column in COLUMNS[2:]:
                if not pd.isna(row[column]):
                    mol.SetProp(column, str(row[column]))
            writer.write(mol)
    # The second line of a record holds RDKit's time stamp.
    records = text.getvalue().split("$$$$\n")[:-1]
    return "".join("\n".join(_undated(record.split("\n"))) + "$$$$\n" for record in records).encode()


def _undated(lines: list[str]) -> list[str]:
    return [lines[0], "     polyfm  2D", *lines[2:]]


_WRITERS: dict[str, Callable[[pd.DataFrame], bytes]] = {
    "csv": _delimited(","),
    "tsv": _delimited("\t"),
    "parquet": _parquet,
    "smi": _smi,
    "sdf": _sdf,
}
KINDS = ("csv", "csv.gz", "tsv", "tsv.gz", "parquet", "smi", "smi.gz", "sdf", "sdf.gz")
"""What `write_synthetic` can write."""

# Acids, amines, alcohols and bromides around two substituents, and what becomes of them.
_REACTIONS = {
    "O=C(O){a}.N{b}>>O=C(N{b}){a}": "amide from acid and amine",
    "O=C(O){a}.OC{b}>>O=C(OC{b}){a}": "ester from acid and alcohol",
    "BrC{a}.N{b}>O=C([O-])[O-].[K+].[K+]>C({a})N{b}": "amine from bromide and amine",
    "O=C{a}.N{b}>[BH4-].[Na+]>C({a})N{b}": "amine from aldehyde and amine",
    "O=C(OC){a}>[Li+].[OH-]>O=C(O){a}": "acid from ester",
}


def synthetic_reactions(n: int, *, seed: int = 0) -> pd.DataFrame:
    """Invent reactions of five kinds.

    Args:
        n: How many, all different.
        seed: Another seed, other reactions.

    Returns:
        n rows of ``id``, ``reaction`` (``a>>b`` or ``a>c>b``, not canonical) and ``kind``.
    """
    random = np.random.default_rng(seed)
    found: dict[str, str] = {}
    for _ in range(_TRIES_PER_MOLECULE * n):
        if len(found) == n:
            break
        kind = _pick(random, _REACTIONS)
        a, b = (_pick(random, _RINGS).format(_pick(random, _GROUPS)) for _ in range(2))
        found.setdefault(kind.format(a=a, b=b.replace("3", "4")), _REACTIONS[kind])
    if len(found) < n:
        raise UsageError(f"the grammar gave {len(found)} different reactions, not {n}", remedy="Ask for fewer")
    ids = [f"RXN-{index:05d}" for index in range(1, n + 1)]
    return pd.DataFrame({"id": ids, "reaction": list(found), "kind": list(found.values())})


def write_reactions(folder: str | Path, *, n: int = 200, seed: int = 0) -> Path:
    """Write ``reactions.csv`` of invented reactions, the same bytes for the same arguments.

    Args:
        folder: Where to; created if needed.
        n: Reactions.
        seed: Another seed, other reactions.

    Returns:
        The file.
    """
    path = Path(folder) / "reactions.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_delimited(",")(synthetic_reactions(n, seed=seed)))
    return path
