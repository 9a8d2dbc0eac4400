"""Shared parts against the plain way: contrastive losses. See benchmarks/README.md.

python benchmarks/core.py [--section contrastive] [--out benchmarks/results/core.md]
"""

from __future__ import annotations

import time

import harness
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from polyfm.shared.objectives.contrastive import info_nce
from polyfm.shared.objectives.sigmoid import sigmoid_loss

THREADS = (1, 2)
"""One thread is measured in CPU-seconds, which others on the machine hardly change; more in wall time."""
ROUNDS = 9


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


def contrastive_step(loss: str, size: int, threads: int) -> dict[str, float]:
    """Time and growth of peak memory of one forward and backward pass; alone, CPU-seconds (see `THREADS`)."""
    torch.set_num_threads(threads)
    clock = time.process_time if threads == 1 else time.perf_counter
    LOSSES[loss](*pairs(256)).backward()
    inputs = pairs(size)
    before, start = harness.peak_memory(), clock()
    LOSSES[loss](*inputs).backward()
    return {"seconds": clock() - start, "megabytes": harness.peak_memory() - before}


def contrastive_difference(ours: str, theirs: str) -> str:
    """How far loss and gradients are from the dense ones at 4,096 pairs."""
    found = []
    for name in (ours, theirs):
        leaves = pairs(4096)
        loss = LOSSES[name](*leaves)
        found.append((loss.detach(), torch.autograd.grad(loss, leaves)))
    (loss, grads), (dense, dense_grads) = found
    off = max(float((x - y).norm() / y.norm()) for x, y in zip(grads, dense_grads, strict=True))
    return f"loss {float((loss - dense).abs() / dense):.1e}, gradients {off:.1e}"


def contrastive() -> list[str]:
    """Tiled against dense: time and memory of a forward and backward pass, each in a process of its own."""
    lines = [
        f"Forward and backward of {CONTRASTIVE_SIZE:,} pairs of {CONTRASTIVE_WIDTH} numbers, float32, {ROUNDS} rounds,",
        "each way in a fresh process. Memory is the growth of the process's peak over its inputs. Time is CPU-seconds",
        "on one thread, and wall time on two, which only holds on an idle machine.",
    ]
    for threads in THREADS:
        lines += [
            "",
            f"Threads: {threads}",
            "",
            "| way | seconds | of dense | MB | of dense |",
            "|---|---:|---|---:|---|",
        ]
        taken: dict[str, list[dict[str, float]]] = {name: [] for name in LOSSES}
        for names in harness.turns(list(LOSSES), ROUNDS):
            for name in names:
                run = harness.isolated("contrastive", loss=name, size=CONTRASTIVE_SIZE, threads=threads)
                taken[name].append(run)
        for name, runs in taken.items():
            cells = [name]
            for key, form in (("seconds", "{:.2f}"), ("megabytes", "{:,.0f}")):
                values, dense = (np.array([run[key] for run in some]) for some in (runs, taken[dense_name(name)]))
                cells += [form.format(np.median(values)), "1" if "dense" in name else harness.ratio(values, dense)]
            lines.append(f"| {' | '.join(cells)} |")
    tiled = [name for name in LOSSES if "tiled" in name]
    lines += ["", f"{CONTRASTIVE_LARGE:,} pairs, whose matrix alone is {CONTRASTIVE_LARGE**2 * 4 / 1e9:.1f} GB:", ""]
    for name in tiled:
        run = harness.isolated("contrastive", loss=name, size=CONTRASTIVE_LARGE, threads=1)
        lines.append(f"* {name}: {run['seconds']:.1f} CPU-seconds, {run['megabytes']:,.0f} MB")
    lines += ["", "Relative distance from dense at 4,096 pairs:", ""]
    return lines + [f"* {name}: {contrastive_difference(name, dense_name(name))}" for name in tiled]


def dense_name(name: str) -> str:
    """The dense way that a way is compared with."""
    return name.replace("tiled", "dense")


# --- Report -----------------------------------------------------------------------------------------------------------

SECTIONS: dict[str, harness.Section] = {"contrastive": ("Contrastive losses", contrastive)}
MEASURES = {"contrastive": contrastive_step}

if __name__ == "__main__":
    harness.main("core", SECTIONS, lambda: harness.environment(["torch", "numpy"]), MEASURES)
