"""No unsafe loader stands in the code: ruff's rules bite, and what ruff cannot see is looked for here."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("src", "shared", "domains", "benchmarks", "notebooks", ".ci")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py") if path.resolve() == path)

# Code that loads what may run code, and the rules that forbid it.
UNSAFE = {
    "import torch\ntorch.load('x')": "TID251",
    "from torch import load": "TID251",
    "import torch as t\nt.load('x', weights_only=False)": "TID251",
    "import torch.serialization\ntorch.serialization.load('x')": "TID251",
    "import torch\ntorch.jit.load('x')": "TID251",
    "import torch\ntorch.hub.load('a', 'b')": "TID251",
    "import torch.hub": "TID251",
    "from torch.utils.model_zoo import load_url": "TID251",
    "from torch.package import PackageImporter": "TID251",
    "from lightning.fabric.utilities.cloud_io import _load": "TID251",
    "import pickle": "TID251",
    "import pickle\npickle.loads(b'')": "TID251 S301",
    "import cloudpickle": "TID251",
    "import dill": "TID251",
    "import jsonpickle": "TID251",
    "import joblib\njoblib.load('x')": "TID251",
    "import marshal\nmarshal.loads(b'')": "TID251 S302",
    "import shelve": "TID251",
    "import pandas as pd\npd.read_pickle('x')": "TID251 S301",
    "import pandas as pd\npd.read_hdf('x')": "TID251",
    "import numpy as np\nnp.load('x', allow_pickle=True)": "TID251",
    "from numpy import load": "TID251",
    "import yaml\nyaml.load('x', Loader=yaml.Loader)": "TID251 S506",
    "import yaml\nyaml.unsafe_load('x')": "TID251",
    "import yaml\nyaml.full_load('x')": "TID251",
    "import huggingface_hub": "TID251",
    "import runpy": "TID251",
    "eval('1')": "S307",
    "exec('1')": "S102",
    "import urllib.request\nurllib.request.urlopen('x')": "S310",
    "import tarfile\nwith tarfile.open('x') as archive:\n    archive.extractall()": "S202",
}


def broken_rules(code: str, name: str) -> set[str]:
    command = [sys.executable, "-m", "ruff", "check", "--output-format", "json", "--stdin-filename", name, "-"]
    found = subprocess.run(command, cwd=ROOT, input=code, capture_output=True, text=True, check=False)
    assert found.returncode in (0, 1), found.stderr
    return {entry["code"] for entry in json.loads(found.stdout)}


def test_size_of_the_corpus() -> None:
    print(f"{len(UNSAFE)} unsafe loaders")
    assert len(UNSAFE) == 31


@pytest.mark.parametrize("code", UNSAFE)
def test_the_rules_bite(code: str) -> None:
    assert set(UNSAFE[code].split()) <= broken_rules(code + "\n", "shared/training/new.py")


def test_the_rules_let_safe_code_pass() -> None:
    code = '"""Doc."""\n\nimport yaml\nfrom safetensors import safe_open\n\nprint(yaml.safe_load("x"), safe_open)\n'
    assert broken_rules(code, "shared/training/new.py") == set()


def unsafe_words(source: str) -> Iterator[str]:
    """What no rule of ruff forbids."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and node.attr in ("load_from_checkpoint", "load_state_dict_from_url"):
            yield node.attr
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle" and not _is(node.value, False):
            yield "allow_pickle"
        if isinstance(node, ast.keyword) and node.arg == "weights_only" and not _is(node.value, True):
            yield "weights_only"
        if isinstance(node, ast.keyword) and node.arg == "trust_remote_code" and not _is(node.value, False):
            yield "trust_remote_code"


def _is(node: ast.expr, value: bool) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


@pytest.mark.parametrize(
    "code",
    ["Task.load_from_checkpoint('x')", "f(allow_pickle=True)", "f(weights_only=False)", "f(weights_only=w)", "f(trust_remote_code=True)"],
)  # fmt: skip
def test_what_ruff_cannot_see_is_found(code: str) -> None:
    assert list(unsafe_words(code))
    assert not list(unsafe_words("torch.load('x', weights_only=True)"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_unsafe_word_in_the_code(path: Path) -> None:
    assert list(unsafe_words(path.read_text(encoding="utf-8"))) == []


def test_exceptions_are_one() -> None:
    """Outside the tests, one line reads a checkpoint with torch."""
    silenced = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in FILES
        for line in path.read_text(encoding="utf-8").splitlines()
        if "noqa" in line and ("TID251" in line or "S3" in line or "S6" in line)
    ]
    assert [line.partition(":")[0] for line in silenced] == ["shared/training/checkpoint.py"]
    assert "weights_only=True" in silenced[0]


def test_every_trainer_reads_checkpoints_safely() -> None:
    """One place makes trainers, and gives them `SafeCheckpointIO`."""

    def makes(path: Path) -> bool:
        calls = [
            node.func for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)
        ]
        return any(getattr(call, "attr", getattr(call, "id", "")) == "Trainer" for call in calls)

    makers = [path for path in FILES if makes(path)]
    assert [str(path.relative_to(ROOT)) for path in makers] == ["shared/training/build.py"]
    assert "SafeCheckpointIO()]" in makers[0].read_text(encoding="utf-8")
