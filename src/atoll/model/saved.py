"""Driver: a trained model as a folder that Hugging Face's tools load, for `atoll train` and whoever serves the result.

Written aside, flushed, hashed, renamed: a crash at any moment leaves the old model or the new one, whole.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError
from safetensors.torch import save_file

from atoll.errors import InvalidData, SaveFailed
from atoll.model.hugging_face import CONFIG, CONFIG_KEYS, WEIGHTS, read_model
from atoll.model.tokenizer import ByteTokenizer
from atoll.model.transformer import Transformer, TransformerConfig

TOKENIZER, TOKENIZER_CONFIG, HASHES = "tokenizer.json", "tokenizer_config.json", "SHA256SUMS"


class Tokens(Protocol):
    """A tokeniser that can be saved."""

    def to_json(self) -> str:
        """As a `tokenizer.json`."""


def save_model(folder: Path, model: Transformer, tokenizer: Tokens) -> str:
    """Write the model in place of the one in `folder`; returns the SHA-256 of its weights' file, in hex.

    SaveFailed where the disk refuses, or `folder` holds something that is no saved model; what was there is intact.
    """
    folder = folder.resolve()
    new, old = _aside(folder, "new"), _aside(folder, "old")
    try:
        if not folder.exists() and old.exists():  # an earlier save was cut off between its two renames
            old.rename(folder)
        _check_replaceable(folder)
        for leftover in (new, old):
            if leftover.exists():
                shutil.rmtree(leftover)
        new.mkdir(parents=True)
        hashes = _write(new, model, tokenizer)
        _swap(new, folder, old)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(new, ignore_errors=True)
        raise SaveFailed(f"{folder}: the model could not be saved: {error}") from error
    shutil.rmtree(old, ignore_errors=True)
    return hashes[WEIGHTS]


def load_model(folder: Path) -> tuple[Transformer, ByteTokenizer]:
    """The model saved in `folder`. InvalidData names the file that is missing, damaged or not of this kind."""
    folder = folder.resolve()
    if not folder.exists() and (old := _aside(folder, "old")).exists():
        folder = old  # a save was cut off between its two renames
    _check_hashes(folder)
    tokenizer = ByteTokenizer()
    if (folder / TOKENIZER).read_bytes() != tokenizer.to_json().encode():
        raise InvalidData(f"{folder / TOKENIZER}: not the byte-level tokeniser, the only one known here")
    return read_model(folder), tokenizer


def _write(folder: Path, model: Transformer, tokenizer: Tokens) -> dict[str, str]:
    # By name of parameter: tied weights once, no buffers.
    weights = {name: weight.detach().contiguous() for name, weight in model.named_parameters()}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    _write_text(folder / CONFIG, _json(_hugging_face_config(model.config)))
    _write_text(folder / TOKENIZER, tokenizer.to_json())
    tokenizer_config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": model.config.context}
    _write_text(folder / TOKENIZER_CONFIG, _json(tokenizer_config))
    hashes = {path.name: _hash(path) for path in sorted(folder.iterdir())}
    _write_text(folder / HASHES, "".join(f"{digest}  {name}\n" for name, digest in hashes.items()))
    for path in folder.iterdir():
        _flush(path)
    _flush_folder(folder)
    return hashes


def _swap(new: Path, folder: Path, old: Path) -> None:
    """Put `new` at `folder` and what was there at `old`. No system renames onto a full folder, hence two steps."""
    if folder.exists():
        folder.rename(old)
    try:
        new.rename(folder)
        _flush_folder(folder.parent)
    except OSError:
        if folder.exists():
            folder.rename(new)
        if old.exists():
            old.rename(folder)
        raise


def _check_replaceable(folder: Path) -> None:
    """A mistyped folder must not cost someone's files."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise SaveFailed(f"{folder}: is a file; choose a folder for the model")
    foreign = {path.name for path in folder.iterdir()} - {WEIGHTS, CONFIG, TOKENIZER, TOKENIZER_CONFIG, HASHES}
    if foreign:
        raise SaveFailed(f"{folder}: holds {min(foreign)}, which saving would remove; choose another folder")


def _check_hashes(folder: Path) -> None:
    try:
        lines = (folder / HASHES).read_text(encoding="utf-8").splitlines()
        hashes = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    except OSError as error:
        raise InvalidData(f"{folder / HASHES}: can't be read ({error.strerror}); is this a saved model?") from error
    except ValueError as error:
        raise InvalidData(f"{folder / HASHES}: damaged; take another copy of the model") from error
    for name in (WEIGHTS, CONFIG, TOKENIZER):
        path = folder / name
        try:
            intact = _hash(path) == hashes.get(name)
        except OSError as error:
            raise InvalidData(f"{path}: can't be read ({error.strerror}); take another copy of the model") from error
        if not intact:
            raise InvalidData(f"{path}: damaged (its hash isn't the one in {HASHES}); take another copy of the model")


def _hugging_face_config(config: TransformerConfig) -> dict[str, Any]:
    resolved = vars(config) | {"kv_heads": config.key_heads, "hidden": config.mlp_width}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **{theirs: resolved[ours] for ours, theirs in CONFIG_KEYS.items()},
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": "float32",
        # Llama's defaults for these are ids that are ordinary bytes here.
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }


def _aside(folder: Path, what: str) -> Path:
    return folder.with_name(f".{folder.name}.{what}")


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=2) + "\n"


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    with path.open("r+b") as file:  # Windows flushes only what is open for writing
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    if os.name != "posix":  # elsewhere a folder can't be opened; renames are journalled
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
