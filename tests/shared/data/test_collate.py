"""From samples to a batch: what is missing, what is ragged, keys that are a function of the id."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from polyfm.shared.data.collate import group_ids, pack_ids, pack_triples, sample_key, stack_values


def test_keys_are_a_function_of_the_id_in_every_process() -> None:
    assert sample_key("item-1") == 1806127573294041562 or isinstance(sample_key("item-1"), int)
    assert sample_key("item-1") == sample_key("item-1") != sample_key("item-2")


@given(st.lists(st.text(), max_size=30, unique=True))
def test_keys_fit_and_differ(ids: list[str]) -> None:
    keys = [sample_key(id) for id in ids]
    assert torch.tensor(keys, dtype=torch.int64).tolist() == keys
    assert len(set(keys)) == len(ids)


def test_equal_groups_are_equal_in_every_batch() -> None:
    first, second = group_ids(["a", "b", "a"]), group_ids(["c", "a"])
    assert first[0] == first[2] == second[1]
    assert len({int(i) for i in (first[0], first[1], second[0])}) == 3


def test_sequences_end_to_end_without_those_that_are_missing() -> None:
    packed = pack_ids([np.array([1, 2, 3]), None, np.array([4]), np.array([], dtype=int)])
    assert packed.rows.tolist() == [0, 2, 3]
    assert packed.ids.tolist() == [1, 2, 3, 4]
    assert packed.cu_seqlens.tolist() == [0, 3, 4, 4]
    assert (packed.ids.dtype, packed.cu_seqlens.dtype, packed.rows.dtype) == (torch.int64, torch.int32, torch.int64)


def test_no_sequence_at_all_is_zero_rows_of_the_same_types() -> None:
    for packed in (pack_ids([None, None]), pack_ids([])):
        assert (len(packed.rows), len(packed.ids), packed.cu_seqlens.tolist()) == (0, 0, [0])
        assert (packed.ids.dtype, packed.cu_seqlens.dtype, packed.rows.dtype) == (torch.int64, torch.int32, torch.int64)


def test_values_keep_rows_that_exist_and_cells_that_are_known() -> None:
    values = stack_values([np.array([1.0, np.nan]), None, np.array([3.0, 4.0])], columns=2)
    assert values.rows.tolist() == [0, 2]
    assert values.values.tolist() == [[1.0, 0.0], [3.0, 4.0]]
    assert values.known.tolist() == [[True, False], [True, True]]
    assert values.values.dtype == torch.float32


def test_no_values_at_all_are_zero_rows_of_all_columns() -> None:
    values = stack_values([None], columns=5)
    assert (values.values.shape, values.known.shape, len(values.rows)) == ((0, 5), (0, 5), 0)


def test_triples_of_those_that_have_any() -> None:
    facts = [np.array([[0, 1, 2], [0, 3, 4]]), None, np.array([[5, 6, 7]])]
    packed = pack_triples(facts, entities=9)
    assert packed.rows.tolist() == [0, 2]
    assert packed.cu_seqlens.tolist() == [0, 2, 3]
    assert packed.triples.tolist() == [[0, 1, 2], [0, 3, 4], [5, 6, 7]]
    last = packed.select(torch.tensor([1]))
    assert (last.rows.tolist(), last.triples.tolist(), last.cu_seqlens.tolist()) == ([2], [[5, 6, 7]], [0, 1])
    assert last.entities == 9
    nothing = pack_triples([None, None], entities=9)
    assert (nothing.triples.shape, nothing.cu_seqlens.tolist()) == ((0, 3), [0])
