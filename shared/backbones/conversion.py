"""State dicts of other libraries in our names, and back: one table of names per family.

``KEY_MAPS["bert"].convert(state)`` gives keys of an `Encoder` (`TextTokens`, `Transformer` of `PostNorm`), as do
``roberta``, ``distilbert`` and ``electra``; ``clip_text`` (`TextTokens`, `CausalTransformer` of `PreNorm`, `LastToken`)
and ``clip_vision`` (`ClipPatches`, `Transformer` of `PreNorm`) likewise; ``llama`` and ``gpt2`` give keys of a
`CausalDecoder` (`Llama`; `PreNorm` with ``activation="gelu_tanh"``).
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

State = dict[str, Tensor]

_BERT = {
    "embeddings.word_embeddings": "embedder.table",
    "embeddings.position_embeddings": "embedder.positions.tables.0",
    "embeddings.LayerNorm": "embedder.norm",
    "encoder.layer.{}.attention.self.query": "backbone.blocks.{}.attention.query",
    "encoder.layer.{}.attention.self.key": "backbone.blocks.{}.attention.key",
    "encoder.layer.{}.attention.self.value": "backbone.blocks.{}.attention.value",
    "encoder.layer.{}.attention.output.dense": "backbone.blocks.{}.attention.output",
    "encoder.layer.{}.attention.output.LayerNorm": "backbone.blocks.{}.attention_norm",
    "encoder.layer.{}.intermediate.dense": "backbone.blocks.{}.feed_forward.inner",
    "encoder.layer.{}.output.dense": "backbone.blocks.{}.feed_forward.outer",
    "encoder.layer.{}.output.LayerNorm": "backbone.blocks.{}.feed_forward_norm",
}
_DISTILBERT = {
    "embeddings.word_embeddings": "embedder.table",
    "embeddings.position_embeddings": "embedder.positions.tables.0",
    "embeddings.LayerNorm": "embedder.norm",
    "transformer.layer.{}.attention.q_lin": "backbone.blocks.{}.attention.query",
    "transformer.layer.{}.attention.k_lin": "backbone.blocks.{}.attention.key",
    "transformer.layer.{}.attention.v_lin": "backbone.blocks.{}.attention.value",
    "transformer.layer.{}.attention.out_lin": "backbone.blocks.{}.attention.output",
    "transformer.layer.{}.sa_layer_norm": "backbone.blocks.{}.attention_norm",
    "transformer.layer.{}.ffn.lin1": "backbone.blocks.{}.feed_forward.inner",
    "transformer.layer.{}.ffn.lin2": "backbone.blocks.{}.feed_forward.outer",
    "transformer.layer.{}.output_layer_norm": "backbone.blocks.{}.feed_forward_norm",
}


def _clip_blocks(tower: str) -> dict[str, str]:
    theirs, ours = f"{tower}.encoder.layers.{{}}", "backbone.blocks.{}"
    return {
        f"{theirs}.self_attn.q_proj": f"{ours}.attention.query",
        f"{theirs}.self_attn.k_proj": f"{ours}.attention.key",
        f"{theirs}.self_attn.v_proj": f"{ours}.attention.value",
        f"{theirs}.self_attn.out_proj": f"{ours}.attention.output",
        f"{theirs}.layer_norm1": f"{ours}.attention_norm",
        f"{theirs}.layer_norm2": f"{ours}.feed_forward_norm",
        f"{theirs}.mlp.fc1": f"{ours}.feed_forward.inner",
        f"{theirs}.mlp.fc2": f"{ours}.feed_forward.outer",
    }


_CLIP_TEXT = {
    "text_model.embeddings.token_embedding": "embedder.table",
    "text_model.embeddings.position_embedding": "embedder.positions.tables.0",
    **_clip_blocks("text_model"),
    "text_model.final_layer_norm": "backbone.norm",
    "text_projection": "projection",
}
_CLIP_VISION = {
    "vision_model.embeddings.class_embedding": "embedder.cls",
    "vision_model.embeddings.patch_embedding": "embedder.linear",
    "vision_model.embeddings.position_embedding": "embedder.places",
    "vision_model.pre_layrnorm": "embedder.norm",
    **_clip_blocks("vision_model"),
    "vision_model.post_layernorm": "backbone.norm",
    "visual_projection": "projection",
}
_LLAMA = {
    "model.embed_tokens": "embedder.table",
    "model.layers.{}.self_attn.q_proj": "backbone.blocks.{}.attention.query",
    "model.layers.{}.self_attn.k_proj": "backbone.blocks.{}.attention.key",
    "model.layers.{}.self_attn.v_proj": "backbone.blocks.{}.attention.value",
    "model.layers.{}.self_attn.o_proj": "backbone.blocks.{}.attention.output",
    "model.layers.{}.mlp.gate_proj": "backbone.blocks.{}.feed_forward.gate",
    "model.layers.{}.mlp.up_proj": "backbone.blocks.{}.feed_forward.inner",
    "model.layers.{}.mlp.down_proj": "backbone.blocks.{}.feed_forward.outer",
    "model.layers.{}.input_layernorm": "backbone.blocks.{}.attention_norm",
    "model.layers.{}.post_attention_layernorm": "backbone.blocks.{}.feed_forward_norm",
    "model.norm": "backbone.norm",
    "lm_head": "head",
}
_GPT2 = {
    "transformer.wte": "embedder.table",
    "transformer.wpe": "embedder.positions.tables.0",
    "transformer.h.{}.ln_1": "backbone.blocks.{}.attention_norm",
    "transformer.h.{}.attn.c_attn.query": "backbone.blocks.{}.attention.query",
    "transformer.h.{}.attn.c_attn.key": "backbone.blocks.{}.attention.key",
    "transformer.h.{}.attn.c_attn.value": "backbone.blocks.{}.attention.value",
    "transformer.h.{}.attn.c_proj": "backbone.blocks.{}.attention.output",
    "transformer.h.{}.ln_2": "backbone.blocks.{}.feed_forward_norm",
    "transformer.h.{}.mlp.c_fc": "backbone.blocks.{}.feed_forward.inner",
    "transformer.h.{}.mlp.c_proj": "backbone.blocks.{}.feed_forward.outer",
    "transformer.ln_f": "backbone.norm",
    "lm_head": "head",
}


@dataclasses.dataclass(frozen=True)
class KeyMap:
    """Names of a family's parts and ours; ``{}`` is the number of the layer."""

    names: Mapping[str, str]
    """Theirs to ours, without ``.weight`` and ``.bias``."""
    before: Callable[[State], State] = dict
    """What must happen to their tensors before renaming."""
    after: Callable[[State], State] = dict
    """The reverse, after renaming back."""

    def convert(self, theirs: Mapping[str, Tensor]) -> tuple[State, list[str]]:
        """Their state dict in our names.

        Args:
            theirs: As saved by the other library.

        Returns:
            Ours, and their keys that have no counterpart (heads, poolers, buffers).
        """
        return _rename(self.before(dict(theirs)), self.names)

    def revert(self, ours: Mapping[str, Tensor]) -> tuple[State, list[str]]:
        """Our state dict in their names.

        Args:
            ours: Of an encoder or decoder.

        Returns:
            Theirs, and our keys that have no counterpart.
        """
        theirs, left = _rename(dict(ours), {our: their for their, our in self.names.items()})
        return self.after(theirs), left


def _rename(state: State, names: Mapping[str, str]) -> tuple[State, list[str]]:
    renamed, left = {}, []
    for key, tensor in state.items():
        stem, _, kind = key.rpartition(".")
        layer = re.search(r"\.(\d+)\.", stem)
        number = layer[1] if layer is not None else ""
        name = names.get(stem, names.get(stem.replace(f".{number}.", ".{}.", 1)))
        if key in names:  # a parameter that belongs to no layer
            renamed[names[key]] = tensor
        elif name is None or kind not in ("weight", "bias"):
            left.append(key)
        else:
            renamed[f"{name.format(number)}.{kind}"] = tensor
    return renamed, left


def _without(state: State, prefix: str) -> State:
    """Models with heads put a prefix before the names of the model itself."""
    return {key.removeprefix(prefix): tensor for key, tensor in state.items()}


def _bert_before(state: State, skipped: int = 0) -> State:
    """Drop the prefix of models with heads; add segment 0, which every token has, to the positions that are used."""
    for prefix in ("bert.", "roberta.", "distilbert.", "electra."):
        state = _without(state, prefix)
    segments = state.pop("embeddings.token_type_embeddings.weight", None)
    place = "embeddings.position_embeddings.weight"
    if place in state:
        state[place] = state[place][skipped:]
        if segments is not None:
            state[place] = state[place] + segments[0]
    return state


def _bert_after(state: State, skipped: int = 0, segments: int = 2) -> State:
    """Segments that say nothing, since ours are in the positions."""
    words, place = state["embeddings.word_embeddings.weight"], "embeddings.position_embeddings.weight"
    found = {**state, place: torch.cat([words.new_zeros(skipped, words.shape[1]), state[place]])}
    if segments:
        found["embeddings.token_type_embeddings.weight"] = words.new_zeros(segments, words.shape[1])
    return found


def _clip_text_before(state: State) -> State:
    """Of CLIP the text tower; its projection has no bias, ours has."""
    return _with_bias({k: v for k, v in state.items() if not k.startswith(("vision_", "visual_"))}, "text_projection")


def _clip_vision_before(state: State) -> State:
    """Of CLIP the image tower: the position of [CLS] goes into [CLS], the convolution becomes a linear layer."""
    state = {key: tensor for key, tensor in state.items() if not key.startswith("text_")}
    at = "vision_model.embeddings"
    if f"{at}.position_embedding.weight" in state:
        positions = state.pop(f"{at}.position_embedding.weight")
        state[f"{at}.position_embedding"] = positions[1:]
        state[f"{at}.class_embedding"] = (state[f"{at}.class_embedding"] + positions[0])[None]
    if f"{at}.patch_embedding.weight" in state:
        state[f"{at}.patch_embedding.weight"] = state[f"{at}.patch_embedding.weight"].flatten(1)
    return _with_bias(state, "visual_projection")


def _clip_vision_after(state: State, channels: int = 3) -> State:
    """The reverse: positions of [CLS] that say nothing, since ours are in [CLS]."""
    at = "vision_model.embeddings"
    places, cls = state.pop(f"{at}.position_embedding"), state[f"{at}.class_embedding"]
    kernel = state[f"{at}.patch_embedding.weight"]
    size = math.isqrt(kernel.shape[1] // channels)
    return _without_bias(
        {
            **state,
            f"{at}.class_embedding": cls[0],
            f"{at}.position_embedding.weight": torch.cat([torch.zeros_like(cls), places]),
            f"{at}.patch_embedding.weight": kernel.unflatten(1, (channels, size, size)),
        },
        "visual_projection",
    )


def _with_bias(state: State, name: str) -> State:
    weight = state.get(f"{name}.weight")
    return state if weight is None else {**state, f"{name}.bias": weight.new_zeros(len(weight))}


def _without_bias(state: State, name: str) -> State:
    """Without a bias that says nothing; one that was trained stays, and theirs will not take it."""
    bias = state.get(f"{name}.bias")
    return state if bias is None or bias.any() else {key: v for key, v in state.items() if key != f"{name}.bias"}


def _gpt2_before(state: State) -> State:
    """Transpose (its linear layers are written the other way round) and part queries, keys and values."""
    parted: State = {}
    for key, tensor in state.items():
        if re.search(r"\.c_(attn|proj|fc)\.weight$", key):
            tensor = tensor.T
        if ".c_attn." in key:
            stem, kind = key.rsplit(".", 1)
            for name, part in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                parted[f"{stem}.{name}.{kind}"] = part.contiguous()
        else:
            parted[key] = tensor.contiguous()
    return parted


def _gpt2_after(state: State) -> State:
    """The reverse of `_gpt2_before`."""
    joined: State = {}
    for key, tensor in state.items():
        if ".c_attn.query." in key:
            tensor = torch.cat([state[key.replace(".query.", f".{name}.")] for name in ("query", "key", "value")])
            key = key.replace(".query.", ".")
        elif ".c_attn." in key:
            continue
        joined[key] = tensor.T.contiguous() if re.search(r"\.c_(attn|proj|fc)\.weight$", key) else tensor
    return joined


KEY_MAPS = {
    "bert": KeyMap(_BERT, _bert_before, _bert_after),
    # Its positions count from 2: 1 is that of padding, 0 is never used.
    "roberta": KeyMap(_BERT, partial(_bert_before, skipped=2), partial(_bert_after, skipped=2, segments=1)),
    "distilbert": KeyMap(_DISTILBERT, _bert_before, partial(_bert_after, segments=0)),
    "electra": KeyMap(_BERT, _bert_before, _bert_after),
    "clip_text": KeyMap(_CLIP_TEXT, _clip_text_before, partial(_without_bias, name="text_projection")),
    "clip_vision": KeyMap(_CLIP_VISION, _clip_vision_before, _clip_vision_after),
    "llama": KeyMap(_LLAMA),
    "gpt2": KeyMap(_GPT2, _gpt2_before, _gpt2_after),
}
