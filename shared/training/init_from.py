"""What a training starts from: a run of polyfm, or a checkpoint of transformers in a local folder.

Of a folder that transformers wrote, ``config.json`` is read (numbers and words, never the code that it may name),
``model.safetensors``, and for an encoder of natural language its tokenizer (``tokenizer.json`` or ``vocab.txt``).
Nothing is downloaded.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from polyfm.shared.backbones.conversion import KEY_MAPS, State
from polyfm.shared.errors import DataError, UsageError
from polyfm.shared.tokens.text import TextTokens
from polyfm.shared.tokens.tokenizer import TextTokenizer, read_pretrained
from polyfm.shared.training.checkpoint import load_weights, matching_share, read_tensors

FAMILIES = {
    "bert": ("bert",),
    "roberta": ("roberta",),
    "xlm-roberta": ("roberta",),
    "camembert": ("roberta",),
    "distilbert": ("distilbert",),
    "electra": ("electra",),
    "clip": ("clip_text", "clip_vision"),
    "clip_text_model": ("clip_text",),
    "clip_vision_model": ("clip_vision",),
}
"""By the ``model_type`` of a config.json: the key maps of its encoders."""
IMAGES = ("PatchTokens", "ClipPatches")
"""Embedders of images: of a checkpoint of two encoders, theirs is the one for images."""
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
}
"""transformers' names and ours."""
LARGEST = 2**20
"""Any size in a config.json is below: what a slip or a stranger writes there must not fill the memory."""
ENOUGH = 0.9
"""Share of an encoder's numbers that must be found, unless told otherwise."""


@dataclasses.dataclass(frozen=True)
class InitFrom:
    """What a user says after ``--init_from``."""

    path: Path
    """A run's folder, or one with config.json and model.safetensors."""
    modality: str = ""
    """Which encoder a checkpoint of transformers goes into; empty if the recipe has only one."""
    at_least: float = ENOUGH
    """Share of an encoder's numbers that must be found."""

    @classmethod
    def of(cls, text: str | Path | InitFrom, at_least: float = ENOUGH) -> InitFrom:
        """From ``FOLDER`` or ``MODALITY=FOLDER``.

        Args:
            text: As the user wrote it.
            at_least: See the field.
        """
        if isinstance(text, InitFrom):
            return text
        if not 0 <= at_least <= 1:
            raise UsageError(f"--init_at_least is a share from 0 to 1, not {at_least}")
        modality, given, folder = str(text).partition("=")
        if given and modality.isidentifier() and not Path(text).exists():
            return cls(Path(folder), modality, at_least)
        return cls(Path(text), at_least=at_least)

    def to_dict(self) -> dict[str, Any]:
        """As primitives."""
        return {**dataclasses.asdict(self), "path": str(self.path.absolute())}

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> InitFrom:
        """From primitives.

        Args:
            stored: As made by `to_dict`.
        """
        return cls(**{**stored, "path": Path(stored["path"])})

    @property
    def is_transformers(self) -> bool:
        """Whether transformers wrote the folder."""
        return (self.path / "config.json").is_file() and not (self.path / "recipe.yaml").is_file()


class Pretrained:
    """A checkpoint that transformers wrote.

    Args:
        path: Its folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.config: dict[str, Any] = json.loads((path / "config.json").read_text(encoding="utf-8"))
            kind = str(self.config.get("model_type"))
        except (OSError, ValueError, AttributeError, RecursionError) as error:
            raise DataError(f"this is no config.json of transformers ({error})", where=path / "config.json") from error
        if kind not in FAMILIES:
            raise DataError(
                f"there is no key map for model_type {kind!r}",
                where=path / "config.json",
                remedy=f"Known: {', '.join(FAMILIES)}",
            )
        self.families: tuple[str, ...] = FAMILIES[kind]
        self.weights = path / "model.safetensors"
        if not self.weights.is_file():
            raise DataError(
                "there is no model.safetensors",
                where=path,
                remedy="Weights are read from this file only: write it with transformers' save_pretrained",
            )

    def start(self, tree: dict[str, Any], modality: str = "") -> dict[str, Any]:
        """A recipe in which one encoder has the checkpoint's shape; its pooling and projection stay the recipe's.

        Args:
            tree: The recipe's.
            modality: Which encoder; may be empty if there is only one.
        """
        encoders = tree["model"]["encoders"]
        name = modality or next(iter(encoders))
        if name not in encoders or (not modality and len(encoders) > 1):
            raise UsageError(
                f"the recipe has encoders for {', '.join(encoders)}: which of them starts from this?",
                where=self.path,
                remedy=f"Say --init_from {next(iter(encoders))}={self.path}",
            )
        own = encoders[name].get("init_args", encoders[name])
        embedder = own.get("embedder", "")
        images = (embedder if isinstance(embedder, str) else embedder.get("class_path", "")).endswith(IMAGES)
        family = self.families[-1] if images else self.families[0]
        shape = self.encoder(family)
        started = copy.deepcopy(tree)
        started["model"]["encoders"][name] = {**copy.deepcopy(own), **shape}
        masked = [part for part in started["model"].get("objectives", {}).values() if _masks(part, name)]
        if masked:  # ids of special tokens are those of the tokenizer that comes with the weights
            tokenizer = self.tokenizer()
            for part in masked:
                part["init_args"] |= {"mask_id": tokenizer.mask, "specials": tokenizer.specials}
        return started

    def tokenizer(self) -> TextTokenizer:
        """The tokenizer whose ids the weights were trained with."""
        return read_pretrained(self.path)

    def hand_tokenizer(self, data: Any, modality: str, encoder: nn.Module) -> None:
        """Give the data module the tokenizer of the encoder that starts from this, if it reads tokens.

        Args:
            data: Not set up yet.
            modality: Of the encoder.
            encoder: It.
        """
        embedder = encoder.embedder
        if not isinstance(embedder, TextTokens):
            return
        tokenizer = self.tokenizer()
        if len(tokenizer) > embedder.vocabulary:
            raise DataError(
                f"this tokenizer knows {len(tokenizer):,} tokens, the weights {embedder.vocabulary:,}",
                where=self.path,
                remedy="Take weights and tokenizer from the same model",
            )
        data.take_tokenizer(modality, tokenizer)

    def encoder(self, family: str) -> dict[str, Any]:
        """The encoder that these weights fit into, as a recipe has it.

        Args:
            family: A key of `KEY_MAPS`, one of `families`.
        """
        tower = {"clip_text": "text_config", "clip_vision": "vision_config"}.get(family, "")
        config = self.config.get(tower, self.config)
        where = f"{self.path / 'config.json'}{': ' + tower if tower else ''}"
        try:
            return SHAPES[family](config)
        except DataError as error:
            error.where = where
            raise
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise DataError(f"this config.json lacks or misstates {error}", where=where) from error

    def load_into(self, encoder: nn.Module, *, what: str, at_least: float = ENOUGH) -> str:
        """Fill an encoder with the checkpoint's weights; of a checkpoint of two encoders, with the one that fits.

        Args:
            encoder: Filled.
            what: For the report.
            at_least: Share of the encoder's numbers that must be found.

        Returns:
            The report; see `load_weights`.
        """
        theirs, _ = read_tensors(self.weights)

        def state(family: str) -> State:
            ours, left = KEY_MAPS[family].convert(theirs)
            return {**ours, **{key: theirs[key] for key in left if key in theirs}}

        states = [state(family) for family in self.families]
        best = max(states, key=lambda state: matching_share(encoder, state))
        return load_weights(encoder, best, what=what, at_least=at_least)


def _masks(part: Any, modality: str) -> bool:
    """Whether an objective of a recipe hides tokens of a modality."""
    arguments = part.get("init_args", {}) if isinstance(part, dict) else {}
    named = isinstance(part, dict) and str(part.get("class_path", "")).endswith("MaskedTokens")
    return named and arguments.get("modality") == modality


def _count(config: Mapping[str, Any], name: str) -> int:
    """A size that a config.json names."""
    value = config[name]
    if type(value) is not int or not 1 <= value <= LARGEST:
        raise DataError(f"{name} must be a whole number from 1 to {LARGEST:,}, not {value!r}")
    return value


def _activation(config: Mapping[str, Any], key: str = "hidden_act") -> str:
    name = config.get(key, "gelu")
    if name not in ACTIVATIONS:
        raise DataError(f"there is no activation {name!r} here", remedy=f"Known: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def _part(name: str, **arguments: Any) -> dict[str, Any]:
    return {"class_path": name, "init_args": arguments}


def _bert(config: Mapping[str, Any], skipped: int = 0) -> dict[str, Any]:
    """Post-norm, learned positions; dropout as it was trained with."""
    width, eps = _count(config, "hidden_size"), float(config.get("layer_norm_eps", 1e-12))
    if _activation(config) != "gelu" or config.get("position_embedding_type", "absolute") != "absolute":
        raise DataError("only BERT with GELU and absolute positions has parts here")
    if config.get("embedding_size", width) != width:
        raise DataError("embeddings of another width than the layers have no part here")
    if _count(config, "max_position_embeddings") <= skipped:
        raise DataError(f"max_position_embeddings must be above {skipped}: so many are not used")
    return _post_norm(
        width=width,
        vocabulary=_count(config, "vocab_size"),
        maximum=_count(config, "max_position_embeddings") - skipped,
        depth=_count(config, "num_hidden_layers"),
        heads=_count(config, "num_attention_heads"),
        hidden=_count(config, "intermediate_size"),
        dropout=float(config.get("hidden_dropout_prob", 0.1)),
        eps=eps,
    )


def _distilbert(config: Mapping[str, Any]) -> dict[str, Any]:
    if _activation(config, "activation") != "gelu":
        raise DataError("only DistilBERT with GELU has parts here")
    return _post_norm(
        width=_count(config, "dim"),
        vocabulary=_count(config, "vocab_size"),
        maximum=_count(config, "max_position_embeddings"),
        depth=_count(config, "n_layers"),
        heads=_count(config, "n_heads"),
        hidden=_count(config, "hidden_dim"),
        dropout=float(config.get("dropout", 0.1)),
        eps=1e-12,
    )


def _post_norm(
    *, width: int, vocabulary: int, maximum: int, depth: int, heads: int, hidden: int, dropout: float, eps: float
) -> dict[str, Any]:
    block = _part("PostNorm", heads=heads, hidden=hidden, dropout=dropout, eps=eps)
    positions = _part("AbsolutePositions", maximum=maximum)
    return {
        "width": width,
        "embedder": _part("TextTokens", vocabulary=vocabulary, positions=positions, dropout=dropout, eps=eps),
        "backbone": _part("Transformer", depth=depth, block=block),
    }


def _clip_blocks(config: Mapping[str, Any]) -> dict[str, Any]:
    block = _part(
        "PreNorm",
        heads=_count(config, "num_attention_heads"),
        hidden=_count(config, "intermediate_size"),
        eps=float(config.get("layer_norm_eps", 1e-5)),
        activation=_activation({"hidden_act": "quick_gelu", **config}),
    )
    return {"depth": _count(config, "num_hidden_layers"), "block": block}


def _clip_text(config: Mapping[str, Any]) -> dict[str, Any]:
    positions = _part("AbsolutePositions", maximum=_count(config, "max_position_embeddings"))
    vocabulary = _count(config, "vocab_size")
    return {
        "width": _count(config, "hidden_size"),
        "embedder": _part("TextTokens", vocabulary=vocabulary, positions=positions, norm=False, dropout=0.0),
        "backbone": _part("CausalTransformer", **_clip_blocks(config)),
        "pooling": "LastToken",
    }


def _clip_vision(config: Mapping[str, Any]) -> dict[str, Any]:
    patch = _count(config, "patch_size")
    grid, eps = [_count(config, "image_size") // patch] * 2, float(config.get("layer_norm_eps", 1e-5))
    channels = _count({"num_channels": 3, **config}, "num_channels")
    return {
        "width": _count(config, "hidden_size"),
        "embedder": _part("ClipPatches", grid=grid, patch=[patch, patch], channels=channels, eps=eps),
        "backbone": _part("Transformer", **_clip_blocks(config)),
        "pooling": "FirstToken",
    }


SHAPES: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "bert": _bert,
    "electra": _bert,
    "roberta": lambda config: _bert(config, skipped=2),
    "distilbert": _distilbert,
    "clip_text": _clip_text,
    "clip_vision": _clip_vision,
}
"""By key map: from a config.json to an encoder."""
