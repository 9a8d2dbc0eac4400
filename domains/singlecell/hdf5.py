"""Refuse hostile HDF5 files before a byte of their data is read.

An HDF5 file can name other files and have their bytes returned as if they were its own (external storage, external
links, virtual data sets), load a plug-in by a filter's number, claim a shape that fills the memory, or contain itself.
`check_hdf5` walks over the whole file once, on h5py's low-level API, and looks at nothing but the creation properties,
the kinds of links and the shapes; only what passes is opened by h5py's and AnnData's readers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from polyfm.shared.data.tabular import check_file
from polyfm.shared.errors import DataError, MissingExtraError

try:
    import h5py
    from h5py import h5a, h5d, h5f, h5g, h5l, h5o, h5z
except ImportError as error:
    raise MissingExtraError("h5py", "singlecell") from error

MAX_OBJECTS = 100_000
MAX_DEPTH = 32
MAX_ATTRIBUTES = 4096
"""Of one object."""
MAX_ATTRIBUTE_BYTES = 1 << 24
SMALL_BYTES = 64 << 20
"""A data set that claims no more than this is never absurd."""
MAX_RATIO = 1100
"""Claimed over stored bytes: deflate reaches 1032 at most, LZF less."""
MAX_CHUNK_BYTES = 1 << 30
MAX_VALUES = 1 << 48

FILTERS = {
    h5z.FILTER_DEFLATE: "gzip",
    h5z.FILTER_SHUFFLE: "shuffle",
    h5z.FILTER_FLETCHER32: "fletcher32",
    h5z.FILTER_SZIP: "szip",
    h5z.FILTER_LZF: "lzf",
}
"""Those that h5py itself brings; any other number makes HDF5 look for a plug-in to load."""

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_NOT_TRUSTED = "Do not trust the file. If it is your own, write it anew as one self-contained file"


def check_hdf5(path: str | Path) -> None:
    """Walk over an HDF5 file and refuse what could reach beyond it or exhaust the machine.

    Args:
        path: The file.

    Raises:
        DataError: It cannot be opened, is no HDF5 file, is cut short, or holds what is said above.
    """
    path = Path(path)
    check_file(path)
    try:
        file = h5f.open(str(path).encode(), h5f.ACC_RDONLY)
    except OSError as error:
        raise _unopened(path, str(error)) from error
    try:
        walk = _Walk(path)
        walk.group(h5g.open(file, b"/"), "/", 0, ())
        for name, parent, link in walk.soft_links:
            walk.soft_link(name, parent, link)
    except DataError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise _damaged(path, error) from error
    finally:
        file.close()


def _unopened(path: Path, problem: str) -> DataError:
    with open(path, "rb") as raw:
        signed = raw.read(len(_SIGNATURE)) == _SIGNATURE
    if "truncated" in problem:
        numbers = "".join(letter if letter.isdigit() else " " for letter in problem.partition("eof")[2]).split()
        size = f": it holds {int(numbers[0]):,} of {int(numbers[-1]):,} bytes" if numbers else ""
        return DataError(f"the HDF5 file is cut short{size}", where=path, remedy="Copy or fetch it again")
    if "lock" in problem:
        return DataError(
            "another program has the file open for writing",
            where=path,
            remedy="Close it there, or set HDF5_USE_FILE_LOCKING=FALSE if the file system has no locks",
        )
    if not signed and not h5py.is_hdf5(path):
        return DataError(
            "this is no HDF5 file", where=path, remedy="Give it the ending of what it holds, or fetch it again"
        )
    return _damaged(path, problem)


def _damaged(path: Path, problem: object) -> DataError:
    short = str(problem).strip("'\"").partition("\n")[0][:200]
    return DataError(f"the HDF5 file is damaged ({short})", where=path, remedy="Copy or fetch it again")


@dataclass
class _Walk:
    path: Path
    objects: int = 0
    groups: dict[Any, str] = field(default_factory=dict)
    """By address: the name that a group was reached by."""
    datasets: set[Any] = field(default_factory=set)
    soft_links: list[tuple[str, Any, bytes]] = field(default_factory=list)

    def refuse(self, name: str, problem: str, remedy: str = _NOT_TRUSTED) -> DataError:
        return DataError(f"{name} {problem}; it was not read", where=self.path, remedy=remedy)

    def count(self, name: str) -> None:
        self.objects += 1
        if self.objects > MAX_OBJECTS:
            raise self.refuse(name, f"is one of more than {MAX_OBJECTS:,} objects")

    def group(self, group: Any, name: str, depth: int, above: tuple[Any, ...]) -> None:
        address = _address(group)
        if address in above:
            raise self.refuse(name, "is a group that contains itself")
        if address in self.groups:
            # Ten groups with ten links each to the next are a billion after nine levels.
            raise self.refuse(name, f"is another name of the group {self.groups[address]}")
        if depth > MAX_DEPTH:
            raise self.refuse(name, f"lies more than {MAX_DEPTH} groups deep")
        self.groups[address] = name
        self.attributes(group, name)
        links: list[bytes] = []
        group.links.iterate(lambda link: links.append(link) if len(links) <= MAX_OBJECTS else True)
        for link in links:
            child = f"{name.rstrip('/')}/{link.decode('utf-8', 'backslashreplace')}"
            self.count(child)
            kind = group.links.get_info(link).type
            if kind == h5l.TYPE_EXTERNAL:
                file, _ = group.links.get_val(link)
                raise self.refuse(child, f"is a link to another file, {file.decode('utf-8', 'backslashreplace')!r}")
            if kind == h5l.TYPE_SOFT:
                self.soft_links.append((child, group, link))
            elif kind == h5l.TYPE_HARD:
                self.object(group, link, child, depth, (*above, address))
            else:
                raise self.refuse(child, f"is a link of the unknown kind {kind}")

    def object(self, parent: Any, link: bytes, name: str, depth: int, above: tuple[Any, ...]) -> None:
        kind = h5o.get_info(parent, link).type
        if kind == h5o.TYPE_GROUP:
            self.group(h5g.open(parent, link), name, depth + 1, above)
        elif kind == h5o.TYPE_DATASET:
            dataset = h5d.open(parent, link)
            if (address := _address(dataset)) not in self.datasets:
                self.datasets.add(address)
                self.dataset(dataset, name)
                self.attributes(dataset, name)

    def dataset(self, dataset: Any, name: str) -> None:
        # The layout is asked first: to tell the shape of a virtual data set, HDF5 would open its sources.
        made = dataset.get_create_plist()
        if made.get_layout() == h5d.VIRTUAL:
            raise self.refuse(name, "is a virtual data set: its values lie in other files")
        if count := made.get_external_count():
            file = made.get_external(0)[0].decode("utf-8", "backslashreplace")
            raise self.refuse(name, f"keeps its values in {'another file' if count == 1 else 'other files'}, {file!r}")
        self.filters(made, name)
        shape, size = dataset.shape or (), dataset.get_type().get_size()
        values, stored = math.prod(shape), dataset.get_storage_size()
        said = " × ".join(f"{length:,}" for length in shape)
        if values > MAX_VALUES or (values * size > SMALL_BYTES and values * size > MAX_RATIO * stored):
            raise self.refuse(name, f"claims {said} values of {size} bytes, but only {stored:,} bytes are stored")
        if made.get_layout() == h5d.CHUNKED and (chunk := math.prod(made.get_chunk()) * size) > MAX_CHUNK_BYTES:
            raise self.refuse(
                name, f"is stored in chunks of {chunk:,} bytes", "Write it anew in smaller chunks: h5repack OLD NEW"
            )

    def filters(self, made: Any, name: str) -> None:
        numbers = [made.get_filter(at)[0] for at in range(made.get_nfilters())]
        for number in numbers:
            if number not in FILTERS:
                raise self.refuse(
                    name,
                    f"is compressed with the filter {number}, which is none of {', '.join(FILTERS.values())}",
                    "Write it anew with gzip: adata.write_h5ad(NEW, compression='gzip'), or h5repack -f GZIP=4 OLD NEW",
                )
        if len(set(numbers)) < len(numbers):
            raise self.refuse(name, "is compressed more than once")

    def attributes(self, owner: Any, name: str) -> None:
        count = h5a.get_num_attrs(owner)
        if count > MAX_ATTRIBUTES:
            raise self.refuse(name, f"has {count:,} attributes")
        for index in range(count):
            attribute = h5a.open(owner, index=index)
            if math.prod(attribute.shape or ()) * attribute.get_type().get_size() > MAX_ATTRIBUTE_BYTES:
                raise self.refuse(name, f"has an attribute of more than {MAX_ATTRIBUTE_BYTES >> 20} MiB")

    def soft_link(self, name: str, parent: Any, link: bytes) -> None:
        """Followed only after all links of the file are known to stay inside it."""
        target = parent.links.get_val(link)
        target = target[0] if isinstance(target, tuple) else target
        try:
            address = _address(h5o.open(parent, link))
        except (KeyError, OSError, RuntimeError):
            address = None
        if address is None:
            raise self.refuse(name, f"is a link to nothing, {target.decode('utf-8', 'backslashreplace')!r}")
        if address in self.groups:
            raise self.refuse(name, f"is another name of the group {self.groups[address]}")


def _address(identifier: Any) -> Any:
    info = h5o.get_info(identifier)
    return getattr(info, "token", None) or info.addr
