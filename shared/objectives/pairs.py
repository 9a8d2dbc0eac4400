"""What losses between pairs of modalities share: which pairs, which views, and the rows that both have."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from polyfm.shared.backbones.encoder import Encoder
from polyfm.shared.data.batch import Batch
from polyfm.shared.errors import RecipeError
from polyfm.shared.objectives.objective import Objective, View, Views, paired, teacher
from polyfm.shared.tokens.masking import Corruption


@dataclasses.dataclass(frozen=True)
class Sides:
    """Vectors of the items that have both modalities of a pair."""

    name: str
    """Of the pair."""
    a: Tensor
    """(n, d) unit vectors of the first modality."""
    b: Tensor
    """(n, d) of the second."""
    teacher_a: Tensor | None
    """(n, d) of the first by the moving average of the weights; None if not asked for."""
    teacher_b: Tensor | None
    """(n, d) of the second."""
    groups: Tensor
    """(n,) int64: rows of equal groups are positives of one another."""


class PairwiseObjective(Objective):
    """Base of losses between pairs of modalities.

    Args:
        pairs: Two modalities each, by a name; every pair of encoders that have a projection if empty.
        corrupt: What is hidden from a modality, by modality.
        taught: Whether the teacher's vectors are needed.
    """

    coupled = True

    def __init__(
        self, pairs: Mapping[str, tuple[str, str]], corrupt: Mapping[str, Corruption], taught: bool = False
    ) -> None:
        super().__init__()
        self.pairs, self.corrupt, self.taught = dict(pairs), dict(corrupt), taught

    def build(self, encoders: Mapping[str, Encoder]) -> None:
        """See `Objective.build`."""
        able = sorted(name for name, encoder in encoders.items() if encoder.projection is not None)
        self.pairs = self.pairs or {f"{a}-{b}": (a, b) for a, b in itertools.combinations(able, 2)}
        self.widths = {name: encoders[name].projection.out_features for name in able}  # type: ignore[union-attr]
        here = type(self).__name__
        if not self.pairs:
            raise RecipeError("no pair of encoders has a projection", where=here, remedy="Set encoders.NAME.projection")
        for name in sorted({*itertools.chain(*self.pairs.values()), *self.corrupt}):
            if name not in able:
                known = "has no projection" if name in encoders else f"is not among {', '.join(sorted(encoders))}"
                raise RecipeError(f"the modality {name!r} {known}", where=here)
        for name, (a, b) in self.pairs.items():
            if self.widths[a] != self.widths[b]:
                sizes = f"{self.widths[a]} and {self.widths[b]}"
                raise RecipeError(f"the projections of {name} differ in size ({sizes})", where=here)

    def view(self, modality: str) -> View:
        """How this objective sees a modality.

        Args:
            modality: One of the pairs'.
        """
        return View(modality, corruption=self.corrupt.get(modality))

    def needs(self) -> set[View]:
        """See `Objective.needs`."""
        online = {self.view(modality) for pair in self.pairs.values() for modality in pair}
        return online | {teacher(view) for view in online} if self.taught else online

    def sides(self, views: Views, batch: Batch) -> Iterator[Sides]:
        """Every pair with its rows, in one order in every process.

        Args:
            views: The answers.
            batch: What they were made from.
        """
        for name, (a, b) in sorted(self.pairs.items()):
            seen_a, seen_b = views[self.view(a)], views[self.view(b)]
            i, j = paired(seen_a, seen_b)
            yield Sides(
                name=name,
                a=_rows(views, self.view(a), i),
                b=_rows(views, self.view(b), j),
                teacher_a=_rows(views, teacher(self.view(a)), i) if self.taught else None,
                teacher_b=_rows(views, teacher(self.view(b)), j) if self.taught else None,
                groups=batch.groups[seen_a.rows[i]],
            )

    def named(self, pair: str, logs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Logs of a pair, under its name where there are several.

        Args:
            pair: Its name.
            logs: () each.
        """
        return dict(logs) if len(self.pairs) == 1 else {f"{pair}/{key}": value for key, value in logs.items()}


def positives(groups: Tensor, candidates: Tensor, candidate_groups: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of each row's positives, without an n×m matrix.

    Args:
        groups: (n,) of the rows.
        candidates: (m, d).
        candidate_groups: (m,).

    Returns:
        (n, d) mean of the candidates of the row's group, 0 where there are none, and (n,) how many there are.
    """
    unique, inverse = torch.unique(groups, return_inverse=True)
    if not len(unique):
        return candidates.new_zeros(0, candidates.shape[1]), candidates.new_zeros(0)
    slot = torch.searchsorted(unique, candidate_groups).clamp(max=len(unique) - 1)
    member = (unique[slot] == candidate_groups).nonzero()[:, 0]
    counts = candidates.new_zeros(len(unique)).index_add(0, slot[member], candidates.new_ones(len(member)))
    sums = candidates.new_zeros(len(unique), candidates.shape[1]).index_add(0, slot[member], candidates[member])
    return (sums / counts.clamp(min=1)[:, None])[inverse], counts[inverse]


def _rows(views: Views, view: View, index: Tensor) -> Tensor:
    projected: Tensor = views[view].projected  # type: ignore[assignment]
    return projected[index].float()
