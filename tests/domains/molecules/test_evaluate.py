"""What a pre-trained molecule model is measured by, and the panels about it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from polyfm.domains.molecules.data import MoleculeDataModule
from polyfm.domains.molecules.evaluate import (
    embedding_map,
    evaluate,
    retrieval_metrics,
    retrieval_panel,
    told_properties,
)
from polyfm.shared.evaluation.embedding import Embedded, embed_part, embed_sample
from polyfm.shared.evaluation.retrieval import Retrieval

Spmm = tuple[Any, MoleculeDataModule]


@pytest.fixture(scope="module")
def evaluated(spmm: Spmm) -> Any:
    return evaluate(*spmm)


def test_every_measure_of_the_recipe_is_there(evaluated: Any) -> None:
    metrics, panels = evaluated
    for direction in ("smiles-properties", "properties-smiles"):
        recalls = [metrics[f"retrieval/{direction}/r@{k}"] for k in (1, 5, 10)]
        assert recalls == sorted(recalls)
        assert 0 <= recalls[0] <= metrics[f"retrieval/{direction}/mrr"] <= 1
    assert metrics["retrieval/chance_r@10"] == 1.0  # of eight
    assert 0 <= metrics["generation/validity"] <= 1
    assert {"properties/mean_r2", "properties/median_r2"} <= set(metrics)
    assert [panel.title for panel in panels] == ["Retrieval", "Generated molecules", "Map of molecules"]


def test_panels_show_molecules_and_load_nothing(evaluated: Any) -> None:
    _, (retrieval, generated, embedding) = evaluated
    assert "smiles → properties" in retrieval.body
    assert "properties → smiles" in retrieval.body
    assert "<td>chance</td>" in retrieval.body
    assert retrieval.body.count("<svg") >= 6
    assert "written for them" in generated.body
    assert "by scaffold" in embedding.body
    for panel in (retrieval, generated, embedding):
        assert "<script" not in panel.body
        assert "<image" not in panel.body or "data:image" in panel.body


def test_vectors_stand_in_the_order_of_the_part(spmm: Spmm) -> None:
    task, data = spmm
    pooled, projected, rows = embed_part(task, data, "test")["smiles"]
    assert projected is not None
    assert rows.tolist() == list(range(8))
    assert pooled.shape == (8, 32)
    np.testing.assert_allclose(np.linalg.norm(projected, axis=1), 1, atol=1e-5)
    batch = next(iter(data.batches_from([data.table.smiles[i] for i in data.part("test")])))
    features = task.model.encoders["smiles"](batch["smiles"])
    np.testing.assert_allclose(pooled, features.pooled.detach().numpy(), atol=1e-5)
    some = embed_part(task, data, "test", most=3)["smiles"]
    assert len(some.rows) == 3
    np.testing.assert_allclose(some.pooled, pooled[some.rows], atol=1e-5)


def test_a_sample_has_the_same_share_of_each_part(spmm: Spmm, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {part: len(spmm[1].part(part)) for part in ("train", "valid", "test")}
    found = {part: len(each["smiles"].rows) for part, each in embed_sample(*spmm, most=20).items()}
    share = 20 / sum(sizes.values())
    assert found == {part: math.ceil(size * share) for part, size in sizes.items()}
    whole = embed_sample(*spmm, most=10_000)
    assert {part: len(each["smiles"].rows) for part, each in whole.items()} == sizes
    drawn: list[int] = []
    monkeypatch.setattr("polyfm.domains.molecules.evaluate.MAPPED", 20)
    monkeypatch.setattr(
        "polyfm.domains.molecules.evaluate.map_panel",
        lambda vectors, colours, title: drawn.extend([len(vectors), *map(len, colours.values())]),
    )
    embedding_map(*spmm)
    assert drawn == [sum(found.values())] * 3


def test_a_model_whose_vectors_agree_finds_every_molecule(spmm: Spmm, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = np.eye(8)
    rows = np.arange(8)
    embedded = {
        "smiles": Embedded(vectors, vectors, rows),
        "properties": Embedded(vectors[2:], vectors[2:], rows[2:]),  # two molecules lack them
        "other": Embedded(vectors, None, rows),
    }
    monkeypatch.setattr("polyfm.domains.molecules.evaluate.embed_part", lambda *_: embedded)
    metrics, found, pool = retrieval_metrics(*spmm)
    assert pool.tolist() == [2, 3, 4, 5, 6, 7]
    assert found["smiles → properties"].pool == 6
    assert set(found) == {"smiles → properties", "properties → smiles"}
    assert metrics["retrieval/smiles-properties/r@1"] == metrics["retrieval/properties-smiles/mrr"] == 1.0


def test_the_right_answer_is_framed() -> None:
    found = Retrieval(ranks=np.array([1.0, 2.0]), top=np.array([[0, 1], [0, 1]]), pool=2)
    body = retrieval_panel({"a → b": found}, ["CCO", "c1ccccc1"], shown=2).body
    assert body.count('class="card right"') == 2
    assert body.count('class="card wrong"') == 2
    assert "right answer at rank 2" in body


def test_the_note_says_who_is_best_whoever_it_is() -> None:
    better = Retrieval(ranks=np.array([1.0, 1.0]), top=np.array([[0, 1], [1, 0]]), pool=2)
    worse = Retrieval(ranks=np.array([1.0, 2.0]), top=np.array([[0, 1], [0, 1]]), pool=2)
    note = retrieval_panel({"a → b": worse, "a → b, by ridge": better}, ["CCO", "c1ccccc1"]).note
    assert note.endswith("Highest mean reciprocal rank: a → b, by ridge.")


def test_told_properties_of_a_model_that_knows(spmm: Spmm, monkeypatch: pytest.MonkeyPatch) -> None:
    _, data = spmm
    true = data.descriptors[data.part("test")]
    monkeypatch.setattr("polyfm.domains.molecules.evaluate.read_properties", lambda *_: true)
    assert told_properties(*spmm) == {"properties/mean_r2": 1.0, "properties/median_r2": 1.0}


@pytest.fixture(scope="module")
def evaluated_molfm(molfm: Spmm) -> Any:
    return evaluate(*molfm)


class TestMolfm:
    def test_every_measure_of_both_recipes_is_there(self, evaluated_molfm: Any) -> None:
        metrics, panels = evaluated_molfm
        for direction in ("graph-text", "text-graph"):
            for way in (direction, f"{direction}+re-ranked"):
                low, high = (metrics[f"retrieval/{way}/mrr/{end}"] for end in ("low", "high"))
                assert 0 < low <= metrics[f"retrieval/{way}/mrr"] <= high <= 1
                assert metrics[f"retrieval/{way}/r@1"] <= metrics[f"retrieval/{way}/r@10"] == 1  # of eight
        for direction in ("molecule-text", "text-molecule"):
            assert metrics[f"baseline/tfidf_ridge/{direction}/mrr"] > 0.4  # invented texts name the parts
        assert 0 <= metrics["generation/text/bleu4"] <= metrics["generation/text/bleu2"] <= 1
        assert {"exact", "validity", "levenshtein", "bleu"} <= {
            name.removeprefix("generation/smiles/") for name in metrics if name.startswith("generation/smiles/")
        }
        assert metrics["baseline/nearest_structure/text/bleu2"] > 0.3
        assert metrics["baseline/nearest_text/smiles/validity"] == 1
        titles = [panel.title for panel in panels]
        assert titles[0] == "Retrieval"
        assert titles[-1] == "Map of molecules"
        assert set(titles[1:-1]) == {"Written descriptions", "Molecules written for descriptions"}

    def test_panels_show_texts_where_texts_are_asked_or_answer(self, evaluated_molfm: Any) -> None:
        _, (retrieval, *rest) = evaluated_molfm
        assert "graph → text, re-ranked" in retrieval.body
        assert "text → molecule, words to ECFP4 by ridge" in retrieval.body
        assert retrieval.body.count("<p>The molecule is a member") >= 12
        assert "wanted" in rest[0].body

    def test_molecules_without_a_text_are_no_part_of_the_pool(
        self, molfm: Spmm, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        task, data = molfm
        assert data.table.text is not None
        silent = int(data.part("test")[2])
        texts = [None if i == silent else text for i, text in enumerate(data.table.text)]
        monkeypatch.setattr(data, "table", dataclasses.replace(data.table, text=texts))
        _, found, pool = retrieval_metrics(task, data)
        assert pool.tolist() == [0, 1, 3, 4, 5, 6, 7]
        assert {result.pool for result in found.values()} == {7}
        assert "generation/text/bleu2" in evaluate(task, data)[0]
