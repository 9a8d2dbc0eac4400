"""The molecules' embedders are the shared ones with a chemist's defaults."""

from __future__ import annotations

import numpy as np
import torch

from polyfm.domains.molecules.atom_graph import atom_graphs
from polyfm.domains.molecules.backbone import AtomGIN
from polyfm.domains.molecules.descriptors import DESCRIPTORS
from polyfm.domains.molecules.embedder import AtomTokens, PropertyVector, SmilesTokens
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
