"""Driver: model folders of Hugging Face's tools, for loaders: `config.json`, and weights in safetensors files.

Of the Llama family only, and of that what `Transformer` is. What isn't is refused by the name of the field.
"""

import json
import re
import reprlib
from pathlib import Path
from typing import Any, Final

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from atoll.errors import InvalidConfig, InvalidData, InvalidTensor
from atoll.model.transformer import Transformer, TransformerConfig

WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
LARGEST_JSON: Final = 1 << 27
"""Bytes. The largest tokenisers have some 30 MB."""

CONFIG_KEYS: Final = {  # ours: Hugging Face's
    "vocab_size": "vocab_size",
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "hidden": "intermediate_size",
    "context": "max_position_embeddings",
    "rope_theta": "rope_theta",
    "norm_eps": "rms_norm_eps",
    "tie_embeddings": "tie_word_embeddings",
}
_DEFAULTS: Final = {
    "num_key_value_heads": None,
    "max_position_embeddings": 2048,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}
"""What `LlamaConfig` takes for what a file leaves out."""
_ONLY: Final = {
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "sliding_window": (None,),
    "quantization_config": (None,),
}
"""What else may be set, and how; missing is the first."""
_FLOATS: Final = {torch.float64, torch.float32, torch.float16, torch.bfloat16}


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. InvalidData where there is none."""
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise InvalidData(f"{path}: is larger than {LARGEST_JSON >> 20} MiB")
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidData(f"{path}: can't be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise error if isinstance(error, InvalidData) else InvalidData(f"{path}: is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise InvalidData(f"{path}: holds no JSON object")
    return found


def read_config(path: Path) -> TransformerConfig:
    """The shape in a `config.json`. InvalidData names the field that is missing, or that no model here can have."""
    saved = read_json(path)
    kind = saved.get("model_type")
    if kind not in ("llama", "mistral"):
        raise InvalidData(f"{path}: model_type is {kind!r}; known here: llama, mistral")
    for key, allowed in _ONLY.items():
        if saved.get(key, allowed[0]) not in allowed:
            raise InvalidData(f"{path}: {key} is {_short(saved[key])}, which isn't known here")
    saved = {**_DEFAULTS, **saved, **_rope(path, saved)}
    for theirs in CONFIG_KEYS.values():
        if theirs not in saved:
            raise InvalidData(f"{path}: has no {theirs}")
    try:
        config = msgspec.convert({ours: saved[theirs] for ours, theirs in CONFIG_KEYS.items()}, TransformerConfig)
    except (InvalidConfig, msgspec.ValidationError) as error:
        raise InvalidData(f"{path}: describes no model known here: {_theirs(str(error))}") from error
    if saved.get("head_dim") not in (None, config.head_width):
        raise InvalidData(
            f"{path}: head_dim is {_short(saved['head_dim'])}; known here is {config.head_width}, its share"
        )
    return config


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All weights of a model folder, float32 whatever they are in its files; no more memory than these claim and have.

    InvalidData names the file that is missing or damaged, or the tensor that holds no floats.
    """
    weights: dict[str, Tensor] = {}
    for path in weight_files(folder):
        try:
            tensors = load_file(path)
        except (OSError, SafetensorError) as error:
            raise InvalidData(f"{path}: can't be read: {error}") from error
        for name, tensor in tensors.items():
            if name.endswith("rotary_emb.inv_freq"):  # older tools save it; it follows from the configuration
                continue
            if tensor.dtype not in _FLOATS:
                raise InvalidData(f"{path}: {name} is of type {tensor.dtype}; floats are known here")
            if name in weights:
                raise InvalidData(f"{path}: {name} is there twice")
            weights[name] = tensor.float()
    return weights


def read_model(folder: Path) -> Transformer:
    """The model of a folder. InvalidData names the file and what is wrong with it."""
    config = read_config(folder / CONFIG)
    weights = read_weights(folder)
    if config.tie_embeddings:  # some save tied weights twice
        weights.pop("lm_head.weight", None)
    try:
        return Transformer.holding(config, weights)
    except InvalidTensor as error:
        raise InvalidData(f"{weight_files(folder)[0]}: doesn't fit the model of {CONFIG}: {error}") from error


def weight_files(folder: Path) -> list[Path]:
    """The one file of weights, or those that its index names."""
    if (folder / WEIGHTS).exists() or not (folder / INDEX).exists():
        return [folder / WEIGHTS]
    index = read_json(folder / INDEX).get("weight_map")
    names = (
        set(index.values()) if isinstance(index, dict) and all(isinstance(n, str) for n in index.values()) else set()
    )
    if not names:
        raise InvalidData(f"{folder / INDEX}: names no files in weight_map")
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise InvalidData(f"{folder / INDEX}: names {name!r}, which is no safetensors file beside it")
    return [folder / name for name in sorted(names)]


def _rope(path: Path, saved: dict[str, Any]) -> dict[str, Any]:
    """The base of the rotation, wherever this version of the tools has put it. Scaled positions are not known here."""
    scaling = saved.get("rope_scaling")
    parameters = saved.get("rope_parameters")
    for key, value in (("rope_scaling", scaling), ("rope_parameters", parameters)):
        if value is None:
            continue
        kind = value.get("rope_type", value.get("type")) if isinstance(value, dict) else value
        if kind != "default":
            raise InvalidData(f"{path}: {key} is of type {_short(kind)}; known here is only the default")
    if isinstance(parameters, dict) and "rope_theta" in parameters:
        return {"rope_theta": parameters["rope_theta"]}
    return {}


def _theirs(message: str) -> str:
    """A message about our field, by the name that the file has."""
    for ours, theirs in CONFIG_KEYS.items():
        message = re.sub(rf"(?<![a-z_]){ours}(?![a-z_])", theirs, message)
    return message


def _short(value: object) -> str:
    return reprlib.repr(value)
