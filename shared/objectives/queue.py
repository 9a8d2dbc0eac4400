"""A ring of earlier features: more negatives than a batch holds (MoCo, He et al., arXiv 1911.05722)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class FeatureQueue(nn.Module):
    """The last K features, with their groups; part of the checkpoint, equal in every process.

    Args:
        size: K.
        width: d.
    """

    features: Tensor
    groups: Tensor
    pushed: Tensor

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.register_buffer("features", torch.zeros(size, width))
        self.register_buffer("groups", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("pushed", torch.zeros((), dtype=torch.int64))

    def __len__(self) -> int:
        """Features in the ring: those pushed, K at most."""
        return min(int(self.pushed), len(self.features))

    @torch.no_grad()
    def push(self, features: Tensor, groups: Tensor) -> None:
        """Put features in the place of the oldest.

        Args:
            features: (n, d); of more than K the last K stay.
            groups: (n,).
        """
        size = len(self.features)
        end = int(self.pushed) + len(features)
        kept = min(len(features), size)
        places = torch.arange(end - kept, end, device=features.device) % size
        self.features[places] = features[len(features) - kept :].to(self.features.dtype)
        self.groups[places] = groups[len(groups) - kept :]
        self.pushed.fill_(end)

    def valid(self) -> tuple[Tensor, Tensor]:
        """(m, d) features and (m,) groups that are in the ring."""
        return self.features[: len(self)], self.groups[: len(self)]
