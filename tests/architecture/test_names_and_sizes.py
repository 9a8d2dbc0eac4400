"""Rules 2 and 3 of the house: the same names in every domain, no drawers for odds and ends, no giant files."""

from __future__ import annotations

import ast
import io
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("src", "shared", "domains", "benchmarks", "tests", ".ci")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
DOMAINS = sorted(path.parent for path in (ROOT / "domains").glob("*/__init__.py"))

DRAWERS = {"utils", "util", "common", "misc", "helpers", "helper"}
CORE = {
    "__init__.py",
    "README.md",
    "sample.py",
    "read.py",
    "transforms.py",
    "data.py",
    "embedder.py",
    "metrics.py",
    "synthetic.py",
}
WHERE_SHARED_LACKS_IT = {"heads.py", "backbone.py", "objectives.py", "render.py"}
WHERE_A_VERB_ASKS = {"baselines.py", "demo.py", "demo_run", "evaluate.py", "generate.py", "tools.py"}
SCIENCE = {
    "molecules": {
        "atom_graph.py",
        "canonical.py",
        "conformers.py",
        "denoising.py",
        "descriptors.py",
        "duplicates.py",
        "knowledge.py",
        "phrases.py",
        "reaction_data.py",
        "reaction_prediction.py",
        "reactions.py",
        "scaffold.py",
        "smiles_graph.py",
        "structure_files.py",
        "topology.py",
        "vectors.py",
    },
    "singlecell": {
        "anndata_object.py",
        "anndata_strings.py",
        "annotated.py",
        "annotations.py",
        "binning.py",
        "blocks.py",
        "cell_files.py",
        "chunked.py",
        "donors.py",
        "expression.py",
        "genes.py",
        "hdf5.py",
        "kernels.py",
        "layers.py",
        "markers.py",
        "ontology.py",
        "quality.py",
        "store.py",
        "tenx.py",
        "zarr_folder.py",
    },
}
"""Further files of one domain, for what exists in its science only: one that a second domain has too gets one name."""


def lines_of_code(source: str) -> int:
    """Lines that hold code: no blanks, comments or docstrings."""
    layout = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    code = {line for token in tokens if token.type not in layout for line in range(token.start[0], token.end[0] + 1)}
    for node in ast.walk(ast.parse(source)):
        # A string that stands alone documents what is above it: module, class, function or field.
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            code -= set(range(node.lineno, node.end_lineno + 1))
    return len(code)


def test_lines_of_code_leaves_out_docstrings_comments_and_blanks() -> None:
    assert lines_of_code('"""Doc.\n\nMore."""\n\n# why\nx = 1  # how\ny = """a\nb"""\n"""Field."""\n') == 3


def test_links_of_the_package_are_not_counted_twice() -> None:
    assert FILES
    assert not [path for path in FILES if path.resolve() != path]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_giant_file(path: Path) -> None:
    assert lines_of_code(path.read_text(encoding="utf-8")) <= 600


def test_no_drawer() -> None:
    assert not [path for path in FILES if DRAWERS & {path.stem, *path.relative_to(ROOT).parts}]


def test_there_are_domains() -> None:
    assert DOMAINS


@pytest.mark.parametrize("domain", DOMAINS, ids=lambda path: path.name)
def test_domain_has_the_file_names_of_all_domains(domain: Path) -> None:
    names = {path.name for path in domain.iterdir() if path.name != "__pycache__"}
    assert CORE - names == set(), "missing"
    known = CORE | WHERE_SHARED_LACKS_IT | WHERE_A_VERB_ASKS | SCIENCE.get(domain.name, set())
    assert names - known == set(), "not a name of this house"


def test_what_two_domains_have_is_no_longer_science_of_one() -> None:
    names = [name for files in SCIENCE.values() for name in files]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("tree", ["shared", "domains"])
def test_tests_mirror_the_code(tree: str) -> None:
    """A test stands where its code stands: shared/data/splits.py, tests/shared/data/test_splits.py."""
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / tree).rglob("*.py")}
    strays = {
        path.parent.relative_to(ROOT / "tests")
        for path in (ROOT / "tests" / tree).rglob("test_*.py")
        if path.parent.relative_to(ROOT / "tests") not in folders
    }
    assert not strays
