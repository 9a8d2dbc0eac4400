"""Checkpoints: one safe way to read and write them, for every Trainer and every load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from polyfm.shared.errors import DataError
from polyfm.shared.training.recipe import shareable

MAX_BYTES = 64 * 2**30
"""A checkpoint above this is refused before it is opened."""


class SafeCheckpointIO(TorchCheckpointIO):
    """Local files only, ``weights_only`` always: a checkpoint can never run code."""

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint; see `read_checkpoint`.

        Args:
            path: A local file.
            map_location: Where tensors go.
            weights_only: Ignored: it always is.
        """
        return read_checkpoint(path, map_location)


def read_checkpoint(path: Any, map_location: Any = "cpu") -> dict[str, Any]:
    """A checkpoint's content: tensors and primitives, nothing else is unpickled.

    Args:
        path: A local file.
        map_location: Where tensors go.
    """
    text = str(path)
    if "://" in text:
        raise DataError("checkpoints are read from local files only", where=text, remedy="Download it first")
    file = Path(text)
    if not file.is_file():
        raise DataError("there is no such checkpoint", where=file)
    if file.stat().st_size > MAX_BYTES:
        raise DataError(f"this checkpoint is larger than {MAX_BYTES >> 30} GiB", where=file)
    if file.suffix == ".safetensors":
        return read_exchange(file)
    try:
        content = torch.load(file, map_location=map_location, weights_only=True)  # noqa: TID251 - the one safe place
    except Exception as error:
        raise DataError(
            f"this is not a checkpoint that can be read safely ({type(error).__name__})",
            where=file,
            remedy="Only files written by polyfm, or state dicts of plain tensors, can be loaded",
        ) from error
    if not isinstance(content, dict):
        raise DataError("this checkpoint does not hold a mapping", where=file)
    return content


def write_exchange(content: dict[str, Any], path: Path, *, dtype: torch.dtype = torch.float16) -> None:
    """A checkpoint in the exchange format: safetensors, with everything but the weights as JSON in its header.

    Optimiser state, the teacher and queues are left out: the file is for use, not for resuming. It is made to be passed
    on: of the data's path in the recipe, only the file's name is kept.

    Args:
        content: Of a checkpoint.
        path: Ends in .safetensors.
        dtype: Of the weights in the file; they are float32 again when read.
    """
    used = {
        name: tensor.to(dtype).contiguous() if tensor.is_floating_point() else tensor.contiguous()
        for name, tensor in content["state_dict"].items()
        if not name.startswith("teacher.") and not {"queues", "teacher_head", "teacher_table"} & set(name.split("."))
    }
    left_out = ("state_dict", "optimizer_states", "lr_schedulers", "loops", "callbacks", "MixedPrecision")
    rest = {key: value for key, value in content.items() if key not in left_out}
    if "recipe" in rest:
        rest["recipe"] = shareable(rest["recipe"])
    save_file(used, path, metadata={"content": json.dumps(rest)})


def read_exchange(path: Path) -> dict[str, Any]:
    """A checkpoint from the exchange format.

    Args:
        path: Of the file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            content = json.loads(file.metadata()["content"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # a method: it is no mapping
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"this is not a checkpoint in the exchange format ({error})", where=path) from error
    state = {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}
    return {**content, "state_dict": state, "partial": True}


def load_weights(module: nn.Module, state: dict[str, torch.Tensor], *, what: str, at_least: float = 0.9) -> str:
    """Load what matches by name and shape, say what did not, and refuse to go on with too little.

    Args:
        module: Filled.
        state: Tensors by name.
        what: For the message.
        at_least: Share of the module's parameters that must be found.

    Returns:
        One line: matched, missing, unexpected, shape-changed.
    """
    own = module.state_dict()
    matched = {name: value for name, value in state.items() if name in own and own[name].shape == value.shape}
    changed = [name for name, value in state.items() if name in own and own[name].shape != value.shape]
    missing = [name for name in own if name not in state]
    unexpected = [name for name in state if name not in own]
    module.load_state_dict(matched, strict=False)
    share = sum(own[name].numel() for name in matched) / max(sum(value.numel() for value in own.values()), 1)
    report = (
        f"{what}: {len(matched)} tensors loaded ({share:.0%} of the numbers), {len(missing)} missing, "
        f"{len(unexpected)} unexpected, {len(changed)} of another shape"
    )
    if share < at_least:
        examples = ", ".join((missing + changed)[:3])
        raise DataError(
            f"{report}; for example {examples}", remedy="Start from a run of a recipe with the same encoder"
        )
    return report


class RecipeInCheckpoint(L.Callback):
    """Puts the recipe as text into each checkpoint, so that a checkpoint says what it is.

    Like the run folder's ``recipe.yaml`` it names the absolute path of the user's data; to pass a checkpoint on without
    it, use `write_exchange`.

    Args:
        recipe: The resolved recipe's YAML.
    """

    def __init__(self, recipe: str) -> None:
        self.recipe = recipe

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add it."""
        checkpoint["recipe"] = self.recipe
