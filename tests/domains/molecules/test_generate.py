"""SPMM's two directions: writing SMILES for properties, telling properties from SMILES."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from polyfm.domains.molecules.data import MoleculeDataModule
from polyfm.domains.molecules.descriptors import DESCRIPTORS
from polyfm.domains.molecules.generate import objective_of, read_properties, write, write_smiles
from polyfm.domains.molecules.transforms import CLS, SEP
from polyfm.shared.backbones.fusion import concat
from polyfm.shared.backbones.generation import beam_search
from polyfm.shared.backbones.masks import CAUSAL
from polyfm.shared.data.batch import Values
from polyfm.shared.data.collate import pack_ids, stack_values
from polyfm.shared.data.sampler import Key
from polyfm.shared.errors import UsageError
from polyfm.shared.evaluation import writing as module
from polyfm.shared.objectives.causal import CausalLM, NextValue
from polyfm.shared.objectives.heads import table

Spmm = tuple[Any, MoleculeDataModule]


@pytest.fixture
def wanted(spmm: Spmm) -> np.ndarray:
    _, data = spmm
    table: np.ndarray = data.descriptors[data.part("test")][:6]
    return table


@pytest.mark.parametrize("beams", [1, 2, 3])
def test_with_cache_is_as_without(spmm: Spmm, wanted: np.ndarray, beams: int, monkeypatch: pytest.MonkeyPatch) -> None:
    task, data = spmm
    cached = write_smiles(task, data, wanted, beams=beams, max_length=25)
    monkeypatch.setattr(module, "beam_search", partial(module.beam_search, cached=False))
    assert write_smiles(task, data, wanted, beams=beams, max_length=25) == cached
    assert all(1 <= len(written) <= beams for written in cached)


def test_one_beam_by_hand(spmm: Spmm, wanted: np.ndarray) -> None:
    """The likeliest next token each time; of all places where it might have ended the likeliest per token.

    Straight through encoder, fusion and head, the whole prefix each time. No molecule is empty.
    """
    task, data = spmm
    head = objective_of(task, CausalLM, "x").head
    with torch.inference_mode():
        context = task.model("properties", stack_values(list(data.standardiser.apply(wanted[:1])), 53)).tokens
        ids, running, best, ended = [CLS], 0.0, -np.inf, []
        while len(ids) <= 15:  # with the end token as many are written as ids stand there
            tokens = task.model("smiles", pack_ids([np.array(ids)]), CAUSAL).tokens
            fused = task.model.fuse(tokens, context, CAUSAL)
            told = head(fused.pad().x[0, -1:], table(task.model, "smiles"))[0].log_softmax(-1)
            if len(ids) > 1 and (running + float(told[SEP])) / len(ids) > best:
                best, ended = (running + float(told[SEP])) / len(ids), list(ids)
            told[SEP] = -np.inf
            running += float(told.max())
            ids.append(int(told.argmax()))
    assert len(ended) > 1
    assert write_smiles(task, data, wanted[:1], beams=1, max_length=15) == [[data.tokenizer.decode(ended)]]


def test_rows_do_not_depend_on_chunks_and_neighbours(spmm: Spmm, wanted: np.ndarray) -> None:
    task, data = spmm
    whole = write_smiles(task, data, wanted, max_length=20)
    assert write_smiles(task, data, wanted, max_length=20, chunk=2) == whole
    assert write_smiles(task, data, wanted[3:4], max_length=20) == whole[3:4]


def test_part_of_the_properties_may_be_asked_for(spmm: Spmm, wanted: np.ndarray) -> None:
    """What is not asked for is unknown to the model, whatever number once stood there."""
    task, data = spmm
    some = wanted.copy()
    some[:, 5:] = np.nan
    nothing = np.full_like(wanted, np.nan)
    written = write_smiles(task, data, some, max_length=20)
    assert len(written) == len(wanted)
    free = write_smiles(task, data, nothing, max_length=20)
    assert all(texts == free[0] for texts in free)  # without a wish all are alike
    rows = stack_values(list(data.standardiser.apply(some[:1])), 53)
    assert rows.known[0].tolist() == [True] * 5 + [False] * 48


def test_nothing_asked_is_nothing_written(spmm: Spmm) -> None:
    task, data = spmm
    assert write_smiles(task, data, np.zeros((0, 53))) == []
    assert read_properties(task, data, []).shape == (0, 53)


def test_properties_are_told_one_after_the_other(spmm: Spmm) -> None:
    """By hand: each value told becomes known to those after it; units are the descriptors' own."""
    task, data = spmm
    smiles = [data.table.smiles[i] for i in data.part("test")[:3]]
    head = objective_of(task, NextValue, "x").head
    with torch.inference_mode():
        tokens = pack_ids([data.encode(text) for text in smiles])
        context = task.model("smiles", tokens).tokens
        values, known = torch.zeros(3, 53), torch.zeros(3, 53, dtype=torch.bool)
        for column in range(53):
            told = task.model("properties", Values(rows=torch.arange(3), values=values, known=known), CAUSAL).tokens
            values[:, column] = head(task.model.fuse(told, context, CAUSAL).pad().x[:, column])[:, 0]
            known[:, column] = True
    found = read_properties(task, data, smiles)
    np.testing.assert_allclose(found, data.standardiser.invert(values.numpy()), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(read_properties(task, data, smiles, chunk=1), found, rtol=1e-3, atol=1e-3)
    weight = DESCRIPTORS.index("MolWt")
    mean, scale = data.standardiser.mean[weight], data.standardiser.scale[weight]
    assert (np.abs(found[:, weight] - mean) < 5 * scale).all()  # a molecule's weight, not a z-score


def test_a_run_that_cannot_says_so(spmm: Spmm, wanted: np.ndarray) -> None:
    _, data = spmm

    class Other:
        objectives: dict[str, Any] = {}

    with pytest.raises(UsageError, match="cannot write SMILES: it was trained without CausalLM. Use a run of"):
        write_smiles(Other(), data, wanted)
    with pytest.raises(UsageError, match="cannot tell properties: it was trained without NextValue"):
        read_properties(Other(), data, ["CCO"])


class TestTexts:
    """MolFM's two directions."""

    def samples(self, data: MoleculeDataModule, count: int = 5) -> list[Any]:
        return data.make_samples([Key(int(i), 0) for i in data.part("test")[:count]])

    @pytest.mark.parametrize("modality", ["text", "smiles"])
    def test_with_cache_is_as_without(self, molfm: Spmm, modality: str, monkeypatch: pytest.MonkeyPatch) -> None:
        task, data = molfm
        cached = write(task, data, modality, self.samples(data), max_length=15)
        monkeypatch.setattr(module, "beam_search", partial(module.beam_search, cached=False))
        assert write(task, data, modality, self.samples(data), max_length=15) == cached
        assert all(cached)

    def test_a_description_by_hand(self, molfm: Spmm) -> None:
        """Greedy, the whole prefix each time: the text sees atoms and neighbours through the fusion."""
        task, data = molfm
        sample = self.samples(data, 1)
        head = objective_of(task, CausalLM, "x", modality="text").head
        batch = data.collate(sample)
        with torch.inference_mode():
            graph, near = (task.model(name, batch[name]).tokens.pack() for name in ("graph", "knowledge"))
            context = concat([graph, near]).replace(modality=None)
            ids = [data.text_tokenizer.start]
            for _ in range(12):
                tokens = task.model("text", pack_ids([np.array(ids)]), CAUSAL).tokens
                told = head(task.model.fuse(tokens, context, CAUSAL).pad().x[0, -1:], table(task.model, "text"))[0]
                told[data.text_tokenizer.end] = -np.inf  # the search below may not end either
                ids.append(int(told.argmax()))
        assert len(near.x) > 0
        found = beam_search(
            objective_of(task, CausalLM, "x", modality="text").step(task.model, context.pad()),
            pack_ids([np.array(ids[:1])]),
            end=data.text_tokenizer.end,
            max_length=12,
            beams=1,
            min_length=12,
        )
        assert found.ids[0, 0].tolist() == ids[1:]

    def test_who_lacks_the_context_gets_nothing(self, molfm: Spmm) -> None:
        task, data = molfm
        samples = self.samples(data, 3)
        samples[1] = samples[1].replace(smiles=None, text=None, neighbours=None)
        for modality in ("text", "smiles"):
            written = write(task, data, modality, samples, max_length=10)
            assert [bool(beams) for beams in written] == [True, False, True]

    def test_rows_do_not_depend_on_chunks(self, molfm: Spmm) -> None:
        task, data = molfm
        whole = write(task, data, "text", self.samples(data), max_length=10)
        assert write(task, data, "text", self.samples(data), max_length=10, chunk=2) == whole

    def test_a_run_without_texts_says_so(self, spmm: Spmm) -> None:
        with pytest.raises(UsageError, match="cannot describe molecules.*Use a run of molecules/molfm_generation"):
            write(*spmm, "text", [])
