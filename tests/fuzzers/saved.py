"""Files as somebody else left them: checkpoints, model folders, settings in TOML, the pointer to the last run.

Each is read, or refused by an error of atoll's; and no claim in them costs more memory than they have bytes.
"""

import hashlib
import json
import struct
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save

from atoll.cli.join import JoinSettings
from atoll.config import RunDir, resolve
from atoll.errors import AtollError
from atoll.model.saved import CONFIG, HASHES, TOKENIZER, WEIGHTS, load_model, save_model
from atoll.model.tokenizer import ByteTokenizer
from atoll.model.transformer import Transformer, TransformerConfig
from atoll.train.checkpoint import FORMAT, _digest, load_newest
from atoll.train.settings import TrainSettings
from tests.fuzzers.choices import Choices

CHECKPOINT, ABOUT, MODEL_CONFIG, MODEL_WEIGHTS, MODEL_FILE, TRAIN_TOML, JOIN_TOML, LAST = range(8)
TENSORS: Final = {"w": torch.arange(6.0), "steps": torch.tensor([3])}
DEPTH: Final = 3000


@cache
def folder() -> Path:
    """One for all runs, gone with the process."""
    made = tempfile.TemporaryDirectory(prefix="atoll-fuzz-")
    _kept.append(made)
    return Path(made.name)


_kept: list[Any] = []


@cache
def model_files() -> Mapping[str, bytes]:
    """Of a small model."""
    place = folder() / "good"
    save_model(
        place, Transformer(TransformerConfig(vocab_size=4, width=4, layers=1, heads=1, context=4)), ByteTokenizer()
    )
    return {path.name: path.read_bytes() for path in place.iterdir()}


def write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def load_checkpoint(data: bytes) -> None:
    place = folder() / "checkpoint"
    write(place / "step-000000007.safetensors", data)
    load_newest(place)


def of_good_digest(about: str, tensors: dict[str, torch.Tensor]) -> bytes:
    """A checkpoint as whoever made it meant it."""
    return save(tensors, metadata={"format": FORMAT, "about": about, "digest": _digest(tensors, about)})


def load_folder(changed: Mapping[str, bytes], honest_hashes: bool) -> None:
    place = folder() / "model"
    files = {**model_files(), **changed}
    if honest_hashes:
        lines = [f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted({*files} - {HASHES})]
        files[HASHES] = "".join(lines).encode()
    for name, data in files.items():
        write(place / name, data)
    load_model(place)


def fuzz(data: bytes) -> None:
    choices = Choices(data)
    what, how = choices.number() % 8, choices.number()
    body = choices.rest()
    if how == 255:  # no reader may trust in the depth of its stack
        body += b"[" * DEPTH
    with suppress(AtollError):
        match what:
            case 0:
                load_checkpoint(body)
            case 1:
                load_checkpoint(of_good_digest(body.decode("utf-8", "replace"), TENSORS))
            case 2:
                load_folder({CONFIG: body}, honest_hashes=True)
            case 3:
                load_folder({WEIGHTS: body}, honest_hashes=True)
            case 4:
                name = (WEIGHTS, CONFIG, TOKENIZER, HASHES)[how % 4]
                load_folder({name: body}, honest_hashes=name != HASHES and how & 4 != 0)
            case 5 | 6:
                file = folder() / "config.toml"
                write(file, body)
                settings: Any = TrainSettings if what == TRAIN_TOML else JoinSettings
                resolve(settings, file=file, env={}, prog="fuzz")
            case _:
                write(folder() / "runs" / "last", body)
                RunDir.open(folder() / "runs")


def claimed(dtype: str, shape: list[int], size: int) -> bytes:
    """A safetensors file that says it holds this, behind which there are `size` bytes."""
    about = {"format": FORMAT, "about": "{}", "digest": "unknown"}
    tensor = {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}
    header = json.dumps({"__metadata__": about, "w": tensor}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(size)


def seeds() -> list[bytes]:
    good = of_good_digest('{"seed": 1}', TENSORS)
    files = model_files()
    config = json.loads(files[CONFIG])
    made = [
        (CHECKPOINT, good),
        *[(CHECKPOINT, claimed(dtype, [4], 4)) for dtype in ("U8", "BOOL", "F8_E4M3", "F8_E5M2", "I8")],
        (CHECKPOINT, claimed("BF16", [4], 8)),
        (CHECKPOINT, claimed("F32", [0], 0)),
        (CHECKPOINT, claimed("F32", [1 << 40], 4)),
        (ABOUT, b'{"seed": 1}'),
        (ABOUT, b"nothing"),
        (MODEL_CONFIG, files[CONFIG]),
        *[(MODEL_CONFIG, json.dumps({**config, key: value}).encode()) for key, value in ODD_CONFIGS],
        (MODEL_WEIGHTS, files[WEIGHTS]),
        (MODEL_WEIGHTS, claimed("F32", [1], 4)),
        (MODEL_FILE, files[HASHES]),
        (TRAIN_TOML, b'steps = 3\nlr = 0.1\ncodec = "none"\ntext = ["a", "b"]\n[model]\nwidth = 8\n'),
        (TRAIN_TOML, b"lr = 1" + b"0" * 400 + b"\n[model.width]\nx = 1979-05-27T07:32:00Z\n"),
        (JOIN_TOML, b'address = "127.0.0.1:1"\nlabels = {a = "b"}\n'),
        (LAST, b"x"),
        (LAST, b"\0"),
        (LAST, b"\xff" * 300),
    ]
    return (
        [bytes([what, how]) + body for what, body in made for how in (0,)]
        + [bytes([4, how]) + files[(WEIGHTS, CONFIG, TOKENIZER, HASHES)[how % 4]] for how in range(8)]
        + [bytes([what, 255]) for what in range(8)]
        + [bytes([5, 255]) + b"x = ", bytes([2, 255]) + b'{"a": ']
    )


ODD_CONFIGS: Final = [
    ("hidden_size", 1 << 40),
    ("vocab_size", 1 << 40),
    ("num_hidden_layers", 1 << 40),
    ("max_position_embeddings", 1 << 40),
    ("intermediate_size", 1 << 62),
    ("num_attention_heads", 3),
    ("hidden_size", 4.5),
    ("hidden_size", "wide"),
    ("rope_theta", 1e400),
    ("rms_norm_eps", None),
    ("tie_word_embeddings", "no"),
    ("vocab_size", True),
]
