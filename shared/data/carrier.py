"""`Carrier`: the base of everything that flows from a file to a loss."""

from __future__ import annotations

import dataclasses
from typing import Any, Self, dataclass_transform

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


@dataclass_transform(frozen_default=True, kw_only_default=True)
class Carrier:
    """A frozen dataclass of tensors that moves, pins, exports and pickles as one thing.

    Subclasses only declare fields; they become keyword-only frozen dataclasses and pytree nodes by themselves. A bare
    frozen dataclass would raise in Lightning's transfer and be invisible to pinning and ``torch.export``.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        dataclasses.dataclass(frozen=True, kw_only=True, eq=False)(cls)
        pytree.register_dataclass(
            cls,
            field_names=[field.name for field in dataclasses.fields(cls)],  # type: ignore[arg-type]
            drop_field_names=[],
            serialized_type_name=f"{cls.__module__}.{cls.__qualname__}",
        )

    def map(self, function: Any) -> Self:
        """Apply a function to every tensor, at any depth."""
        mapped: Self = pytree.tree_map_only(Tensor, function, self)
        return mapped

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        """Move every tensor to a device."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self, device: str | None = None) -> Self:
        """Pin every tensor, so that copies to a GPU overlap with compute."""
        return self.map(lambda tensor: tensor.pin_memory())

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)  # type: ignore[type-var]
