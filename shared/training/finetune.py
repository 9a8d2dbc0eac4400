"""`FinetuneTask`: pre-trained encoders and a head on a user's labels."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn

from polyfm.shared.backbones.encoder import Encoder, MultimodalModel
from polyfm.shared.backbones.fusion import LateFusion
from polyfm.shared.data.batch import Batch
from polyfm.shared.errors import RecipeError, require
from polyfm.shared.objectives.gather import Ranks
from polyfm.shared.tokens.tokens import Features
from polyfm.shared.training.optim import AdamW, prepare_blocks, time_passed, total_steps
from polyfm.shared.training.sharding import ShardedStrategy
from polyfm.shared.training.stages import Stage, StageSwitch
from polyfm.shared.training.targets.kinds import fit_target, target_from_state
from polyfm.shared.training.targets.target import Target


class FinetuneTask(L.LightningModule):
    """Supervised training. The head is made when the labels are known, from the training part only.

    Args:
        encoders: By modality.
        kind: regression, binary, multiclass, or auto (from the labels).
        fusion: Of the modalities' pooled vectors; by default they stand side by side, zeros where an item lacks one.
        hidden: Inner width of the head; 0 for a linear head.
        dropout: In the head.
        train_blocks: Blocks of each encoder that are trained, from the top: -1 all and the embedder (full), 0 none
            (frozen), k the last k (partial).
        optimizer: Optimiser and schedule.
        recompute: Recompute activations in the backward pass instead of keeping them.
        compile: Compile each block.
        stages: What is trained when, by name, in order; as ``train_blocks`` says all the time if empty.
    """

    untrained = ("model.encoders.*.projection.*",)
    """Globs of parameters that no stage may train: the head reads the pooled vector, before the projection."""

    def __init__(
        self,
        encoders: dict[str, Encoder],
        kind: Literal["auto", "regression", "binary", "multiclass"] = "auto",
        fusion: Callable[[], LateFusion] = LateFusion,
        hidden: int = 0,
        dropout: float = 0.1,
        train_blocks: int = -1,
        optimizer: AdamW = AdamW(),  # noqa: B008 - immutable
        recompute: bool = False,
        compile: bool = False,
        stages: dict[str, Stage] = {},  # noqa: B006 - read only
    ) -> None:
        super().__init__()
        depth = max((len(encoder.backbone.blocks) for encoder in encoders.values()), default=0)
        require(hidden >= 0, "model.hidden", "at least 1, or 0 for a linear head", hidden)
        require(0 <= dropout < 1, "model.dropout", "a share from 0 to less than 1", dropout)
        require(-1 <= train_blocks <= depth, "model.train_blocks", f"-1, or 0 to {depth} blocks", train_blocks)
        self.model = MultimodalModel(encoders)
        self.kind, self.hidden, self.dropout, self.optimizer = kind, hidden, dropout, optimizer
        self.fusion = fusion()
        self.width = self.fusion.width([encoder.width for encoder in encoders.values()])
        self.train_blocks, self.stages = train_blocks, stages
        self.head: nn.Module = nn.Identity()
        self.target: Target | None = None
        freeze(encoders, train_blocks)
        prepare_blocks(self, recompute=recompute, compile=compile)
        self._collected: list[tuple[Tensor, Tensor]] = []

    def configure_model(self) -> None:
        """Split the weights over processes, if the strategy is one that does."""
        if isinstance(self.trainer.strategy, ShardedStrategy):
            self.trainer.strategy.shard(self)

    def setup(self, stage: str) -> None:
        """Make the head from the training labels."""
        if self.target is None:
            self.fit_target(self.trainer.datamodule)  # type: ignore[attr-defined]

    def fit_target(self, data: Any) -> None:
        """Fit the target to the training labels, and make its head.

        Args:
            data: Set up.
        """
        values = data.target_values(data.part("train"))
        target = fit_target(self.kind, data.target_names(), values, data.class_names(), data.LABELS)
        with torch.random.fork_rng(devices=[]):  # the head is the seed's, whatever was drawn while reading
            torch.manual_seed(zlib.crc32(f"head/{data.seed}".encode()))
            self.set_target(target)

    def set_target(self, target: Target) -> None:
        """Take a target and make its head.

        Args:
            target: What is predicted.
        """
        self.target = target
        layers: list[nn.Module] = [nn.Dropout(self.dropout)]
        if self.hidden:
            layers += [nn.Linear(self.width, self.hidden), nn.GELU(), nn.Dropout(self.dropout)]
        self.head = nn.Sequential(*layers, nn.Linear(self.hidden or self.width, target.outputs)).to(self.device)

    def features(self, batch: Batch) -> dict[str, Features]:
        """By modality: those of the rows that have it.

        Args:
            batch: The items.
        """
        return {name: encoder(batch[name]) for name, encoder in self.model.encoders.items()}

    def embed(self, batch: Batch) -> Tensor:
        """(B, D) pooled vectors of all modalities, fused.

        Args:
            batch: The items.
        """
        fused: Tensor = self.fusion(self.features(batch), len(batch))
        return fused

    def forward(self, batch: Batch) -> Tensor:
        """(B, outputs) of the head, before decoding.

        Args:
            batch: The items.
        """
        return self._outputs(self.features(batch), len(batch))

    def _outputs(self, features: dict[str, Features], size: int) -> Tensor:
        outputs: Tensor = self.head(self.fusion(features, size))
        return outputs.float()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One step."""
        loss = self._target.loss(self(batch), batch.targets["labels"])
        self.log("train/loss", loss.detach(), batch_size=len(batch), prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect predictions; metrics are over the whole part."""
        outputs, values = self(batch), batch.targets["labels"]
        share, size = self._target.loss(outputs, values), Ranks.of(batch.keys).total
        self.log("valid/loss", share, batch_size=size, sync_dist=True)
        self._collected.append((self._target.decode(outputs), values))

    def on_validation_epoch_end(self) -> None:
        """Choose thresholds and log metrics."""
        predictions, values = self._drain()
        if not self.trainer.sanity_checking:
            self._target.choose(predictions, values)
        self._log_metrics("valid", predictions, values)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect predictions."""
        self._collected.append((self._target.decode(self(batch)), batch.targets["labels"]))

    def on_test_epoch_end(self) -> None:
        """Log metrics, at the thresholds that validation chose."""
        self._log_metrics("test", *self._drain())

    def predict_step(self, batch: Batch, batch_idx: int = 0) -> dict[str, Any]:
        """Predictions in the labels' own unit, or probabilities; and the features that they were made of."""
        features = self.features(batch)
        predictions = self._target.decode(self._outputs(features, len(batch)))
        return {"ids": batch.ids, "predictions": predictions, "features": features}

    def configure_optimizers(self) -> Any:
        """AdamW with warm-up, cosine decay and layer-wise rates."""
        return self.optimizer(self, total_steps(self.trainer), self.stages, time_passed(self.trainer))

    def configure_callbacks(self) -> list[L.Callback]:
        """The stages, if there are any."""
        return [StageSwitch(self.stages)] if self.stages else []

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The target goes along, as primitives."""
        checkpoint["target"] = self._target.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Make the head before its weights are loaded; one that fits stays, its weights may be split already."""
        target = target_from_state(checkpoint["target"])
        if self.target is not None and self.target.outputs == target.outputs:
            self.target = target
        else:
            self.set_target(target)

    @property
    def _target(self) -> Target:
        if self.target is None:
            raise RecipeError("the task has no target yet: it is made from the training labels in setup()")
        return self.target

    def _drain(self) -> tuple[np.ndarray, np.ndarray]:
        """(n, outputs) predictions and (n, tasks) labels of the whole part, from all processes."""
        predictions, values = (torch.cat(parts) for parts in zip(*self._collected, strict=True))
        self._collected.clear()
        ranks = Ranks.of(predictions)
        return ranks.gather(predictions).cpu().numpy(), ranks.gather(values).cpu().numpy()

    def _log_metrics(self, stage: str, predictions: np.ndarray, values: np.ndarray) -> None:
        target = self._target
        found = target.metrics(predictions, values)
        self.log_dict({f"{stage}/{name}": value for name, value in found.items()}, sync_dist=True)
        if target.primary in found:
            sign = 1.0 if target.higher_is_better else -1.0
            # One name and one direction for whatever is predicted: early stopping and the best checkpoint watch this.
            self.log(f"{stage}/score", sign * found[target.primary], prog_bar=True, sync_dist=True)


def freeze(encoders: dict[str, Encoder], train_blocks: int) -> None:
    """Leave only the last blocks of each encoder trainable.

    Args:
        encoders: By modality.
        train_blocks: -1 all and the embedder, 0 none, k the last k blocks and the final norm.
    """
    for encoder in encoders.values():
        if encoder.projection is not None:
            encoder.projection.requires_grad_(False)  # see `FinetuneTask.untrained`
        if train_blocks < 0:
            continue
        encoder.requires_grad_(False)
        if train_blocks:
            encoder.backbone.norm.requires_grad_(True)
            for block in list(encoder.backbone.blocks)[-train_blocks:]:
                block.requires_grad_(True)
