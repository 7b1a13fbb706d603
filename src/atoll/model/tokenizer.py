"""Policy: text to tokens and back, for corpora, samples and saved models. A token is a byte of UTF-8."""

import json
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


class ByteTokenizer:
    """256 tokens, no merges: any text has an encoding and token ids are the byte values."""

    vocab_size = 256

    def encode(self, text: str) -> NDArray[np.uint8]:
        """One token per byte of UTF-8; the array is read-only. UnicodeEncodeError for a lone surrogate."""
        return np.frombuffer(text.encode(), np.uint8)

    def decode(self, tokens: ArrayLike) -> str:
        """The text of 1-d `tokens`; bytes that are no UTF-8 become U+FFFD. ValueError for a token above 255."""
        return bytes(np.asarray(tokens).tolist()).decode(errors="replace")

    def to_json(self) -> str:
        """The same tokeniser as a `tokenizer.json` of the `tokenizers` library: byte-level BPE without merges."""
        byte_level = dict[str, Any](type="ByteLevel", add_prefix_space=False, trim_offsets=False, use_regex=False)
        model: dict[str, Any] = {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {symbol: byte for byte, symbol in enumerate(byte_symbols())},
            "merges": [],
        }
        description: dict[str, Any] = {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [],
            "normalizer": None,
            "pre_tokenizer": byte_level,
            "post_processor": None,
            "decoder": byte_level,
            "model": model,
        }
        return json.dumps(description, ensure_ascii=False, indent=1) + "\n"


def byte_symbols() -> list[str]:
    """The printable character that stands for each byte in such files (GPT-2's table; Radford et al., 2019)."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]
