"""`Batch.slice`: items side by side, with whatever modalities they have."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from polyfm.shared.data.batch import Batch, TokenIds, Values

PRESENCE = st.lists(st.tuples(st.booleans(), st.booleans()), max_size=9)


def batch_of(presence: list[tuple[bool, bool]]) -> Batch:
    """Item i has i + 1 tokens numbered i, and a table of i."""
    size = len(presence)
    text, table = (torch.tensor([i for i in range(size) if presence[i][m]], dtype=torch.int64) for m in (0, 1))
    return Batch(
        ids=[str(i) for i in range(size)],
        keys=torch.arange(size) + 100,
        modalities={
            "text": TokenIds(
                rows=text,
                ids=text.repeat_interleave(text + 1),
                cu_seqlens=torch.cat([torch.zeros(1), (text + 1).cumsum(0)]).int(),
            ),
            "table": Values(rows=table, values=table[:, None].float(), known=table[:, None] >= 0),
        },
        targets={"labels": torch.arange(size)[:, None]},
        groups=torch.arange(size) // 2,
    )


def test_a_slice_by_hand() -> None:
    part = batch_of([(True, True), (False, True), (True, False), (True, True)]).slice(1, 3)
    assert part.ids == ["1", "2"]
    assert part.keys.tolist() == [101, 102]
    assert part["text"].rows.tolist() == [1]
    assert part["text"].ids.tolist() == [2, 2, 2]
    assert part["text"].cu_seqlens.tolist() == [0, 3]
    assert part["table"].rows.tolist() == [0]
    assert part["table"].values.tolist() == [[1]]
    assert part.targets["labels"].tolist() == [[1], [2]]
    assert part.groups.tolist() == [0, 1]


@given(PRESENCE, st.integers(1, 4))
def test_slices_make_up_the_whole(presence: list[tuple[bool, bool]], size: int) -> None:
    batch = batch_of(presence)
    parts = [batch.slice(start, start + size) for start in range(0, len(batch) + size, size)]  # the last is empty
    assert len(parts[-1]) == 0
    assert [id for part in parts for id in part.ids] == batch.ids
    for name, field in (("text", "ids"), ("table", "values")):
        whole, pieces = batch[name], [part[name] for part in parts]
        assert torch.equal(torch.cat([getattr(piece, field) for piece in pieces]), getattr(whole, field))
        rows = [piece.rows + i * size for i, piece in enumerate(pieces)]
        assert torch.equal(torch.cat(rows), whole.rows)
