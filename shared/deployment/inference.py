"""A trained run in Python: ``model = polyfm.load(run)``; ``model.embed(items)``."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch

from polyfm.shared.data.batch import Batch
from polyfm.shared.data.datamodule import DataModule
from polyfm.shared.data.progress import Progress
from polyfm.shared.errors import DataError, UsageError
from polyfm.shared.training.checkpoint import fitting, read_checkpoint
from polyfm.shared.training.run_folder import RunFolder


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Predictions for items, in their order."""

    ids: list[str]
    """n ids."""
    names: list[str]
    """Of the columns: labels, or classes."""
    values: np.ndarray
    """(n, columns) in the labels' own unit, or probabilities."""
    answers: dict[str, np.ndarray]
    """(n,) classes by column, at the thresholds that validation chose; none for numbers."""
    vectors: np.ndarray | None = None
    """(n, D) as of `LoadedModel.embed`, where they were asked for."""


class LoadedModel:
    """A run's task and data transforms, ready for new items.

    Args:
        task: With its trained weights.
        data: With its fitted transforms.
        folder: The run.
    """

    def __init__(self, task: L.LightningModule, data: DataModule, folder: RunFolder) -> None:
        self.task, self.data, self.folder = task.eval(), data, folder

    @property
    def modalities(self) -> list[str]:
        """Modalities that can be embedded."""
        return list(self.task.model.encoders)  # type: ignore[union-attr, arg-type]

    def batches(self, items: Any, **reading: Any) -> Iterator[Batch]:
        """Items as batches on the model's device, made one at a time.

        Args:
            items: A path, or a list of the domain's own items (SMILES strings …).
            reading: How a file is read; see `embed`.
        """
        if isinstance(items, str) and not os.path.exists(items):
            raise DataError(
                f"there is no file {items!r}", remedy=f"Check the path, or give items themselves as a list: [{items!r}]"
            )
        samples = self.data.samples_from(items, **reading)
        batches = (batch.to(self.task.device) for batch in self.data.batches_from(samples))
        return Progress("encoding").over(batches, len(samples))

    def modality_of(self, batch: Batch) -> str:
        """The first of the model's modalities that any item of a batch has.

        Args:
            batch: As from `batches`.
        """
        return next((name for name in self.modalities if len(batch[name].rows)), self.modalities[0])

    @torch.inference_mode()
    def embed(self, items: Any, modality: str = "", *, projected: bool = False, **reading: Any) -> np.ndarray:
        """One vector per item, in their order.

        Args:
            items: A path, or a list of the domain's own items (SMILES strings …).
            modality: Which encoder; if empty, the first whose modality the first items have.
            projected: The unit vectors of the contrastive space instead of the pooled ones.
            reading: How a file is read, by the names in the ``READING`` of the domain's data module: the columns of a
                table, such as ``smiles="structure"``.

        Returns:
            (n, D) float32; NaN rows for items that lack the modality.
        """
        self._require_modality(modality)
        batches = self.batches(items, **reading)
        first = list(itertools.islice(batches, 1))
        name = modality or (self.modality_of(first[0]) if first else self.modalities[0])
        encoder: Any = self.task.model.encoders[name]  # type: ignore[index, union-attr]
        if projected and encoder.projection is None:
            raise UsageError(f"the {name} encoder of this model has no projection")
        if projected and hasattr(self.task, "target"):
            raise UsageError(
                "fine-tuning leaves the projection behind: it fits the encoder no longer",
                where=self.folder.path,
                remedy="Leave out --projected, or embed with the run that this one started from",
            )
        parts = []
        for batch in itertools.chain(first, batches):
            features = encoder(batch[name])
            parts.append(_of_all(features.projected if projected else features.pooled, features.rows, len(batch)))
        return _joined(parts, encoder.width)

    @torch.inference_mode()
    def predict(self, items: Any, *, vectors_of: str = "", **reading: Any) -> Predictions:
        """Predictions of a fine-tuned model, in the items' order.

        Args:
            items: A path, or a list of the domain's own items (SMILES strings …).
            vectors_of: A modality whose pooled vectors come along: with `embed` every item would be encoded twice.
            reading: How a file is read; see `embed`.
        """
        target = getattr(self.task, "target", None)
        if target is None:
            raise UsageError(
                "this run was pre-trained: it has nothing to predict",
                where=self.folder.path,
                remedy="Fine-tune it first, or use `polyfm embed`",
            )
        self._require_modality(vectors_of)
        ids: list[str] = []
        parts, vectors = [], []
        for batch in self.batches(items, **reading):
            out = self.task.predict_step(batch)
            ids += out["ids"]
            parts.append(out["predictions"].cpu().numpy())
            if vectors_of:
                features = out["features"][vectors_of]
                vectors.append(_of_all(features.pooled, features.rows, len(batch)))
        width = self.task.model.encoders[vectors_of].width if vectors_of else 0  # type: ignore[index, union-attr]
        classes = getattr(target, "classes", None)
        names = [f"{target.names[0]}_{name}" for name in classes] if classes else target.names
        values = _joined(parts, len(names))
        return Predictions(
            ids=ids,
            names=list(names),
            values=values,
            answers=target.answers(values),
            vectors=_joined(vectors, width) if vectors_of else None,
        )

    def _require_modality(self, modality: str) -> None:
        if modality and modality not in self.modalities:
            raise UsageError(
                f"this model has no modality {modality!r}", remedy=f"Choose one of: {', '.join(self.modalities)}"
            )


def _joined(parts: list[np.ndarray], width: int) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros((0, width), dtype=np.float32)


def _of_all(vectors: torch.Tensor, rows: torch.Tensor, size: int) -> np.ndarray:
    """(size, D) vectors of the items of a batch from (n, D) of its ``rows``, NaN where an item has none."""
    whole = vectors.new_full((size, vectors.shape[-1]), torch.nan)
    array: np.ndarray = whole.index_copy(0, rows, vectors).float().cpu().numpy()
    return array


def load(run: str | Path) -> LoadedModel:
    """A trained run, ready for new items.

    Args:
        run: Its folder.
    """
    from polyfm.shared.training.build import RecipeParser, quiet_libraries
    from polyfm.shared.training.recipe import Recipe, read_yaml

    quiet_libraries()
    folder = RunFolder.open(run)
    recipe = Recipe(name=folder.path.name, path=folder.recipe, tree=read_yaml(folder.recipe))
    cli = RecipeParser(recipe, recipe.tree)
    content = read_checkpoint(folder.best)
    with fitting(folder.best):
        restore(cli.model, cli.datamodule, content)
    if torch.cuda.is_available():
        cli.model.cuda()
    return LoadedModel(cli.model, cli.datamodule, folder)


def data_of(run: str | Path) -> type[DataModule]:
    """The class of a run's data module; nothing is built and no weight is read.

    Args:
        run: Its folder.
    """
    from polyfm.shared.training.build import register
    from polyfm.shared.training.recipe import Recipe, read_yaml
    from polyfm.shared.training.schema import Schema

    folder = RunFolder.open(run)
    recipe = Recipe(name=folder.path.name, path=folder.recipe, tree=read_yaml(folder.recipe))
    known = Schema({}, register(recipe.domain)).classes(DataModule)
    return known.get(recipe.tree["data"]["class_path"], DataModule)


def restore(task: L.LightningModule, data: DataModule, content: dict[str, Any]) -> None:
    """A checkpoint's weights and transforms into a fresh task and data module.

    Args:
        task: Filled.
        data: Filled.
        content: Of the checkpoint.
    """
    task.on_load_checkpoint(content)
    # The exchange format leaves out what only training needs (teacher, queues).
    missing, unexpected = task.load_state_dict(content["state_dict"], strict=not content.get("partial"))
    if unexpected or any(name.startswith("model.") for name in missing):
        raise DataError(f"the checkpoint does not fit its recipe: {(unexpected + missing)[:3]}")
    data.load_state_dict(content.get(type(data).__qualname__, {}))
