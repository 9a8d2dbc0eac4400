"""A toy data set of two modalities and tiny models over it, for tests of what is the same in every domain."""

from __future__ import annotations

import contextlib
import dataclasses
import io
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch

from polyfm.shared.backbones.block import PostNorm
from polyfm.shared.backbones.encoder import Encoder
from polyfm.shared.backbones.fusion import CrossFusion
from polyfm.shared.backbones.transformer import Transformer
from polyfm.shared.data.batch import Batch
from polyfm.shared.data.collate import pack_ids, sample_key, stack_values
from polyfm.shared.data.datamodule import DataModule
from polyfm.shared.data.manifest import Notices, Quarantine
from polyfm.shared.data.sampler import Key
from polyfm.shared.data.splits import Splits
from polyfm.shared.objectives.causal import CausalLM, NextValue
from polyfm.shared.objectives.contrastive import InfoNCE
from polyfm.shared.objectives.matching import Matching
from polyfm.shared.objectives.objective import Objective
from polyfm.shared.tokens.masking import MaskValues
from polyfm.shared.tokens.table import ValueTokens
from polyfm.shared.tokens.text import TextTokens
from polyfm.shared.training.checkpoint import SafeCheckpointIO
from polyfm.shared.training.pretrain import PretrainTask

WIDTH, VOCABULARY, COLUMNS = 16, 12, 5


class ToyData(DataModule):
    """n items of text and table. The labels of an item are sums over its table, so there is something to learn.

    Args:
        n: Items.
        valid: Of them in the validation part, as many again in the test part.
        targets: Names of the labels: ``sum`` (a number), ``yes`` (0 or 1), ``class`` (0, 1, 2).
        lacking: By modality, the items that lack it.
        settings: Of the base.
    """

    def __init__(
        self,
        n: int = 24,
        valid: int = 4,
        targets: Sequence[str] = (),
        lacking: dict[str, Sequence[int]] = {},
        **settings: Any,
    ) -> None:
        super().__init__("toy", **{"batch_size": 4, **settings})
        self.n, self.valid, self.targets, self.lacking = n, valid, list(targets), lacking
        rng = np.random.default_rng(0)
        self.text = [rng.integers(4, VOCABULARY, length) for length in rng.integers(3, 9, n)]
        self.table = rng.standard_normal((n, COLUMNS))
        total = self.table.sum(1)
        self.labels = {"sum": 3 * total + 10, "yes": (total > 0) * 1.0, "class": np.digitize(total, (-1, 1)) * 1.0}
        self.reads = 0

    def read(self) -> Splits:
        self.reads += 1
        self.quarantine, self.notices = Quarantine(num_read=self.n), Notices()
        names = np.array(["train"] * self.n, dtype="<U5")
        names[self.n - 2 * self.valid :] = "valid"
        names[self.n - self.valid :] = "test"
        return Splits([f"item-{i}" for i in range(self.n)], [f"group-{i}" for i in range(self.n)], names)

    def fit_transforms(self, train: np.ndarray) -> None:
        self.mean = self.table[train].mean(0)

    def transforms_state(self) -> dict[str, Any]:
        return {"mean": self.mean.tolist()}

    def load_transforms(self, state: dict[str, Any]) -> None:
        self.mean = np.array(state["mean"])

    def lengths(self) -> np.ndarray:
        return np.array([len(ids) for ids in self.text])

    def make_samples(self, keys: list[Key]) -> list[int]:
        return [key.index for key in keys]

    def samples_from(self, items: Any) -> list[int]:
        return list(items)

    def collate(self, samples: Sequence[int]) -> Batch:
        text = [None if i in self.lacking.get("text", ()) else self.text[i] for i in samples]
        table = [None if i in self.lacking.get("table", ()) else self.table[i] - self.mean for i in samples]
        ids = [f"item-{i}" for i in samples]
        keys = torch.tensor([sample_key(id) for id in ids], dtype=torch.int64)
        labels = torch.from_numpy(self.target_values(np.array(samples, dtype=int)).astype(np.float32))
        return Batch(
            ids=ids,
            keys=keys,
            modalities={"text": pack_ids(text), "table": stack_values(table, COLUMNS)},
            targets={"labels": labels} if self.targets else {},
            groups=keys,
        )

    def target_names(self) -> list[str]:
        return self.targets

    def target_values(self, indices: np.ndarray) -> np.ndarray:
        columns = [self.labels[name][indices] for name in self.targets]
        return np.stack(columns, axis=1) if columns else np.zeros((len(indices), 0))

    def source_files(self) -> list[Path]:
        return []


def make_encoders(dropout: float = 0.0, projection: int = 6, depth: int = 1, seed: int = 0) -> dict[str, Encoder]:
    torch.manual_seed(seed)
    trunk = partial(Transformer, depth=depth, block=partial(PostNorm, heads=2, hidden=24, dropout=dropout))
    return {
        "text": Encoder(
            WIDTH, partial(TextTokens, vocabulary=VOCABULARY, dropout=dropout), trunk, projection=projection
        ),
        "table": Encoder(WIDTH, partial(ValueTokens, columns=COLUMNS, dropout=dropout), trunk, projection=projection),
    }


def spmm_objectives(queue: int = 8) -> dict[str, Objective]:
    half = {"table": MaskValues(0.5)}
    return {
        "contrast": InfoNCE(corrupt=half, queue=queue, soft=0.4, intra=True),
        "match": Matching("text", "table", corrupt=half),
        "next_token": CausalLM("text", context="table", corrupt=half, distill=0.4),
        "next_value": NextValue("table", context="text", corrupt=half),
    }


def make_pretrain(
    objectives: Callable[[], dict[str, Objective]] = spmm_objectives, dropout: float = 0.0, **settings: Any
) -> PretrainTask:
    """SPMM in small: two encoders, cross-attention both ways, a teacher and a queue."""
    encoders = make_encoders(dropout)
    block = partial(PostNorm, heads=2, hidden=24, dropout=dropout, cross=True)
    fusion = CrossFusion(WIDTH, partial(Transformer, depth=1, block=block))
    return PretrainTask(encoders, objectives(), fusion, momentum=0.9, **settings)


def make_trainer(folder: Path, callbacks: Sequence[L.Callback] = (), **settings: Any) -> L.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    defaults = {"accelerator": "cpu", "enable_checkpointing": False, "plugins": [SafeCheckpointIO()], **quiet}
    return L.Trainer(default_root_dir=folder, callbacks=list(callbacks), **{**defaults, **settings})


@pytest.fixture
def toy() -> type[ToyData]:
    return ToyData


@pytest.fixture
def encoders() -> Callable[..., dict[str, Encoder]]:
    return make_encoders


@pytest.fixture
def pretrain() -> Callable[..., PretrainTask]:
    return make_pretrain


@pytest.fixture
def objectives() -> Callable[..., dict[str, Objective]]:
    return spmm_objectives


@pytest.fixture
def trainer(tmp_path: Path) -> Callable[..., L.Trainer]:
    return partial(make_trainer, tmp_path)


# Runs of the molecule recipes in tiny, made once: what comes after training is tested on them.

TINY_SPMM = """\
data: {batch_size: 16}
model:
  encoders:
    smiles: &tiny {width: 32, backbone: {depth: 1, block: {heads: 2}}, projection: 16}
    properties: *tiny
  fusion: {width: 32, backbone: {depth: 1, block: {heads: 2}}}
  objectives: {contrast: {queue: 32}}
trainer: {max_epochs: 2, enable_progress_bar: false, enable_model_summary: false}
"""
TINY_PROPERTY = """\
data: {batch_size: 16}
model: {hidden: 8}
trainer: {max_epochs: 2, enable_progress_bar: false, enable_model_summary: false}
"""


@dataclasses.dataclass(frozen=True)
class Runs:
    """Folders of finished runs, and what they were made of."""

    data: Path
    """CSV of 80 invented molecules."""
    tiny_spmm: Path
    """What makes the small SPMM recipe tiny."""
    tiny_property: Path
    """The same for the property recipe."""
    spmm: Path
    """Pre-trained."""
    property: Path
    """Fine-tuned from it on a number."""
    said: dict[str, str]
    """What each printed."""


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    from polyfm.domains.molecules import baselines
    from polyfm.domains.molecules.synthetic import write_synthetic
    from polyfm.shared.cli.main import main

    folder = tmp_path_factory.mktemp("runs")
    found = Runs(
        data=write_synthetic(folder, n=80),
        tiny_spmm=folder / "tiny_spmm.yaml",
        tiny_property=folder / "tiny_property.yaml",
        spmm=folder / "spmm",
        property=folder / "property",
        said={},
    )
    found.tiny_spmm.write_text(TINY_SPMM)
    found.tiny_property.write_text(TINY_PROPERTY)
    common = ["--size", "small", "--data.path", str(found.data)]
    words = {
        found.spmm: ["molecules/spmm", "--config", str(found.tiny_spmm)],
        found.property: [
            *("molecules/property", "--config", str(found.tiny_property), "--init_from", str(found.spmm)),
            "--data.targets=[activity]",
        ],
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(baselines, "TREES", 20)
        for out, these in words.items():
            with contextlib.redirect_stdout(io.StringIO()) as said:
                assert main(["fit", *these, *common, "--out", str(out)]) == 0
            found.said[out.name] = said.getvalue()
    return found
