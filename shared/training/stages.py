"""Training in stages: what is trained, how fast, and on which objectives, as training goes on. One callback."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Iterable, Sequence
from typing import Any

import lightning as L
from torch import nn

from polyfm.shared.data.batch import Batch
from polyfm.shared.errors import RecipeError


@dataclasses.dataclass
class Stage:
    """One stage. Globs match parameter names as in ``model.encoders.smiles.*``."""

    until: float = float("inf")
    """It ends after so many passes over the data, counted from the start of the run."""
    train: list[str] = dataclasses.field(default_factory=lambda: ["*"])
    """Globs of parameters that are trained."""
    freeze: list[str] = dataclasses.field(default_factory=list)
    """Globs of parameters that are not, even if ``train`` matches them."""
    rates: dict[str, float] = dataclasses.field(default_factory=dict)
    """Learning rate by glob, as a share of the optimiser's; the first match counts."""
    objectives: dict[str, float] = dataclasses.field(default_factory=dict)
    """Weights of objectives in this stage; as in the recipe where not named; 0 switches one off."""

    def trains(self, name: str) -> bool:
        """Whether a parameter is trained.

        Args:
            name: Of the parameter.
        """
        return matches(name, self.train) and not matches(name, self.freeze)

    def rate(self, name: str) -> float:
        """A parameter's share of the learning rate.

        Args:
            name: Of the parameter.
        """
        return next((rate for glob, rate in self.rates.items() if matches(name, (glob,))), 1.0)


def matches(name: str, globs: Iterable[str]) -> bool:
    """Whether one of the globs matches, the case of letters counted.

    Args:
        name: Of a parameter.
        globs: As in ``model.encoders.smiles.*``.
    """
    return any(fnmatch.fnmatchcase(name, glob) for glob in globs)


def trainable(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Parameters that a stage may train, with their names: not those that a task declares ``untrained``.

    Args:
        module: The task.
    """
    untrained: Sequence[str] = getattr(module, "untrained", ())
    return [(name, parameter) for name, parameter in module.named_parameters() if not matches(name, untrained)]


class StageSwitch(L.Callback):
    """Applies the stage that the run has reached.

    Args:
        stages: By name, in order.
    """

    def __init__(self, stages: dict[str, Stage]) -> None:
        self.stages = stages
        self.current = ""
        ends = [stage.until for stage in stages.values()]
        if ends != sorted(ends):
            raise RecipeError(f"stages must end one after the other, not at {ends}", where="model.stages")

    def at(self, epoch: float) -> str:
        """Name of the stage at a point of the run; the last one lasts.

        Args:
            epoch: Passes over the data done, fractional.
        """
        return next((name for name, stage in self.stages.items() if epoch < stage.until), list(self.stages)[-1])

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Globs that match nothing are mistakes."""
        names = [name for name, _ in trainable(pl_module)]
        for title, stage in self.stages.items():
            for glob in (*stage.train, *stage.freeze, *stage.rates):
                if not any(matches(name, (glob,)) for name in names):
                    raise RecipeError(
                        f"{glob!r} matches no parameter",
                        where=f"model.stages.{title}",
                        remedy=f"Names look like {names[0]}",
                    )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A resumed run may start with a validation, which is of the stage that was."""
        if self.current:
            self.apply(pl_module, self.stages[self.current], trainer)

    def state_dict(self) -> dict[str, Any]:
        """The stage that is on."""
        return {"current": self.current}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it over."""
        self.current = state_dict["current"]

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Switch when the next stage is reached; a pure function of progress, so a resumed run is in the same stage."""
        done = trainer.current_epoch + batch_idx / max(trainer.num_training_batches, 1)
        name = self.at(done)
        if name == self.current:
            return
        self.current = name
        self.apply(pl_module, self.stages[name], trainer)

    def apply(self, module: Any, stage: Stage, trainer: L.Trainer) -> None:
        """Set what is trained, rates and weights.

        Args:
            module: The task.
            stage: Applied.
            trainer: Holds the optimiser and its schedule.
        """
        for name, parameter in trainable(module):
            parameter.requires_grad_(stage.trains(name))
            if not parameter.requires_grad:
                parameter.grad = None  # what was accumulated before the switch must not move it any more
        for optimizer, config in zip(trainer.optimizers, trainer.lr_scheduler_configs, strict=True):
            for i, group in enumerate(optimizer.param_groups):
                # All parameters of a group have the same rates in every stage: `AdamW.groups` splits them so.
                config.scheduler.base_lrs[i] = group["base_lr"] * stage.rate(group["example"])
                group["lr"] = config.scheduler.base_lrs[i] * config.scheduler.lr_lambdas[i](trainer.global_step)  # type: ignore[union-attr]
        if hasattr(module, "stage_weights"):
            module.stage_weights = stage.objectives
