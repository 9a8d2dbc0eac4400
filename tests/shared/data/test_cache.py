from __future__ import annotations

import multiprocessing
from pathlib import Path

import numpy as np
import pytest

from polyfm.shared.data.cache import RowCache, cache_dir
from polyfm.shared.errors import DataError


def test_the_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYFM_CACHE", str(tmp_path / "here"))
    assert cache_dir("molecules") == tmp_path / "here" / "molecules"
    assert cache_dir("molecules").is_dir()


def test_the_folder_is_under_home_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("POLYFM_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir("x") == tmp_path / ".cache" / "polyfm" / "x"


def test_a_folder_that_cannot_be_made_names_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("POLYFM_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match="POLYFM_CACHE"):
        cache_dir("x")


def test_rows_come_back_bit_for_bit_in_any_order_and_repeated(tmp_path: Path) -> None:
    cache = RowCache(tmp_path / "rows.sqlite", 3)
    rows = np.array([[0.1, -0.0, np.nan], [1e-308, np.inf, 3.0]])
    cache.put(["a", "b"], rows)
    found_rows, found = cache.get(["b", "x", "a", "b"])
    assert found.tolist() == [True, False, True, True]
    assert found_rows[[2, 0, 3]].tobytes() == rows[[0, 1, 1]].tobytes()
    assert len(cache) == 2


def test_more_keys_than_one_query_takes(tmp_path: Path) -> None:
    cache = RowCache(tmp_path / "rows.sqlite", 1)
    keys = [f"k{index}" for index in range(2500)]
    cache.put(keys, np.arange(2500.0)[:, None])
    rows, found = cache.get(keys[::-1])
    assert found.all()
    assert rows[:, 0].tolist() == list(range(2499, -1, -1))


def test_nothing_asked_nothing_given(tmp_path: Path) -> None:
    rows, found = RowCache(tmp_path / "rows.sqlite", 2).get([])
    assert rows.shape == (0, 2)
    assert found.shape == (0,)


def test_rows_of_another_width_count_as_missing(tmp_path: Path) -> None:
    RowCache(tmp_path / "rows.sqlite", 2).put(["a"], np.ones((1, 2)))
    assert not RowCache(tmp_path / "rows.sqlite", 3).get(["a"])[1].any()


def test_a_damaged_file_says_delete_it(tmp_path: Path) -> None:
    (tmp_path / "rows.sqlite").write_bytes(b"this is no database" * 100)
    with pytest.raises(DataError, match="Delete it"):
        RowCache(tmp_path / "rows.sqlite", 1).get(["a"])


def _write(path: Path, worker: int) -> None:
    cache = RowCache(path, 2)
    for start in range(0, 200, 20):
        keys = [str(index) for index in range(start, start + 20)]  # all workers write the same keys
        cache.put(keys, np.repeat(np.arange(start, start + 20.0)[:, None], 2, axis=1))
    cache.put([f"own {worker}"], np.full((1, 2), float(worker)))


def test_processes_write_at_the_same_time(tmp_path: Path) -> None:
    path = tmp_path / "rows.sqlite"
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_write, args=(path, worker)) for worker in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    cache = RowCache(path, 2)
    assert len(cache) == 204
    assert cache.get([str(index) for index in range(200)])[0][:, 1].tolist() == list(range(200))
