"""State dicts of other libraries in our names, and back: one table of names per family.

``KEY_MAPS["bert"].convert(state)`` gives keys of an `Encoder` (`TextTokens`, `Transformer` of `PostNorm`); ``llama``
and ``gpt2`` give keys of a `CausalDecoder` (`Llama`; `PreNorm` with ``activation="gelu_tanh"``).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping

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
        if name is None or kind not in ("weight", "bias"):
            left.append(key)
        else:
            renamed[f"{name.format(number)}.{kind}"] = tensor
    return renamed, left


def _bert_before(state: State) -> State:
    """Drop the ``bert.`` of models with heads; add segment 0, which every token has, to the positions."""
    state = {key.removeprefix("bert."): tensor for key, tensor in state.items()}
    segments = state.pop("embeddings.token_type_embeddings.weight", None)
    if segments is not None:
        place = "embeddings.position_embeddings.weight"
        state[place] = state[place] + segments[0]
    return state


def _bert_after(state: State) -> State:
    """Segments that say nothing, since ours are in the positions."""
    words = state["embeddings.word_embeddings.weight"]
    return {**state, "embeddings.token_type_embeddings.weight": words.new_zeros(2, words.shape[1])}


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
    "llama": KeyMap(_LLAMA),
    "gpt2": KeyMap(_GPT2, _gpt2_before, _gpt2_after),
}
