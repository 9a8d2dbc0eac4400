"""Cells of Tabula Muris and of a CITE-seq slice: annotated with many and few labels, by texts never seen, told, told of.

Fixed before running, and the same for every method:

- Tabula Muris FACS, 4,000 cells × 2,000 genes of 12 types. A fifth is kept for testing, a twentieth for choosing the
  checkpoint, by a hash of the cell: the same for seeds 0 to 2 (of weights, order, the few cells with labels and which
  description a cell has). No donor is known;
- pre-training: `singlecell/scgpt` at small size, 40 passes over the training part without its labels;
- annotation: `singlecell/annotate` at small size, at most 30 passes, patience 8, all of it trained, from scratch or from
  that run; and a linear head on the frozen run. Baselines of the recipe beside, on the same cells;
- few labels: up to 1, 5 and 20 cells of each type, as many (at most 5, what there is) for choosing the checkpoint; 300, 150 and
  60 passes. One more baseline, because unlabelled cells help it too: logistic regression, trained on both, on 50
  components of the whole training part;
- zero-shot: `singlecell/scmmgpt` at small size, 20 passes. Training cells carry one of three descriptions of their type,
  drawn by chance. Asked are 12 others, written before anything was trained. Beside it: ridge from 50 components to TF-IDF;
- pseudo-cells: told from the same texts, those seen and those not; counted are the 15 nearest training cells of the
  right type. Beside it: ridge from TF-IDF to 50 components;
- proteins: 200 cells of blood, `singlecell/proteins` at small size, 100 passes, with the proteins of all training cells
  and of about half of them; beside it ridge on 50 components. Correlation over test cells, mean of 29 proteins.

Gains in macro-F1 are paired: over the test cells that are resampled, averaged over seeds; positive is better. CPU-minutes are those of `polyfm fit`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.evidence.rows import RUNS, SEEDS, Rows, answers, fit, interval, write_ledger

import polyfm
from polyfm.domains.singlecell.evaluate import COMPONENTS, NEIGHBOURS, nearest, pseudo_cells
from polyfm.domains.singlecell.objectives import PseudoCell
from polyfm.shared.data.collate import pack_ids
from polyfm.shared.data.splits import random_split
from polyfm.shared.evaluation.embedding import embed_part
from polyfm.shared.evaluation.report.panels import by_baseline
from polyfm.shared.training.targets.multi_class import MultiClass
from polyfm.shared.training.targets.target import Target

pytestmark = [pytest.mark.evidence, pytest.mark.realdata, pytest.mark.timeout(0)]

FRACTIONS = (0.75, 0.05, 0.2)
PRETRAINING, PASSES, TEXT_PASSES, PROTEIN_PASSES = 40, 30, 20, 100
FEW = {1: 300, 5: 150, 20: 60}
"""Passes by labelled cells of a type."""
METHODS: dict[str, list[str]] = {
    "scratch": [],
    "pre-trained": [],
    "pre-trained, frozen": ["--model.train_blocks=0", "--model.hidden=0"],
}
BASELINES = ("logistic_genes", "logistic_pca", "knn_pca", "commonest")
ALL_COMPONENTS = "logistic_pca_of_all"
ROWS = Rows(
    "singlecell.csv",
    ["labels", "method", "seed"],
    ["accuracy", "macro_f1", "test_rows", "cpu_minutes", "pretraining_cpu_minutes", "commit"],
)
GAINS = Rows(
    "singlecell_gains.csv", ["labels", "method", "against"], ["gain", "low", "high", "verdict", "seeds", "test_rows"]
)
ANSWERS = Rows("singlecell_answers.csv", ["labels", "method", "seed"], ["answers"])
"""What each method says of the test cells, in their order, a letter for a type: for intervals over all seeds."""
TOLD = Rows(
    "singlecell_texts.csv",
    ["task", "method", "seed"],
    ["value", "chance", "test_rows", "cpu_minutes", "commit"],
)
PROTEINS = Rows(
    "singlecell_proteins.csv", ["measured", "method", "seed"], ["mean_r", "test_rows", "cpu_minutes", "commit"]
)
# Three descriptions for training, the last for asking.
WORDINGS = {
    "B cell": (
        "B cell: a lymphocyte that makes antibodies.",
        "Lymphocyte of the bone marrow and spleen with immunoglobulin on its surface, which presents antigens.",
        "White blood cell of the B lineage, which becomes a plasma cell.",
        "Antibody making white blood cell with surface immunoglobulin.",
    ),
    "T cell": (
        "T cell: a lymphocyte that matures in the thymus.",
        "Lymphocyte with a T cell receptor and CD3, which helps other cells or kills infected ones.",
        "White blood cell of the T lineage, from the thymus.",
        "Thymus derived white blood cell that carries CD3.",
    ),
    "NK cell": (
        "Natural killer cell: a lymphocyte of innate immunity.",
        "Lymphocyte that kills tumour cells and virus infected cells without being primed.",
        "NK cell, cytotoxic without an antigen receptor.",
        "Innate cytotoxic lymphocyte, the natural killer.",
    ),
    "Monocyte": (
        "Monocyte: a phagocyte of the blood.",
        "Large white blood cell that becomes a macrophage or a dendritic cell in tissue.",
        "Mononuclear phagocyte of the myeloid lineage.",
        "Myeloid blood cell that matures into a macrophage.",
    ),
    "Granulocyte": (
        "Granulocyte: a white blood cell with granules, mostly a neutrophil.",
        "Polymorphonuclear cell of the myeloid lineage with a lobed nucleus, first at an infection.",
        "Neutrophil, eosinophil or basophil with granules of enzymes.",
        "Neutrophil with a lobed nucleus and enzymes in granules.",
    ),
    "Erythrocyte": (
        "Erythrocyte: a red blood cell full of haemoglobin.",
        "Red cell of the blood that carries oxygen.",
        "Cell of the erythroid lineage, rich in haemoglobin.",
        "Oxygen carrying red cell with haemoglobin.",
    ),
    "Endothelial cell": (
        "Endothelial cell: the inner lining of blood vessels.",
        "Flat cell of the vessel wall, which lets leukocytes and fluids pass.",
        "Cell of the endothelium of arteries, veins and capillaries.",
        "Lining cell of capillaries and other vessels.",
    ),
    "Epithelial cell": (
        "Epithelial cell: covers organs and lines their ducts.",
        "Cell of an epithelium, joined tightly to its neighbours, with keratins 8 and 18.",
        "Lining cell of glands, gut, lung or bladder.",
        "Tightly joined cell of the epithelium of ducts and glands.",
    ),
    "Epidermis": (
        "Cell of the epidermis: a keratinocyte of the skin.",
        "Keratinocyte of the outer layer of the skin, with keratins 5 and 14.",
        "Skin cell of the hair follicle or between follicles.",
        "Keratin rich cell of the outer skin.",
    ),
    "Stromal cell": (
        "Stromal cell: a fibroblast of connective tissue.",
        "Mesenchymal cell that makes collagen and the extracellular matrix.",
        "Fibroblast, supporting cell of an organ's stroma.",
        "Collagen making fibroblast of connective tissue.",
    ),
    "Hepatocyte": (
        "Hepatocyte: the main cell of the liver.",
        "Liver cell that makes albumin and bile and breaks down toxins.",
        "Parenchymal cell of the liver.",
        "Albumin making cell of the liver.",
    ),
    "Cardiac Muscle": (
        "Cardiac muscle cell: a cardiomyocyte of the heart.",
        "Striated muscle cell that contracts with each beat of the heart.",
        "Cardiomyocyte with myosin and troponin of the heart.",
        "Contracting cell of heart muscle with troponin.",
    ),
}


def source(name: str) -> Path:
    return Path(os.environ["POLYFM_DATA"]).absolute() / "singlecell" / name


def written(name: str, make: Callable[[], Any]) -> Path:
    """A file of cells, made once."""
    path = RUNS / "cells" / f"{name}.h5ad"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_file():
        part = path.with_name(f"{path.stem}.{os.getpid()}.part.h5ad")
        make().write_h5ad(part, convert_strings_to_categoricals=False)
        part.replace(path)
    return path


def cells(seed: int) -> Path:
    """Tabula Muris with the part that each cell is in, and a description of it."""
    return written(f"tabula-seed{seed}", lambda: divided(seed))


def divided(seed: int) -> Any:
    import anndata

    table = anndata.read_h5ad(source("tabula_muris_facs_4000x2000.h5ad"))
    table.obs["part"] = random_split(list(table.obs_names), FRACTIONS, seed=0)
    drawn = np.random.default_rng(seed).integers(3, size=len(table))
    drawn[table.obs["part"] == "test"] = 3
    table.obs["description"] = [WORDINGS[kind][i] for kind, i in zip(table.obs["cell_type"], drawn, strict=True)]
    return table


def few(seed: int, labels: int) -> Path:
    """All test cells, and of each type so many to train on, and to choose the checkpoint by."""

    def make() -> Any:
        table = divided(seed)
        order = np.random.default_rng(seed).permutation(len(table))
        taken = [*np.flatnonzero(table.obs["part"] == "test")]
        for part, most in (("train", labels), ("valid", min(labels, 5))):
            for kind in WORDINGS:
                of_type = ((table.obs["part"] == part) & (table.obs["cell_type"] == kind)).to_numpy()
                taken += [i for i in order if of_type[i]][:most]
        return table[np.sort(taken)].copy()

    return written(f"tabula-seed{seed}-few{labels}", make)


def pretrained(seed: int) -> tuple[Path, float]:
    flags = [f"--data.path={cells(seed)}", "--data.split=part", f"--trainer.max_epochs={PRETRAINING}"]
    run, minutes = fit(f"scgpt-seed{seed}", "singlecell/scgpt", "--size=small", *flags, f"--seed_everything={seed}")
    return run.path, minutes


@pytest.mark.parametrize("labels", ["all", *map(str, FEW)])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seed", SEEDS)
def test_annotation_is_measured(labels: str, method: str, seed: int) -> None:
    if not ROWS.read(labels=labels, method=method, seed=seed):
        annotate(labels, method, seed)
    assert ROWS.read(labels=labels, method=method, seed=seed)


def annotate(labels: str, method: str, seed: int) -> None:
    path = cells(seed) if labels == "all" else few(seed, int(labels))
    flags = [f"--data.path={path}", "--data.label=[cell_type]", "--data.split=part", f"--seed_everything={seed}"]
    flags += METHODS[method]
    if labels == "all":
        flags += [f"--trainer.max_epochs={PASSES}"]
    else:
        flags += [f"--trainer.max_epochs={FEW[int(labels)]}", "--trainer.check_val_every_n_epoch=5"]
        flags += ["--patience.patience=0"]
    before = 0.0
    if method != "scratch":
        start, before = pretrained(seed)
        flags += [f"--init_from={start}"]
    name = f"runs/tabula-{labels}-{method.replace(', ', '-')}-seed{seed}"
    run, minutes = fit(name, "singlecell/annotate", "--size=small", *flags)
    module, target, said = answers(run, method)
    metrics = run.metrics()
    found = {method: {name: metrics[f"test/{name}"] for name in ("accuracy", "macro_f1")}, **by_baseline(metrics)}
    truth = module.target_values(module.part("test"))
    if labels != "all" and method == "scratch":
        said[ALL_COMPONENTS] = lambda: of_all_components(seed, module, target)
        found[ALL_COMPONENTS] = target.metrics(said[ALL_COMPONENTS](), truth)
    rows = []
    spelt = [{"method": "truth", "answers": letters(truth[:, 0])}]
    for name, make in said.items():
        if name != method and ROWS.read(labels=labels, method=name, seed=seed):
            continue  # a baseline, measured beside another method
        spelt.append({"method": name, "answers": letters(make().argmax(1))})
        times = {"cpu_minutes": f"{minutes:.1f}", "pretraining_cpu_minutes": f"{before:.1f}"} if name == method else {}
        figures = {key: f"{found[name][key]:.4f}" for key in ("accuracy", "macro_f1")}
        about = {"labels": labels, "method": name, "seed": seed, "test_rows": len(truth)}
        rows.append({**about, **figures, **times, "commit": run.environment()["commit"][:7]})
    ANSWERS.put([{"labels": labels, "seed": seed, **row} for row in spelt])
    ROWS.put(rows)


def letters(classes: np.ndarray) -> str:
    return "".join(chr(ord("a") + int(i)) for i in classes)


def answered(labels: str, method: str, seed: int) -> np.ndarray:
    """(n,) classes."""
    (row,) = ANSWERS.read(labels=labels, method=method, seed=seed)
    return np.array([ord(letter) - ord("a") for letter in row["answers"]])


def of_all_components(seed: int, module: Any, target: Target) -> np.ndarray:
    """Logistic regression on components of all training cells, from the labelled ones and those of validation."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    whole = type(module)(path=str(cells(seed)), split="part", label=["cell_type"])
    whole.setup()
    reduce = TruncatedSVD(COMPONENTS, random_state=seed).fit(whole.expression(whole.part("train")))
    known = {id: place for place, id in enumerate(whole.table.ids)}

    def reduced(part: str) -> np.ndarray:
        rows = np.array([known[module.table.ids[i]] for i in module.part(part)])
        vectors: np.ndarray = reduce.transform(whole.expression(rows))
        return vectors

    x = np.concatenate([reduced(part) for part in ("train", "valid")])
    y = np.concatenate([module.target_values(module.part(part))[:, 0] for part in ("train", "valid")])
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)).fit(x, y)
    shares = np.zeros((len(module.part("test")), target.outputs))
    shares[:, model.classes_.astype(int)] = model.predict_proba(reduced("test"))
    return shares


@pytest.mark.parametrize("labels", ["all", *map(str, FEW)])
def test_gains_in_macro_f1_have_intervals(labels: str) -> None:
    kinds = sorted(WORDINGS)
    truth = answered(labels, "truth", 0)[:, None]
    target = MultiClass(names=["cell_type"], classes=kinds)

    def score(said: np.ndarray, real: np.ndarray) -> float:
        return float(target.metrics(np.eye(len(kinds))[said], real)["macro_f1"])

    best = best_baseline(labels)
    pairs = [(method, best) for method in METHODS] + [(method, "scratch") for method in METHODS if method != "scratch"]
    for method, other in pairs:
        ours, theirs = (np.stack([answered(labels, name, seed) for seed in SEEDS]) for name in (method, other))
        about = {"labels": labels, "method": method, "against": other, "seeds": len(SEEDS), "test_rows": len(truth)}
        GAINS.put([{**interval(score, True, ours, theirs, truth), **about}])
    assert len(GAINS.read(labels=labels)) == len(pairs)


def mean(labels: str, name: str) -> float:
    return float(np.mean([float(row["macro_f1"]) for row in ROWS.read(labels=labels, method=name)]))


def best_baseline(labels: str) -> str:
    return max((*BASELINES, *([ALL_COMPONENTS] if labels != "all" else [])), key=lambda name: mean(labels, name))


@pytest.mark.parametrize("seed", SEEDS)
def test_texts_are_measured(seed: int) -> None:
    if not TOLD.read(seed=seed):
        tell(seed)
    assert len(TOLD.read(seed=seed)) == 6


def tell(seed: int) -> None:
    """Which of 12 texts never seen is a cell's own; whether cells told from texts stand among those of their type."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import Ridge

    flags = [f"--data.path={cells(seed)}", "--data.split=part", "--data.text=[description]"]
    flags += [f"--trainer.max_epochs={TEXT_PASSES}", f"--seed_everything={seed}"]
    run, minutes = fit(f"runs/scmmgpt-seed{seed}", "singlecell/scmmgpt", "--size=small", *flags)
    model = polyfm.load(run.path)
    module: Any = model.data
    module.setup()
    kinds = list(WORDINGS)
    unseen = {words[3]: kind for kind, words in WORDINGS.items()}
    seen = {text: kind for kind, words in WORDINGS.items() for text in words[:3]}
    known = {**seen, **unseen}
    train, test = module.part("train"), module.part("test")
    owners = {
        part: np.array([known[module.table.text[i]] for i in rows]) for part, rows in (("train", train), ("test", test))
    }
    truth = np.array([kinds.index(kind) for kind in owners["test"]])

    # A cell's text among the twelve.
    ids = pack_ids([module.encode_text(text) for text in unseen])
    with torch.inference_mode():
        answers = model.task.model.encoders["text"](ids).projected.numpy()
    ours = embed_part(model.task, module, "test")["genes"].projected @ answers.T
    reduce = TruncatedSVD(COMPONENTS, random_state=seed).fit(module.expression(train))
    components = {part: reduce.transform(module.expression(rows)) for part, rows in (("train", train), ("test", test))}
    words = TfidfVectorizer(sublinear_tf=True).fit(seen)
    vectors = words.transform([module.table.text[i] for i in train]).toarray()
    guessed = Ridge().fit(components["train"], vectors).predict(components["test"])
    linear = guessed @ words.transform(list(unseen)).toarray().T

    # Cells told from texts.
    objective = next(one for one in model.task.objectives.values() if isinstance(one, PseudoCell))
    expressed = Ridge().fit(vectors, components["train"])

    def amid(texts: dict[str, str], cells: np.ndarray) -> float:
        near = nearest(module.expression(train), cells, NEIGHBOURS, seed)
        shares = [(owners["train"][places] == kind).mean() for places, kind in zip(near, texts.values(), strict=True)]
        return float(np.mean(shares))

    by_words = {
        name: reduce.inverse_transform(expressed.predict(words.transform(list(texts)).toarray()))
        for name, texts in (("seen", seen), ("unseen", unseen))
    }
    chance = float(np.mean([(owners["train"] == kind).mean() for kind in kinds]))
    shared = {"seed": seed, "commit": run.environment()["commit"][:7]}
    found = [("zero-shot accuracy", "scmmgpt", (ours.argmax(1) == truth).mean(), 1 / len(kinds), len(test))]
    found += [("zero-shot accuracy", "ridge to TF-IDF", (linear.argmax(1) == truth).mean(), 1 / len(kinds), len(test))]
    for name, texts in (("seen", seen), ("unseen", unseen)):
        task = f"pseudo-cells of {name} texts, k-NN accuracy"
        told_cells = pseudo_cells(model.task, module, objective, list(texts))
        found += [(task, "scmmgpt", amid(texts, told_cells), chance, len(texts))]
        found += [(task, "ridge from TF-IDF", amid(texts, by_words[name]), chance, len(texts))]
    rows = []
    for task, method, value, by_chance, n in found:
        cpu = {"cpu_minutes": f"{minutes:.1f}"} if method == "scmmgpt" else {}
        figures = {"value": f"{value:.4f}", "chance": f"{by_chance:.4f}", "test_rows": n}
        rows.append({**shared, "task": task, "method": method, **figures, **cpu})
    TOLD.put(rows)


@pytest.mark.parametrize("measured", ["all", "half"])
@pytest.mark.parametrize("seed", SEEDS)
def test_proteins_are_measured(measured: str, seed: int) -> None:
    """Proteins of test cells from their RNA, after training with those of all training cells or of half."""

    def make() -> Any:
        import anndata

        table = anndata.read_h5ad(source("pbmc5k_citeseq_200.h5ad"))
        table.obs["part"] = random_split(list(table.obs_names), FRACTIONS, seed=0)
        lost = (table.obs["part"] == "train") & (np.random.default_rng(seed).random(len(table)) < 0.5)
        proteins = np.asarray(table.obsm["protein_expression"], np.float32)
        proteins[lost.to_numpy() & (measured == "half")] = np.nan
        table.obsm["protein_expression"] = proteins
        return table

    if not PROTEINS.read(measured=measured, seed=seed):
        path = written(f"citeseq-{measured}-seed{seed}", make)
        flags = [f"--data.path={path}", "--data.split=part", f"--trainer.max_epochs={PROTEIN_PASSES}"]
        flags += [f"--seed_everything={seed}"]
        run, minutes = fit(f"runs/proteins-{measured}-seed{seed}", "singlecell/proteins", "--size=small", *flags)
        metrics = run.metrics()
        shared = {"measured": measured, "seed": seed, "test_rows": int(metrics["proteins/cells"])}
        shared["commit"] = run.environment()["commit"][:7]
        ours = {"method": "proteins", "mean_r": f"{metrics['proteins/mean_r']:.4f}", "cpu_minutes": f"{minutes:.1f}"}
        ridge = {"method": "ridge_pca", "mean_r": f"{metrics['baseline/ridge_pca/proteins/mean_r']:.4f}"}
        PROTEINS.put([{**shared, **ours}, {**shared, **ridge}])
    assert len(PROTEINS.read(measured=measured, seed=seed)) == 2


def test_the_ledger_says_what_was_measured() -> None:
    """Of the systems of this domain scMMGPT alone has a row there; the tables hold the rest."""

    def told(task: str, method: str) -> float:
        return float(np.mean([float(row["value"]) for row in TOLD.read(task=task, method=method)]))

    found = "; ".join(
        f"{task} {told(task, 'scmmgpt'):.1%}, {other} {told(task, other):.1%}"
        for task, other in (
            ("zero-shot accuracy", "ridge to TF-IDF"),
            ("pseudo-cells of seen texts, k-NN accuracy", "ridge from TF-IDF"),
            ("pseudo-cells of unseen texts, k-NN accuracy", "ridge from TF-IDF"),
        )
    )
    about = "Tabula Muris slice, 12 types, asked by texts never seen, means of seeds 0 to 2"
    write_ledger("singlecell/scmmgpt", f"{about}: {found}; rows in benchmarks/results/singlecell_texts.csv")
