"""`polyfm check RECIPE --data.path X`: before any long run, read 8 samples, take one step, estimate time and memory."""

from __future__ import annotations

import gc
import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from polyfm.shared.cli.arguments import Arguments, choose_size
from polyfm.shared.training.recipe import find_recipe

SAMPLES = 8
ROWS = 1_000
"""Read at most: enough to fit a vocabulary and to count labels. `polyfm fit` reads the whole file."""


def run(words: Sequence[str]) -> None:
    """Run the verb.

    Args:
        words: After ``check``.
    """
    parser = Arguments("check", "Read 8 samples, show shapes and labels, take one step, estimate time and memory.")
    parser.add_argument("recipe", help="a name from `polyfm list`, or a YAML file")
    parser.add_argument("--size", default="", help="small or paper; paper is estimated without memory")
    parser.add_argument("--init_from", default="", metavar="RUN", help="as for fit: its encoders are checked")
    parser.add_argument("--out", default="", help="as for fit; nothing is written")
    ours, flags = parser.parse_some(words)
    recipe = find_recipe(ours.recipe)
    size = choose_size(ours.size)
    with uncollected():
        for line in check(recipe, size, flags, ours.init_from):
            print(line, flush=True)
        told = f" --init_from {ours.init_from}" if ours.init_from else ""
        print(f"Next: polyfm fit {recipe.target} {shlex.join(flags)}{told} --size {size} --out {ours.out or 'DIR'}")


@contextmanager
def uncollected() -> Iterator[None]:
    """Without garbage collection: the search for it takes a fifth of the imports' time, and a check ends soon."""
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()


def check(recipe: Any, size: str, flags: Sequence[str], init_from: str = "") -> list[str]:
    """The lines of a check.

    Args:
        recipe: Checked.
        size: small or paper.
        flags: The user's.
        init_from: What encoders would be taken from.
    """
    import torch

    from polyfm.shared.backbones.encoder import num_trained, on_meta
    from polyfm.shared.cli.fit import start_from
    from polyfm.shared.training.build import RecipeParser, quiet_libraries
    from polyfm.shared.training.targets.kinds import announced

    quiet_libraries()
    tree = start_from(init_from, recipe.sized(size)) if init_from else recipe.sized(size)
    made: dict[str, RecipeParser] = {}
    if size == "paper":
        on_meta(lambda: made.setdefault("cli", RecipeParser(recipe, tree, flags)).model)
    else:
        made["cli"] = RecipeParser(recipe, tree, flags)
    cli = made["cli"]
    data, task, train = cli.datamodule, cli.model, prepare(cli)
    lines = [f"{recipe.name}, size {size}", *data.summary()]
    if data.quarantine.num_read >= ROWS:
        lines.append(f"  of the first {ROWS:,} rows only; fit reads them all, and its parts are others")
    batch = batch_of(data, train[:SAMPLES])
    for name, rows in batch.modalities.items():
        shapes = ", ".join(
            f"{field} {tuple(value.shape)}" for field, value in vars(rows).items() if isinstance(value, torch.Tensor)
        )
        lines.append(f"  {name}: {len(rows.rows)} of {len(batch)} samples have it; {shapes}")
    if getattr(task, "target", None) is not None:
        lines += [f"  {announced(task.target, task.kind)}", *label_lines(task.target, data, train)]
    step = min(data.batch_size, len(train))
    parameters = num_trained(task)
    per_step = 16 * parameters  # weights, gradients and two moments in fp32
    steps = max(data.num_rows() * 8 // 10 // step, 1)
    if size == "paper":
        lines.append(f"  parameters: {parameters / 1e6:.1f} million (built on the meta device, nothing was allocated)")
        if "small" not in recipe.sizes:
            return [*lines, f"  memory: {memory(per_step)} for weights and optimiser, activations on top"]
        flops, activations = scaled(task, recipe, flags, step)
        speed, where = matmul_speed()
        lines.append(
            f"  memory: {memory(per_step)} for weights and optimiser, about {memory(activations)} of activations "
            "(fp32, without recompute)"
        )
        lines.append(f"  work: about {flops / 1e12:.2f} TFLOP a step of {step} samples, {steps:,} steps an epoch")
        lines.append(f"  time: at least {duration(steps * flops / speed)} an epoch {where}")
        lines.append("  (work and activations: a step at small size, scaled by the sizes of the linear layers)")
        return lines
    seconds, loss, activations = one_step(task, batch_of(data, train[:step]))
    epochs = cli.config["trainer"].get("max_epochs") or 1
    lines.append(f"  one step of {step} samples: loss {loss:.4f}, {seconds:.2f} s on {torch.get_num_threads()} threads")
    lines.append(f"  parameters: {parameters / 1e6:.2f} million")
    lines.append(f"  memory: about {memory(per_step + activations)} for the model and one step")
    lines.append(f"  time: about {duration(steps * seconds)} an epoch, at most {epochs} epochs (--trainer.max_epochs)")
    return lines


def prepare(cli: Any) -> Any:
    """Read the beginning of the data, and make the head of a fine-tuning task from its labels.

    Args:
        cli: Built.

    Returns:
        (n,) indices of training samples.
    """
    cli.datamodule.limit = ROWS
    cli.datamodule.setup("fit")
    cli.datamodule.require_room(cli.model.model.encoders)
    if hasattr(cli.model, "target"):
        cli.model.fit_target(cli.datamodule)
    return cli.datamodule.part("train")


def batch_of(data: Any, indices: Any) -> Any:
    """Samples of the first pass, as a batch.

    Args:
        data: Set up.
        indices: Of the samples.
    """
    from polyfm.shared.data.sampler import Key

    return data.collate(data.make_samples([Key(int(i), 0) for i in indices]))


def scaled(task: Any, recipe: Any, flags: Sequence[str], samples: int) -> tuple[float, float]:
    """Work and activations of a step at paper size, from a real one at small size.

    Work grows with the weights of the linear layers, activations with their outputs; which views are made of a batch,
    and how often, is the same in both sizes.

    Args:
        task: At paper size, on the meta device.
        recipe: Checked.
        flags: The user's.
        samples: In a step.

    Returns:
        FLOP, and bytes kept for the backward pass.
    """
    from torch.utils.flop_counter import FlopCounterMode

    from polyfm.shared.training.build import RecipeParser

    cli = RecipeParser(recipe, recipe.sized("small"), flags)
    batch = batch_of(cli.datamodule, prepare(cli)[:samples])
    with FlopCounterMode(display=False) as counter:
        _, _, kept = one_step(cli.model, batch)
    (weights, outputs), (small_weights, small_outputs) = linear_sizes(task), linear_sizes(cli.model)
    return counter.get_total_flops() * weights / small_weights, kept * outputs / small_outputs


def linear_sizes(task: Any) -> tuple[int, int]:
    """Weights and outputs of all linear layers.

    Args:
        task: Of either kind.
    """
    from torch import nn

    layers = [module for module in task.modules() if isinstance(module, nn.Linear)]
    return sum(layer.weight.numel() for layer in layers), sum(layer.out_features for layer in layers)


def matmul_speed(size: int = 2048) -> tuple[float, str]:
    """FLOP per second of a matrix product on this machine, the most that a step can reach, and what was measured.

    Args:
        size: Of the square matrices.
    """
    import torch

    gpu = torch.cuda.is_available()
    device, kind = ("cuda", torch.bfloat16) if gpu else ("cpu", torch.float32)
    matrix = torch.ones(size, size, device=device, dtype=kind)
    seconds = []
    for _ in range(4):  # the first warms up
        start = time.perf_counter()
        _ = float((matrix @ matrix)[0, 0])  # waits for the result
        seconds.append(time.perf_counter() - start)
    speed = 2 * size**3 / min(seconds)
    name = f"{torch.cuda.get_device_name()} in bf16" if gpu else f"{torch.get_num_threads()} threads of this CPU"
    return speed, f"on {name} (at the {speed / 1e12:.2g} TFLOP/s of a matrix product)"


def duration(seconds: float) -> str:
    """In the unit that a person would choose.

    Args:
        seconds: To be said.
    """
    for unit, size in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.2g} s"


def memory(size: float) -> str:
    """In GiB, or in MiB where that is little.

    Args:
        size: Bytes.
    """
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def label_lines(target: Any, data: Any, train: Any) -> list[str]:
    """Balance or range of each label.

    Args:
        target: What is predicted.
        data: Set up.
        train: Indices of training samples.
    """
    import numpy as np

    from polyfm.shared.training.targets.binary import Binary
    from polyfm.shared.training.targets.multi_class import MultiClass

    lines = []
    values = data.target_values(train)
    for name, column in zip(data.target_names(), values.T, strict=True):
        given = column[~np.isnan(column)]
        if isinstance(target, MultiClass):
            counts = np.bincount(given.astype(int), minlength=len(target.classes))
            balance = ", ".join(f"{label} {count}" for label, count in zip(target.classes, counts, strict=True))
        elif isinstance(target, Binary):
            balance = f"{int((given == 1).sum())} positive, {int((given == 0).sum())} negative"
        else:
            balance = f"{given.min():.4g} to {given.max():.4g}, mean {given.mean():.4g}, sd {given.std():.4g}"
        lines.append(f"  label {name}: {balance}; {int(np.isnan(column).sum())} missing")
    return lines


def one_step(task: Any, batch: Any) -> tuple[float, float, int]:
    """One forward and backward pass.

    Args:
        task: Of either kind.
        batch: A full one.

    Returns:
        Seconds, the loss, and bytes of activations kept for the backward pass.
    """
    import torch

    from polyfm.shared.tokens.masking import Draw

    kept = 0

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += tensor.numel() * tensor.element_size()
        return tensor

    def loss() -> Any:
        if hasattr(task, "target"):
            return task.target.loss(task(batch), batch.targets["labels"])
        views = task.answer(batch, Draw(0, 0))
        outputs = {name: objective(views, batch) for name, objective in task.objectives.items()}
        return task.gradients({name: output.loss for name, output in outputs.items()})

    task.train()
    start = time.perf_counter()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        value = loss()
    value.backward()
    seconds = time.perf_counter() - start
    task.zero_grad(set_to_none=True)
    return seconds, float(value.detach()), kept
