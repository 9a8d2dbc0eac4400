"""Refuse hostile zarr folders before a chunk of them is read.

A zarr store is a folder of JSON and chunks, so a link in it, or a name with ``..`` in its consolidated metadata, leads
anywhere; a codec may unpickle what it decodes; and a shape costs nothing to write. `check_zarr` walks over the folder
once and reads only its JSON. Both formats are known, 2 and 3.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from polyfm.shared.errors import DataError

MAX_ENTRIES = 20_000_000
"""Files and folders: a chunk is a file."""
MAX_DEPTH = 40
MAX_METADATA_BYTES = 64 << 20
SMALL_BYTES = 256 << 20
MAX_RATIO = 1 << 17
"""Claimed over stored bytes: Zstandard keeps 128 KiB of one value in a few bytes, and chunks of zeros are not kept."""
MAX_CHUNK_BYTES = 1 << 30
MAX_VALUES = 1 << 48

METADATA_2 = (".zgroup", ".zarray", ".zattrs", ".zmetadata")
METADATA_3 = "zarr.json"
CODECS_2 = frozenset(
    "blosc zstd gzip zlib lz4 bz2 lzma shuffle delta crc32 fletcher32 packbits fixedscaleoffset "
    "vlen-utf8 vlen-bytes vlen-array".split()
)
CODECS_3 = frozenset("bytes transpose blosc gzip zstd crc32c sharding_indexed vlen-utf8 vlen-bytes".split())
_TYPES_3 = re.compile(
    r"bool|string|bytes|variable_length_bytes|(u?int|float|complex)\d+|r\d+|numpy\.\w+|(fixed|null)_\w+"
)
_VARIABLE_BYTES = 16
"""What one value of variable length takes at least."""

_NOT_TRUSTED = "Do not trust the folder. If it is your own, write it anew: adata.write_zarr(NEW)"


def is_zarr(path: Path) -> bool:
    """Whether a folder says that it is a zarr store.

    Args:
        path: The folder.
    """
    return any((path / name).is_file() for name in (*METADATA_2, METADATA_3))


def check_zarr(path: str | Path) -> None:
    """Walk over a zarr folder and refuse what could reach beyond it, run code or exhaust the machine.

    Args:
        path: The folder.

    Raises:
        DataError: It is no zarr store, cannot be read, or holds what is said above.
    """
    path = Path(path)
    if not is_zarr(path):
        raise DataError(
            "the folder is no zarr store: it holds no .zgroup and no zarr.json",
            where=path,
            remedy="Name the folder that adata.write_zarr wrote",
        )
    walk = _Walk(path)
    try:
        walk.folder(path, "/", 0)
    except OSError as error:
        raise DataError(
            f"{error.filename or path} cannot be read ({error.strerror})",
            where=path,
            remedy="Let yourself read it (chmod -R u+rX FOLDER), or ask its owner",
        ) from error


@dataclass
class _Walk:
    path: Path
    entries: int = 0
    stored: dict[str, int] = field(default_factory=dict)

    def refuse(self, name: str, problem: str, remedy: str = _NOT_TRUSTED) -> DataError:
        return DataError(f"{name} {problem}; it was not read", where=self.path, remedy=remedy)

    def folder(self, folder: Path, name: str, depth: int) -> int:
        """Check a folder and all below; its bytes."""
        if depth > MAX_DEPTH:
            raise self.refuse(name, f"lies more than {MAX_DEPTH} folders deep")
        num_bytes, metadata = 0, []
        with os.scandir(folder) as entries:
            for entry in entries:
                child = f"{name.rstrip('/')}/{entry.name}"
                self.entries += 1
                if self.entries > MAX_ENTRIES:
                    raise self.refuse(child, f"is one of more than {MAX_ENTRIES:,} files")
                if entry.is_symlink():
                    raise self.refuse(
                        child,
                        f"is a link, to {os.readlink(entry.path)!r}",
                        "If you trust it, copy the folder with what its links name: cp -rL OLD NEW",
                    )
                if entry.is_dir(follow_symlinks=False):
                    num_bytes += self.folder(Path(entry.path), child, depth + 1)
                    continue
                status = entry.stat(follow_symlinks=False)
                if not stat.S_ISREG(status.st_mode):
                    raise self.refuse(child, "is neither a file nor a folder")
                num_bytes += status.st_size
                if entry.name in METADATA_2 or entry.name == METADATA_3:
                    metadata.append((Path(entry.path), child, status.st_size))
        for file, child, size in metadata:
            self.metadata(file, name, child, size, num_bytes)
        return num_bytes

    def metadata(self, file: Path, owner: str, name: str, size: int, num_bytes: int) -> None:
        if size > MAX_METADATA_BYTES:
            raise self.refuse(name, f"is {size:,} bytes of metadata")
        try:
            content = json.loads(file.read_bytes())
        except (ValueError, RecursionError) as error:
            raise self.refuse(name, "is not valid JSON", "Copy or fetch the folder again") from error
        if not isinstance(content, dict):
            raise self.refuse(name, "is no JSON object", "Copy or fetch the folder again")
        if file.name == ".zattrs":
            return
        if file.name == ".zmetadata":
            for key, child in self.consolidated(name, content.get("metadata")):
                if key.rpartition("/")[2] == ".zarray":
                    self.array(f"{name}: {key}", child, num_bytes)
            return
        if file.name == ".zarray" or content.get("node_type") == "array":
            self.array(owner, content, num_bytes)
        elif inside := content.get("consolidated_metadata"):
            found = inside.get("metadata") if isinstance(inside, dict) else None
            for key, child in self.consolidated(name, found):
                if child.get("node_type") == "array":
                    self.array(f"{name}: {key}", child, num_bytes)

    def consolidated(self, name: str, content: Any) -> Iterable[tuple[str, dict[str, Any]]]:
        """Metadata of others that is kept in one file, by relative path."""
        if not isinstance(content, dict) or not all(isinstance(child, dict) for child in content.values()):
            raise self.refuse(name, "is not consolidated metadata as zarr writes it", "Copy or fetch the folder again")
        for key in content:
            if key.startswith(("/", "~")) or "\\" in key or ".." in key.split("/"):
                raise self.refuse(name, f"names {key!r}, which leads out of the folder")
        return content.items()

    def array(self, name: str, array: Mapping[str, Any], num_bytes: int) -> None:
        try:
            old = array.get("zarr_format") == 2
            shape = _lengths(array["shape"])
            grid = array["chunks"] if old else array["chunk_grid"]["configuration"]["chunk_shape"]
            chunk = _lengths(grid)
            self.codecs(name, _codecs_2(array) if old else array["codecs"], CODECS_2 if old else CODECS_3)
            if not old and array.get("storage_transformers"):
                raise self.refuse(name, "has storage transformers, which are not read")
            size = _size_2(array["dtype"]) if old else self.size_3(name, array["data_type"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise self.refuse(
                name, f"is not described as zarr does it ({error})", "Copy or fetch the folder again"
            ) from error
        if len(chunk) != len(shape):
            raise self.refuse(name, f"has {len(shape)} dimensions, but chunks of {len(chunk)}")
        values, said = math.prod(shape), " × ".join(f"{length:,}" for length in shape)
        if values > MAX_VALUES or (values * size > SMALL_BYTES and values * size > MAX_RATIO * num_bytes):
            raise self.refuse(name, f"claims {said} values of {size} bytes, but only {num_bytes:,} bytes are stored")
        if (chunk_bytes := math.prod(chunk) * size) > MAX_CHUNK_BYTES:
            raise self.refuse(name, f"is stored in chunks of {chunk_bytes:,} bytes", "Write it anew in smaller chunks")

    def codecs(self, name: str, codecs: Iterable[Mapping[str, Any]], known: frozenset[str], depth: int = 0) -> None:
        for codec in codecs:
            word = codec.get("id") if "id" in codec else codec.get("name")
            if word not in known:
                raise self.refuse(
                    name,
                    f"is written with the codec {word!r}, which "
                    + ("runs code when it is read" if "pickle" in str(word) else "is not among those that are read"),
                    _NOT_TRUSTED,
                )
            inside = codec.get("configuration") or {}
            if depth > 2:
                raise self.refuse(name, "has shards within shards")
            for part in ("codecs", "index_codecs"):
                self.codecs(name, inside.get(part, ()), known, depth + 1)

    def size_3(self, name: str, kind: Any) -> int:
        """Bytes of a value of format 3."""
        word = kind["name"] if isinstance(kind, Mapping) else kind
        if not isinstance(word, str) or not _TYPES_3.fullmatch(word):
            raise self.refuse(name, f"holds values of the kind {word!r}, which is not among those that are read")
        inside = kind.get("configuration", {}) if isinstance(kind, Mapping) else {}
        if bits := re.search(r"\d+$", word):
            return max(int(bits[0]) // 8, 1)
        return int(inside.get("length_bytes", _VARIABLE_BYTES)) if isinstance(inside, Mapping) else _VARIABLE_BYTES


def _lengths(shape: Any) -> tuple[int, ...]:
    if not isinstance(shape, list) or not all(type(length) is int and length >= 0 for length in shape):
        raise ValueError(f"the shape {shape!r}")
    return tuple(shape)


def _codecs_2(array: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    compressor = array.get("compressor")
    codecs = [*(array.get("filters") or ()), *([compressor] if compressor else ())]
    if "O" in str(array["dtype"]) and not any("vlen" in str(codec.get("id")) for codec in codecs):
        raise ValueError("Python objects without a codec for texts")
    return codecs


def _size_2(kind: Any) -> int:
    """Bytes of a value of format 2: a NumPy type string, or a list of named fields."""
    if isinstance(kind, list):
        return sum(_size_2(item[1]) * math.prod(item[2] if len(item) > 2 else (1,)) for item in kind)
    if not isinstance(kind, str):
        raise ValueError(f"the type {kind!r}")
    dtype = np.dtype(kind)
    return _VARIABLE_BYTES if dtype.hasobject else max(dtype.itemsize, 1)
