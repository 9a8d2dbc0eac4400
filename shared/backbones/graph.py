"""Message passing over the edges of packed tokens, in plain torch: GIN and GAT."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from polyfm.shared.backbones.backbone import Backbone
from polyfm.shared.backbones.cache import KeyValueCache
from polyfm.shared.backbones.masks import FULL, MaskSpec
from polyfm.shared.errors import RecipeError, require
from polyfm.shared.tokens.dropout import Dropout
from polyfm.shared.tokens.graph import CategoricalSum
from polyfm.shared.tokens.tokens import Edges, Tokens


class MessagePassing(Backbone):
    """The loop over layers in which a node hears from its neighbours. The last layer's vectors are returned.

    Args:
        layers: From (nodes (A, D), edges) to nodes.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(layers)
        self.norm = nn.Identity()

    def forward(
        self,
        tokens: Tokens,
        mask: MaskSpec = FULL,
        context: Tokens | None = None,
        depth: int | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tokens:
        """See `Backbone.forward`; who sees whom is said by ``tokens.edges`` alone."""
        if not mask.trivial or context is not None or cache is not None:
            raise RecipeError("message passing over edges takes no mask, no context and no cache")
        if tokens.edges is None:
            raise RecipeError(
                "these tokens have no edges to pass messages over", remedy="Use a graph embedder, or another backbone"
            )
        x = tokens.pack().x
        for block in self.blocks[:depth]:
            recompute = self.recompute and self.training
            run = partial(checkpoint, block, use_reentrant=False) if recompute else block
            x = run(x, tokens.edges)
        x = self.norm(x)
        return tokens.replace(x=x) if tokens.packed else tokens.pack().replace(x=x).pad()


class GIN(MessagePassing):
    """Graph isomorphism network (Xu et al., arXiv 1810.00826, eq. 4.1), edges as in Hu et al. (arXiv 1905.12265).

    h_v ← norm(MLP((1 + ε) h_v + Σ_{u → v} (h_u + e_uv))), ReLU after each layer but the last. Hu et al.'s vector for
    the edge to oneself is a constant before a linear layer, so the bias of that layer holds it.

    Args:
        width: D.
        depth: Layers.
        edge_cardinalities: How many values each feature of an edge has; empty to pass plain messages.
        hidden: Inner width of the MLP; 0 for 2 D.
        dropout: After each layer.
        learn_eps: Whether ε is learned, from 0; otherwise it is 0.
        norm: After the MLP. The paper's BatchNorm mixes the items of a batch: not with contrastive losses, accumulation
            or zero rows.
    """

    def __init__(
        self,
        width: int,
        depth: int = 5,
        edge_cardinalities: Sequence[int] = (),
        hidden: int = 0,
        dropout: float = 0.0,
        learn_eps: bool = False,
        norm: Callable[[int], nn.Module] = nn.LayerNorm,
    ) -> None:
        super().__init__(
            [
                GINLayer(width, edge_cardinalities, hidden or 2 * width, dropout, learn_eps, norm, last=i == depth - 1)
                for i in range(depth)
            ]
        )


class GINLayer(nn.Module):
    """One layer of `GIN`, whose arguments it takes.

    Args:
        width: D.
        edge_cardinalities: How many values each feature of an edge has.
        hidden: Inner width of the MLP.
        dropout: At the end.
        learn_eps: Whether ε is learned.
        norm: After the MLP.
        last: Whether to leave out the ReLU.
    """

    def __init__(
        self,
        width: int,
        edge_cardinalities: Sequence[int],
        hidden: int,
        dropout: float,
        learn_eps: bool,
        norm: Callable[[int], nn.Module],
        *,
        last: bool,
    ) -> None:
        super().__init__()
        self.edge = CategoricalSum(width, edge_cardinalities)
        self.eps = nn.Parameter(torch.zeros(()), requires_grad=learn_eps)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width))
        self.norm = norm(width)
        self.activation = nn.Identity() if last else nn.ReLU()
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, edges: Edges) -> Tensor:
        """(A, D) nodes after one round of messages.

        Args:
            x: (A, D).
            edges: Between them.
        """
        source, target = edges.index
        message = x.index_select(0, source) + self.edge(edges.features)
        heard = ((1 + self.eps) * x).index_add(0, target, message.to(x.dtype))
        out: Tensor = self.dropout(self.activation(self.norm(self.mlp(heard))))
        return out


class GAT(MessagePassing):
    """Graph attention network (Veličković et al., arXiv 1710.10903, eq. 1 to 5); heads stand side by side throughout.

    Args:
        width: D.
        depth: Layers.
        heads: H.
        edge_cardinalities: How many values each feature of an edge has: their vectors are added to what the neighbour
            says, as in Hu et al. (arXiv 1905.12265); empty for the paper's own.
        dropout: On each layer's input and on attention weights.
        norm: After each layer's attention, before its ELU; `torch.nn.Identity` for the paper's own.
    """

    def __init__(
        self,
        width: int,
        depth: int = 3,
        heads: int = 4,
        edge_cardinalities: Sequence[int] = (),
        dropout: float = 0.0,
        norm: Callable[[int], nn.Module] = nn.LayerNorm,
    ) -> None:
        super().__init__(
            [GATLayer(width, heads, edge_cardinalities, dropout, norm, last=i == depth - 1) for i in range(depth)]
        )


class GATLayer(nn.Module):
    """One layer of `GAT`, whose arguments it takes.

    Args:
        width: D.
        heads: H.
        edge_cardinalities: How many values each feature of an edge has.
        dropout: On the input and on attention weights.
        norm: After attention.
        last: Whether to leave out the ELU.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        edge_cardinalities: Sequence[int],
        dropout: float,
        norm: Callable[[int], nn.Module],
        *,
        last: bool,
    ) -> None:
        super().__init__()
        require(heads >= 1 and width % heads == 0, "GAT.heads", f"a divisor of the width {width}", heads)
        self.heads = heads
        self.linear = nn.Linear(width, width, bias=False)
        self.edge = CategoricalSum(width, edge_cardinalities)
        self.from_neighbour = nn.Parameter(torch.empty(heads, width // heads))
        self.from_self = nn.Parameter(torch.empty(heads, width // heads))
        for parameter in (self.linear.weight, self.from_neighbour, self.from_self):
            nn.init.xavier_uniform_(parameter)
        self.bias = nn.Parameter(torch.zeros(width))
        self.norm = norm(width)
        self.activation = nn.Identity() if last else nn.ELU()
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, edges: Edges) -> Tensor:
        """(A, D) nodes after one round of messages, each node hearing itself too.

        Args:
            x: (A, D).
            edges: Between them.
        """
        h = self.linear(self.dropout(x))
        itself = torch.arange(len(x), device=x.device)
        target = torch.cat([edges.index[1], itself])
        said = torch.cat([h.index_select(0, edges.index[0]) + self.edge(edges.features).to(h.dtype), h])
        said = said.unflatten(-1, (self.heads, -1))
        own = (h.unflatten(-1, (self.heads, -1)) * self.from_self).sum(-1)
        scores = F.leaky_relu((said * self.from_neighbour).sum(-1) + own.index_select(0, target), 0.2)
        weights = self.dropout(softmax_over(scores, target, len(x))).to(h.dtype)
        heard = torch.zeros_like(h).index_add(0, target, (weights[..., None] * said).flatten(-2))
        out: Tensor = self.activation(self.norm(heard + self.bias))
        return out


def softmax_over(scores: Tensor, target: Tensor, count: int) -> Tensor:
    """Softmax of (E, H) scores over the edges that lead to the same node.

    Args:
        scores: (E, H).
        target: (E,) int64 node that each edge leads to.
        count: Nodes.
    """
    scores = scores.float()
    highest = scores.detach().new_full((count, scores.shape[1]), float("-inf"))
    highest = highest.scatter_reduce(0, target[:, None].expand_as(scores), scores.detach(), "amax")
    grown = (scores - highest.index_select(0, target)).exp()
    total = grown.new_zeros(count, scores.shape[1]).index_add(0, target, grown)
    return grown / total.index_select(0, target)
