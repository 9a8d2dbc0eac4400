"""Results that are worth keeping between runs: the cache folder, disk tables of bytes and of fixed-length rows."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from polyfm.shared.errors import DataError

_KEYS_PER_QUERY = 900  # SQLite before 3.32 takes at most 999 variables


def cache_dir(name: str) -> Path:
    """The folder for one kind of cached result, created if needed.

    Lies under the environment variable ``POLYFM_CACHE``, else under ``~/.cache/polyfm``. Everything in it can be
    deleted at any time.

    Args:
        name: Kind of result, a folder name.
    """
    root = os.environ.get("POLYFM_CACHE")
    folder = (Path(root) if root else Path.home() / ".cache" / "polyfm") / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"the cache folder cannot be created ({error.strerror})",
            where=folder,
            remedy="Set POLYFM_CACHE to a folder that you can write to",
        ) from error
    return folder


class BlobCache:
    """A disk table from strings to bytes, safe under concurrent processes.

    One SQLite file. A connection lives for one call, so the object can be pickled and forked. Writers wait for one
    another; what two of them computed is stored once.

    Args:
        path: The file; created on first use.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def get_blobs(self, keys: Iterable[str]) -> dict[str, bytes]:
        """Look up.

        Args:
            keys: Any; repeats are allowed.

        Returns:
            By key; what is not there is left out.
        """
        stored: dict[str, bytes] = {}
        unique = list(dict.fromkeys(keys))
        with self._connection() as connection:
            for start in range(0, len(unique), _KEYS_PER_QUERY):
                part = unique[start : start + _KEYS_PER_QUERY]
                marks = ",".join("?" * len(part))
                stored.update(connection.execute(f"SELECT key, row FROM rows WHERE key IN ({marks})", part))
        return stored

    def put_blobs(self, blobs: Mapping[str, bytes]) -> None:
        """Store; all of them or, if the process dies, none.

        Args:
            blobs: By key.
        """
        with self._connection() as connection:
            connection.executemany("INSERT OR REPLACE INTO rows VALUES (?, ?)", blobs.items())

    def __len__(self) -> int:
        with self._connection() as connection:
            return int(connection.execute("SELECT COUNT(*) FROM rows").fetchone()[0])

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """One transaction: stored as a whole at the end, or not at all."""
        try:
            # Ten minutes: on a shared machine many builders may queue for the one writer's lock.
            with closing(sqlite3.connect(self.path, timeout=600)) as connection, connection:
                connection.execute("CREATE TABLE IF NOT EXISTS rows (key TEXT PRIMARY KEY, row BLOB NOT NULL)")
                yield connection
        except sqlite3.Error as error:
            raise DataError(
                f"the cache file cannot be used ({error})",
                where=self.path,
                remedy="Delete it (it is rebuilt), or set POLYFM_CACHE to another folder",
            ) from error


class RowCache(BlobCache):
    """A disk table from strings to rows of float64 numbers.

    Args:
        path: The file; created on first use.
        width: Numbers per row.
    """

    def __init__(self, path: str | Path, width: int) -> None:
        super().__init__(path)
        self.width = width

    def get(self, keys: Sequence[str]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Look rows up.

        Args:
            keys: n strings; repeats are allowed.

        Returns:
            (n, width) float64, zero where not found, and (n,) bool: found.
        """
        stored = self.get_blobs(keys)
        empty = bytes(8 * self.width)
        found = np.fromiter((len(stored.get(key, b"")) == len(empty) for key in keys), dtype=bool, count=len(keys))
        blob = b"".join(stored[key] if hit else empty for key, hit in zip(keys, found, strict=True))
        return np.frombuffer(blob, dtype="<f8").reshape(len(keys), self.width).astype(np.float64), found

    def put(self, keys: Sequence[str], rows: NDArray[np.float64]) -> None:
        """Store rows; all of them or, if the process dies, none.

        Args:
            keys: n strings.
            rows: (n, width) numbers.
        """
        blobs = (row.tobytes() for row in np.ascontiguousarray(rows, dtype="<f8").reshape(len(keys), self.width))
        self.put_blobs(dict(zip(keys, blobs, strict=True)))
