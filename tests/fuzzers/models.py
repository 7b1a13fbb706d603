"""GGUF files, tokenisers and chat templates as somebody else made them: a model comes of them, or an error of atoll's.

No memory for mere claims, no end of steps for a template.
"""

import json
import random
from contextlib import suppress
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Final

from atoll.errors import InvalidData
from atoll.model import llama
from atoll.model.chat import ChatTemplate
from atoll.model.gguf import GGUF
from atoll.model.loading import read_chat, read_tokenizer
from atoll.model.tokenizer import ByteTokenizer
from atoll.model.vocabulary import from_json
from tests.fuzzers.choices import Choices
from tests.fuzzers.mutation import mutated
from tests.model.gguf_files import TEMPLATE, Tensor, gguf, metadata

FILE, TOKENIZER, CHAT = range(3)
PLACE: Final = Path("model.gguf")
TALK: Final = [{"role": "user", "content": "hello {{ x }}"}, {"role": "assistant", "content": None, "n": [1, 2.0]}]
WORDS: Final = (
    "{{", "}}", "{%", "%}", "for m in messages", "endfor", "if", "endif", "set ns = namespace(x='x')", "set ns.x = ",
    "ns.x", "~", "*", "+", "%", "**", "|", "tojson", "join", "list", "center(99999)", "range(9999)", "messages",
    "m.content", "macro f(n)", "endmacro", "f(1)", ".__class__", "[0]", "[1:]", "loop.last", "'%s'", "'{}'.format(1)",
    "9999999999", "is eq",
)  # fmt: skip


@cache
def small() -> dict[str, Tensor]:
    """The tensors of a model so small that a file is mostly its description."""
    width, hidden, n_tokens = 4, 4, 4
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd": (n_tokens, width), "output_norm": (width,), "blk.0.attn_norm": (width,),
        "blk.0.attn_q": (width, width), "blk.0.attn_k": (width, width), "blk.0.attn_v": (width, width),
        "blk.0.attn_output": (width, width), "blk.0.ffn_norm": (width,), "blk.0.ffn_gate": (hidden, width),
        "blk.0.ffn_up": (hidden, width), "blk.0.ffn_down": (width, hidden),
    }  # fmt: skip
    made = {}
    for name, shape in shapes.items():
        numbers = 1
        for length in shape:
            numbers *= length
        made[f"{name}.weight"] = (1, shape, bytes(2 * numbers))
    return made


def about() -> dict[str, object]:
    """Their description, with a vocabulary of four."""
    return {
        **metadata(),
        "llama.block_count": 1,
        "llama.context_length": 8,
        "llama.embedding_length": 4,
        "llama.feed_forward_length": 4,
        "llama.attention.head_count": 2,
        "llama.attention.head_count_kv": 2,
        "llama.rope.dimension_count": 2,
        "tokenizer.ggml.tokens": ["a", "b", "ab", "<|end|>"],
        "tokenizer.ggml.token_type": b"\x09\0\0\0\x05\0\0\0\x04\0\0\0\0\0\0\0" + bytes([1, 0, 0, 0] * 3 + [3, 0, 0, 0]),
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.bos_token_id": 3,
        "tokenizer.ggml.eos_token_id": 3,
    }


def fuzz(data: bytes) -> None:
    choices = Choices(data)
    what, body = choices.number() % 3, choices.rest()
    with suppress(InvalidData):
        if what == FILE:
            load(body)
        elif what == TOKENIZER:
            tokenizer = from_json(body.decode("utf-8", "replace"), ["<|end|>", 3])
            tokenizer.decode(tokenizer.encode("hello é\n"))
        else:
            chat = ChatTemplate(body.decode("utf-8", "replace"), {"bos_token": "<s>"})
            chat.text(TALK, tools=[{"name": "look"}], now=datetime(2026, 11, 27))


def load(body: bytes) -> None:
    file = GGUF(PLACE, body)
    for name in file.tensors:
        with suppress(InvalidData):
            assert file.numbers(name).nbytes <= 64 * len(body), "more than the file can hold"
    with suppress(InvalidData):
        model = llama.read(file).transformer()
        assert sum(weight.numel() for weight in model.parameters()) <= 8 * len(body)
    tokenizer = read_tokenizer(file)
    tokens = tokenizer.encode("abba <|end|>")
    tokenizer.decode(tokens)
    read_chat(file, tokenizer)


def mutate(data: bytes, rng: random.Random) -> bytes:
    """For templates by words, else by bytes."""
    if data[:1] != bytes([CHAT]) or rng.random() < 0.3:
        return mutated(data, rng)
    text = data[1:].decode("utf-8", "replace")
    for _ in range(rng.choice([1, 2, 4])):
        at = rng.randrange(len(text) + 1)
        text = f"{text[:at]} {rng.choice(WORDS)} {text[at + rng.choice([0, 0, 3, 9]) :]}"
    return bytes([CHAT]) + text[:2000].encode()


def seeds() -> list[bytes]:
    merging = json.loads(ByteTokenizer().to_json())
    merging["model"]["vocab"] |= {"ab": 256}
    merging["model"]["merges"] = [["a", "b"]]
    small_vocabulary = {**merging, "model": {**merging["model"], "vocab": {"a": 0, "b": 1, "ab": 2}}}
    nested = "{% set ns = namespace(x='x') %}{% for i in range(9) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}"
    return [
        bytes([FILE]) + gguf(about(), small()),
        bytes([FILE]) + gguf({**about(), "general.alignment": 8}, small(), version=2, alignment=8),
        bytes([FILE]) + gguf({}, {"w": (12, (1, 256), bytes(144)), "v": (14, (256,), bytes(210))}),
        bytes([FILE]) + gguf({}, {"w": (3, (1 << 20, 1 << 20), b"")}),
        bytes([TOKENIZER]) + json.dumps(small_vocabulary).encode(),
        bytes([TOKENIZER]) + json.dumps({**small_vocabulary, "decoder": {"type": "ByteFallback"}}).encode(),
        bytes([CHAT]) + TEMPLATE.encode(),
        bytes([CHAT]) + nested.encode(),
        bytes([CHAT]) + b"{% macro f(n) %}{{ n | tojson }}{% endmacro %}{{ f(messages) }}{{ '%s' % tools }}",
    ]
