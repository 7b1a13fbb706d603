"""Program: NumPy arrays and torch tensors as flat arrays over the same memory, and back."""

import functools
import math
import sys
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from atoll.errors import InvalidTensor

Array = NDArray[Any]

REDUCIBLE = {
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "bfloat16", "float32", "float64"),
}
FLOATING = {"float16", "bfloat16", "float32", "float64"}


@functools.lru_cache(64)
def name_of(dtype: Any) -> str:
    """Of an element's type, as NumPy has it; which takes microseconds to say it."""
    return str(dtype).removeprefix("torch.")


def describe(tensor: Any, name: str = "") -> str:
    """For messages: name, type and shape."""
    dtype = str(getattr(tensor, "dtype", type(tensor).__name__)).removeprefix("torch.")
    return f"{name or 'tensor'} {dtype}{list(getattr(tensor, 'shape', ()))}"


def is_torch(tensor: Any) -> bool:
    """Without importing torch for those who don't use it."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(tensor, torch.Tensor)


def flat_view(tensor: Any, name: str = "") -> Array:
    """A flat array over the tensor's own memory. InvalidTensor: not on the CPU, not contiguous, or not an array."""
    if is_torch(tensor):
        return _flat_torch(tensor, name)
    if not isinstance(tensor, np.ndarray):
        raise InvalidTensor(f"{name or 'tensor'} must be a NumPy array or a torch tensor, not {type(tensor).__name__}")
    if not tensor.flags.c_contiguous:
        raise InvalidTensor(f"{describe(tensor, name)} is not contiguous: pass np.ascontiguousarray(...) of it")
    return tensor.reshape(-1)


def _flat_torch(tensor: Any, name: str) -> Array:
    import torch

    tensor = tensor.detach()
    if tensor.device.type != "cpu":
        raise InvalidTensor(f"{describe(tensor, name)} is on {tensor.device}; only CPU memory can be shared")
    if not tensor.is_contiguous():
        raise InvalidTensor(f"{describe(tensor, name)} is not contiguous: pass tensor.contiguous()")
    flat = tensor.reshape(-1)
    if flat.dtype == torch.bfloat16:
        return np.asarray(flat.view(torch.int16).numpy().view(ml_dtypes.bfloat16))
    return np.asarray(flat.numpy())


def read(tensor: Any, name: str = "") -> Array:
    """The tensor's elements, flat: over its own memory, or a copy where that is on a device."""
    if is_torch(tensor) and tensor.device.type != "cpu":
        return _flat_torch(tensor.detach().cpu().contiguous(), name)
    return flat_view(tensor, name)


def check_writable(out: Any, dtype: str, size: int, name: str) -> None:
    """InvalidTensor: `out` can't take `size` elements of that type."""
    if not is_torch(out):
        flat = flat_view(out, name)
        if not flat.flags.writeable:
            raise InvalidTensor(f"{describe(out, name)} is read-only")
    elif not out.is_contiguous():
        raise InvalidTensor(f"{describe(out, name)} is not contiguous")
    if math.prod(out.shape) != size or name_of(out.dtype) != dtype:
        raise InvalidTensor(f"{describe(out, name)} can't hold the result: {size} elements of {dtype}")


def room_in(out: Any, source: Array) -> Array | None:
    """`out` as a flat array that may be written while `source` is read; None: it has no such memory."""
    if out is None or (is_torch(out) and out.device.type != "cpu"):
        return None
    flat = flat_view(out)
    return None if np.may_share_memory(flat, source) else flat


def write(tensor: Any, values: Array, name: str = "") -> None:
    """Put `values` into the tensor."""
    if is_torch(tensor) and tensor.device.type != "cpu":
        staged = tensor.detach().cpu()
        flat_view(staged, name)[:] = values
        tensor.detach().copy_(staged)
    else:
        flat_view(tensor, name)[:] = values


def like(tensor: Any, values: Array, shape: tuple[int, ...]) -> Any:
    """`values` as a new tensor of the same library as `tensor`."""
    if not is_torch(tensor):
        return values.reshape(shape)
    import torch

    if values.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16).reshape(shape).to(tensor.device)
    return torch.from_numpy(values).reshape(shape).to(tensor.device)
