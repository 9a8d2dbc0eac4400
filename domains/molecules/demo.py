"""`polyfm demo molecules`: SPMM pre-trained live on 4,892 compounds, fine-tuned on 1,017 activities, one report.

Both data sets come with RDKit. What a minute of pre-training cannot show (generation, a map worth looking at) is shown
with a checkpoint of the same recipe that trained for longer, `demo_run/`, with the live model's figures beside it.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from polyfm.domains.molecules.evaluate import embedding_map, generation, retrieval_metrics, told_properties
from polyfm.shared.cli.fit import start_from, train
from polyfm.shared.deployment.inference import load
from polyfm.shared.evaluation.report.figures import table
from polyfm.shared.evaluation.report.page import Panel, Report
from polyfm.shared.evaluation.report.panels import by_baseline
from polyfm.shared.training.recipe import find_recipe

PRETRAINING_SECONDS = 75
FINETUNING_SECONDS = 40
COMMITTED = Path(__file__).parent / "demo_run"


def run(out: Path, *, seconds: int = 0) -> None:
    """Run the demo.

    Args:
        out: Its folder.
        seconds: Of pre-training; 0 for `PRETRAINING_SECONDS`.
    """
    start = time.monotonic()
    seconds = seconds or PRETRAINING_SECONDS
    compounds = nci_compounds()
    print(f"1/3  Pre-training SPMM on {compounds.name} for {seconds} s\n")
    spmm = find_recipe("molecules/spmm")
    flags = [f"--data.path={compounds}", f"--trainer.max_time=00:00:{seconds // 60:02d}:{seconds % 60:02d}"]
    pretrained = train(spmm, spmm.sized("small"), flags, out / "pretrain")

    activities = out / "activities.csv"
    free_wilson().to_csv(activities, index=False)
    print("\n2/3  Fine-tuning it on the activities of a series\n")
    recipe = find_recipe("molecules/property")
    tree = start_from(out / "pretrain", recipe.sized("small"))
    flags = [f"--data.path={activities}", "--data.smiles=smiles", "--data.targets=[activity]"]
    flags += [f"--trainer.max_time=00:00:00:{FINETUNING_SECONDS}"]
    finetuned = train(recipe, tree, flags, out / "finetune", init_from=str(out / "pretrain"))

    print("\n3/3  The checkpoint that comes along, and the report")
    longer = longer_trained(pretrained)
    lead = sentences(pretrained, finetuned)
    panels = assemble(pretrained, finetuned, longer)
    report = out / "report.html"
    Report(title="polyfm demo: molecules", subtitle=spmm.tree["title"], lead=lead, panels=panels).write(report)
    print("\n" + "\n".join(lead))
    print(f"\nReport:  {report}   ({time.monotonic() - start:.0f} s in all)")
    print(f"Next:    polyfm predict {out / 'finetune'} {activities} --out predictions.csv")
    print("         polyfm fit molecules/property --data.path YOURS.csv --data.smiles COL --data.targets COL \\")
    print(f"             --init_from {out / 'pretrain'} --size small --out runs/yours")


def nci_compounds() -> Path:
    """RDKit's sample of the NCI's open compounds: 4,999 lines of SMILES and a number."""
    from rdkit import RDConfig

    return Path(RDConfig.RDDataDir) / "NCI" / "first_5K.smi"


def free_wilson() -> pd.DataFrame:
    """RDKit's Free-Wilson example: 1,017 molecules of one series and their activities, joined on the name."""
    from rdkit import RDConfig

    folder = Path(RDConfig.RDContribDir) / "FreeWilson" / "data"
    structures = pd.read_csv(folder / "CHEMBL2321810.smi", sep=r"\s+", names=["smiles", "name"], dtype=str)
    activities = pd.read_csv(folder / "CHEMBL2321810_act.csv", dtype={"Name": str})
    joined = structures.merge(activities, left_on="name", right_on="Name", validate="one_to_one")
    return joined.rename(columns={"Act": "activity"})[["name", "smiles", "activity"]]


def longer_trained(live: Any) -> dict[str, Any]:
    """The committed checkpoint on the live run's test part: figures, generated molecules, map.

    Args:
        live: The finished live run.
    """
    model = load(COMMITTED)
    data: Any = model.data
    data.path = live.data.path
    data.setup()
    vectors, _, _ = retrieval_metrics(model.task, data)
    written, panel = generation(model.task, data)
    metrics = {**vectors, **written, **told_properties(model.task, data)}
    return {"metrics": metrics, "generated": panel, "map": embedding_map(model.task, data)}


def assemble(pretrained: Any, finetuned: Any, longer: dict[str, Any]) -> list[Panel]:
    """The report's panels, in the order of the story.

    Args:
        pretrained: The live run.
        finetuned: On the activities.
        longer: From `longer_trained`.
    """
    by_title = {panel.title: panel for panel in pretrained.panels}
    rows = [
        [name, float(pretrained.metrics.get(name, np.nan)), float(value)]
        for name, value in longer["metrics"].items()
        if not name.endswith(("mrr", "chance_r@10"))
    ]
    beside = Panel(
        title="Live model beside the longer-trained one",
        body=table(["test part", "live", "longer trained"], rows),
        note=f"The same recipe at the same size; the longer-trained checkpoint comes with polyfm ({provenance()}). "
        f"Chance of R@10: {pretrained.metrics['retrieval/chance_r@10']:.1%}.",
        wide=True,
    )
    tuned = {panel.title: panel for panel in finetuned.panels}
    return [
        dataclasses.replace(by_title["Learning curves"], title="Learning curves: pre-training"),
        dataclasses.replace(tuned["Learning curves"], title="Learning curves: fine-tuning"),
        dataclasses.replace(by_title["Retrieval"], title="Retrieval, live model"),
        beside,
        dataclasses.replace(longer["generated"], title="Generated molecules, longer-trained checkpoint"),
        dataclasses.replace(longer["map"], title="Map of molecules, longer-trained checkpoint"),
        dataclasses.replace(tuned["Test metrics beside baselines"], title="Activities: test metrics beside baselines"),
        tuned["Predicted against measured"],
        dataclasses.replace(by_title["Data"], title="Data of pre-training"),
        dataclasses.replace(tuned["Data"], title="Data of fine-tuning"),
    ]


def provenance() -> str:
    """How the committed checkpoint was made, in a few words."""
    return (COMMITTED / "PROVENANCE.txt").read_text(encoding="utf-8").strip()


def sentences(pretrained: Any, finetuned: Any) -> list[str]:
    """What was done and what came out, the winner by name, whoever it is.

    Args:
        pretrained: The live run.
        finetuned: On the activities.
    """
    metrics, tuned = pretrained.metrics, finetuned.metrics
    recall = metrics["retrieval/smiles-properties/r@10"], metrics["retrieval/properties-smiles/r@10"]
    errors = {"the fine-tuned model": tuned["test/rmse"]}
    errors |= {name: found["rmse"] for name, found in by_baseline(tuned).items()}
    ranked = sorted(errors, key=lambda name: errors[name])
    order = "; ".join(f"{name} {errors[name]:.3f}" for name in ranked)
    pool = len(pretrained.data.part("test"))
    chance = metrics["retrieval/chance_r@10"]
    return [
        f"Pre-training: the right one of {pool} test molecules is among the ten best for {recall[0]:.1%} of queries "
        f"from SMILES to properties and for {recall[1]:.1%} from properties to SMILES; chance is {chance:.1%}.",
        f"Fine-tuning: lowest test error of the activities: {ranked[0]}. RMSE in the file's unit: {order}.",
        f"The longer-trained checkpoint that comes along: {provenance()}.",
    ]
