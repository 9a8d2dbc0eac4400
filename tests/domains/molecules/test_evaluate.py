"""What a pre-trained molecule model is measured by, and the panels about it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from polyfm.domains.molecules.data import MoleculeDataModule
from polyfm.domains.molecules.evaluate import (
    Embedded,
    embed_part,
    embedding_map,
    evaluate,
    retrieval_metrics,
    retrieval_panel,
    told_properties,
)
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
    assert rows.tolist() == list(range(8))
    assert projected is not None
    assert pooled.shape == (8, 32)
    np.testing.assert_allclose(np.linalg.norm(projected, axis=1), 1, atol=1e-5)
    batch = next(iter(data.batches_from([data.table.smiles[i] for i in data.part("test")])))
    features = task.model.encoders["smiles"](batch["smiles"])
    np.testing.assert_allclose(pooled, features.pooled.detach().numpy(), atol=1e-5)


def test_a_model_whose_vectors_agree_finds_every_molecule(spmm: Spmm, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = np.eye(8)
    side, other = Embedded(vectors, vectors, np.arange(8)), Embedded(vectors, None, np.arange(8))
    both = {"smiles": side, "properties": side, "other": other}
    monkeypatch.setattr("polyfm.domains.molecules.evaluate.embed_part", lambda *_: both)
    metrics, found = retrieval_metrics(*spmm)
    assert set(found) == {"smiles → properties", "properties → smiles"}
    assert metrics["retrieval/smiles-properties/r@1"] == metrics["retrieval/properties-smiles/mrr"] == 1.0


def test_the_right_answer_is_framed() -> None:
    found = Retrieval(ranks=np.array([1.0, 2.0]), top=np.array([[0, 1], [0, 1]]), pool=2)
    body = retrieval_panel({"a → b": found}, ["CCO", "c1ccccc1"], shown=2).body
    assert body.count('class="card right"') == 2
    assert body.count('class="card wrong"') == 2
    assert "right answer at rank 2" in body


def test_told_properties_of_a_model_that_knows(spmm: Spmm, monkeypatch: pytest.MonkeyPatch) -> None:
    _, data = spmm
    true = data.descriptors[data.part("test")]
    monkeypatch.setattr("polyfm.domains.molecules.evaluate.read_properties", lambda *_: true)
    assert told_properties(*spmm) == {"properties/mean_r2": 1.0, "properties/median_r2": 1.0}


def test_a_large_map_is_thinned(spmm: Spmm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polyfm.domains.molecules.evaluate.MAPPED", 20)
    drawn: list[int] = []
    monkeypatch.setattr(
        "polyfm.domains.molecules.evaluate.map_panel",
        lambda vectors, colours, title: drawn.extend([len(vectors), *map(len, colours.values())]),
    )
    embedding_map(*spmm)
    assert drawn == [20, 20, 20]
