"""Shared parts against the plain way: the trunk, packing, contrastive losses. See benchmarks/README.md.

python benchmarks/core.py [--section bert|packed|contrastive] [--out benchmarks/results/core.md]
"""

from __future__ import annotations

import gzip
import os
import re
import time
from functools import partial
from pathlib import Path
from statistics import NormalDist

import harness
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from polyfm.shared.backbones.block import PostNorm
from polyfm.shared.backbones.encoder import Encoder
from polyfm.shared.backbones.transformer import Transformer
from polyfm.shared.data import ragged
from polyfm.shared.data.batch import TokenIds
from polyfm.shared.objectives.contrastive import info_nce
from polyfm.shared.objectives.sigmoid import sigmoid_loss
from polyfm.shared.tokens.text import TextTokens

ROUNDS = 9


Lengths = NDArray[np.int64]


# --- The trunk against BERT -------------------------------------------------------------------------------------------

BERT_BATCH, BERT_LENGTH, BERT_VOCABULARY = 8, 128, 30_522


def sequences(lengths: Lengths, vocabulary: int) -> TokenIds:
    """Random ids of given lengths."""
    sizes = torch.from_numpy(np.asarray(lengths, dtype=np.int64))
    ids = torch.randint(1, vocabulary, (int(sizes.sum()),))
    return TokenIds(rows=torch.arange(len(sizes)), ids=ids, cu_seqlens=ragged.boundaries(sizes))


class TrainingStep:
    """Forward, a loss on every real token, backward, AdamW.

    Args:
        model: From a batch to the vectors of its real tokens.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model.train()
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

    def __call__(self, *batch: Tensor | TokenIds) -> None:
        """One step."""
        self.optimizer.zero_grad()
        self.model(*batch).square().mean().backward()
        self.optimizer.step()


class RealTokens(nn.Module):
    """Vectors of the real tokens of an encoder of ours.

    Args:
        encoder: Ours.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, batch: TokenIds, packed: bool = False) -> Tensor:
        """(T, D)."""
        self.encoder.embedder.packed = packed
        tokens = self.encoder(batch).tokens
        return tokens.x if packed else tokens.x[tokens.mask]


class PeerTokens(nn.Module):
    """Vectors of the real tokens of transformers' BertModel, BERT-base, SDPA, without the pooler."""

    def __init__(self) -> None:
        from transformers import BertConfig, BertModel

        super().__init__()
        self.bert = BertModel(BertConfig(attn_implementation="sdpa"), add_pooling_layer=False)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """(T, D)."""
        return self.bert(input_ids=ids, attention_mask=mask.long()).last_hidden_state[mask]


def bert() -> list[str]:
    """A training step of BERT-base, ours against transformers'."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    embedder = partial(TextTokens, vocabulary=BERT_VOCABULARY)
    ours = TrainingStep(RealTokens(Encoder(768, embedder, partial(Transformer, depth=12, block=PostNorm))))
    theirs = TrainingStep(PeerTokens())
    lines = [
        f"BERT-base (12 x 768), {BERT_BATCH} rows, float32, dropout 0.1 in the same places: forward, loss, backward,",
        f"AdamW. CPU-seconds on one thread, {ROUNDS} rounds.",
    ]
    batches = {
        f"All rows {BERT_LENGTH} tokens long": np.full(BERT_BATCH, BERT_LENGTH),
        "Rows as long as ChEBI's SMILES (evenly spaced quantiles)": quantiles(lengths()["SMILES"], BERT_BATCH),
    }
    for title, sizes in batches.items():
        packed = sequences(sizes, BERT_VOCABULARY)
        mask = torch.arange(int(sizes.max())) < packed.lengths[:, None]
        ids = torch.zeros(mask.shape, dtype=torch.int64).masked_scatter(mask, packed.ids)
        ways = {
            "transformers BertModel, SDPA": partial(theirs, ids, mask),
            "polyfm, padded": partial(ours, packed),
            "polyfm, packed": partial(ours, packed, True),
        }
        taken = harness.race(ways, ROUNDS, time.process_time)
        peer = taken["transformers BertModel, SDPA"]
        lines += ["", f"{title}: {len(packed.ids)} tokens, {mask.numel()} with padding", ""]
        lines += ["| way | seconds | of transformers' |", "|---|---:|---|"]
        for name, times in taken.items():
            share = "1" if times is peer else harness.ratio(times, peer)
            lines.append(f"| {name} | {np.median(times):.2f} | {share} |")
    return lines


# --- Packing ----------------------------------------------------------------------------------------------------------

PACKED_MODELS = {"4 blocks of 256": (256, 4, 8, 32), "2 blocks of 768": (768, 2, 12, 16)}
"""Width, depth, heads, sequences in a batch."""
PACKED_BATCHES = 16
"""Batches of each way, and rounds."""
# Mean and standard deviation of the logarithm of the lengths in ChEBI-20's validation set; log-normal ones of the same
# number have its mean within 1 % and its 5th to 95th percentiles within 7 %.
PACKED_LENGTHS = {"SMILES": (3.890, 0.671), "descriptions": (4.165, 0.407)}
_SMILES = re.compile(r"\[[^\]]+]|Br?|Cl?|%[0-9]{2}|.")


def lengths() -> dict[str, Lengths]:
    """Tokens of each ChEBI-20 molecule and description: from $POLYFM_DATA, or log-normal as recorded."""
    folder = os.environ.get("POLYFM_DATA")
    if folder is None:
        ranks = (np.arange(3301) + 0.5) / 3301
        found = {n: [np.exp(NormalDist(*shape).inv_cdf(r)) for r in ranks] for n, shape in PACKED_LENGTHS.items()}
    else:
        with gzip.open(Path(folder) / "molecules" / "chebi20_validation.tsv.gz", "rt") as lines:
            next(lines)
            rows = [line.split("\t") for line in lines]
        found = {
            "SMILES": [2 + len(_SMILES.findall(row[1])) for row in rows],
            "descriptions": [2 + len(re.findall(r"\w+|[^\w\s]", row[2])) for row in rows],
        }
    return {name: np.asarray(values).round().astype(np.int64).clip(3, 512) for name, values in found.items()}


def quantiles(values: Lengths, count: int) -> Lengths:
    """As many values, evenly spaced among them all."""
    return np.sort(values)[((np.arange(count) + 0.5) / count * len(values)).astype(int)]


def packed() -> list[str]:
    """Tokens a second: packed, padded, and padded after sorting by length."""
    torch.set_num_threads(1)
    source = "ChEBI-20 validation" if "POLYFM_DATA" in os.environ else "log-normal as ChEBI-20 validation"
    lines = [
        f"Training steps (forward, loss, backward, AdamW), float32, CPU-seconds on one thread. Lengths: {source},",
        f"at most 512. `by length`: the whole set is sorted and cut into batches; {PACKED_BATCHES} evenly spaced ones",
        "are measured. That is the least padding there can be. The other ways do the same sequences in random",
        "batches; the longest of all are not among them, so padding costs less here than in life.",
    ]
    for dropout in (0.0, 0.1):
        lines += ["", f"Dropout {dropout}", ""]
        lines += ["| model | lengths | way | tokens/s | of padded | of padded by length |"]
        lines += ["|---|---|---|---:|---|---|"]
        for model, (width, depth, heads, size) in PACKED_MODELS.items():
            trunk = partial(Transformer, depth=depth, block=partial(PostNorm, heads=heads, dropout=dropout))
            embedder = partial(TextTokens, vocabulary=1000, dropout=dropout)
            step = TrainingStep(RealTokens(Encoder(width, embedder, trunk)))
            for kind, values in lengths().items():
                lines += [f"| {model} | {kind} | {row}" for row in packed_rows(step, values, size)]
    return lines


def packed_rows(step: TrainingStep, values: Lengths, size: int) -> list[str]:
    """One table row for each way."""
    cut = np.sort(values)[: len(values) // size * size].reshape(-1, size)
    sorted_batches = cut[((np.arange(PACKED_BATCHES) + 0.5) / PACKED_BATCHES * len(cut)).astype(int)]
    shuffled = np.random.default_rng(0).permutation(sorted_batches.flatten()).reshape(sorted_batches.shape)
    random, by_length = ([sequences(part, 1000) for part in batches] for batches in (shuffled, sorted_batches))
    ways = {
        "padded": (random, False),
        "padded by length": (by_length, False),
        "packed": (random, True),
        "packed by length": (by_length, True),
    }
    for batches, pack in ways.values():
        step(batches[0], pack)
    seconds = {name: np.zeros(PACKED_BATCHES) for name in ways}
    for turn, names in enumerate(harness.turns(list(ways), PACKED_BATCHES)):
        for name in names:
            batches, pack = ways[name]
            start = time.process_time()
            step(batches[turn], pack)
            seconds[name][turn] = time.process_time() - start
    rows = []
    for name, taken in seconds.items():
        cells = [f"{shuffled.sum() / taken.sum():,.0f}"]
        # All ways do the same tokens in all, if not in one batch: ratios are of totals.
        for against in ("padded", "padded by length"):
            cells.append("1" if name == against else harness.ratio_of_totals(seconds[against], taken))
        rows.append(f"{name} | {' | '.join(cells)} |")
    return rows


# --- Contrastive losses -----------------------------------------------------------------------------------------------

CONTRASTIVE_SIZE, CONTRASTIVE_LARGE, CONTRASTIVE_WIDTH = 16_384, 32_768, 256


def dense_info_nce(a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    """CLIP's pseudo-code: one matrix of similarities, two cross-entropies."""
    logits, labels = scale * a @ b.T, torch.arange(len(a))
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def dense_sigmoid(a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    """SigLIP's pseudo-code."""
    logits = scale * a @ b.T - 10
    labels = 2 * torch.eye(len(a)) - 1
    return -F.logsigmoid(labels * logits).sum() / len(a)


def tiled_info_nce(a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    """Ours, with everything that `InfoNCE` does each step: groups, and the accuracy in its logs."""
    return info_nce(a, b, scale, torch.arange(len(a)))[0]


def tiled_sigmoid(a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    """Ours, as `SigLIP` calls it."""
    return sigmoid_loss(a, b, scale, torch.tensor(-10.0), torch.arange(len(a)))[0]


LOSSES = {
    "InfoNCE, dense": dense_info_nce,
    "InfoNCE, tiled": tiled_info_nce,
    "SigLIP, dense": dense_sigmoid,
    "SigLIP, tiled": tiled_sigmoid,
}


def pairs(size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Unit vectors and a scale that ask for gradients."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(size, CONTRASTIVE_WIDTH, generator=generator)
    b = a + torch.randn(size, CONTRASTIVE_WIDTH, generator=generator)
    scale = torch.tensor(14.3, requires_grad=True)
    return F.normalize(a, dim=1).requires_grad_(), F.normalize(b, dim=1).requires_grad_(), scale


def contrastive_step(loss: str, size: int) -> dict[str, float]:
    """CPU-seconds and growth of peak memory of one forward and backward pass, after a small one that warms up."""
    torch.set_num_threads(1)
    LOSSES[loss](*pairs(256)).backward()
    inputs = pairs(size)
    before, start = harness.peak_memory(), time.process_time()
    LOSSES[loss](*inputs).backward()
    return {"seconds": time.process_time() - start, "megabytes": harness.peak_memory() - before}


def contrastive_error(name: str) -> str:
    """How far loss and gradients at 4,096 pairs are from the dense ones in float64."""
    found = []
    for loss, kind in ((name, torch.float32), (dense_name(name), torch.float64)):
        leaves = [leaf.detach().to(kind).requires_grad_() for leaf in pairs(4096)]
        value = LOSSES[loss](*leaves)
        found.append((value.detach(), torch.autograd.grad(value, leaves)))
    (value, grads), (exact, exact_grads) = found
    off = max(float((x - y).norm() / y.norm()) for x, y in zip(grads, exact_grads, strict=True))
    return f"loss {float((value - exact).abs() / exact):.1e}, gradients {off:.1e}"


def contrastive() -> list[str]:
    """Tiled against dense: time and memory of a forward and backward pass, each in a process of its own."""
    lines = [
        f"Forward and backward of {CONTRASTIVE_SIZE:,} pairs of {CONTRASTIVE_WIDTH} numbers, float32, one thread,",
        f"{ROUNDS} rounds, each way in a fresh process. Memory is the growth of the process's peak over its inputs.",
        "",
        "| way | CPU-seconds | of dense | MB | of dense |",
        "|---|---:|---|---:|---|",
    ]
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in LOSSES}
    for names in harness.turns(list(LOSSES), ROUNDS):
        for name in names:
            taken[name].append(harness.isolated("contrastive", loss=name, size=CONTRASTIVE_SIZE))
    for name, runs in taken.items():
        cells = [name]
        for key, form in (("seconds", "{:.2f}"), ("megabytes", "{:,.0f}")):
            values, dense = (np.array([run[key] for run in some]) for some in (runs, taken[dense_name(name)]))
            cells += [form.format(np.median(values)), "1" if "dense" in name else harness.ratio(values, dense)]
        lines.append(f"| {' | '.join(cells)} |")
    tiled = [name for name in LOSSES if "tiled" in name]
    lines += ["", f"{CONTRASTIVE_LARGE:,} pairs, whose matrix alone is {CONTRASTIVE_LARGE**2 * 4 / 1e9:.1f} GB:", ""]
    for name in tiled:
        run = harness.isolated("contrastive", loss=name, size=CONTRASTIVE_LARGE)
        lines.append(f"* {name}: {run['seconds']:.1f} CPU-seconds, {run['megabytes']:,.0f} MB")
    lines += ["", "Relative error against the dense way in float64, at 4,096 pairs:", ""]
    return lines + [f"* {name}: {contrastive_error(name)}" for name in LOSSES]


def dense_name(name: str) -> str:
    """The dense way that a way is compared with."""
    return name.replace("tiled", "dense")


# --- Report -----------------------------------------------------------------------------------------------------------

SECTIONS: dict[str, harness.Section] = {
    "bert": ("The trunk against BERT", bert),
    "packed": ("Packed and padded tokens", packed),
    "contrastive": ("Contrastive losses", contrastive),
}
MEASURES = {"contrastive": contrastive_step}

if __name__ == "__main__":
    harness.main("core", SECTIONS, lambda: harness.environment(["torch", "transformers", "numpy"]), MEASURES)
