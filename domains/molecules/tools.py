"""`polyfm tool molecules NAME`: both directions of SPMM and of MolFM, and reactions, for own molecules and wishes."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from polyfm.domains.molecules.data import MoleculeDataModule
from polyfm.domains.molecules.descriptors import DESCRIPTORS, descriptor_table
from polyfm.domains.molecules.generate import read_properties, write, write_smiles
from polyfm.domains.molecules.metrics import generation_metrics
from polyfm.domains.molecules.reaction_data import ReactionDataModule
from polyfm.domains.molecules.reaction_prediction import tell
from polyfm.domains.molecules.read import canonical
from polyfm.domains.molecules.sample import MoleculeSample
from polyfm.shared.cli.arguments import READING, Arguments, reading_options, result_file, tell_reading
from polyfm.shared.deployment.inference import LoadedModel, load
from polyfm.shared.errors import DataError, UsageError


def generate(words: Sequence[str]) -> None:
    """SMILES for wanted properties: polyfm tool molecules generate RUN --properties MolWt=300,TPSA=60 --out FILE.csv.

    Args:
        words: After the tool's name.
    """
    parser = Arguments(
        "tool molecules generate", "Write SMILES that have wanted properties; what is not named is free.", READING
    )
    parser.add_argument("run", help="folder of a molecules/spmm run")
    parser.add_argument("--properties", default="", help="NAME=VALUE,… in the descriptors' own units")
    parser.add_argument("--like", default="", metavar="FILE", help="take all 53 properties of these molecules instead")
    parser.add_argument("--beams", type=int, default=2, help="k of the beam search; each beam is written")
    parser.add_argument("--out", required=True, help="result: .csv")
    ours, given = parser.parse_reading(words)
    reading = reading_options(given, MoleculeDataModule)
    if bool(ours.properties) == bool(ours.like):
        parser.error("give either --properties or --like")
    if reading and not ours.like:
        parser.error(f"--data.{next(iter(reading))} is about the file of --like, which is not given")
    if ours.beams < 1:
        parser.error("--beams must be at least 1")
    out = result_file(ours.out, ours.like, (".csv",), "molecules.csv")
    model = load(ours.run)
    data = _molecules(model)
    if ours.like:
        asked = data.read_new(ours.like, **reading)
        for line in data.summary():
            print(line)
        names, wanted = asked.ids, descriptor_table(asked.smiles)
    else:
        names, wanted = ["wanted"], parse_properties(ours.properties)[None]
    rows: list[dict[str, Any]] = []
    for name, wish, beams in zip(names, wanted, write_smiles(model.task, data, wanted, beams=ours.beams), strict=True):
        rows += [{"id": name, "beam": rank, "smiles": text} for rank, text in enumerate(beams, start=1)]
        if len(names) == 1:
            for text in beams:
                print(f"  {text or '(empty)'}")
                _compare(text, wish)
    pd.DataFrame(rows).to_csv(out, index=False)
    best = [row["smiles"] for row in rows if row["beam"] == 1]
    measured = generation_metrics(best, wanted, (), data.standardiser.scale, isomeric=data.isomeric)
    print(f"{len(rows)} SMILES: {out}; validity {measured['validity']:.0%} of the likeliest")


def properties(words: Sequence[str]) -> None:
    """53 properties as the model tells them: polyfm tool molecules properties RUN INPUT --out FILE.csv.

    Args:
        words: After the tool's name.
    """
    parser = Arguments(
        "tool molecules properties", "Tell all 53 properties of molecules from their SMILES alone.", READING
    )
    parser.add_argument("run", help="folder of a molecules/spmm run")
    parser.add_argument("input", help="file of molecules")
    parser.add_argument("--out", required=True, help="result: .csv")
    ours, given = parser.parse_reading(words)
    reading = reading_options(given, MoleculeDataModule)
    out = result_file(ours.out, ours.input, (".csv",), "properties.csv")
    model = load(ours.run)
    data = _molecules(model)
    table = data.read_new(ours.input, **reading)
    told = read_properties(model.task, data, table.smiles)
    frame = pd.DataFrame(told, columns=list(DESCRIPTORS))
    frame.insert(0, "id", table.ids)
    frame.to_csv(out, index=False)
    print(f"{len(frame):,} molecules, {len(DESCRIPTORS)} properties each: {out}")
    tell_reading(data, out)


def describe(words: Sequence[str]) -> None:
    """Descriptions of molecules: polyfm tool molecules describe RUN INPUT --out FILE.csv.

    Args:
        words: After the tool's name.
    """
    parser = Arguments("tool molecules describe", "Write a description of each molecule.", READING)
    parser.add_argument("run", help="folder of a molecules/molfm_generation run")
    parser.add_argument("input", help="file of molecules")
    parser.add_argument("--beams", type=int, default=2, help="k of the beam search; the likeliest is written")
    parser.add_argument("--out", required=True, help="result: .csv")
    ours, given = parser.parse_reading(words)
    reading = reading_options(given, MoleculeDataModule)
    if ours.beams < 1:
        parser.error("--beams must be at least 1")
    out = result_file(ours.out, ours.input, (".csv",), "texts.csv")
    model = load(ours.run)
    data = _with_texts(model)
    samples = data.samples_from(Path(ours.input), **reading)
    written = write(model.task, data, "text", samples, beams=ours.beams, max_length=data.max_text_tokens)
    rows = [
        {"id": sample.id, "smiles": sample.smiles, "description": texts[0] if texts else ""}
        for sample, texts in zip(samples, written, strict=True)
    ]
    pd.DataFrame(rows, columns=["id", "smiles", "description"]).to_csv(out, index=False)
    print(f"{len(rows):,} descriptions: {out}. They are proposals: nothing in them was looked up")
    tell_reading(data, out)


def translate(words: Sequence[str]) -> None:
    """SMILES for a description: polyfm tool molecules translate RUN "The molecule is …" --out FILE.csv.

    Args:
        words: After the tool's name.
    """
    parser = Arguments("tool molecules translate", "Write SMILES of the molecule that a text describes.")
    parser.add_argument("run", help="folder of a molecules/molfm_generation run")
    parser.add_argument("text", help="the description, in quotes")
    parser.add_argument("--beams", type=int, default=2, help="k of the beam search; each beam is written")
    parser.add_argument("--out", required=True, help="result: .csv")
    ours = parser.parse(words)
    if ours.beams < 1:
        parser.error("--beams must be at least 1")
    out = result_file(ours.out, "", (".csv",), "molecules.csv")
    model = load(ours.run)
    data = _with_texts(model)
    wish = MoleculeSample(id="wanted", group="", row=1, text=ours.text, targets={})
    (found,) = write(model.task, data, "smiles", [wish], beams=ours.beams, max_length=data.max_tokens)
    rows = [
        {"beam": rank, "smiles": text, "valid": canonical(text, isomeric=data.isomeric) is not None}
        for rank, text in enumerate(found, start=1)
    ]
    for row in rows:
        print(f"  {row['smiles'] or '(empty)'}{'' if row['valid'] else '   not a valid molecule'}")
    pd.DataFrame(rows, columns=["beam", "smiles", "valid"]).to_csv(out, index=False)
    print(f"{len(rows)} SMILES: {out}")


def react(words: Sequence[str]) -> None:
    """The other side of reactions: polyfm tool molecules react RUN INPUT --out FILE.csv.

    Args:
        words: After the tool's name.
    """
    parser = Arguments("tool molecules react", "Tell products of reactants, or reactants of products.", READING)
    parser.add_argument("run", help="folder of a molecules/reaction run")
    parser.add_argument("input", help="file of reactions, or of what is known of them alone")
    parser.add_argument("--beams", type=int, default=5, help="k of the beam search; each beam is written")
    parser.add_argument("--out", required=True, help="result: .csv")
    ours, given = parser.parse_reading(words)
    if ours.beams < 1:
        parser.error("--beams must be at least 1")
    out = result_file(ours.out, ours.input, (".csv",), "answers.csv")
    model = load(ours.run)
    data = model.data
    if not isinstance(data, ReactionDataModule):
        raise UsageError("this run knows no reactions", where=ours.run, remedy="Use a run of molecules/reaction")
    samples = data.samples_from(Path(ours.input), **reading_options(given, ReactionDataModule))
    rows = [
        {
            "id": sample.id,
            "source": sample.source,
            "rank": rank,
            "answer": text,
            "valid": canonical(text, isomeric=data.isomeric) is not None,
        }
        for sample, answers in zip(samples, tell(model.task, data, samples, beams=ours.beams), strict=True)
        for rank, text in enumerate(answers, start=1)
    ]
    pd.DataFrame(rows, columns=["id", "source", "rank", "answer", "valid"]).to_csv(out, index=False)
    print(f"{len(samples):,} reactions, {data.direction}: {out}. They are proposals: no chemist looked at them")
    tell_reading(data, out)


def parse_properties(text: str) -> np.ndarray:
    """(53,) wanted properties, NaN where nothing is asked for.

    Args:
        text: ``NAME=VALUE,NAME=VALUE``.
    """
    wanted = np.full(len(DESCRIPTORS), np.nan)
    for part in text.split(","):
        name, _, value = part.strip().partition("=")
        if name not in DESCRIPTORS:
            near = difflib.get_close_matches(name, DESCRIPTORS, n=1, cutoff=0.3)
            hint = f"Did you mean {near[0]}?" if near else f"They are: {', '.join(DESCRIPTORS)}"
            raise UsageError(f"there is no property {name!r}", where="--properties", remedy=hint)
        try:
            number = float(value)
        except ValueError:
            number = np.nan
        if not np.isfinite(number):
            raise UsageError(f"{value!r} is not a number", where=f"--properties {name}")
        wanted[DESCRIPTORS.index(name)] = number
    return wanted


def _compare(smiles: str, wanted: np.ndarray) -> None:
    try:
        found = descriptor_table([smiles])[0]
    except DataError:
        print("      not a valid molecule")
        return
    for column in np.flatnonzero(~np.isnan(wanted)):
        print(f"      {DESCRIPTORS[column]}: wanted {wanted[column]:g}, has {found[column]:.4g}")


def _molecules(model: LoadedModel) -> MoleculeDataModule:
    if not isinstance(model.data, MoleculeDataModule) or "properties" not in model.data.modalities:
        raise UsageError("this run knows no properties", where=model.folder.path, remedy="Use a run of molecules/spmm")
    return model.data


def _with_texts(model: LoadedModel) -> MoleculeDataModule:
    if not isinstance(model.data, MoleculeDataModule) or "text" not in model.data.modalities:
        raise UsageError(
            "this run knows no texts", where=model.folder.path, remedy="Use a run of molecules/molfm_generation"
        )
    return model.data


TOOLS: dict[str, Callable[[Sequence[str]], None]] = {
    "generate": generate,
    "properties": properties,
    "describe": describe,
    "translate": translate,
    "react": react,
}
"""By the word a user writes."""
