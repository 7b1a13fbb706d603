"""Driver: a training state in one file: written aside, flushed, renamed; checked by its digest when read.

A checkpoint is safetensors; its metadata says what the run was, and holds a digest of that and of all tensors.
"""

import json
from pathlib import Path
from typing import Any, Final

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from atoll.config import atomic_write
from atoll.errors import InvalidData, SaveFailed

KEPT: Final = 2
FORMAT: Final = "1"
_PATTERN: Final = "step-*.safetensors"


def save_checkpoint(folder: Path, step: int, tensors: dict[str, torch.Tensor], about: dict[str, Any]) -> Path:
    """Write it and keep, of those up to `step`, the newest two. SaveFailed: the disk refuses; older ones are intact."""
    said = json.dumps(about)
    metadata = {"format": FORMAT, "about": said, "digest": _digest(tensors, said)}
    path = folder / f"step-{step:09d}.safetensors"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write(path, save({name: t.contiguous() for name, t in tensors.items()}, metadata=metadata))
        for old in sorted(p for p in folder.glob(_PATTERN) if p <= path)[:-KEPT]:  # later ones: of an abandoned future
            old.unlink(missing_ok=True)
    except OSError as error:
        raise SaveFailed(f"{folder}: can't be written: {error}; choose another folder") from error
    return path


def load_newest(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and `about` of the newest checkpoint that is whole. InvalidData: there is none."""
    damaged: list[str] = []
    for path in sorted(folder.glob(_PATTERN), reverse=True):
        try:
            return _load(path)
        except InvalidData as error:
            damaged.append(str(error))
    raise InvalidData("; ".join(damaged) or f"{folder}: holds no checkpoint to resume from; begin without --resume")


def _load(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
    except (OSError, SafetensorError) as error:
        raise InvalidData(f"{path}: can't be read: {error}") from error
    if metadata.get("format") != FORMAT:
        raise InvalidData(f"{path}: a checkpoint of format {metadata.get('format')}, not {FORMAT}")
    about = metadata.get("about", "")
    if metadata.get("digest") != _digest(tensors, about):
        raise InvalidData(f"{path}: damaged (its digest doesn't fit)")
    try:
        said = json.loads(about)
    except (ValueError, RecursionError) as error:
        raise InvalidData(f"{path}: what it says of its run can't be read: {error}") from None
    if not isinstance(said, dict):
        raise InvalidData(f"{path}: says nothing of its run")
    return tensors, said


def _digest(tensors: dict[str, torch.Tensor], about: str) -> str:
    digest = xxhash.xxh3_128(about.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)  # NumPy lacks some types
    return digest.hexdigest()
