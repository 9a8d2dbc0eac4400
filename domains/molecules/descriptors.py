"""SPMM's 53 RDKit descriptors, bit-equal to RDKit's own functions and more than twice as fast; all 2-D ones; cached.

Source: Chang & Ye, SPMM (jinhojsk515/SPMM, ``calc_property.py``) for the list and its order. The speed comes from work
that RDKit repeats: E-state indices (four descriptors), paths (eight), Crippen contributions (two and QED), QED's other
inputs, distance matrices. See `polyfm.domains.molecules.topology`.
"""

from __future__ import annotations

import functools
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from polyfm.domains.molecules import topology
from polyfm.shared.data.cache import RowCache, cache_dir
from polyfm.shared.errors import DataError, MissingExtraError

try:
    from rdkit import Chem, __version__, rdBase
    from rdkit.Chem import QED, Descriptors, FilterCatalog, rdFingerprintGenerator, rdMolDescriptors
except ImportError as error:
    raise MissingExtraError("rdkit", "molecules") from error

# fmt: off
DESCRIPTORS: tuple[str, ...] = (
    "BalabanJ", "BertzCT", "Chi0", "Chi0n", "Chi0v", "Chi1", "Chi1n", "Chi1v", "Chi2n", "Chi2v", "Chi3n", "Chi3v",
    "Chi4n", "Chi4v", "ExactMolWt", "FpDensityMorgan1", "FpDensityMorgan2", "FpDensityMorgan3", "FractionCSP3",
    "HallKierAlpha", "HeavyAtomCount", "HeavyAtomMolWt", "Kappa1", "Kappa2", "Kappa3", "LabuteASA",
    "MaxAbsEStateIndex", "MaxEStateIndex", "MinAbsEStateIndex", "MinEStateIndex", "MolLogP", "MolMR", "MolWt",
    "NHOHCount", "NOCount", "NumAliphaticCarbocycles", "NumAliphaticHeterocycles", "NumAliphaticRings",
    "NumAromaticCarbocycles", "NumAromaticHeterocycles", "NumAromaticRings", "NumHAcceptors", "NumHDonors",
    "NumHeteroatoms", "NumRadicalElectrons", "NumRotatableBonds", "NumSaturatedCarbocycles",
    "NumSaturatedHeterocycles", "NumSaturatedRings", "NumValenceElectrons", "RingCount", "TPSA", "QED",
)
# fmt: on
"""Names as RDKit's, in SPMM's order. Masses in g/mol (ExactMolWt: monoisotopic, Da), areas (TPSA, LabuteASA) in Å²,
MolMR in cm³/mol, MolLogP in log10 units; all others without unit."""

DESCRIPTORS_2D: tuple[str, ...] = tuple(
    """
    MaxAbsEStateIndex MaxEStateIndex MinAbsEStateIndex MinEStateIndex qed SPS MolWt HeavyAtomMolWt ExactMolWt
    NumValenceElectrons NumRadicalElectrons MaxPartialCharge MinPartialCharge MaxAbsPartialCharge
    MinAbsPartialCharge FpDensityMorgan1 FpDensityMorgan2 FpDensityMorgan3 BCUT2D_MWHI BCUT2D_MWLOW BCUT2D_CHGHI
    BCUT2D_CHGLO BCUT2D_LOGPHI BCUT2D_LOGPLOW BCUT2D_MRHI BCUT2D_MRLOW AvgIpc BalabanJ BertzCT Chi0 Chi0n Chi0v
    Chi1 Chi1n Chi1v Chi2n Chi2v Chi3n Chi3v Chi4n Chi4v HallKierAlpha Ipc Kappa1 Kappa2 Kappa3 LabuteASA
    PEOE_VSA1 PEOE_VSA10 PEOE_VSA11 PEOE_VSA12 PEOE_VSA13 PEOE_VSA14 PEOE_VSA2 PEOE_VSA3 PEOE_VSA4 PEOE_VSA5
    PEOE_VSA6 PEOE_VSA7 PEOE_VSA8 PEOE_VSA9 SMR_VSA1 SMR_VSA10 SMR_VSA2 SMR_VSA3 SMR_VSA4 SMR_VSA5 SMR_VSA6
    SMR_VSA7 SMR_VSA8 SMR_VSA9 SlogP_VSA1 SlogP_VSA10 SlogP_VSA11 SlogP_VSA12 SlogP_VSA2 SlogP_VSA3 SlogP_VSA4
    SlogP_VSA5 SlogP_VSA6 SlogP_VSA7 SlogP_VSA8 SlogP_VSA9 TPSA EState_VSA1 EState_VSA10 EState_VSA11 EState_VSA2
    EState_VSA3 EState_VSA4 EState_VSA5 EState_VSA6 EState_VSA7 EState_VSA8 EState_VSA9 VSA_EState1 VSA_EState10
    VSA_EState2 VSA_EState3 VSA_EState4 VSA_EState5 VSA_EState6 VSA_EState7 VSA_EState8 VSA_EState9 FractionCSP3
    HeavyAtomCount NHOHCount NOCount NumAliphaticCarbocycles NumAliphaticHeterocycles NumAliphaticRings
    NumAmideBonds NumAromaticCarbocycles NumAromaticHeterocycles NumAromaticRings NumAtomStereoCenters
    NumBridgeheadAtoms NumHAcceptors NumHDonors NumHeteroatoms NumHeterocycles NumRotatableBonds
    NumSaturatedCarbocycles NumSaturatedHeterocycles NumSaturatedRings NumSpiroAtoms
    NumUnspecifiedAtomStereoCenters Phi RingCount MolLogP MolMR fr_Al_COO fr_Al_OH fr_Al_OH_noTert fr_ArN
    fr_Ar_COO fr_Ar_N fr_Ar_NH fr_Ar_OH fr_COO fr_COO2 fr_C_O fr_C_O_noCOO fr_C_S fr_HOCCN fr_Imine fr_NH0 fr_NH1
    fr_NH2 fr_N_O fr_Ndealkylation1 fr_Ndealkylation2 fr_Nhpyrrole fr_SH fr_aldehyde fr_alkyl_carbamate
    fr_alkyl_halide fr_allylic_oxid fr_amide fr_amidine fr_aniline fr_aryl_methyl fr_azide fr_azo fr_barbitur
    fr_benzene fr_benzodiazepine fr_bicyclic fr_diazo fr_dihydropyridine fr_epoxide fr_ester fr_ether fr_furan
    fr_guanido fr_halogen fr_hdrzine fr_hdrzone fr_imidazole fr_imide fr_isocyan fr_isothiocyan fr_ketone
    fr_ketone_Topliss fr_lactam fr_lactone fr_methoxy fr_morpholine fr_nitrile fr_nitro fr_nitro_arom
    fr_nitro_arom_nonortho fr_nitroso fr_oxazole fr_oxime fr_para_hydroxylation fr_phenol fr_phenol_noOrthoHbond
    fr_phos_acid fr_phos_ester fr_piperdine fr_piperzine fr_priamide fr_prisulfonamd fr_pyridine fr_quatN
    fr_sulfide fr_sulfonamd fr_sulfone fr_term_acetylene fr_tetrazole fr_thiazole fr_thiocyan fr_thiophene
    fr_unbrch_alkane fr_urea
    """.split()
)
"""Names of all of RDKit's 2-D descriptors (2025.3), in its order. Fixed here: how many columns a model has must not
depend on the release that it is loaded with. One that a release lacks is unknown."""

_PLAIN: dict[str, Callable[[Any], float]] = {
    name: getattr(Descriptors, "qed" if name == "QED" else name) for name in DESCRIPTORS
}
_QED: Any = QED  # has no types
_MORGAN = [rdFingerprintGenerator.GetMorganGenerator(radius=radius) for radius in (1, 2, 3)]
_MOLECULES_PER_JOB = 256
Result = TypeVar("Result")
_ROWS_PER_COMMIT = 4096
_ABSURD = 1e9  # Ipc grows with the number of walks: 1e80 for a steroid


def descriptors(mol: Any) -> NDArray[np.float64]:
    """The 53 descriptors of one molecule.

    Args:
        mol: An RDKit molecule, sanitised, as `Chem.MolFromSmiles` gives it.

    Returns:
        (53,) in the order of `DESCRIPTORS`, bit-equal to RDKit's functions called one by one.
    """
    if mol.GetNumAtoms() == 0:
        raise DataError("a molecule without atoms has no descriptors")
    graph = topology.Skeleton.of(mol)
    if (graph.numbers == 1).any():  # [2H], [H][H]: several RDKit functions treat explicit hydrogens each in its own way
        return np.array([function(mol) for function in _PLAIN.values()], dtype=np.float64)
    rd = rdMolDescriptors
    weighted = Chem.GetDistanceMatrix(mol, useBO=True, useAtomWts=False, force=False, prefix="Balaban")
    estate = topology.estate(graph, Chem.GetDistanceMatrix(mol, useBO=False, useAtomWts=False))
    estate_sizes = np.abs(estate)
    chi0, chi1 = topology.chi_simple(graph)
    paths = topology.path_indices(graph, *topology.chi_weights(graph))
    num_heavy, alpha = mol.GetNumHeavyAtoms(), rd.CalcHallKierAlpha(mol)
    log_p, refractivity = rd.CalcCrippenDescriptors(mol)
    weight, polar_area = _PLAIN["MolWt"](mol), rd.CalcTPSA(mol)
    num_donors, num_rotatable = rd.CalcNumHBD(mol), rd.CalcNumRotatableBonds(mol)
    # fmt: off
    return np.array([
        topology.balaban_j(graph, weighted), topology.bertz_ct(graph, weighted),
        chi0, rd.CalcChi0n(mol), rd.CalcChi0v(mol), chi1, rd.CalcChi1n(mol), rd.CalcChi1v(mol),
        *paths.chi,
        rd.CalcExactMolWt(mol), *_morgan_density(mol, num_heavy),
        rd.CalcFractionCSP3(mol), alpha, num_heavy, _PLAIN["HeavyAtomMolWt"](mol), rd.CalcKappa1(mol),
        topology.kappa(2, paths.num_paths[0], num_heavy, alpha),
        topology.kappa(3, paths.num_paths[1], num_heavy, alpha),
        rd.CalcLabuteASA(mol), estate_sizes.max(), estate.max(), estate_sizes.min(), estate.min(),
        log_p, refractivity, weight, rd.CalcNumLipinskiHBD(mol), rd.CalcNumLipinskiHBA(mol),
        rd.CalcNumAliphaticCarbocycles(mol), rd.CalcNumAliphaticHeterocycles(mol), rd.CalcNumAliphaticRings(mol),
        rd.CalcNumAromaticCarbocycles(mol), rd.CalcNumAromaticHeterocycles(mol), rd.CalcNumAromaticRings(mol),
        rd.CalcNumHBA(mol), num_donors, rd.CalcNumHeteroatoms(mol), graph.radicals.sum(), num_rotatable,
        rd.CalcNumSaturatedCarbocycles(mol), rd.CalcNumSaturatedHeterocycles(mol), rd.CalcNumSaturatedRings(mol),
        graph.valence_electrons, rd.CalcNumRings(mol), polar_area,
        _qed(mol, MW=weight, ALOGP=log_p, HBD=num_donors, PSA=polar_area, ROTB=num_rotatable),
    ], dtype=np.float64)
    # fmt: on


def _morgan_density(mol: Any, num_heavy: int) -> list[float]:
    """Distinct circular environments of radius at most 1, 2 and 3 per heavy atom."""
    if num_heavy == 0:
        return [0.0, 0.0, 0.0]
    return [len(morgan.GetSparseCountFingerprint(mol).GetNonzeroElements()) / num_heavy for morgan in _MORGAN]


@functools.cache
def _alerts() -> Any:
    """QED's structural alerts as one catalogue: a single call instead of one per alert."""
    catalog = FilterCatalog.FilterCatalog()
    for smarts in _QED.StructuralAlertSmarts:
        catalog.AddEntry(FilterCatalog.FilterCatalogEntry(smarts, FilterCatalog.SmartsMatcher(smarts, smarts, 1)))
    return catalog


def _qed(mol: Any, **shared: float) -> float:
    """QED (Bickerton et al., Nature Chemistry 4, 90-98, 2012) from the inputs that other descriptors already have."""
    rings = Chem.GetSSSR(Chem.DeleteSubstructs(Chem.Mol(mol), _QED.AliphaticRings))
    inputs = _QED.QEDproperties(
        HBA=sum(len(mol.GetSubstructMatches(pattern)) for pattern in _QED.Acceptors),
        AROM=len(rings),
        ALERTS=len(_alerts().GetMatches(mol)),
        **shared,
    )
    return float(_QED.qed(mol, qedProperties=inputs))


def descriptor_table(
    smiles: Sequence[str],
    *,
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.float64]:
    """The 53 descriptors of many molecules, looked up on disk first.

    The cache is one file per RDKit release (`RowCache` under ``cache_dir("molecules")``), keyed by the SMILES as given:
    pass canonical ones, as `read_molecules` does. What is computed is stored every few thousand rows, so an interrupted
    build goes on where it stopped.

    Args:
        smiles: n SMILES that RDKit accepts.
        workers: Processes that compute what the cache lacks; 0 computes in this one. The result is the same.
        progress: Called with (rows done, rows to compute) from time to time.

    Returns:
        (n, 53) in the order of `DESCRIPTORS`. What RDKit cannot compute, or returns as infinite, is NaN: unknown.
    """
    return _cached(smiles, _rows, len(DESCRIPTORS), workers, progress)


def descriptor_table_2d(
    smiles: Sequence[str],
    *,
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.float64]:
    """All of RDKit's 2-D descriptors of many molecules, looked up on disk first; see `descriptor_table`.

    Args:
        smiles: n SMILES that RDKit accepts.
        workers: Processes that compute what the cache lacks; 0 computes in this one.
        progress: Called with (rows done, rows to compute) from time to time.

    Returns:
        (n, P) in the order of `DESCRIPTORS_2D`; undefined, infinite and absurd values (Ipc) are NaN.
    """
    return _cached(smiles, _rows_2d, len(DESCRIPTORS_2D), workers, progress)


def _cached(
    smiles: Sequence[str],
    rows_of: Callable[[list[str]], NDArray[np.float64]],
    width: int,
    workers: int,
    progress: Callable[[int, int], None] | None,
) -> NDArray[np.float64]:
    """(n, width) of what a function makes of SMILES; computed and stored where the cache lacks it."""
    cache = RowCache(cache_dir("molecules") / f"descriptors{width}-rdkit-{__version__}.sqlite", width)
    table, found = cache.get(smiles)
    missing = list(dict.fromkeys(text for text, hit in zip(smiles, found, strict=True) if not hit))
    if not missing:
        return table
    fresh: dict[str, NDArray[np.float64]] = {}
    pending: list[str] = []
    for job, rows in in_jobs(missing, rows_of, workers):
        fresh.update(zip(job, rows, strict=True))
        pending += job
        if len(pending) >= _ROWS_PER_COMMIT or len(fresh) == len(missing):
            cache.put(pending, np.stack([fresh[text] for text in pending]))
            pending = []
        if progress is not None:
            progress(len(fresh), len(missing))
    for index in np.flatnonzero(~found).tolist():
        table[index] = fresh[smiles[index]]
    return table


def in_jobs(
    smiles: list[str], function: Callable[[list[str]], Result], workers: int
) -> Iterator[tuple[list[str], Result]]:
    """Some molecules at a time and what a function makes of them, in order.

    Args:
        smiles: All molecules.
        function: Of some molecules; can be sent to other processes.
        workers: Processes; 0 works in this one. The result is the same.
    """
    jobs = [smiles[start : start + _MOLECULES_PER_JOB] for start in range(0, len(smiles), _MOLECULES_PER_JOB)]
    if workers == 0 or len(jobs) <= 1:
        yield from zip(jobs, map(function, jobs), strict=True)
        return
    # spawn: a fork of a process that holds torch's threads can hang.
    with multiprocessing.get_context("spawn").Pool(min(workers, len(jobs))) as pool:
        yield from zip(jobs, pool.imap(function, jobs), strict=True)


def _rows(smiles: Iterable[str]) -> NDArray[np.float64]:
    with rdBase.BlockLogs():
        table = np.stack([_row(text) for text in smiles])
    return np.where(np.isfinite(table), table, np.nan)


def _row(smiles: str) -> NDArray[np.float64]:
    mol = Chem.MolFromSmiles(smiles)
    if mol is None:
        raise DataError(
            f"RDKit refuses the SMILES {smiles!r}",
            remedy="Read the file with read_molecules, which sorts such rows out",
        )
    try:
        return descriptors(mol)
    except (ValueError, ArithmeticError, RuntimeError):
        return np.full(len(DESCRIPTORS), np.nan)


def _rows_2d(smiles: Iterable[str]) -> NDArray[np.float64]:
    describe: Any = Descriptors.CalcMolDescriptors
    with rdBase.BlockLogs():
        known = [describe(Chem.MolFromSmiles(text)) for text in smiles]
    table = np.array([[found.get(name, np.nan) for name in DESCRIPTORS_2D] for found in known], dtype=np.float64)
    return np.where(np.abs(table) < _ABSURD, table, np.nan)
