"""Telling the other side of a reaction: by beam search, how often it is right, and beside what simple methods tell."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from polyfm.domains.molecules.baselines import tanimoto
from polyfm.domains.molecules.canonical import Canonical, Canonicaliser
from polyfm.domains.molecules.reaction_data import ReactionDataModule
from polyfm.domains.molecules.reactions import Reaction
from polyfm.domains.molecules.render import card
from polyfm.domains.molecules.sample import ReactionSample
from polyfm.domains.molecules.vectors import fingerprints
from polyfm.shared.backbones.generation import beam_search
from polyfm.shared.data.collate import pack_ids
from polyfm.shared.data.progress import Progress
from polyfm.shared.data.sampler import Key
from polyfm.shared.errors import UsageError
from polyfm.shared.evaluation.report.page import Panel
from polyfm.shared.objectives.causal import CausalLM

BEAMS = 5
TESTED = 500
"""Reactions of the test part that are told after training: beam search is slow."""


@torch.inference_mode()
def tell(
    task: Any, data: ReactionDataModule, samples: Sequence[ReactionSample], *, beams: int = BEAMS, chunk: int = 32
) -> list[list[str]]:
    """Targets of reactions.

    Args:
        task: Trained with `CausalLM` on targets, conditioned on sources.
        data: With its fitted transforms.
        samples: n; their targets are not looked at.
        beams: Answers for each.
        chunk: Reactions at a time.

    Returns:
        n times up to ``beams`` SMILES, valid or not, the likeliest first.
    """
    kinds = [objective for objective in getattr(task, "objectives", {}).values() if isinstance(objective, CausalLM)]
    objective = next((kind for kind in kinds if kind.modality == "target"), None)
    if objective is None:
        raise UsageError("this run cannot tell reactions", remedy="Use a run of molecules/reaction")
    task.eval()
    out: list[list[str]] = []
    with Progress("reactions") as bar:
        for start in range(0, len(samples), chunk):
            some = samples[start : start + chunk]
            sources = pack_ids([data.encode(sample.source) for sample in some]).to(task.device)
            context = task.model("smiles", sources).tokens
            prompt = pack_ids([np.array([data.tokenizer.start])] * len(some)).to(task.device)
            found = beam_search(
                objective.step(task.model, context),
                prompt,
                end=data.tokenizer.end,
                max_length=data.max_tokens - 1,
                beams=beams,
                min_length=1,
            )
            out += [[data.tokenizer.decode(ids) for ids in written] for written in found.sequences()]
            bar.update(len(out), len(samples))
    return out


def evaluate_reactions(task: Any, data: ReactionDataModule) -> tuple[dict[str, float], list[Panel]]:
    """Top-k exact match and validity on the test part (SPMM's measures), those of simple methods, and a panel.

    Args:
        task: Trained.
        data: Set up.
    """
    rows = data.part("test")[:TESTED]
    samples: list[ReactionSample] = data.make_samples([Key(int(i), 0) for i in rows])
    sources, wanted = [sample.source for sample in samples], [sample.target or "" for sample in samples]
    known = [data.reactions.reactions[i] for i in data.part("train")]
    answers = {"": tell(task, data, samples), "copy": copied(sources), "nearest_reaction": nearest(sources, known)}
    metrics: dict[str, float] = {}
    for name, said in answers.items():
        prefix = f"baseline/{name}" if name else "test/reactions"
        found = reaction_metrics(said, wanted, isomeric=data.isomeric)
        metrics |= {f"{prefix}/{metric}": value for metric, value in found.items()}
    body = "".join(
        f'<div class="pair">{card(source, "given")}<span class="arrow">→</span>'
        f"{card(said[0] if said else '', 'told')}{card(right, 'in the file', 'right')}</div>"
        for source, said, right in zip(sources[:6], answers[""][:6], wanted[:6], strict=True)
    )
    note = (
        f"Of {len(samples)} test reactions, {data.direction}: the first answer of a beam search (k = {BEAMS}) is right "
        f"in {metrics['test/reactions/top1']:.1%}, one of {BEAMS} in {metrics['test/reactions/top5']:.1%}; copying the "
        f"largest given molecule is right in {metrics['baseline/copy/top1']:.1%}, the target of the most similar "
        f"reaction of the training part in {metrics['baseline/nearest_reaction/top1']:.1%}."
    )
    return metrics, [Panel(title="Told reactions", body=f'<div class="cards">{body}</div>', note=note, wide=True)]


def reaction_metrics(
    written: Sequence[Sequence[str]], wanted: Sequence[str], *, isomeric: bool = True, ks: Sequence[int] = (1, 3, 5)
) -> dict[str, float]:
    """Share of reactions whose target is among the first k answers, by canonical SMILES, and validity.

    Args:
        written: n times the answers, the likeliest first; invalid ones keep their rank.
        wanted: n canonical targets.
        isomeric: Whether these hold stereochemistry.
        ks: Numbers of answers looked at.

    Returns:
        ``top1`` and so on, and ``validity``: the share of first answers that RDKit accepts.
    """
    lengths = [len(answers) for answers in written]
    results = Canonicaliser(isomeric)(list(itertools.chain.from_iterable(written)))
    found = [result.smiles if isinstance(result, Canonical) else None for result in results]
    ends = np.cumsum([0, *lengths]).tolist()
    answers = [found[start:end] for start, end in itertools.pairwise(ends)]
    count = max(len(wanted), 1)
    metrics = {
        f"top{k}": sum(right in said[:k] for said, right in zip(answers, wanted, strict=True)) / count for k in ks
    }
    return metrics | {"validity": sum(said[:1] not in ([], [None]) for said in answers) / count}


def copied(sources: Sequence[str]) -> list[list[str]]:
    """The simplest answer: the molecules of the source, the largest first.

    Args:
        sources: n canonical SMILES.
    """
    return [sorted(source.split("."), key=lambda part: (-len(part), part)) for source in sources]


def nearest(
    sources: Sequence[str], known: Sequence[Reaction], *, answers: int = BEAMS, chunk: int = 8192
) -> list[list[str]]:
    """The targets of the most similar sources of the training part (Tanimoto on ECFP4).

    Args:
        sources: n canonical SMILES.
        known: Reactions of the training part.
        answers: At most so many different ones for each.
        chunk: Reactions compared at a time.
    """
    ours = fingerprints(sources).astype(np.float32)
    similarity, index = np.zeros((len(sources), 0), dtype=np.float32), np.zeros((len(sources), 0), dtype=np.int64)
    for start in range(0, len(known), chunk):
        theirs = fingerprints([reaction.source for reaction in known[start : start + chunk]]).astype(np.float32)
        found = tanimoto(ours, theirs)
        places = np.broadcast_to(np.arange(start, start + len(theirs)), found.shape)
        similarity, index = np.hstack([similarity, found]), np.hstack([index, places])
        best = np.argsort(-similarity, axis=1, kind="stable")[:, : 20 * answers]  # several may have one target
        similarity, index = np.take_along_axis(similarity, best, 1), np.take_along_axis(index, best, 1)
    return [list(dict.fromkeys(known[i].target for i in row))[:answers] for row in index]
