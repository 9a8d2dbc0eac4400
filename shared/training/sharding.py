"""Weights, gradients and moments of the optimiser in parts, one on each device: FSDP2 (`torch.distributed.fsdp`).

For models that do not fit on one. Each block gathers its weights when it runs and lets go of them again; what is
outside the blocks is gathered for the whole of a step. Gradients are those of data-parallel training.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import lightning as L
import torch
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from torch.utils import _pytree as pytree

from polyfm.shared.backbones.block import Block

Result = TypeVar("Result")


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2 over all devices. In a recipe: ``trainer: {strategy: fsdp2}``.

    Checkpoints are those of any other run: one file, read by the trainer's own plug-in, with which a run may go on with
    more devices, or fewer, or another strategy. When the trainer is done the task is whole again in every process.
    """

    def __init__(self) -> None:
        super().__init__(save_distributed_checkpoint=False)
        self.root: FSDPModule | None = None
        self._unsplit: dict[str, nn.Module] = {}

    @property
    def lightning_restore_optimizer(self) -> bool:
        """The trainer restores the optimiser, as it does elsewhere."""
        return True

    def setup_environment(self) -> None:
        """All devices hold parts of the same weights."""
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()

    def shard(self, task: nn.Module) -> None:
        """Split the weights of a task, block by block and then what is left; called in its `configure_model`.

        Args:
            task: Built. What stands on it itself, outside its parts, stays as it is.
        """
        mesh = self.device_mesh["data_parallel"]
        self._unsplit = {name: _without_weights(child) for name, child in task.named_children()}
        for part in task.modules():
            if isinstance(part, Block):
                fully_shard(part, mesh=mesh, ignored_params=_numbers(part))
        self.root = fully_shard(_Root(task), mesh=mesh, ignored_params=_numbers(task))

    def run(self, function: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
        """Call something that uses weights, which are gathered for it.

        Args:
            function: Gives tensors, from which a backward pass may start.
            args: Of the function.
            kwargs: Of the function.
        """
        if self.root is None:
            return function(*args, **kwargs)
        result: Result = self.root(function, *args, **kwargs)  # type: ignore[operator]
        if not torch.is_grad_enabled():
            self.root.reshard()  # a backward pass, which would let go of the weights, does not follow
        return result

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """With the weights gathered."""
        return self.run(super().training_step, *args, **kwargs)

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        """With the weights gathered."""
        return self.run(super().validation_step, *args, **kwargs)

    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        """With the weights gathered."""
        return self.run(super().test_step, *args, **kwargs)

    def predict_step(self, *args: Any, **kwargs: Any) -> Any:
        """With the weights gathered."""
        return self.run(super().predict_step, *args, **kwargs)

    def post_backward(self, closure_loss: Tensor) -> None:
        """Average the gradients of single numbers, which have no parts. Of what is averaged already nothing changes."""
        super().post_backward(closure_loss)
        for number in self._task.parameters():
            if number.ndim == 0 and number.grad is not None:
                number.grad.copy_(self.reduce(number.grad, reduce_op="mean"))

    def teardown(self) -> None:
        """The task is whole again, on the CPU, unless the run broke off: then the other processes may be gone."""
        if self._unsplit and not self._task.trainer.interrupted:
            state = {name: _whole(tensor) for name, tensor in self._task.state_dict().items()}
            for name, child in self._unsplit.items():
                prefix = f"{name}."
                own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
                child.load_state_dict(own, assign=True)
                setattr(self._task, name, child.train(getattr(self._task, name).training))
            self._task.cpu()
        self.root, self._unsplit = None, {}
        super().teardown()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Whole tensors, in the first process; nothing in the others."""
        state = {name: _whole(tensor) for name, tensor in self._task.state_dict().items()}
        return state if self.is_global_zero else {}

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """As of an optimiser of whole tensors, in the first process; nothing in the others."""
        state = pytree.tree_map_only(Tensor, _whole, super(ModelParallelStrategy, self).optimizer_state(optimizer))
        return state if self.is_global_zero else {}

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Through the trainer's plug-in, as everywhere."""
        return super(ModelParallelStrategy, self).load_checkpoint(checkpoint_path, weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Take the parts out of whole tensors."""
        ours = self._task.state_dict()
        parts = {name: _part(value, ours.get(name)) for name, value in checkpoint["state_dict"].items()}
        self._task.load_state_dict(parts, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take the parts out of whole tensors."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            weights = [weight for group in optimizer.param_groups for weight in group["params"]]
            parts = {
                number: {name: _part(value, weights[number]) for name, value in moments.items()}
                for number, moments in state["state"].items()
            }
            optimizer.load_state_dict({**state, "state": parts})

    @property
    def _task(self) -> L.LightningModule:
        if self.lightning_module is None:
            raise RuntimeError("the strategy has no task yet")
        return self.lightning_module


StrategyRegistry.register("fsdp2", ShardedStrategy)


class _Root(nn.Module):
    """Holds the parts of a task, and runs what uses them: FSDP gathers weights around a `forward`."""

    def __init__(self, task: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(dict(task.named_children()))

    def forward(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)


def _numbers(module: nn.Module) -> set[nn.Parameter]:
    """Parameters that are single numbers (a temperature, a gate): they cannot be split."""
    return {parameter for parameter in module.parameters() if parameter.ndim == 0}


def _without_weights(module: nn.Module) -> nn.Module:
    """A copy whose parameters have shapes only."""
    memo: dict[int, Any] = {
        id(parameter): nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=parameter.requires_grad)
        for parameter in module.parameters()
    }
    return copy.deepcopy(module, memo)


def _whole(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().cpu()


def _part(value: Any, like: Any) -> Any:
    """What this process has of a whole tensor, if ``like`` is one in parts and of its shape."""
    if not isinstance(like, DTensor) or not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
