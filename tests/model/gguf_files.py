"""Writes small GGUF files, sound or not, for tests and fuzzers; byte by byte, sharing nothing with a reader."""

import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from atoll.model.tokenizer import byte_symbols

NUMBERS = {"u1": 0, "i1": 1, "u2": 2, "i2": 3, "u4": 4, "i4": 5, "f4": 6, "b1": 7, "u8": 10, "i8": 11, "f8": 12}
Tensor = tuple[int, tuple[int, ...], bytes]  # number of the packing, shape with rows first, data


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def value(of: Any) -> bytes:
    """Its kind, and itself."""
    match of:
        case bool():
            return struct.pack("<I?", 7, of)
        case int():
            return struct.pack("<II", 4, of) if 0 <= of < 1 << 32 else struct.pack("<Iq", 11, of)
        case float():
            return struct.pack("<If", 6, of)
        case str():
            return struct.pack("<I", 8) + text(of)
        case np.ndarray():
            kind = NUMBERS[of.dtype.str[1:]]
            return struct.pack("<IIQ", 9, kind, of.size) + of.tobytes()
        case list() if of and isinstance(of[0], list):
            return struct.pack("<IIQ", 9, 9, len(of)) + b"".join(value(inner)[4:] for inner in of)
        case list():
            return struct.pack("<IIQ", 9, 8, len(of)) + b"".join(map(text, of))
        case bytes():  # kind and value, as they are
            return of
    raise TypeError(of)


def gguf(metadata: Mapping[str, Any], tensors: Mapping[str, Tensor], *, version: int = 3, alignment: int = 32) -> bytes:
    """A file."""
    out = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
    for key, what in metadata.items():
        out += text(key) + value(what)
    data = b""
    for name, (kind, shape, packed) in tensors.items():
        data += bytes(-len(data) % alignment)
        dimensions = struct.pack(f"<{len(shape)}Q", *shape[::-1])
        out += text(name) + struct.pack("<I", len(shape)) + dimensions + struct.pack("<IQ", kind, len(data))
        data += packed
    return out + bytes(-len(out) % alignment) + data


MERGES = ["h e", "l l", "he ll", "hell o", "Ġ w", "Ġw o", "1 2"]
SPECIAL = ["<|end|>", "<|start|>"]
TOKENS = [*byte_symbols(), *(merge.replace(" ", "") for merge in MERGES), *SPECIAL, "<think>"]
TEMPLATE = (
    "{% for message in messages %}{{ '<|start|>' + message['role'] + '\n' + message['content'] + '<|end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"
)
WIDTH, HEADS, KEY_HEADS, HIDDEN, LAYERS = 64, 4, 2, 96, 2


def metadata() -> dict[str, Any]:
    """Of a small model with byte-level BPE."""
    kinds = np.array([1] * (len(TOKENS) - 3) + [3, 3, 4], np.int32)
    return {
        "general.architecture": "llama",
        "general.name": "Small",
        "llama.block_count": LAYERS,
        "llama.context_length": 128,
        "llama.embedding_length": WIDTH,
        "llama.feed_forward_length": HIDDEN,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KEY_HEADS,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 5000.0,
        "llama.rope.dimension_count": WIDTH // HEADS,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.bos_token_id": len(TOKENS) - 2,
        "tokenizer.ggml.eos_token_id": len(TOKENS) - 3,
        "tokenizer.chat_template": TEMPLATE,
    }


def tensors(seed: int = 0, tied: bool = True) -> dict[str, Tensor]:
    """Of the same model, in float32."""
    rng = np.random.default_rng(seed)
    keys = KEY_HEADS * WIDTH // HEADS
    shapes: dict[str, tuple[int, ...]] = {"token_embd": (len(TOKENS), WIDTH), "output_norm": (WIDTH,)}
    if not tied:
        shapes["output"] = (len(TOKENS), WIDTH)
    for layer in range(LAYERS):
        shapes |= {
            f"blk.{layer}.attn_norm": (WIDTH,),
            f"blk.{layer}.attn_q": (WIDTH, WIDTH),
            f"blk.{layer}.attn_k": (keys, WIDTH),
            f"blk.{layer}.attn_v": (keys, WIDTH),
            f"blk.{layer}.attn_output": (WIDTH, WIDTH),
            f"blk.{layer}.ffn_norm": (WIDTH,),
            f"blk.{layer}.ffn_gate": (HIDDEN, WIDTH),
            f"blk.{layer}.ffn_up": (HIDDEN, WIDTH),
            f"blk.{layer}.ffn_down": (WIDTH, HIDDEN),
        }
    return {
        f"{name}.weight": (0, shape, (rng.normal(size=shape) / 4).astype("<f4").tobytes())
        for name, shape in shapes.items()
    }
