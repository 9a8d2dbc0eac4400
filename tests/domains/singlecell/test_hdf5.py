"""Hostile HDF5 files: each is made here, refused with one message, and nothing that it names is opened."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from h5py import h5d, h5p, h5s, h5t

from polyfm.domains.singlecell import hdf5
from polyfm.domains.singlecell.hdf5 import check_hdf5
from polyfm.shared.errors import DataError

Make = Callable[[h5py.File, str], None]


def _external_storage(file: h5py.File, trap: str) -> None:
    file.create_dataset("X", (10,), dtype="i4", external=[(trap, 0, 40)])


def _several_external(file: h5py.File, trap: str) -> None:
    file.create_dataset("a/b/X", (10,), dtype="i4", external=[(trap, 0, 20), (trap, 20, 20)])


def _virtual(file: h5py.File, trap: str) -> None:
    layout = h5py.VirtualLayout((10,), "i4")
    layout[:] = h5py.VirtualSource(trap, "d", (10,))
    file.create_virtual_dataset("X", layout)


def _unlimited_virtual(file: h5py.File, trap: str) -> None:
    """To tell its shape HDF5 would open the source."""
    spaces = [h5s.create_simple((10,), (h5s.UNLIMITED,)) for _ in range(2)]
    for space in spaces:
        space.select_hyperslab((0,), (1,), block=(h5s.UNLIMITED,))
    made = h5p.create(h5p.DATASET_CREATE)
    made.set_virtual(spaces[0], trap.encode(), b"d", spaces[1])
    h5d.create(file.id, b"X", h5t.NATIVE_INT32, h5s.create_simple((10,), (h5s.UNLIMITED,)), dcpl=made)


def _external_link(file: h5py.File, trap: str) -> None:
    file["X"] = h5py.ExternalLink(trap, "/d")


def _soft_link_through_an_external_one(file: h5py.File, trap: str) -> None:
    file["a"] = h5py.SoftLink("/z/d")
    file["z"] = h5py.ExternalLink(trap, "/")


def _dangling(file: h5py.File, trap: str) -> None:
    file["X"] = h5py.SoftLink("/nowhere")


def _soft_circle(file: h5py.File, trap: str) -> None:
    file["a"], file["b"] = h5py.SoftLink("/b"), h5py.SoftLink("/a")


def _soft_loop(file: h5py.File, trap: str) -> None:
    file.create_group("a/b")["c"] = h5py.SoftLink("/a")


def _hard_loop(file: h5py.File, trap: str) -> None:
    group = file.create_group("a/b")
    group["c"] = file["a"]


def _billion(file: h5py.File, trap: str) -> None:
    for level in range(9):
        group = file.create_group(f"l{level}")
        if level:
            for name in range(10):
                group[str(name)] = file[f"l{level - 1}"]


def _huge_unwritten(file: h5py.File, trap: str) -> None:
    file.create_dataset("X", (1 << 30, 1 << 20), dtype="f4", chunks=(64, 64))


def _huge_contiguous(file: h5py.File, trap: str) -> None:
    file.create_dataset("X", (1 << 29,), dtype="f4")


def _too_many_values(file: h5py.File, trap: str) -> None:
    file.create_dataset("X", (1 << 25, 1 << 25), dtype="i1", chunks=(1, 1))


def _huge_items(file: h5py.File, trap: str) -> None:
    file.create_dataset("names", (4,), dtype="S100000000", chunks=(1,))


def _huge_chunk(file: h5py.File, trap: str) -> None:
    made = h5p.create(h5p.DATASET_CREATE)
    made.set_chunk((1 << 29,))
    h5d.create(file.id, b"X", h5t.NATIVE_INT32, h5s.create_simple((10,), (1 << 29,)), dcpl=made)


def _unknown_filter(file: h5py.File, trap: str) -> None:
    made = h5p.create(h5p.DATASET_CREATE)
    made.set_chunk((10,))
    made.set_filter(32768, h5py.h5z.FLAG_OPTIONAL, ())
    h5d.create(file.id, b"X", h5t.NATIVE_INT32, h5s.create_simple((10,)), dcpl=made)


def _gzip_in_gzip(file: h5py.File, trap: str) -> None:
    made = h5p.create(h5p.DATASET_CREATE)
    made.set_chunk((10,))
    made.set_deflate(9)
    made.set_deflate(9)
    h5d.create(file.id, b"X", h5t.NATIVE_INT32, h5s.create_simple((10,)), dcpl=made)


def _deep(file: h5py.File, trap: str) -> None:
    file.create_group("/".join("a" * 40))


def _many_objects(file: h5py.File, trap: str) -> None:
    for name in range(40):
        file.create_group(str(name))


def _large_attribute(file: h5py.File, trap: str) -> None:
    file.attrs.create("a", np.zeros(300, dtype="i8"))


HOSTILE: dict[str, tuple[Make, str, str]] = {
    "external storage": (_external_storage, "/X keeps its values in another file, '{trap}'", "self-contained"),
    "external storage, deep and in parts": (_several_external, "/a/b/X keeps its values in other files, '{trap}'", "self-contained"),
    "virtual data set": (_virtual, "/X is a virtual data set", "self-contained"),
    "unlimited virtual data set": (_unlimited_virtual, "/X is a virtual data set", "self-contained"),
    "external link": (_external_link, "/X is a link to another file, '{trap}'", "self-contained"),
    "soft link through an external one": (_soft_link_through_an_external_one, "/z is a link to another file", "self-contained"),
    "dangling soft link": (_dangling, "/X is a link to nothing, '/nowhere'", "self-contained"),
    "soft links in a circle": (_soft_circle, "/a is a link to nothing, '/b'", "self-contained"),
    "soft link to a group above": (_soft_loop, "/a/b/c is another name of the group /a", "self-contained"),
    "group that contains itself": (_hard_loop, "/a/b/c is a group that contains itself", "self-contained"),
    "a billion groups from ninety links": (_billion, "is another name of the group /l0", "self-contained"),
    "huge shape, nothing written": (_huge_unwritten, "/X claims 1,073,741,824 × 1,048,576 values of 4 bytes, but only 0 bytes are stored", "self-contained"),
    "huge contiguous shape": (_huge_contiguous, "/X claims 536,870,912 values of 4 bytes", "self-contained"),
    "more values than a matrix can have": (_too_many_values, "/X claims 33,554,432 × 33,554,432 values", "self-contained"),
    "huge items": (_huge_items, "/names claims 4 values of 100000000 bytes", "self-contained"),
    "huge chunk": (_huge_chunk, "/X is stored in chunks of 2,147,483,648 bytes", "h5repack OLD NEW"),
    "unknown filter": (_unknown_filter, "/X is compressed with the filter 32768, which is none of gzip, shuffle", "h5repack -f GZIP=4 OLD NEW"),
    "gzip in gzip": (_gzip_in_gzip, "/X is compressed more than once", "self-contained"),
    "forty groups deep": (_deep, "lies more than 32 groups deep", "self-contained"),
    "too many objects": (_many_objects, "is one of more than 30 objects", "self-contained"),
    "large attribute": (_large_attribute, "/ has an attribute of more than 0 MiB", "self-contained"),
}  # fmt: skip


def test_size_of_the_corpus_of_hostile_hdf5_files() -> None:
    print(f"{len(HOSTILE)} hostile HDF5 files")
    assert len(HOSTILE) == 21


@pytest.mark.timeout(20)
@pytest.mark.parametrize(("make", "problem", "remedy"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_files_are_refused_before_a_byte_is_read(
    make: Make, problem: str, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a file names is a FIFO: whoever opened it would wait for ever."""
    trap = str(tmp_path / "secret")
    os.mkfifo(trap)
    path = tmp_path / "cells.h5ad"
    with h5py.File(path, "w") as file:
        make(file, trap)
    if make is _many_objects:
        monkeypatch.setattr(hdf5, "MAX_OBJECTS", 30)
    if make is _large_attribute:
        monkeypatch.setattr(hdf5, "MAX_ATTRIBUTE_BYTES", 1 << 10)
    with pytest.raises(DataError) as refused:
        check_hdf5(path)
    said = str(refused.value)
    assert said.startswith(f"{path}: ")
    assert problem.format(trap=trap) in said
    assert "it was not read" in said
    assert remedy in said
    assert "\n" not in said


def test_ordinary_files_pass(tmp_path: Path) -> None:
    path = tmp_path / "cells.h5ad"
    with h5py.File(path, "w") as file:
        for compression in (None, "gzip", "lzf"):
            data = np.zeros((3000, 3000), dtype="f4")
            file.create_dataset(f"layers/{compression}", data=data, compression=compression, shuffle=bool(compression))
        file.create_dataset("obs/_index", data=["a", "b"])
        file["uns/again"] = file["obs/_index"]
        file["uns/soft"] = h5py.SoftLink("/obs/_index")
        file["type"] = np.dtype("f4")
        file.create_dataset("empty", data=h5py.Empty("f4"))
        file.create_dataset("checked", data=np.arange(5), fletcher32=True)
    check_hdf5(path)


def test_zeros_compress_no_better_than_the_limit(tmp_path: Path) -> None:
    """The largest ratio that deflate reaches is allowed."""
    path = tmp_path / "zeros.h5ad"
    with h5py.File(path, "w") as file:
        file.create_dataset(
            "X", data=np.zeros(20 << 20, dtype="f4"), compression="gzip", compression_opts=9, chunks=(5 << 20,)
        )
    check_hdf5(path)


def test_files_that_are_cut_short_or_damaged(tmp_path: Path) -> None:
    path = tmp_path / "cells.h5ad"
    with h5py.File(path, "w") as file:
        file.create_dataset("X", data=np.arange(10_000))
    content = path.read_bytes()
    path.write_bytes(content[:5000])
    with pytest.raises(
        DataError, match=rf"cut short: it holds 5,000 of {len(content):,} bytes\. Copy or fetch it again"
    ):
        check_hdf5(path)
    path.write_bytes(b"not HDF5 at all")
    with pytest.raises(DataError, match="this is no HDF5 file. Give it the ending"):
        check_hdf5(path)
    path.write_bytes(content[:96] + b"\xff" * 400 + content[496:])
    with pytest.raises(DataError, match="the HDF5 file is damaged"):
        check_hdf5(path)


def test_a_file_that_is_being_written(tmp_path: Path) -> None:
    path = tmp_path / "cells.h5ad"
    with h5py.File(path, "w") as file:
        file.create_group("X")
    with open(path, "rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="open for writing. Close it there"):
            check_hdf5(path)
