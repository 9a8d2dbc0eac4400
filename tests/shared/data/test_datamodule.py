"""`DataModule`: set up once, transforms from the training part, loaders that resume, what it says it did."""

from __future__ import annotations

from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from polyfm.shared.data.datamodule import Samples
from polyfm.shared.data.manifest import Finding, Notices, Quarantine
from polyfm.shared.data.sampler import Key
from polyfm.shared.errors import DataError

BROKEN = Quarantine((Finding("toy", 5, "y", "empty"),), 8)


def test_it_is_read_once_and_transforms_are_fitted_on_the_training_part(toy: Any) -> None:
    data = toy()
    data.setup("fit")
    data.setup("test")
    assert data.reads == 1
    np.testing.assert_array_equal(data.mean, data.table[:16].mean(0))
    assert [len(data.part(name)) for name in ("train", "valid", "test")] == [16, 4, 4]


def test_what_another_run_learnt_is_kept(toy: Any) -> None:
    first, second = toy(), toy(n=40)
    assert first.state_dict() == {}
    first.setup()
    second.load_state_dict(first.state_dict())
    second.setup()
    np.testing.assert_array_equal(second.mean, first.mean)
    second.load_state_dict({})
    np.testing.assert_array_equal(second.mean, first.mean)


def test_the_state_is_primitives(toy: Any, tmp_path: Path) -> None:
    data = toy()
    data.setup()
    torch.save(data.state_dict(), tmp_path / "state")
    assert torch.load(tmp_path / "state", weights_only=True) == data.state_dict()  # noqa: TID251


def test_nothing_to_train_on_is_an_error(toy: Any) -> None:
    with pytest.raises(
        DataError, match=r"toy: no sample is left for training\. Use more data, or another .*--data\.split"
    ):
        toy(n=8, valid=4).setup()


def test_why_nothing_is_left_is_told_at_once(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    data = toy(n=8, valid=4)
    monkeypatch.setattr(data, "read", lambda read=data.read: (read(), setattr(data, "quarantine", BROKEN))[0])
    with pytest.raises(DataError, match=r"no sample is left for training \(1 x empty \(first in row 5\)\)"):
        data.setup()


def test_what_goes_wrong_while_reading_is_told_its_file(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(where: str | None) -> None:
        raise DataError("the valid split is empty", where=where)

    for where, told in ((None, "toy"), ("part.csv", "part.csv")):
        data = toy()
        monkeypatch.setattr(data, "read", lambda where=where: fail(where))
        with pytest.raises(DataError, match=f"^{told}: the valid split is empty"):
            data.setup()


def test_what_lengths_remark_on_is_in_the_first_summary(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    data = toy()
    monkeypatch.setattr(data, "lengths", lambda: data.remarks.append("3 items are cut"))
    data.setup()
    assert "toy: 3 items are cut" in data.summary()


def test_what_is_said_about_reading_reaches_the_domain(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    data = toy()
    data.setup()
    monkeypatch.setattr(data, "samples_from", lambda items, column="": [{"b": 7}[column]])
    assert [batch.ids for batch in data.batches_from("x.csv", column="b")] == [["item-7"]]
    assert data.READING == ()


def test_training_is_shuffled_validation_in_order_and_whole(toy: Any) -> None:
    data = toy(n=26)
    data.setup()
    train = [id for batch in data.train_dataloader() for id in batch.ids]
    assert len(train) == 16  # 18 do not make five batches
    assert train != sorted(train, key=lambda id: int(id[5:]))
    assert [id for batch in data.val_dataloader() for id in batch.ids] == [f"item-{i}" for i in range(18, 22)]
    assert [id for batch in data.test_dataloader() for id in batch.ids] == [f"item-{i}" for i in range(22, 26)]


def test_a_part_that_is_empty_has_no_loader(toy: Any) -> None:
    data = toy(valid=0)
    data.setup()
    assert data.val_dataloader() == data.test_dataloader() == []


def test_a_part_smaller_than_a_batch_is_one_batch(toy: Any) -> None:
    data = toy(n=11, batch_size=100)
    data.setup()
    assert [len(batch) for batch in data.train_dataloader()] == [3]
    assert [len(batch) for batch in data.val_dataloader()] == [4]


def test_order_is_the_seed_s(toy: Any) -> None:
    def order(seed: int) -> list[str]:
        data = toy()
        data.seed = seed
        data.setup()
        return [id for batch in data.train_dataloader() for id in batch.ids]

    assert order(1) == order(1) != order(2)


def test_token_budget(toy: Any) -> None:
    data = toy(token_budget=16, batch_size=8)
    data.setup()
    for batch in data.train_dataloader():
        assert len(batch) * int(batch["text"].lengths.max()) <= 16


@pytest.mark.parametrize("workers", [0, 2])
def test_a_training_loader_goes_on_where_it_was(toy: Any, workers: int) -> None:
    data = toy(num_workers=workers)
    data.setup()
    whole = [batch.ids for batch in data.train_dataloader()]
    first = data.train_dataloader()
    walk = iter(first)
    next(walk), next(walk)
    second = data.train_dataloader()
    second.load_state_dict(first.state_dict())
    assert [batch.ids for batch in second] == whole[2:]


def test_a_run_s_split_is_taken_over_whatever_the_file_holds_by_now(toy: Any) -> None:
    first, now = toy(n=24, valid=4), toy(n=24, valid=8)
    first.setup(), now.setup()
    now.use_splits(first.splits)
    assert [len(now.part(name)) for name in ("train", "valid", "test")] == [16, 4, 4]
    grown = toy(n=30)
    grown.setup()
    with pytest.raises(DataError, match="6 of 30 items have no split, for example 'item-24'"):
        grown.use_splits(first.splits)


def test_batches_of_new_items_keep_their_order(toy: Any) -> None:
    data = toy()
    data.setup()
    batches = data.batches_from([9, 3, 7, 1, 5])
    assert [batch.ids for batch in batches] == [["item-9", "item-3", "item-7", "item-1"], ["item-5"]]


def test_samples_are_made_a_batch_at_a_time() -> None:
    asked: list[list[Key]] = []

    def make(keys: list[Key]) -> list[int]:
        asked.append(keys)
        return [key.index for key in keys]

    samples = Samples(make, 10)
    assert len(samples) == 10
    assert samples.__getitems__([Key(3, 0), Key(4, 0)]) == [3, 4]
    assert samples[Key(5, 1)] == 5
    assert asked == [[Key(3, 0), Key(4, 0)], [Key(5, 1)]]


def test_summary_says_what_was_guessed_dropped_and_split(toy: Any) -> None:
    data = toy()
    data.remarks = ["smiles taken from column 'SMILES'"]
    data.setup()
    data.notices = Notices((Finding("toy", 3, "x", "duplicate"),))
    data.quarantine = Quarantine((Finding("toy", 5, "y", "empty"), Finding("toy", 6, "z", "empty")), 26)
    assert data.summary() == [
        "toy: smiles taken from column 'SMILES'",
        "toy: worth knowing: 1 x duplicate (first in row 3)",
        "toy: 2 of 26 rows left out: 2 x empty (first in row 5)",
        "toy: 16 train, 4 valid, 4 test",
    ]


def test_workers_that_are_spawned_get_the_data_without_the_run(toy: Any) -> None:
    data = toy()
    data.setup()
    data.trainer = SimpleNamespace(schedule=lambda step: step)  # like that of an optimiser, which no pickle takes
    loader = data.loader("train", shuffle=False)
    make, collate = ForkingPickler.loads(ForkingPickler.dumps((loader.dataset, loader.collate_fn)))
    keys = list(next(iter(loader.batch_sampler)))
    assert collate(make.__getitems__(keys)).ids == next(iter(loader)).ids
    assert data.trainer is not None


def test_rows_of_a_file_that_was_only_begun_are_estimated(toy: Any, tmp_path: Path) -> None:
    data = toy()
    data.setup()
    assert data.num_rows() == 24
    data.limit, data.path = 24, str(tmp_path / "big.csv")
    (tmp_path / "big.csv").write_bytes(b"x" * 60_000)
    assert data.num_rows() == 1000


def test_defaults_of_what_a_domain_may_leave_out(toy: Any) -> None:
    data = toy()
    data.setup()
    assert data.class_names() == []
    assert data.baselines(None) == {}
    assert data.evaluate(None) == ({}, [])
