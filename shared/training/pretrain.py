"""`PretrainTask`: encoders, a fusion and objectives under one loss."""

from __future__ import annotations

import copy
import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import lightning as L
from torch import Tensor, nn

from polyfm.shared.backbones.encoder import Encoder, Fusion, MultimodalModel
from polyfm.shared.data.batch import Batch
from polyfm.shared.errors import RecipeError, require
from polyfm.shared.objectives.gather import Ranks
from polyfm.shared.objectives.objective import Objective, ObjectiveOutput, Progress, View, Views
from polyfm.shared.tokens.masking import Draw
from polyfm.shared.training.gradients import GradientPolicy
from polyfm.shared.training.large_batch import Held, LargeBatch, chunks_of
from polyfm.shared.training.optim import AdamW, move_average, prepare_blocks, time_passed, total_steps
from polyfm.shared.training.sharding import ShardedStrategy
from polyfm.shared.training.stages import Stage, StageSwitch
from polyfm.shared.training.views import answer


class PretrainTask(L.LightningModule):
    """Self-supervised training: the objectives ask for views, the task answers each once and adds the losses.

    Args:
        encoders: By modality; they always run, also on zero rows.
        objectives: By a name for the curves.
        fusion: From the tokens of one modality to tokens informed by another's.
        gradients: How the losses become one.
        optimizer: Optimiser and schedule.
        momentum: Of the teacher (moving average of the weights); one is kept if an objective asks for it.
        recompute: Recompute activations in the backward pass instead of keeping them.
        compile: Compile each block.
        chunk: Items that are encoded at once in training, where memory cannot hold the activations of a batch; 0 for
            all. Gradients are those of the whole batch, at the price of a forward pass more (`LargeBatch`).
        stages: What is trained when, by name, in order; all of it all the time if empty.
    """

    untrained = ("teacher.*", "objectives.*.teacher_*")
    """Globs of parameters that follow others and that no stage may train."""

    def __init__(
        self,
        encoders: dict[str, Encoder],
        objectives: dict[str, Objective],
        fusion: Fusion = Fusion(),  # noqa: B008 - the base has no state
        gradients: GradientPolicy = GradientPolicy(),  # noqa: B008 - plain sum
        optimizer: AdamW = AdamW(),  # noqa: B008 - immutable
        momentum: float = 0.995,
        recompute: bool = False,
        compile: bool = False,
        chunk: int = 0,
        stages: dict[str, Stage] = {},  # noqa: B006 - read only
    ) -> None:
        super().__init__()
        _check_names(gradients.weights, objectives, "model.gradients.weights")
        require(chunk >= 0, "model.chunk", "at least 1, or 0 for all", chunk)
        for name, stage in stages.items():
            _check_names(stage.objectives, objectives, f"model.stages.{name}.objectives")
        # Default objects are shared by all tasks of a process; a task switches its own to training and back.
        self.model = MultimodalModel(encoders, Fusion() if type(fusion) is Fusion else fusion)
        self.objectives = nn.ModuleDict(objectives)
        for name, objective in objectives.items():
            objective.build(_Encoders(encoders, name))
        self.gradients = copy.deepcopy(gradients)
        self.optimizer, self.momentum, self.stages = optimizer, momentum, stages
        self.stage_weights: dict[str, float] = {}
        """Of objectives, in the current stage; `StageSwitch` sets them."""
        self.needs: set[View] = set().union(*(objective.needs() for objective in objectives.values()))
        for name, objective in objectives.items():
            for view in objective.needs():
                for part in (*view.parts, *(view.context.parts if view.context else ())):
                    _Encoders(encoders, name)[part.modality]  # or it is said that there is none
        joined = {part.modality for view in self.needs if view.context for part in (*view.parts, *view.context.parts)}
        for name in sorted(joined):
            expected = f"{encoders[name].width}, the width of the {name} encoder that it joins"
            require(fusion.width in (0, encoders[name].width), "model.fusion.init_args.width", expected, fusion.width)
        self.teacher: MultimodalModel | None = None
        if any(view.weights == "teacher" for view in self.needs):
            self.teacher = copy.deepcopy(self.model).requires_grad_(False)
        prepare_blocks(self, recompute=recompute, compile=compile)
        self.chunk = chunk
        self._views: Views | None = None
        self._large: tuple[LargeBatch, Held] | None = None

    def configure_model(self) -> None:
        """Split the weights over processes, if the strategy is one that does."""
        if isinstance(self.trainer.strategy, ShardedStrategy):
            self.trainer.strategy.shard(self)

    def answer(self, batch: Batch, draw: Draw, progress: Progress | None = None) -> Views:
        """Every view that the objectives ask for.

        Args:
            batch: The items.
            draw: Random numbers of this pass.
            progress: How far the run is.
        """
        return answer(self.needs, batch, self.model, self.teacher, draw, progress or Progress())

    def held_out(self, batch: Batch, seed: int) -> Views:
        """Every view, under corruptions that are the same every time and behind every ramp: losses can be compared.

        Args:
            batch: Items that are not trained on.
            seed: Of the corruptions.
        """
        return self.answer(batch, Draw(seed, -1), Progress(epoch=math.inf))

    def losses(self, outputs: Mapping[str, ObjectiveOutput], batch: Batch, stage: str) -> Tensor:
        """The total loss; each objective's loss and logs go to the curves as ``stage/objective/name``.

        Args:
            outputs: Of the objectives, by name.
            batch: The items.
            stage: train, valid or test.
        """
        losses = {name: outputs[name].loss for name in self.objectives}
        total: Tensor = self.gradients(losses, self.stage_weights)
        seen: dict[str, Any] = {"on_step": stage == "train", "on_epoch": stage != "train", "sync_dist": True}
        for name, output in outputs.items():
            logs = {f"{stage}/{name}/{key}": value for key, value in output.logs.items()}
            self.log_dict(logs, batch_size=len(batch), **seen)
        # Losses are shares of means over all processes, so that a batch counts by all of its items.
        seen["batch_size"] = len(batch) if stage == "train" else Ranks.of(batch.keys).total
        self.log_dict({f"{stage}/{name}/loss": loss.detach() for name, loss in losses.items()}, **seen)
        self.log(f"{stage}/loss", total.detach(), prog_bar=True, **seen)
        return total

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One step."""
        batches = max(self.trainer.num_training_batches, 1)
        progress = Progress(step=self.global_step, epoch=self.current_epoch + batch_idx / batches)
        draw = Draw(self.seed, self.current_epoch)
        chunks = chunks_of(batch, self.chunk)
        if len(chunks) == 1:
            self._views = self.answer(batch, draw, progress)
            return self.losses(self._outputs(self._views, batch), batch, "train")

        def run(needs: Iterable[View], some: Batch, around: Callable[[View], Any]) -> Views:
            return answer(needs, some, self.model, self.teacher, draw, progress, around)

        large = LargeBatch(batch, chunks, self.objectives, run)  # type: ignore[arg-type]
        outputs, self._views = large.outputs()
        self._large = large, Held(self.trainer.strategy.model)
        return self.losses(outputs, batch, "train")

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Gradients of the weights; of a batch in chunks these come from going over it a second time."""
        if self._large is None:
            super().backward(loss, *args, **kwargs)
            return
        (large, held), self._large = self._large, None
        large.backward(loss, self._forward)
        held.release()

    def _forward(self, run: Callable[[], Any]) -> Any:
        """A forward pass beside that of `training_step`, under what the trainer puts around it."""
        strategy = self.trainer.strategy
        with strategy.precision_plugin.train_step_context():
            return strategy.run(run) if isinstance(strategy, ShardedStrategy) else run()

    def on_after_backward(self) -> None:
        """Queues take in this step's features."""
        if self._views is not None:
            for objective in self.objectives.values():
                objective.update(self._views)  # type: ignore[operator]
            self._views = None

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """The teacher follows at once: a checkpoint of this step, written before `on_train_batch_end`, has it."""
        super().optimizer_step(*args, **kwargs)
        if self.teacher is not None:
            move_average(self.teacher, self.model, self.momentum)
            for objective in self.objectives.values():
                objective.follow(self.model, self.momentum)  # type: ignore[operator]

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Losses under corruptions that are the same every time."""
        self.losses(self._outputs(self.held_out(batch, self.seed), batch), batch, "valid")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """As validation."""
        self.losses(self._outputs(self.held_out(batch, self.seed), batch), batch, "test")

    def predict_step(self, batch: Batch, batch_idx: int = 0) -> dict[str, Any]:
        """Pooled and projected vectors of every modality that is there."""
        out = {}
        for name, encoder in self.model.encoders.items():
            features = encoder(batch[name])
            out[name] = {"rows": features.rows, "pooled": features.pooled, "projected": features.projected}
        return out

    def configure_optimizers(self) -> Any:
        """AdamW with warm-up and cosine decay."""
        return self.optimizer(self, total_steps(self.trainer), self.stages, time_passed(self.trainer))

    def configure_callbacks(self) -> list[L.Callback]:
        """The stages, if there are any."""
        return [StageSwitch(self.stages)] if self.stages else []

    def _outputs(self, views: Views, batch: Batch) -> dict[str, ObjectiveOutput]:
        return {name: objective(views, batch) for name, objective in self.objectives.items()}

    @property
    def seed(self) -> int:
        """Of corruptions: the data module's, so that one number decides a run."""
        return int(self.trainer.datamodule.seed)  # type: ignore[attr-defined]


class _Encoders(dict[str, Encoder]):
    """As an objective sees them: one that it asks for and that is not there is a mistake.

    Args:
        encoders: By modality.
        objective: Its name.
    """

    def __init__(self, encoders: Mapping[str, Encoder], objective: str) -> None:
        super().__init__(encoders)
        self.objective = objective

    def __missing__(self, modality: str) -> Encoder:
        for near in difflib.get_close_matches(modality, self, n=1, cutoff=0.65):
            raise RecipeError(
                f"the objective {self.objective!r} reads {modality!r}, and this encoder is called {near!r}",
                where=f"model.encoders.{near}",
                remedy=f"Call both {modality!r}, or both {near!r}",
            )
        raise RecipeError(
            f"there is no encoder {modality!r}, which the objective {self.objective!r} reads",
            where="model.encoders",
            remedy=f"Add model.encoders.{modality}, or leave out model.objectives.{self.objective}",
        )


def _check_names(weights: Mapping[str, float], objectives: Mapping[str, Objective], where: str) -> None:
    """A weight of an objective that does not exist is a mistake."""
    for name in weights:
        if name not in objectives:
            raise RecipeError(f"there is no objective {name!r}", where=where, remedy=f"Known: {', '.join(objectives)}")
