"""Driver: a training state in one file: written aside, flushed, renamed; checked by its digest when read.

A checkpoint is safetensors; its metadata holds the step and a digest of the rest.
"""

import json
from pathlib import Path
from typing import Any, Final

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from atoll.config import atomic_write
from atoll.errors import InvalidData

KEPT: Final = 2
FORMAT: Final = "1"
_PATTERN: Final = "step-*.safetensors"


def save_checkpoint(folder: Path, step: int, tensors: dict[str, torch.Tensor], about: dict[str, Any]) -> Path:
    """Write it and remove all but the newest two. SaveFailed: the disk refuses; older ones are intact."""
    metadata = {"format": FORMAT, "step": str(step), "about": json.dumps(about), "digest": _digest(tensors)}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:09d}.safetensors"
    atomic_write(path, save({name: t.contiguous() for name, t in tensors.items()}, metadata=metadata))
    for old in sorted(folder.glob(_PATTERN))[:-KEPT]:
        old.unlink(missing_ok=True)
    return path


def load_newest(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and `about` of the newest checkpoint that is whole. InvalidData: there is none."""
    damaged: list[str] = []
    for path in sorted(folder.glob(_PATTERN), reverse=True):
        try:
            return _load(path)
        except InvalidData as error:
            damaged.append(str(error))
    raise InvalidData("; ".join(damaged) or f"{folder}: holds no checkpoint to resume from")


def _load(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
    except (OSError, SafetensorError) as error:
        raise InvalidData(f"{path}: can't be read: {error}") from error
    if metadata.get("format") != FORMAT:
        raise InvalidData(f"{path}: a checkpoint of format {metadata.get('format')}, not {FORMAT}")
    if metadata.get("digest") != _digest(tensors):
        raise InvalidData(f"{path}: damaged (its digest doesn't fit)")
    return tensors, json.loads(metadata["about"])


def _digest(tensors: dict[str, torch.Tensor]) -> str:
    digest = xxhash.xxh3_128()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().numpy().data)
    return digest.hexdigest()
