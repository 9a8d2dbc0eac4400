"""Checkpoints: one safe way to read and write them, for every Trainer and every load."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from polyfm.shared.errors import DataError, PolyfmError, StorageError
from polyfm.shared.training.recipe import ALIASES, shareable

MAX_BYTES = 64 * 2**30
"""A checkpoint above this is refused before it is opened."""


class SafeCheckpointIO(TorchCheckpointIO):
    """Local files only, ``weights_only`` always: a checkpoint can never run code. Files appear whole or not at all."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint; see `write_checkpoint`.

        Args:
            checkpoint: Its content.
            path: A local file.
            storage_options: Ignored: local files have none.
        """
        write_checkpoint(checkpoint, Path(path))

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint; see `read_checkpoint`.

        Args:
            path: A local file.
            map_location: Where tensors go.
            weights_only: Ignored: it always is.
        """
        return read_checkpoint(path, map_location)


def write_checkpoint(content: dict[str, Any], path: Path) -> None:
    """Write a checkpoint so that ``path`` names a whole file at every moment, whatever happens to process or machine.

    Args:
        content: Tensors and primitives.
        path: Replaced if it exists; its folder is made.

    Raises:
        StorageError: The disk is full, or the file cannot be written.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())  # the name must not outlive the content in a power cut
        part.replace(path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch wraps what the file said into an error of its own
        part.unlink(missing_ok=True)
        said = error if isinstance(error, OSError) else error.__context__
        if not isinstance(said, OSError):
            raise
        raise StorageError(
            f"this checkpoint could not be written ({os.strerror(said.errno or 0)})",
            where=path,
            remedy="The one before it is whole: free some space, then continue the run with `polyfm fit --resume`",
        ) from error


def second_name(path: Path, name: Path) -> None:
    """Give a file that will not be written to a second name, at once and without a copy where the disk can.

    Args:
        path: Of the file.
        name: In the same folder; replaced if it exists.
    """
    fresh = name.with_name(f"{name.name}.part")
    fresh.unlink(missing_ok=True)
    try:
        fresh.hardlink_to(path)
    except OSError:  # some file systems have no links
        shutil.copyfile(path, fresh)
    fresh.replace(name)


def _sync_folder(folder: Path) -> None:
    """Bring names to the disk, as fsync does content."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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
    if file.resolve().parent != file.parent.resolve():
        raise DataError("this is a link that leads out of its folder", where=file, remedy="Put the file itself there")
    if file.stat().st_size > MAX_BYTES:
        raise DataError(f"this checkpoint is larger than {MAX_BYTES >> 30} GiB", where=file)
    if file.suffix == ".safetensors":
        return read_exchange(file)
    _vet_archive(file)
    try:
        content = torch.load(file, map_location=map_location, weights_only=True)  # noqa: TID251 - the one safe place
    except Exception as error:
        raise DataError(
            f"this is not a checkpoint that can be read safely ({type(error).__name__})",
            where=file,
            remedy="Only files written by polyfm, or state dicts of plain tensors, can be loaded",
        ) from error
    return _vetted(content, file)


def _vet_archive(file: Path) -> None:
    """Refuse an archive of programs, or a compressed one: it may hold a thousand times what it takes on disk."""
    if not zipfile.is_zipfile(file):
        return  # torch says what it is
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise DataError(f"this is a damaged archive ({error})", where=file) from error
    if any(Path(entry.filename).name == "constants.pkl" for entry in entries):
        raise DataError("this is a program (TorchScript), not weights", where=file)
    squeezed = [entry.filename for entry in entries if entry.file_size > entry.compress_size]
    if squeezed:
        raise DataError(f"this checkpoint is compressed ({squeezed[0]})", where=file, remedy="Save it with torch.save")


def _vetted(content: Any, file: Path) -> dict[str, Any]:
    """A checkpoint's content, if it is what it should be: a mapping, in which weights are plain tensors."""
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise DataError("this checkpoint does not hold a mapping of names", where=file)
    for key in ("hyper_parameters", "datamodule_hyper_parameters"):
        if isinstance(content.get(key), Mapping) and "_instantiator" in content[key]:
            raise DataError(f"this checkpoint names a function that is to build it ({key})", where=file)
    state = content.get("state_dict", {})
    if not isinstance(state, Mapping):
        raise DataError("the state_dict of this checkpoint is no mapping", where=file)
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise DataError(f"the state_dict of this checkpoint holds {name!r}, which is no tensor", where=file)
        if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
            raise DataError(f"{name} in this checkpoint is no plain tensor", where=file)
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise DataError(f"{name} in this checkpoint has more numbers than the file", where=file)
    return {ALIASES.get(str(key), str(key)): value for key, value in content.items()}


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
    what = "a checkpoint in the exchange format"
    tensors, header = read_tensors(path, what)
    try:
        content = json.loads(header["content"])
    except (KeyError, ValueError, RecursionError) as error:
        raise DataError(f"this is not {what} ({str(error) or type(error).__name__})", where=path) from error
    if not isinstance(content, dict):
        raise DataError(f"this is not {what} (its header holds no mapping)", where=path)
    state = {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}
    return _vetted({**content, "state_dict": state, "partial": True}, path)


def read_tensors(path: Path, what: str = "a file of weights") -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors of a safetensors file, and the texts in its header.

    Args:
        path: Of the file.
        what: For the message.
    """
    if path.stat().st_size > MAX_BYTES:
        raise DataError(f"this file is larger than {MAX_BYTES >> 30} GiB", where=path)
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # a method: no mapping
    except (SafetensorError, TypeError, ValueError, OSError, RuntimeError) as error:
        raise DataError(f"this is not {what} ({error})", where=path) from error


@contextmanager
def fitting(path: Path, trainer: L.Trainer | None = None) -> Iterator[None]:
    """While a checkpoint's content goes into parts: what does not fit is the checkpoint's fault, said in one line.

    Args:
        path: Of the checkpoint.
        trainer: That loads it and goes on to train; errors of training are its own.
    """
    try:
        yield
    except PolyfmError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        # Lightning holds a checkpoint from its reading until all of it is restored.
        if trainer is not None and not trainer._checkpoint_connector._loaded_checkpoint:
            raise
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(
            f"this checkpoint does not fit its recipe ({said[-1].strip()})",
            where=path,
            remedy="Use it with the recipe.yaml that was written beside it",
        ) from error


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
    share = matching_share(module, state)
    report = (
        f"{what}: {len(matched)} tensors loaded ({share:.0%} of the numbers), {len(missing)} missing, "
        f"{len(unexpected)} unexpected, {len(changed)} of another shape"
    )
    if share < at_least:
        examples = ", ".join((missing + changed)[:3])
        raise DataError(
            f"{report}; for example {examples}; at least {at_least:.0%} must be found",
            remedy="Start from a run of a recipe with the same encoder, or accept less with --init_at_least",
        )
    module.load_state_dict(matched, strict=False)
    return report


def matching_share(module: nn.Module, state: Mapping[str, torch.Tensor]) -> float:
    """Share of a module's numbers that a state dict has, by name and shape.

    Args:
        module: That could be filled.
        state: Tensors by name.
    """
    own = module.state_dict()
    found = sum(value.numel() for name, value in own.items() if name in state and state[name].shape == value.shape)
    return float(found / max(sum(value.numel() for value in own.values()), 1))


class RecipeInCheckpoint(L.Callback):
    """Puts the recipe as text into each checkpoint, so that a checkpoint says what it is.

    Like the run folder's ``recipe.yaml`` it names the absolute path of the user's data; to pass a checkpoint on without
    it, use `write_exchange`.

    Args:
        recipe: File of the resolved recipe, which the first process writes.
    """

    def __init__(self, recipe: Path) -> None:
        self.recipe = recipe

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add it, in the process that writes the checkpoint."""
        if trainer.is_global_zero:
            checkpoint["recipe"] = self.recipe.read_text()
