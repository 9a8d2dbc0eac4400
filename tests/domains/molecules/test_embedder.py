"""The molecules' embedders are the shared ones with a chemist's defaults."""

from __future__ import annotations

import math

import numpy as np
import torch

from polyfm.domains.molecules.atom_graph import atom_graphs
from polyfm.domains.molecules.backbone import AtomGIN
from polyfm.domains.molecules.conformers import TYPES, ConformerBatch, made_conformers, pack_conformers
from polyfm.domains.molecules.descriptors import DESCRIPTORS
from polyfm.domains.molecules.embedder import (
    AtomTokens,
    ConformerTokens,
    DistanceKernels,
    PropertyVector,
    SmilesTokens,
    distances,
)
from polyfm.shared.data.collate import pack_ids, stack_values


def test_smiles_tokens() -> None:
    embedder = SmilesTokens(8).eval()
    tokens = embedder(pack_ids([np.array([1, 50, 2]), None, np.array([1, 2])]))
    assert tokens.x.shape == (2, 3, 8)
    assert tokens.lengths.tolist() == [3, 2]
    assert embedder.vocabulary == 300
    assert SmilesTokens(8, packed=True)(pack_ids([np.array([1, 2])])).packed


def test_property_vector_has_one_token_a_descriptor_behind_a_cls() -> None:
    rows = [np.zeros(53), np.full(53, np.nan)]
    tokens = PropertyVector(8).eval()(stack_values(rows, len(DESCRIPTORS)))
    assert tokens.x.shape == (2, 54, 8)
    assert tokens.prefix == 1
    # Zero is a value; unknown is none.
    assert not torch.allclose(tokens.x[0, 1:], tokens.x[1, 1:])
    torch.testing.assert_close(tokens.x[0, 0], tokens.x[1, 0])


def test_atoms_and_their_message_passing_share_a_feature_set() -> None:
    for fields in ("gin", "full"):
        graphs = atom_graphs(["CCO", "c1ccccc1"], fields)
        tokens = AtomGIN(8, depth=2, fields=fields)(AtomTokens(8, fields=fields)(graphs))
        assert tokens.lengths.tolist() == [3, 6]
        assert tokens.pack().x.shape == (9, 8)


class TestConformers:
    def batch(self, *smiles: str) -> ConformerBatch:
        return pack_conformers(made_conformers(smiles))

    def test_a_cls_at_the_centroid_stands_before_the_atoms(self) -> None:
        batch = self.batch("CCO", "O")
        tokens = ConformerTokens(8, heads=2, kernels=4).eval()(batch)
        assert tokens.x.shape == (2, 10, 8)
        assert tokens.lengths.tolist() == [10, 4]
        assert tokens.prefix == 1
        assert tokens.items().shape == (12, 8)
        torch.testing.assert_close(tokens.positions[:, 0], torch.zeros(2, 3), atol=1e-5, rtol=0)
        torch.testing.assert_close(tokens.replace(x=tokens.positions).items(), batch.coordinates)
        assert tokens.pairs is not None
        assert tokens.pairs.first.shape == (2, 10, 10, 2)

    def test_kernels_by_hand(self) -> None:
        """One Gaussian of mean 1 and spread 2, seen through layers that pass on: density(a d + b) of a pair's a and b."""
        kernels = DistanceKernels(heads=1, kernels=1)
        with torch.no_grad():
            kernels.mean.fill_(1.0)
            kernels.spread.fill_(-2.0)  # its size counts
            kernels.scale.weight[5 * TYPES + 7] = 3.0
            kernels.shift.weight[5 * TYPES + 7] = -2.0
            for layer in (kernels.inner, kernels.outer):
                layer.weight.fill_(1.0)
                layer.bias.zero_()
        kernels.inner.bias.data.fill_(30.0)  # far in gelu's identity
        said = kernels(torch.tensor([[5, 7]]), torch.full((1, 2, 2), 1.5))[0, :, :, 0] - 30.0

        def density(x: float) -> float:
            return math.exp(-(((x - 1) / 2) ** 2) / 2) / (2 * math.sqrt(2 * math.pi))

        expected = torch.tensor([[density(1.5), density(3 * 1.5 - 2)], [density(1.5), density(1.5)]])
        torch.testing.assert_close(said, expected, atol=1e-5, rtol=0)

    def test_distances_by_hand(self) -> None:
        places = torch.tensor([[[0.0, 0, 0], [3, 4, 0]]])
        assert distances(places).tolist() == [[[0.0, 5.0], [5.0, 0.0]]]
