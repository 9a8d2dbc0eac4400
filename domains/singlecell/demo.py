"""`polyfm demo singlecell`: cells and text pre-trained on 6,000 drawn cells, 700 real ones annotated, one report.

The real cells, blood of one donor, come with scanpy. Those for pre-training are drawn from the counts of those that
fine-tuning is not tested on, in three batches that take after different cells; one batch is kept for testing. They are
invented, and like the real ones as far as a negative binomial can.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np

from polyfm.domains.singlecell.data import CellDataModule
from polyfm.domains.singlecell.evaluate import COMPONENTS, NEIGHBOURS, nearest, pseudo_cells
from polyfm.domains.singlecell.markers import marker_panel
from polyfm.domains.singlecell.objectives import PseudoCell
from polyfm.domains.singlecell.read import read_cells
from polyfm.domains.singlecell.synthetic import LABEL, TEXT, drawn_like
from polyfm.shared.cli.fit import start_from, train
from polyfm.shared.data.splits import random_split
from polyfm.shared.errors import MissingExtraError
from polyfm.shared.evaluation.embedding import embed_sample
from polyfm.shared.evaluation.report.maps import MAPPED, scatter
from polyfm.shared.evaluation.report.page import Panel, Report
from polyfm.shared.evaluation.report.panels import by_baseline
from polyfm.shared.training.recipe import find_recipe

try:
    import pandas as pd
    import scanpy
    from anndata import AnnData
    from scipy.sparse import csr_matrix
except ImportError as error:
    raise MissingExtraError(str(error.name), "singlecell") from error

PRETRAINING_SECONDS, FINETUNING_SECONDS = 60, 20
MOST_GENES = 127
"""Of a cell, for attention's sake: a step takes a third of what it takes with all."""
DRAWN = 6000
UNSEEN = "batch3"
FRACTIONS = (0.6, 0.1, 0.3)
"""Of the real cells, for training, validation and test; nothing is drawn from those of the test."""
SAID = {
    "CD14+ Monocyte": "A phagocyte of the blood that carries CD14 and becomes a macrophage in tissue.",
    "CD19+ B": "A lymphocyte that carries CD19, presents antigens and makes antibodies.",
    "CD34+": "A progenitor from which blood cells descend, with CD34 on its surface.",
    "CD4+/CD25 T Reg": "A regulatory lymphocyte with CD4 and CD25 that restrains other T cells.",
    "CD4+/CD45RA+/CD25- Naive T": "A helper lymphocyte with CD4 that has not met its antigen.",
    "CD4+/CD45RO+ Memory": "A helper lymphocyte with CD4 that remembers an antigen.",
    "CD56+ NK": "A lymphocyte with CD56 that kills infected cells without priming.",
    "CD8+ Cytotoxic T": "A lymphocyte with CD8 that kills cells by its antigen receptor.",
    "CD8+/CD45RA+ Naive Cytotoxic": "A lymphocyte with CD8 that has not met its antigen.",
    "Dendritic": "A cell that takes up antigens and presents them to lymphocytes.",
}
"""By type as the file names it: what the model reads."""


def run(out: Path, *, seconds: int = 0) -> None:
    """Run the demo.

    Args:
        out: Its folder.
        seconds: Of pre-training; 0 for `PRETRAINING_SECONDS`.
    """
    start = time.monotonic()
    seconds = seconds or PRETRAINING_SECONDS
    out.mkdir(parents=True, exist_ok=True)
    real, drawn = out / "pbmc68k_reduced.h5ad", out / "drawn.h5ad"
    cells = scanpy.datasets.pbmc68k_reduced()
    cells.obs["split"] = random_split(list(cells.obs_names), FRACTIONS, seed=0)
    cells.write_h5ad(real, convert_strings_to_categoricals=False)
    draw(real).write_h5ad(drawn, compression="gzip")
    parents = (cells.obs["split"] != "test").sum()
    print(f"1/3  Pre-training on {DRAWN:,} cells drawn from {parents} of scanpy's {len(cells)}, for {seconds} s\n")
    scmmgpt = find_recipe("singlecell/scmmgpt")
    flags = [f"--data.path={drawn}", f"--data.text=[{TEXT}]", f"--data.label=[{LABEL}]", "--data.group=batch"]
    flags += ["--data.split=split", f"--data.max_genes={MOST_GENES}"]
    flags += [f"--trainer.max_time=00:00:{seconds // 60:02d}:{seconds % 60:02d}"]
    pretrained = train(scmmgpt, scmmgpt.sized("small"), flags, out / "pretrain")

    print("\n2/3  Fine-tuning it on the types of the real cells\n")
    recipe = find_recipe("singlecell/annotate")
    tree = start_from(out / "pretrain", recipe.sized("small"))
    flags = [f"--data.path={real}", "--data.label=[bulk_labels]", "--data.split=split"]
    flags += [f"--trainer.max_time=00:00:00:{FINETUNING_SECONDS}"]
    finetuned = train(recipe, tree, flags, out / "finetune", init_from=str(out / "pretrain"))

    print("\n3/3  Maps, marker genes, and the report")
    lead = sentences(pretrained, finetuned)
    panels = assemble(pretrained, finetuned)
    report = out / "report.html"
    Report(title="polyfm demo: singlecell", subtitle=scmmgpt.tree["title"], lead=lead, panels=panels).write(report)
    print("\n" + "\n".join(lead))
    print(f"\nReport:  {report}   ({time.monotonic() - start:.0f} s in all)")
    print(f"Next:    polyfm embed {out / 'finetune'} {real} --out annotated.h5ad")
    print("         polyfm fit singlecell/annotate --data.path YOURS.h5ad --data.label COL \\")
    print(f"             --init_from {out / 'pretrain'} --size small --out runs/yours")


def draw(real: Path) -> AnnData:
    """Cells for pre-training, with types, descriptions, batches and the part that each is in.

    Args:
        real: File of the cells that they are drawn from.
    """
    table = read_cells(real, label="bulk_labels", split="split")
    known = np.flatnonzero(np.array(table.split) != "test")
    block = table.read(known)
    counts = AnnData(csr_matrix((block.values, block.genes, block.indptr), shape=(len(block), len(table.vocabulary))))
    counts.var_names = table.vocabulary.symbols
    counts.obs[LABEL] = np.array(table.classes)[table.targets[known, 0].astype(int)]
    cells = drawn_like(counts, DRAWN)
    cells.obs[TEXT] = [f"{kind}. {SAID[kind]}" for kind in cells.obs[LABEL]]
    valid = np.random.default_rng(0).random(len(cells)) < 0.05
    cells.obs["split"] = np.where(cells.obs["batch"] == UNSEEN, "test", np.where(valid, "valid", "train"))
    return cells


def assemble(pretrained: Any, finetuned: Any) -> list[Panel]:
    """The report's panels, in the order of the story.

    Args:
        pretrained: The run on drawn cells.
        finetuned: On real ones.
    """
    by_title = {panel.title: panel for panel in pretrained.panels}
    tuned = {panel.title: panel for panel in finetuned.panels}
    renamed = [
        (by_title["Learning curves"], "Learning curves: pre-training"),
        (tuned["Learning curves"], "Learning curves: fine-tuning"),
        (by_title["Cells and texts"], "Cells and texts, unseen batch"),
        (by_title["Written descriptions"], "Descriptions written for cells of the unseen batch"),
        (by_title["Pseudo-cells"], "Pseudo-cells"),
        (tuned["Test metrics beside baselines"], "Types of real cells: test metrics beside baselines"),
        (tuned["Confusion"], "Types of real cells: confusion"),
        (by_title["Data"], "Data of pre-training"),
        (tuned["Data"], "Data of fine-tuning"),
    ]
    shown = [dataclasses.replace(panel, title=title) for panel, title in renamed]
    shown[5:5] = [*maps(pretrained.task, pretrained.data), by_title["Integration"]]
    shown.insert(-2, marker_panel(finetuned.task, finetuned.data))
    return shown


def maps(task: Any, data: CellDataModule) -> list[Panel]:
    """UMAP of the drawn cells before and after: expression, with pseudo-cells among it, and the model's vectors.

    Args:
        task: Pre-trained.
        data: Set up.
    """
    from sklearn.decomposition import TruncatedSVD

    parts = {part: each["genes"] for part, each in embed_sample(task, data, MAPPED).items()}
    rows = np.concatenate([data.part(part)[each.rows] for part, each in parts.items()])
    vectors = np.concatenate([each.pooled for each in parts.values()])
    colours = {
        "by type": np.array(data.table.classes)[data.table.targets[rows, 0].astype(int)],
        "by split": np.concatenate([[part] * len(each.rows) for part, each in parts.items()]),
        "by batch": np.array(data.table.groups)[rows],
    }
    objective = next(one for one in task.objectives.values() if isinstance(one, PseudoCell))
    told = pseudo_cells(task, data, objective, [f"{kind}. {text}" for kind, text in SAID.items()])
    expressed = data.expression(rows)
    flat = umap(TruncatedSVD(COMPONENTS, random_state=data.seed).fit_transform(expressed))
    # A cell that is told has a little of every gene, as no counted one has: it stands amid those nearest to it.
    near = nearest(expressed, told, NEIGHBOURS, data.seed)
    stars = {kind: np.median(flat[places], 0) for kind, places in zip(SAID, near, strict=True)}
    return [
        Panel(
            title="Map of cells before: expression",
            body=scatter(flat, colours, stars),
            note=f"UMAP on {COMPONENTS} components of log1p counts. Stars, in the colour of their type: cells told "
            f"from a description alone, amid the {NEIGHBOURS} cells nearest to them.",
            wide=True,
        ),
        Panel(
            title="Map of cells after: the model's vectors",
            body=scatter(umap(vectors), colours),
            note="UMAP on the vectors of the pre-trained model. The test part is a batch that it never saw.",
            wide=True,
        ),
    ]


def umap(vectors: np.ndarray) -> np.ndarray:
    """(n, 2) as by ``sc.pp.neighbors`` and ``sc.tl.umap``.

    Args:
        vectors: (n, D).
    """
    cells = AnnData(vectors, obs=pd.DataFrame(index=[str(i) for i in range(len(vectors))]))
    scanpy.pp.neighbors(cells, use_rep="X", random_state=0)
    scanpy.tl.umap(cells, random_state=0)
    flat: np.ndarray = cells.obsm["X_umap"]
    return flat


def sentences(pretrained: Any, finetuned: Any) -> list[str]:
    """What was done and what came out, the winner by name, whoever it is.

    Args:
        pretrained: The run on drawn cells.
        finetuned: On real ones.
    """
    metrics, tuned = pretrained.metrics, finetuned.metrics
    scores = {"the fine-tuned model": tuned["test/macro_f1"]}
    scores |= {name: found["macro_f1"] for name, found in by_baseline(tuned).items()}
    ranked = sorted(scores, key=lambda name: -scores[name])
    order = "; ".join(f"{name} {scores[name]:.3f}" for name in ranked)
    return [
        f"Pre-training: of {int(metrics['retrieval/texts'])} descriptions a cell's own comes first for "
        f"{metrics['retrieval/genes-text/r@1']:.1%} of {len(pretrained.data.part('test')):,} cells of a batch that was "
        f"never seen; chance is {1 / metrics['retrieval/texts']:.1%}.",
        f"Pseudo-cells: {metrics['generation/cells/knn_accuracy']:.1%} of the nearest training cells are of the "
        f"description; chance is {metrics['generation/cells/chance']:.1%}.",
        f"Fine-tuning: best macro-F1 on {int(tuned['test/rows'])} real cells: {ranked[0]}. {order}.",
    ]
