"""Hostile zarr folders: each is made here and refused with one message before a chunk is read."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from polyfm.domains.singlecell import zarr_folder
from polyfm.domains.singlecell.zarr_folder import check_zarr
from polyfm.shared.errors import DataError


def store(folder: Path, version: int) -> Path:
    path = folder / f"cells{version}.zarr"
    group = zarr.open_group(path, mode="w", zarr_format=version)
    group.create_array("X", data=np.arange(12, dtype="f4").reshape(4, 3), chunks=(2, 3))
    group.create_group("obs").create_array("_index", shape=(4,), dtype=str)[:] = np.array(
        ["a", "b", "c", "d"], dtype="T"
    )
    return path


def edit(file: Path, **changes: Any) -> None:
    content = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(content | changes))


Make = Callable[[Path, Path], None]
OLD: dict[str, tuple[Make, str]] = {
    "link to a file elsewhere": (lambda path, out: (path / "X" / "9.9").symlink_to(out), "/X/9.9 is a link, to '"),
    "link to a folder elsewhere": (lambda path, out: (path / "raw").symlink_to(out.parent), "/raw is a link, to '"),
    "FIFO for a chunk": (lambda path, out: os.mkfifo(path / "X" / "5.5"), "/X/5.5 is neither a file nor a folder"),
    "name that leads out": (
        lambda path, out: edit(path / ".zmetadata", metadata={"../../secret/.zarray": {}}, zarr_consolidated_format=1),
        "names '../../secret/.zarray', which leads out of the folder",
    ),
    "pickle codec": (lambda path, out: edit(path / "X" / ".zarray", filters=[{"id": "pickle"}]), "codec 'pickle', which runs code"),
    "pickle codec in consolidated metadata": (
        lambda path, out: edit(
            path / ".zmetadata",
            metadata={"X/.zarray": json.loads((path / "X/.zarray").read_text()) | {"filters": [{"id": "pickle"}]}},
        ),
        "codec 'pickle', which runs code",
    ),
    "objects": (lambda path, out: edit(path / "X" / ".zarray", dtype="|O"), "Python objects without a codec for texts"),
    "unknown codec": (lambda path, out: edit(path / "X" / ".zarray", compressor={"id": "mine"}), "codec 'mine', which is not among"),
    "huge shape": (lambda path, out: edit(path / "X" / ".zarray", shape=[1 << 40, 3]), "claims 1,099,511,627,776 × 3 values of 4 bytes"),
    "huge chunk": (lambda path, out: edit(path / "X" / ".zarray", chunks=[1 << 30, 3]), "chunks of 12,884,901,888 bytes"),
    "negative shape": (lambda path, out: edit(path / "X" / ".zarray", shape=[-1, 3]), "the shape [-1, 3]"),
    "chunks of other dimensions": (lambda path, out: edit(path / "X" / ".zarray", chunks=[2]), "has 2 dimensions, but chunks of 1"),
    "no JSON": (lambda path, out: (path / "X" / ".zarray").write_text("{"), "/X/.zarray is not valid JSON"),
    "JSON a million levels deep": (lambda path, out: (path / ".zattrs").write_text("[" * 1_000_000), "/.zattrs is not valid JSON"),
    "JSON list": (lambda path, out: (path / "X" / ".zarray").write_text("[]"), "/X/.zarray is no JSON object"),
    "without a shape": (lambda path, out: (path / "X" / ".zarray").write_text('{"zarr_format": 2}'), "is not described as zarr does it ('shape')"),
}  # fmt: skip
NEW: dict[str, tuple[Make, str]] = {
    "link to a file elsewhere": (lambda path, out: (path / "X" / "c" / "9").symlink_to(out), "/X/c/9 is a link, to '"),
    "pickle codec": (lambda path, out: edit(path / "X" / "zarr.json", codecs=[{"name": "numcodecs.pickle"}]), "codec 'numcodecs.pickle', which runs code"),
    "pickle codec in a shard": (
        lambda path, out: edit(path / "X" / "zarr.json", codecs=[{"name": "sharding_indexed", "configuration": {"codecs": [{"name": "pickle"}]}}]),
        "codec 'pickle', which runs code",
    ),
    "name that leads out": (
        lambda path, out: edit(path / "zarr.json", consolidated_metadata={"metadata": {"a/../../b": {}}}),
        "names 'a/../../b', which leads out of the folder",
    ),
    "huge shape": (lambda path, out: edit(path / "X" / "zarr.json", shape=[1 << 50, 3]), "claims 1,125,899,906,842,624 × 3 values"),
    "huge chunk": (
        lambda path, out: edit(path / "X" / "zarr.json", chunk_grid={"name": "regular", "configuration": {"chunk_shape": [1 << 30, 3]}}),
        "chunks of 12,884,901,888 bytes",
    ),
    "unknown kind of values": (lambda path, out: edit(path / "X" / "zarr.json", data_type="object"), "values of the kind 'object'"),
    "storage transformers": (lambda path, out: edit(path / "X" / "zarr.json", storage_transformers=[{"name": "x"}]), "has storage transformers"),
}  # fmt: skip
HOSTILE = {f"format {version}: {name}": (version, *case) for version, cases in ((2, OLD), (3, NEW)) for name, case in cases.items()}  # fmt: skip


def test_size_of_the_corpus_of_hostile_zarr_folders() -> None:
    print(f"{len(HOSTILE)} hostile zarr folders")
    assert len(HOSTILE) == 24


@pytest.mark.parametrize(("version", "make", "problem"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_folders_are_refused(version: int, make: Make, problem: str, tmp_path: Path) -> None:
    path = store(tmp_path, version)
    secret = tmp_path / "secret" / "file"
    secret.parent.mkdir()
    secret.write_text("secret")
    make(path, secret)
    with pytest.raises(DataError) as refused:
        check_zarr(path)
    said = str(refused.value)
    assert said.startswith(f"{path}: /")
    assert problem in said
    assert "it was not read. " in said
    assert "\n" not in said


@pytest.mark.filterwarnings("ignore::zarr.errors.ZarrUserWarning")
@pytest.mark.parametrize("version", [2, 3])
def test_ordinary_folders_pass(version: int, tmp_path: Path) -> None:
    path = store(tmp_path, version)
    check_zarr(path)
    zarr.consolidate_metadata(path)
    check_zarr(path)


def test_limits_of_the_walk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = store(tmp_path, 2)
    (path / "/".join("a" * 45)).mkdir(parents=True)
    with pytest.raises(DataError, match="lies more than 40 folders deep"):
        check_zarr(path)
    monkeypatch.setattr(zarr_folder, "MAX_ENTRIES", 3)
    with pytest.raises(DataError, match="is one of more than 3 files"):
        check_zarr(path)
    monkeypatch.setattr(zarr_folder, "MAX_ENTRIES", 1000)
    monkeypatch.setattr(zarr_folder, "MAX_DEPTH", 1000)
    monkeypatch.setattr(zarr_folder, "MAX_METADATA_BYTES", 10)
    with pytest.raises(DataError, match="bytes of metadata"):
        check_zarr(path)


def test_a_folder_that_is_no_zarr(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the folder is no zarr store: it holds no .zgroup and no zarr.json"):
        check_zarr(tmp_path)
