"""Uni-Mol's five terms: by hand, under rotations, and each missing in turn."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from polyfm.domains.molecules.backbone import PairTransformer
from polyfm.domains.molecules.conformers import MASK, SPECIALS, TYPES, made_conformers, pack_conformers
from polyfm.domains.molecules.embedder import ConformerTokens, SmilesTokens
from polyfm.domains.molecules.objectives import (
    AtomCoordinates,
    AtomDistances,
    ConformerObjective,
    MaskedAtoms,
    MoveAtoms,
    PairNorm,
    TokenNorm,
    norm_error,
)
from polyfm.shared.backbones.block import PostNorm
from polyfm.shared.backbones.encoder import Encoder, MultimodalModel
from polyfm.shared.backbones.fusion import CrossFusion
from polyfm.shared.backbones.transformer import Transformer
from polyfm.shared.data.batch import Batch
from polyfm.shared.data.collate import pack_ids
from polyfm.shared.errors import RecipeError
from polyfm.shared.objectives.matching import Matching
from polyfm.shared.objectives.objective import Objective, Progress, View, Views
from polyfm.shared.tokens.masking import Draw
from polyfm.shared.tokens.tokens import Pairs
from polyfm.shared.training.large_batch import LargeBatch, chunks_of
from polyfm.shared.training.views import answer

KINDS = (MaskedAtoms, AtomCoordinates, AtomDistances, TokenNorm, PairNorm)
CONFORMERS = made_conformers(["CCO", "C", "CC(=O)N", "O"])


def rotation(seed: int) -> Tensor:
    turn, upper = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
    turn = turn * upper.diagonal().sign()
    return turn * torch.det(turn)  # a rotation, not a mirror


def make(lacking: tuple[int, ...] = ()) -> Batch:
    present = [None if i in lacking else one for i, one in enumerate(CONFORMERS)]
    rows = pack_conformers(present)
    rows = rows.replace(coordinates=rows.coordinates.double())
    return Batch(
        ids=list("abcd"), keys=torch.arange(4), modalities={"conformer": rows}, targets={}, groups=torch.arange(4)
    )


class Bench:
    """An objective on a small encoder in double precision."""

    def __init__(self, kind: Callable[..., ConformerObjective], **arguments: Any) -> None:
        torch.manual_seed(0)
        encoder = Encoder(
            16,
            lambda width: ConformerTokens(width, heads=4, kernels=8, dropout=0.0),
            lambda width: PairTransformer(width, depth=2, heads=4, dropout=0.0),
        )
        self.model = MultimodalModel({"conformer": encoder}).double()
        self.objective = kind(**arguments)
        self.objective.build(self.model.encoders)  # type: ignore[arg-type]
        self.objective.double()

    def views(self, batch: Batch, epoch: int = 0) -> Views:
        return answer(self.objective.needs(), batch, self.model, None, Draw(0, epoch), Progress())

    def loss(self, batch: Batch) -> Tensor:
        return self.objective(self.views(batch), batch).loss


def both_ways(model: MultimodalModel, objective: Objective, batch: Batch) -> list[tuple[Tensor, Tensor]]:
    """Loss and gradients of the whole batch, and of the same in chunks of two."""
    weights = [*model.parameters(), *objective.parameters()]

    def run(needs: Iterable[View], some: Batch, around: Callable[[View], Any] = nullcontext) -> Views:
        return answer(needs, some, model, None, Draw(0, 0), Progress(), around)

    expected = objective(run(objective.needs(), batch), batch).loss
    whole = torch.autograd.grad(expected, weights, allow_unused=True, materialize_grads=True)
    large = LargeBatch(batch, chunks_of(batch, 2), {"it": objective}, run)
    outputs, _ = large.outputs()
    large.backward(outputs["it"].loss)
    found = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights]
    return [(outputs["it"].loss, expected), *zip(found, whole, strict=True)]


class TestChunks:
    @pytest.mark.parametrize("kind", KINDS)
    def test_equal_the_whole(self, kind: type[ConformerObjective]) -> None:
        """The second chunk has a molecule without a conformer."""
        bench = Bench(kind)
        for found, expected in both_ways(bench.model, bench.objective, make(lacking=(2,))):
            torch.testing.assert_close(found, expected)

    def test_conformers_are_matched_across_chunks(self) -> None:
        torch.manual_seed(0)
        block = partial(PostNorm, heads=2, hidden=24, dropout=0.0)
        pairs = partial(PairTransformer, depth=2, heads=4, dropout=0.0)
        space = partial(ConformerTokens, heads=4, kernels=8, dropout=0.0)
        letters = partial(SmilesTokens, vocabulary=20, dropout=0.0)
        encoders = {
            "conformer": Encoder(16, space, pairs, projection=6),
            "smiles": Encoder(16, letters, partial(Transformer, depth=1, block=block), projection=6),
        }
        fusion = CrossFusion(16, partial(Transformer, depth=1, block=partial(block, cross=True)))
        model, objective = MultimodalModel(encoders, fusion).double(), Matching("conformer", "smiles")
        objective.build(encoders)
        batch = make()
        batch.modalities["smiles"] = pack_ids([np.array([1, 5 + i, 9, 2]) for i in range(4)])
        for found, expected in both_ways(model, objective.double(), batch):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


class TestMoveAtoms:
    KEYS = torch.arange(4)

    def test_chosen_atoms_move_within_the_cube_and_no_others(self) -> None:
        batch = make()["conformer"]
        moved, chosen = MoveAtoms(rate=0.5, noise=0.7)(batch, self.KEYS, Draw(0, 0))
        shift = moved.coordinates - batch.coordinates
        assert shift[~chosen].abs().max() == 0
        assert (shift[chosen].abs() <= 0.7).all()
        assert (shift[chosen] != 0).all()
        torch.testing.assert_close(moved.ids[~chosen], batch.ids[~chosen])

    def test_shares(self) -> None:
        batch = pack_conformers(CONFORMERS * 500)
        moved, chosen = MoveAtoms()(batch, torch.arange(2000), Draw(0, 0))
        assert chosen.float().mean() == pytest.approx(0.2, abs=0.02)  # 0.15, and one of each small molecule at least
        assert (moved.ids[chosen] == MASK).float().mean() == pytest.approx(0.8, abs=0.02)
        assert (moved.ids >= SPECIALS)[moved.ids != MASK].all()
        shift = (moved.coordinates - batch.coordinates)[chosen]
        assert shift.mean(0).abs().max() < 0.03
        assert shift.square().sum(-1).mean().sqrt() == pytest.approx(1.0, abs=0.02)  # of a cube of edge 2

    def test_a_pure_function_of_seed_epoch_and_sample(self) -> None:
        batch = make()["conformer"]
        one, chosen = MoveAtoms()(batch, self.KEYS, Draw(0, 0))
        turned = batch.select(torch.tensor([2, 0]))
        other, also = MoveAtoms()(turned, self.KEYS[[2, 0]], Draw(0, 0))
        torch.testing.assert_close(other.coordinates, one.select(torch.tensor([2, 0])).coordinates)
        assert also.sum() == sum(chosen[batch.cu_seqlens[i] : batch.cu_seqlens[i + 1]].sum() for i in (2, 0))
        again, _ = MoveAtoms()(batch, self.KEYS, Draw(0, 1))
        assert not torch.equal(again.coordinates, one.coordinates)


class TestByHand:
    """Heads that answer a constant: what is left is arithmetic on the molecule."""

    def test_atoms(self) -> None:
        bench, batch = Bench(MaskedAtoms), make()
        head = bench.objective.head
        with torch.no_grad():
            head.norm.weight.zero_()
            head.bias[-1] = 1.0
        assert bench.loss(batch).item() == pytest.approx(torch.tensor(TYPES - 1 + torch.e).log().item(), abs=1e-6)

    def test_coordinates(self) -> None:
        """A head that always says c moves an atom by c (N + 1) / N towards the mean of atoms and [CLS], its centroid."""
        bench, batch = Bench(AtomCoordinates), make()
        with torch.no_grad():
            bench.objective.head[-1].weight.zero_()
            bench.objective.head[-1].bias.fill_(0.25)
        views = bench.views(batch)
        features = views[bench.objective.view]
        true, total, count = batch["conformer"], 0.0, 0
        moved, chosen = bench.objective.view.corruption(true, _keys(bench, batch), Draw(0, 0))
        torch.testing.assert_close(chosen, features.selected)
        for start, end in zip(true.cu_seqlens[:-1].tolist(), true.cu_seqlens[1:].tolist(), strict=True):
            atoms, size = moved.coordinates[start:end], end - start
            put = atoms + 0.25 * (size + 1) / size * (atoms.mean(0) - atoms)
            for i in range(start, end):
                if chosen[i]:
                    for off in (put[i - start] - true.coordinates[i]).abs().tolist():
                        total += off**2 / 2 if off < 1 else off - 0.5
                        count += 1
        assert bench.objective(views, batch).loss.item() == pytest.approx(total / count, rel=1e-6)

    def test_distances(self) -> None:
        """A head that always says 0 answers the mean m: the loss is that of m against each distance."""
        bench, batch = Bench(AtomDistances, mean=1.5, scale=0.5), make()
        with torch.no_grad():
            bench.objective.head[-1].weight.zero_()
            bench.objective.head[-1].bias.zero_()
        views, true = bench.views(batch), batch["conformer"]
        chosen = views[bench.objective.view].selected
        losses, errors = [], []
        for start, end in zip(true.cu_seqlens[:-1].tolist(), true.cu_seqlens[1:].tolist(), strict=True):
            atoms = true.coordinates[start:end]
            for i in range(start, end):
                if chosen[i]:
                    others = [atoms[j] for j in range(len(atoms)) if j != i - start] + [atoms.mean(0)]
                    for other in others:
                        error = float((true.coordinates[i] - other).norm()) - 1.5
                        errors.append(abs(error))
                        losses.append(2 * error**2 if abs(error) < 0.5 else abs(error) / 0.5 - 0.5)
        output = bench.objective(views, batch)
        assert output.loss.item() == pytest.approx(sum(losses) / len(losses), rel=1e-5)
        assert output.logs["mae"].item() == pytest.approx(sum(errors) / len(errors), rel=1e-5)

    def test_a_length_is_free_within_one_of_the_root_of_the_width(self) -> None:
        vectors = torch.tensor([[5.0, 0, 0, 0], [2.5, 0, 0, 0], [0.0, 0, 0, 0], [0, -3.0, 0, 0]])
        torch.testing.assert_close(norm_error(vectors), torch.tensor([2.0, 0.0, 1.0, 0.0]), atol=1e-4, rtol=0)

    @pytest.mark.parametrize("kind", [TokenNorm, PairNorm])
    def test_norms_are_means_over_what_is_real_of_each_molecule(self, kind: Any) -> None:
        bench, batch = Bench(kind), make()
        views = bench.views(batch)
        features = views[bench.objective.view]
        tokens, lengths = features.tokens, features.tokens.lengths.tolist()
        size = tokens.x.shape[1]
        # Each pair of molecule b adds (2 + b, 0, 0, 0), each of its tokens is 16 long in sum: padding is monstrous.
        grown = torch.full((4, size, size, 4), 0.0, dtype=torch.float64)
        long = torch.zeros(4, size, 16, dtype=torch.float64)
        for b, length in enumerate(lengths):
            grown[b, :, :, 0], long[b, :, 0] = 1e6, 1e6
            grown[b, :length, :length, 0], long[b, :length, 0] = 2.0 + b, 4.0 + b
        pairs = Pairs(first=torch.zeros_like(grown), last=grown, tokens=long)
        changed = features.replace(tokens=tokens.replace(pairs=pairs))
        output = bench.objective(Views({bench.objective.view: changed}, bench.model, Progress()), batch)
        assert output.loss.item() == pytest.approx((0 + 0 + 1 + 2) / 4, abs=1e-6)


def _keys(bench: Bench, batch: Batch) -> Tensor:
    """Keys of the samples as the task draws with them."""
    view = bench.objective.view
    return batch.keys ^ zlib.crc32(f"{view.modality}/{view.corruption}".encode())


@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 10_000))
def test_no_term_knows_how_the_molecule_lies(kind: Any, seed: int) -> None:
    bench, batch = Bench(kind), make()
    turn, shift = rotation(seed), 3 * torch.randn(3, dtype=torch.float64)
    view, rows = bench.objective.view, batch["conformer"]
    moved, chosen = view.corruption(rows, batch.keys, Draw(0, 0))

    def loss(turned: Callable[[Tensor], Tensor]) -> Tensor:
        given = rows.replace(coordinates=turned(rows.coordinates))
        features = bench.model("conformer", moved.replace(coordinates=turned(moved.coordinates)))
        views = Views({view: features.replace(selected=chosen)}, bench.model, Progress())
        return bench.objective(views, batch.replace(modalities={"conformer": given})).loss

    # The smooth absolute value of coordinates knows the axes: what must turn with the molecule is the answer.
    if kind is AtomCoordinates:
        told = [
            bench.objective.places(bench.model("conformer", moved.replace(coordinates=each)).tokens)
            for each in (moved.coordinates, moved.coordinates @ turn.T + shift)
        ]
        torch.testing.assert_close(told[0] @ turn.T + shift, told[1], atol=1e-5, rtol=1e-5)
        assert not torch.allclose(told[0], moved.coordinates)
    else:
        torch.testing.assert_close(loss(lambda x: x), loss(lambda x: x @ turn.T + shift), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_nobody_has_a_conformer(kind: Any) -> None:
    bench, batch = Bench(kind), make(lacking=(0, 1, 2, 3))
    loss = bench.loss(batch)
    assert loss.item() == 0.0
    loss.backward()
    grads = [p.grad for p in bench.model.parameters()]
    assert all(grad is None or grad.abs().sum() == 0 for grad in grads)


@pytest.mark.parametrize("kind", KINDS)
def test_a_molecule_that_lacks_it_changes_nothing_for_the_others(kind: Any) -> None:
    bench, batch = Bench(kind), make(lacking=(1, 3))
    rows = batch["conformer"]
    alone = Batch(
        ids=["a", "c"],
        keys=batch.keys[[0, 2]],
        modalities={"conformer": rows.replace(rows=torch.arange(2))},
        targets={},
        groups=torch.arange(2),
    )
    torch.testing.assert_close(bench.loss(batch), bench.loss(alone))


@pytest.mark.parametrize(
    ("kind", "without"),
    [
        (MaskedAtoms, {"masked": 0.0}),
        (MaskedAtoms, {"randomised": 0.0, "masked": 0.9}),
        (AtomCoordinates, {"noise": 0.0}),
        (AtomCoordinates, {"rate": 0.9}),
        (AtomDistances, {"noise": 0.0}),
    ],
    ids=["[MASK]", "random elements", "noise of coordinates", "rate", "noise of distances"],
)
def test_without_the_papers_term_it_is_another_loss(kind: Any, without: dict[str, float]) -> None:
    corruption = {"rate": 0.4} | without
    batch = make()
    full, ablated = Bench(kind, corruption=MoveAtoms(rate=0.4)), Bench(kind, corruption=MoveAtoms(**corruption))
    assert not torch.isclose(full.loss(batch), ablated.loss(batch))


@pytest.mark.parametrize("part", ["distances", "carried scores"])
def test_without_pairs_moved_atoms_cannot_be_put_back(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The coordinate head reads what the layers add to the pairs: no distances, no way to tell where to."""
    batch = make()
    full = Bench(AtomCoordinates)
    before = full.objective.places(full.views(batch)[full.objective.view].tokens)
    if part == "distances":
        monkeypatch.setattr(
            "polyfm.domains.molecules.embedder.distances", lambda x: x.new_ones(*x.shape[:2], x.shape[1])
        )
    else:
        block = full.model.encoders["conformer"].backbone.blocks[0]
        monkeypatch.setattr(
            block, "forward", lambda x, scores, hidden, run=block.forward: (run(x, scores, hidden)[0], scores)
        )
    after = full.objective.places(full.views(batch)[full.objective.view].tokens)
    assert not torch.allclose(before, after, atol=1e-4)


def test_an_encoder_without_pairs_is_refused() -> None:
    encoder = Encoder(16, SmilesTokens, lambda width: Transformer(width, 1))
    for kind in (AtomCoordinates, AtomDistances):
        with pytest.raises(RecipeError, match="carries no pairs"):
            kind().build({"conformer": encoder})
