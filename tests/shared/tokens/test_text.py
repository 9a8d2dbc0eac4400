"""Token ids to vectors, whole or continued."""

from __future__ import annotations

import torch

from polyfm.shared.backbones.block import PostNorm
from polyfm.shared.backbones.encoder import Encoder
from polyfm.shared.backbones.masks import FULL, MaskSpec
from polyfm.shared.backbones.transformer import Transformer
from polyfm.shared.data.batch import TokenIds
from polyfm.shared.tokens.positions import NoPositions
from polyfm.shared.tokens.text import TextTokens
from polyfm.shared.tokens.tokens import Tokens

BATCH = TokenIds(
    rows=torch.arange(3), ids=torch.randint(0, 20, (9,)), cu_seqlens=torch.tensor([0, 4, 5, 9], dtype=torch.int32)
)


def test_vectors_are_table_plus_position_normalised() -> None:
    embedder = TextTokens(8, 20).eval()
    tokens = embedder(BATCH)
    assert tokens.mask.sum(1).tolist() == [4, 1, 4]
    places = torch.tensor([0, 1, 2, 3, 0, 0, 1, 2, 3])
    expected = embedder.norm(embedder.table(BATCH.ids) + embedder.positions.tables[0](places))
    torch.testing.assert_close(tokens.pack().x, expected)
    assert tokens.pack().positions[:, 0].tolist() == places.tolist()


def test_packed_is_padded() -> None:
    embedder = TextTokens(8, 20).eval()
    padded = embedder(BATCH)
    embedder.packed = True
    packed = embedder(BATCH)
    assert packed.packed
    assert torch.equal(packed.pad().x, padded.x)


def test_without_positions_and_norm_it_is_the_table() -> None:
    embedder = TextTokens(8, 20, positions=NoPositions, norm=False, dropout=0.0)
    assert torch.equal(embedder(BATCH).pack().x, embedder.table(BATCH.ids))


def test_continued_tokens_stand_behind_those_seen() -> None:
    embedder = TextTokens(8, 20, packed=True).eval()
    whole = embedder(BATCH).pad()
    tail = TokenIds(rows=BATCH.rows, ids=BATCH.ids[[2, 3, 4, 6, 7, 8]], cu_seqlens=torch.tensor([0, 2, 3, 6]))
    new = embedder.continued(tail, torch.tensor([2, 0, 1]))
    torch.testing.assert_close(new.x[0, :2], whole.x[0, 2:])
    torch.testing.assert_close(new.x[1, :1], whole.x[1, :1])
    torch.testing.assert_close(new.x[2], whole.x[2, 1:])


def test_an_encoder_of_known_length_exports() -> None:
    """With ``longest`` given nothing depends on the lengths' values: one program serves every batch of this shape."""

    class Program(torch.nn.Module):
        def __init__(self, mask: MaskSpec) -> None:
            super().__init__()
            self.encoder, self.mask = (
                Encoder(
                    8,
                    lambda width: TextTokens(width, 20),
                    lambda width: Transformer(width, 2, lambda w: PostNorm(w, heads=2)),
                    projection=4,
                ),
                mask,
            )

        def forward(self, batch: TokenIds) -> tuple[Tokens, torch.Tensor]:
            features = self.encoder(batch, self.mask)
            return features.tokens, features.projected

    for mask in (FULL, MaskSpec(causal=True), MaskSpec(window=1)):
        model = Program(mask).eval()
        batch = BATCH.replace(longest=6)
        program = torch.export.export(model, (batch,)).module()
        other = batch.replace(cu_seqlens=torch.tensor([0, 1, 7, 9], dtype=torch.int32))
        for given in (batch, other):
            tokens, projected = program(given)
            expected = model.encoder(given, mask)
            torch.testing.assert_close(projected, expected.projected, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(tokens.pack().x, expected.tokens.pack().x, atol=1e-5, rtol=1e-5)
