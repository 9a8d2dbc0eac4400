"""What is measured of models of cells, with its panels: texts, descriptions, pseudo-cells, proteins, integration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyfm.domains.singlecell import baselines, evaluate
from polyfm.domains.singlecell.data import CellDataModule
from polyfm.domains.singlecell.evaluate import retrieval
from polyfm.domains.singlecell.synthetic import write_synthetic
from polyfm.shared.cli.main import main
from polyfm.shared.evaluation.embedding import Embedded
from polyfm.shared.training.run_folder import RunFolder
from polyfm.shared.training.targets.multi_class import MultiClass

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


@pytest.mark.parametrize(
    ("recipe", "words", "wanted", "panels"),
    [
        (
            "scmmgpt",
            ["--data.split=random", "--data.group=batch"],
            [
                *("retrieval/genes-text/r@1", "retrieval/text-genes/precision@10", "generation/text/exact"),
                *("baseline/nearest_cell/text/exact", "generation/cells/knn_accuracy", "integration/kbet"),
            ],
            ["Cells and texts", "Written descriptions", "Pseudo-cells", "Integration", "Map of cells"],
        ),
        (
            "proteins",
            ["--data.split=random"],
            ["retrieval/genes-proteins/mrr", "proteins/mean_r", "baseline/ridge_pca/proteins/mean_r"],
            ["RNA and proteins", "Proteins from RNA", "Map of cells"],
        ),
        (
            "integrate",
            ["--data.group=batch", "--data.label=cell_type"],
            ["integration/ilisi", "baseline/pca/integration/ilisi", "test/batch/accuracy"],
            ["Integration", "Map of cells"],
        ),
    ],
)
def test_recipes_are_measured_and_shown(
    tmp_path: Path, recipe: str, words: list[str], wanted: list[str], panels: list[str]
) -> None:
    path = write_synthetic(tmp_path, n=360)
    common = ["--size=small", f"--data.path={path}", "--data.max_genes=40", f"--out={tmp_path / 'run'}"]
    quiet = ["--trainer.max_steps=2", "--trainer.enable_progress_bar=false"]
    assert main(["fit", f"singlecell/{recipe}", *common, *quiet, *words]) == 0
    metrics, page = RunFolder(tmp_path / "run").metrics(), (tmp_path / "run" / "report.html").read_text()
    assert set(wanted) <= set(metrics)
    assert all(title in page for title in panels)


def test_each_text_is_one_candidate_however_many_cells_have_it() -> None:
    class Table:
        text: Any = ["a", "a", "a", "b", None]

    class Data:
        table = Table()

        def part(self, name: str) -> np.ndarray:
            return np.arange(5)

    axes = np.eye(2)
    cells = axes[[0, 0, 1, 1, 0]]  # the third lies with the others' text
    said = axes[[0, 0, 0, 1]]
    found = {
        "genes": Embedded(pooled=cells, projected=cells, rows=np.arange(5)),
        "text": Embedded(pooled=said, projected=said, rows=np.arange(4)),
    }
    metrics, panel = retrieval(found, Data())  # type: ignore[arg-type]
    assert panel is not None
    assert metrics["retrieval/genes-text/r@1"] == 0.75
    assert metrics["retrieval/texts"] == 2
    assert metrics["retrieval/text-genes/chance"] == 0.5


def test_samples_of_many_cells_are_looked_at_in_their_own_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With few cells at once, and a sample of training: baselines say the same, neighbours are those sampled."""
    path = write_synthetic(tmp_path, n=300)
    data = CellDataModule(str(path), label=["cell_type"], text=["description"], modalities=["genes", "text"])
    data.setup()
    target = MultiClass(["cell_type"], classes=data.table.classes)
    whole = {name: predict() for name, predict in data.baselines(target).items()}
    monkeypatch.setattr(baselines, "AT_ONCE", 7)
    for name, predict in data.baselines(target).items():
        np.testing.assert_allclose(predict(), whole[name], atol=1e-6)
    monkeypatch.setattr(baselines, "MOST", 60)
    sampled = data.baselines(target)["logistic_genes"]().argmax(1)
    assert (sampled == data.target_values(data.part("test"))[:, 0]).mean() > 0.8

    monkeypatch.setattr(evaluate, "MOST", 40)
    monkeypatch.setattr(
        evaluate, "write_tokens", lambda task, data, objective, tokenizer, asked, **_: [[]] * len(asked)
    )
    metrics, _ = evaluate.described(None, data, None)  # type: ignore[arg-type]
    assert metrics["baseline/nearest_cell/text/exact"] > 0.8  # five texts: wrong places would give a third
    assert metrics["generation/text/exact"] == 0
    monkeypatch.setattr(evaluate, "pseudo_cells", lambda task, data, objective, texts: told(data, texts))
    metrics, _ = evaluate.drawn(None, data, None)  # type: ignore[arg-type]
    assert metrics["generation/cells/knn_accuracy"] > 1.5 * metrics["generation/cells/chance"]


def told(data: Any, texts: list[str]) -> np.ndarray:
    """The mean cell of each text."""
    cells = data.part("train")
    expression, known = data.expression(cells).toarray(), [data.table.text[i] for i in cells]
    return np.stack([expression[[said == text for said in known]].mean(0) for text in texts])
