"""Let AnnData write the strings of pandas 3.

AnnData 0.12.6 is the newest that pip puts beside pandas 3 on Python 3.11: 0.12.19 asks for pandas 2, and 0.13 is not
for Python 3.11. It reads what pandas 3 makes, but to write an index of strings it knows no method. Here is one, in the
encoding of ordinary strings, for versions that lack it.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import h5py
import pandas as pd
import zarr
from anndata._io.specs.registry import _REGISTRY, IOSpec


def register() -> None:
    """Register the methods where AnnData has none. Called again, it does nothing."""
    kind = getattr(pd.arrays, "ArrowStringArray", None)
    for group in (h5py.Group, zarr.Group):
        if kind is not None and not _REGISTRY.has_write(group, kind, frozenset()):
            _REGISTRY.register_write(group, kind, IOSpec("string-array", "0.2.0"))(_write)


def _write(group: Any, key: str, strings: Any, *, _writer: Any, dataset_kwargs: Any = MappingProxyType({})) -> None:
    _writer.write_elem(group, key, strings.to_numpy(dtype=object, na_value=""), dataset_kwargs=dataset_kwargs)
