"""`ReactionDataModule`: both sides of a reaction, directions, orders of atoms, splits, new items."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyfm.domains.molecules.reaction_data import ReactionDataModule
from polyfm.domains.molecules.synthetic import write_reactions
from polyfm.shared.data.sampler import Key
from polyfm.shared.errors import DataError, RecipeError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_reactions(tmp_path, n=60)


def make(path: Path, **options: Any) -> ReactionDataModule:
    data = ReactionDataModule(str(path), **{"batch_size": 8, **options})
    data.setup()
    return data


def test_both_sides_are_tokens_of_one_vocabulary(path: Path) -> None:
    data = make(path)
    pairs = data.reactions.reactions
    batch = next(iter(data.loader("test", shuffle=False)))
    first = int(data.part("test")[0])
    for name, text in (("smiles", pairs[first].source), ("target", pairs[first].target)):
        rows = batch[name]
        assert data.tokenizer.decode(rows.ids[: rows.cu_seqlens[1]].tolist()) == text
    assert data.lengths()[first] == max(batch["smiles"].lengths[0], batch["target"].lengths[0])


def test_directions_turn_the_pair(path: Path) -> None:
    forward, retro = make(path), make(path, direction="retro")
    assert [pair.target for pair in forward.reactions.reactions] == [pair.source for pair in retro.reactions.reactions]


def test_a_share_of_the_training_sources_is_written_anew_in_each_pass_and_no_target(path: Path) -> None:
    data = make(path)

    def sources(epoch: int, part: str = "train", **options: Any) -> list[str]:
        made = make(path, **options) if options else data
        return [sample.source for sample in made.make_samples([Key(int(i), epoch) for i in made.part(part)])]

    plain = [data.reactions.reactions[i].source for i in data.part("train")]
    first, second = sources(0), sources(1)
    assert first == sources(0)
    changed = np.mean([a != b for a, b in zip(first, plain, strict=True)])
    assert 0.3 < changed < 0.7
    assert first != second
    assert sources(0, randomise=0.0) == plain
    assert len(set(sources(0, randomise=1.0)) & set(plain)) <= 2  # by chance
    assert sources(3, "test") == sources(4, "test")
    samples = data.make_samples([Key(int(i), 0) for i in data.part("train")])
    assert [sample.target for sample in samples] == [data.reactions.reactions[i].target for i in data.part("train")]


def test_one_source_is_never_on_two_sides_of_the_split(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("rxn\n" + "".join(f"{'C' * i}O>>{'C' * i}{end}\n" for i in range(1, 30) for end in ("Br", "I")))
    data = make(path)
    groups = [{data.splits.groups[i] for i in data.part(name)} for name in ("train", "valid", "test")]
    assert not groups[0] & groups[1]
    assert not groups[0] & groups[2]


def test_new_items(path: Path) -> None:
    data = make(path)
    sample, pair = data.samples_from(["OCC", "CCO>>CC=O"])
    assert (sample.source, sample.target) == ("CCO", None)
    assert (pair.source, pair.target) == ("CCO", "CC=O")
    batch = data.collate([sample, pair])
    assert batch.present("target").tolist() == [False, True]
    assert len(data.samples_from(path)) == 60
    assert data.samples_from([sample]) == [sample]
    named = make(path, reaction="reaction")
    (path.parent / "b.csv").write_text("rxn\nCCO>>CC=O\nCCN\n")
    assert [sample.target for sample in named.samples_from(path.parent / "b.csv")] == ["CC=O", None]
    with pytest.raises(DataError, match="item 1: 'CCO>CC' is no reaction"):
        data.samples_from(["C", "CCO>CC"])


def test_there_are_no_labels_to_fine_tune_on(path: Path) -> None:
    data = make(path)
    assert data.target_values(data.part("train")).shape == (len(data.part("train")), 0)
    assert (data.target_names(), data.class_names()) == ([], [])


@pytest.mark.parametrize(
    ("options", "message"),
    [({"direction": "back"}, "one of forward, retro"), ({"randomise": 1.5}, "a share from 0 to 1")],
)
def test_values_are_judged(path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        ReactionDataModule(str(path), **options)
