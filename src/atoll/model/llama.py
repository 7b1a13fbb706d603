"""Driver: a model of the Llama family out of a GGUF file, for loaders and for engines that compute on packed rows.

llama.cpp turns neighbouring elements of a head together, `Transformer`, as Hugging Face's models, those half a head
apart; so these files hold the rows of q and k in another order, which is undone here.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from atoll.errors import InvalidConfig, InvalidData
from atoll.model.gguf import GGUF
from atoll.model.packed import Matrix, Packed
from atoll.model.transformer import MOST_ROTATIONS, TransformerConfig

ARCHITECTURE: Final = "llama"
_LAYER: Final = {  # GGUF's: Hugging Face's and ours
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_OUTSIDE: Final = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


@dataclass(frozen=True)
class Place:
    """Where a weight is in the file, where in a `Transformer`, and its shape. `heads`: those whose rows have to be
    reordered."""

    stored: str
    name: str
    shape: tuple[int, ...]
    heads: int = 0


def read_config(file: GGUF) -> TransformerConfig:
    """The shape of the model. InvalidData names the field that is missing, or that no model here can have."""
    architecture = file.required("general.architecture", str)
    if architecture != ARCHITECTURE:
        raise InvalidData(f"{file.path}: general.architecture is {architecture!r}; known here: {ARCHITECTURE}")
    heads = file.required("llama.attention.head_count", int)
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise InvalidData(f"{file.path}: has no tensor token_embd.weight")
    try:
        config = TransformerConfig(
            vocab_size=embedding.shape[0],
            width=file.required("llama.embedding_length", int),
            layers=file.required("llama.block_count", int),
            heads=heads,
            kv_heads=file.optional("llama.attention.head_count_kv", heads),
            hidden=file.required("llama.feed_forward_length", int),
            context=file.required("llama.context_length", int),
            rope_theta=file.optional("llama.rope.freq_base", 10000.0),
            norm_eps=file.required("llama.attention.layer_norm_rms_epsilon", float),
            tie_embeddings="output.weight" not in file.tensors,
        )
    except InvalidConfig as error:
        raise InvalidData(f"{file.path}: describes no model known here: {error}") from error
    _refuse_others(file, config)
    return config


def places(config: TransformerConfig) -> Iterator[Place]:
    """Every weight."""
    width, keys, hidden = config.width, config.key_heads * config.head_width, config.mlp_width
    for stored, name in _OUTSIDE.items():
        if name != "lm_head" or not config.tie_embeddings:
            shape = (width,) if name == "model.norm" else (config.vocab_size, width)
            yield Place(f"{stored}.weight", f"{name}.weight", shape)
    heads = {"attn_q": config.heads, "attn_k": config.key_heads}
    shapes = {
        "attn_q": (width, width),
        "attn_k": (keys, width),
        "attn_v": (keys, width),
        "attn_output": (width, width),
        "ffn_gate": (hidden, width),
        "ffn_up": (hidden, width),
        "ffn_down": (width, hidden),
    }
    for layer in range(config.layers):
        for stored, name in _LAYER.items():
            place = f"blk.{layer}.{stored}.weight"
            yield Place(
                place, f"model.layers.{layer}.{name}.weight", shapes.get(stored, (width,)), heads.get(stored, 0)
            )


def half_a_head_apart(rows: NDArray[np.uint8], heads: int) -> NDArray[np.uint8]:
    """Packed rows of q or k [rows, bytes] in the order of `Transformer`. A copy."""
    neighbours: NDArray[Any] = rows.reshape(heads, -1, 2, *rows.shape[1:])
    return np.ascontiguousarray(neighbours.swapaxes(1, 2)).reshape(rows.shape)


def read(file: GGUF) -> Packed:
    """The weights; matrices stay in the file until they are used. InvalidData names what is missing, left over or of
    another shape than the model's."""
    config = read_config(file)
    matrices, vectors = dict[str, Matrix](), dict[str, NDArray[np.float32]]()
    taken = set[str]()
    for place in places(config):
        packing = file.packing(place.stored)
        shape = file.tensors[place.stored].shape
        if shape != place.shape:
            raise InvalidData(
                f"{file.path}: {place.stored} is {list(shape)}; the model it describes takes {list(place.shape)}"
            )
        if len(shape) == 2:
            rows = file.rows(place.stored)
            matrices[place.name] = Matrix(half_a_head_apart(rows, place.heads) if place.heads else rows, packing)
        else:
            vectors[place.name] = file.numbers(place.stored)
        taken.add(place.stored)
    if foreign := file.tensors.keys() - taken:
        raise InvalidData(
            f"{file.path}: holds {min(foreign)}, for which a {ARCHITECTURE} model known here has no place"
        )
    if config.context * config.head_width > MOST_ROTATIONS:
        raise InvalidData(f"{file.path}: a context of {config.context} tokens is too long for a model of this width")
    return Packed(config, matrices, vectors)


def _refuse_others(file: GGUF, config: TransformerConfig) -> None:
    """What would change the computation, and isn't done here."""
    only: dict[str, Any] = {
        "llama.rope.dimension_count": config.head_width,
        "llama.attention.key_length": config.head_width,
        "llama.attention.value_length": config.head_width,
        "llama.rope.scaling.type": "none",
        "llama.rope.scale_linear": 1.0,
        "llama.expert_count": 0,
        "split.count": 1,
    }
    for key, value in only.items():
        found = file.optional(key, value)
        if found != value and not (key == "split.count" and found == 0):
            raise InvalidData(f"{file.path}: {key} is {found!r}; known here is only {value!r}")
