"""Driver: a model with its tokens and its manner of conversation, out of a GGUF file or a model folder, for engines."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from safetensors import SafetensorError, safe_open

from atoll.errors import InvalidData
from atoll.model import hugging_face, llama
from atoll.model.api import Loaded
from atoll.model.chat import LARGEST_TEMPLATE, ChatTemplate
from atoll.model.gguf import GGUF
from atoll.model.hugging_face import CONFIG, LARGEST_JSON, read_json
from atoll.model.packed import Packed
from atoll.model.vocabulary import TextTokenizer, byte_pairs, from_json

TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
GENERATION_CONFIG, TEMPLATE = "generation_config.json", "chat_template.jinja"
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5
_ENDS: Final = ("eos", "eot", "eom")
_LAST: Final = {"<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<|endoftext|>", "<end_of_turn>"}
"""Many files name only one of the tokens that end an answer; these are for nothing else."""


@dataclass(frozen=True)
class Description:
    """What a file says of its model, without loading it. `quantisation`: that of most numbers; `context` in tokens."""

    name: str
    file: str
    parameters: int
    quantisation: str
    context: int
    nbytes: int
    path: Path


def load(path: Path) -> Loaded:
    """The model at `path`, a GGUF file or a folder. InvalidData names the file and the field it stumbles over."""
    return _load_folder(path) if path.is_dir() else _load_gguf(path)


def describe(path: Path, name: str) -> Description:
    """What `load` would give. InvalidData as there, as far as it is seen."""
    return _describe_folder(path, name) if path.is_dir() else _describe_gguf(path, name)


def _load_gguf(path: Path) -> Loaded:
    file = GGUF.open(path)
    tokenizer = read_tokenizer(file)
    chat = read_chat(file, tokenizer)
    weights = llama.read(file)
    _check_sizes(path, tokenizer, weights.config.vocab_size)
    return Loaded(file.optional("general.name", path.stem), weights, tokenizer, chat)


def read_tokenizer(file: GGUF) -> TextTokenizer:
    """The tokens of a GGUF file. InvalidData names the field that is missing or not known here."""
    kind = file.required("tokenizer.ggml.model", str)
    if kind != "gpt2":
        raise InvalidData(
            f"{file.path}: tokenizer.ggml.model is {kind!r}; known here: 'gpt2'. "
            "Take the model's folder with a tokenizer.json instead"
        )
    tokens = _texts(file, "tokenizer.ggml.tokens")
    kinds: Any = file.metadata.get("tokenizer.ggml.token_type")
    if not isinstance(kinds, np.ndarray) or len(kinds) != len(tokens):
        raise InvalidData(f"{file.path}: tokenizer.ggml.token_type isn't there for each of {len(tokens)} tokens")
    try:
        return byte_pairs(
            tokens,
            _texts(file, "tokenizer.ggml.merges"),
            cut=file.required("tokenizer.ggml.pre", str),
            special=[i for i, k in enumerate(kinds) if k not in (_NORMAL, _USER_DEFINED, _UNUSED)],
            added=[i for i, k in enumerate(kinds) if k == _USER_DEFINED],
            starts_with=_token(file, "bos"),
            ends=[
                *(end for which in _ENDS if (end := _token(file, which)) is not None),
                *(i for i, (text, k) in enumerate(zip(tokens, kinds, strict=True)) if k == _CONTROL and text in _LAST),
            ],
            prefixed=file.optional("tokenizer.ggml.add_bos_token", False)
            if "tokenizer.ggml.add_bos_token" in file.metadata
            else None,
        )
    except InvalidData as error:
        if str(file.path) in str(error):
            raise
        raise InvalidData(f"{file.path}: tokenizer.ggml: {error}") from error


def read_chat(file: GGUF, tokenizer: TextTokenizer) -> ChatTemplate | None:
    """How the model reads a conversation, if its file says."""
    source = file.optional("tokenizer.chat_template", "")
    if not source:
        return None
    return _template(f"{file.path}: tokenizer.chat_template", source, _named(file, tokenizer))


def _token(file: GGUF, which: str) -> int | None:
    key = f"tokenizer.ggml.{which}_token_id"
    return file.required(key, int) if key in file.metadata else None


def _texts(file: GGUF, key: str) -> list[str]:
    found: list[Any] = file.required(key, list)
    if not all(isinstance(text, str) for text in found):
        raise InvalidData(f"{file.path}: {key} is no list of texts")
    return found


def _named(file: GGUF, tokenizer: TextTokenizer) -> dict[str, str]:
    """The tokens that templates write by name."""
    found = {f"{which}_token": _token(file, which) for which in ("bos", "eos", "padding")}
    for name, token in found.items():
        if token is not None and not 0 <= token < tokenizer.vocab_size:
            raise InvalidData(f"{file.path}: tokenizer.ggml.{name}_id is {token}, of {tokenizer.vocab_size}")
    return {f"{name[:3]}_token": tokenizer.name(token) for name, token in found.items() if token is not None}


def _template(where: str, source: str, tokens: dict[str, str]) -> ChatTemplate:
    try:
        return ChatTemplate(source, tokens)
    except InvalidData as error:
        raise InvalidData(f"{where}: {error}") from error


def _check_sizes(path: Path, tokenizer: TextTokenizer, vocab_size: int) -> None:
    if tokenizer.vocab_size > vocab_size:
        raise InvalidData(f"{path}: has {tokenizer.vocab_size} tokens, and a model that knows {vocab_size}")


def _load_folder(folder: Path) -> Loaded:
    settings = {name: read_json(folder / name) for name in _SETTINGS if (folder / name).exists()}
    about = settings.get(TOKENIZER_CONFIG, {})
    tokens = {name: _content(about[name]) for name in ("bos_token", "eos_token", "pad_token") if about.get(name)}
    ends: list[str | int] = [tokens["eos_token"]] if "eos_token" in tokens else []
    for name in (CONFIG, GENERATION_CONFIG):
        ids = settings.get(name, {}).get("eos_token_id")
        ends += [end for end in (ids if isinstance(ids, list) else [ids]) if type(end) is int]
    try:
        tokenizer = from_json(_read(folder / TOKENIZER, LARGEST_JSON), ends)
    except InvalidData as error:
        if str(folder) in str(error):
            raise
        raise InvalidData(f"{folder / TOKENIZER}: {error}") from error
    chat = None
    if (source := _source(folder, about)) is not None:
        chat = _template(*source, tokens)
    model = hugging_face.read_model(folder)
    _check_sizes(folder / TOKENIZER, tokenizer, model.config.vocab_size)
    return Loaded(folder.resolve().name, Packed.of(model), tokenizer, chat)


_SETTINGS: Final = (CONFIG, TOKENIZER_CONFIG, GENERATION_CONFIG)


def _source(folder: Path, about: dict[str, Any]) -> tuple[str, str] | None:
    """Where the chat template is, and the template: in a file of its own, or among the tokeniser's settings."""
    if (folder / TEMPLATE).exists():
        return str(folder / TEMPLATE), _read(folder / TEMPLATE, 4 * LARGEST_TEMPLATE)
    found = about.get("chat_template")
    if isinstance(found, list):  # several, by name
        named = {each.get("name"): each.get("template") for each in found if isinstance(each, dict)}
        found = named.get("default")
    return (f"{folder / TOKENIZER_CONFIG}: chat_template", found) if isinstance(found, str) else None


def _content(token: Any) -> str:
    """A token as the settings have it: its text, or that with how it is to be found."""
    found = token.get("content") if isinstance(token, dict) else token
    return found if isinstance(found, str) else ""


def _read(path: Path, most: int) -> str:
    try:
        if path.stat().st_size > most:
            raise InvalidData(f"{path}: is larger than {most} bytes")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InvalidData(f"{path}: can't be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise InvalidData(f"{path}: is no UTF-8") from error


def _describe_gguf(path: Path, name: str) -> Description:
    file = GGUF.open(path)
    config = llama.read_config(file)
    counts = Counter[str]()
    for tensor in file.tensors.values():
        counts[file.packing(tensor.name).name] += tensor.numbers
    return Description(
        name, path.name, counts.total(), _most(counts), config.context, path.stat().st_size, path.resolve()
    )


def _describe_folder(folder: Path, name: str) -> Description:
    config = hugging_face.read_config(folder / CONFIG)
    files = hugging_face.weight_files(folder)
    counts = Counter[str]()
    for path in files:
        for kind, numbers in _directory(path):
            counts[kind] += numbers
    nbytes = sum(path.stat().st_size for path in files)
    return Description(name, files[0].name, config.parameters, _most(counts), config.context, nbytes, folder.resolve())


def _directory(path: Path) -> Iterator[tuple[str, int]]:
    """Type and count of each tensor's numbers."""
    try:
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118 (it is no mapping)
                tensor = file.get_slice(name)
                count = 1
                for length in tensor.get_shape():
                    count *= length
                yield tensor.get_dtype(), count
    except (OSError, SafetensorError) as error:
        raise InvalidData(f"{path}: can't be read: {error}") from error


def _most(counts: Counter[str]) -> str:
    return counts.most_common(1)[0][0] if counts else ""
