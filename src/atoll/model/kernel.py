"""Driver: `kernel.cpp` from Python: compiled at first use, cached, called with a model's packed rows."""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from atoll.errors import InvalidConfig, Unavailable
from atoll.model.packed import NORM, Matrix, Packed
from atoll.model.paged import PAGE_TOKENS, Logits, Saved, Slice, States, check
from atoll.model.quants import FLOAT32, unpacked

SOURCE: Final = Path(__file__).with_name("kernel.cpp")
COMPILERS: Final = ("c++", "g++", "clang++")
COMPILE_S: Final = 120.0
_FLAGS: Final = ("-std=c++17", "-O3", "-march=native", "-ffp-contract=off", "-Wno-psabi", "-shared", "-fPIC")
_PACKINGS: Final = {"F32": 0, "F16": 1, "Q8_0": 2, "Q4_0": 3, "Q4_1": 4}
_BLOCK: Final = 32
_PARTS: Final = (
    ("query", "self_attn.q_proj"),
    ("key", "self_attn.k_proj"),
    ("value", "self_attn.v_proj"),
    ("output", "self_attn.o_proj"),
    ("gate", "mlp.gate_proj"),
    ("up", "mlp.up_proj"),
    ("down", "mlp.down_proj"),
)


class _Matrix(ctypes.Structure):
    _fields_ = (("rows", ctypes.c_void_p), *((name, ctypes.c_int32) for name in ("packing", "outputs", "inputs")))


class _Layer(ctypes.Structure):
    _fields_ = (
        ("attention_norm", ctypes.c_void_p),
        ("mlp_norm", ctypes.c_void_p),
        *((name, _Matrix) for name, _ in _PARTS),
    )


_SIZES: Final = ("layers", "width", "hidden", "heads", "key_heads", "head_width", "context")


class _Model(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int32) for name in _SIZES),
        ("epsilon", ctypes.c_float),
        ("cosines", ctypes.c_void_p),
        ("sines", ctypes.c_void_p),
        ("norm", ctypes.c_void_p),
        ("embedding", _Matrix),
        ("head", _Matrix),
        ("layer", ctypes.POINTER(_Layer)),
    )


class _Pages(ctypes.Structure):
    _fields_ = (
        ("keys", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("pages", ctypes.c_int32),
        ("page_tokens", ctypes.c_int32),
    )


class _Batch(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int32) for name in ("slices", "tokens", "wanted", "table_width")),
        *((name, ctypes.c_void_p) for name in ("first", "token", "position", "table", "want")),
    )


class KernelModel:
    """`paged.PagedModel` in C++.

    `integers`: activations are rounded to 8 bits where weights are packed in few bits; faster, and close to what
    float32 gives. Else all sums are in float32 and exact up to rounding. Unavailable where there is no compiler,
    InvalidConfig for a model whose sizes the kernel can't take.
    """

    batch_invariant = True

    def __init__(self, weights: Packed, pages: int, *, integers: bool = False, threads: int | None = None) -> None:
        self.config = config = weights.config
        self.pages = pages
        self.integers = integers
        self.threads = threads or torch.get_num_threads()
        for name, size, block in (
            ("width", config.width, _BLOCK),
            ("hidden", config.mlp_width, _BLOCK),
            ("the width of a head", config.head_width, 8),
        ):
            if size % block:
                raise InvalidConfig(f"{name} is {size}; the kernel takes multiples of {block}")
        self._library = library()
        self._held: list[NDArray[Any]] = []
        shape = (config.layers, pages, config.key_heads, PAGE_TOKENS, config.head_width)
        self._keys, self._values = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        self._model = self._described(weights)
        self._pages = _Pages(self._keys.ctypes.data, self._values.ctypes.data, pages, PAGE_TOKENS)
        self._scratch = np.empty(0, np.float32)

    def forward(self, slices: Sequence[Slice]) -> Logits:
        """See `paged.PagedModel`."""
        return self._pass(slices, self.config.vocab_size, states=False)

    def states(self, slices: Sequence[Slice]) -> States:
        """See `paged.PagedModel`."""
        return self._pass(slices, self.config.width, states=True)

    def _pass(self, slices: Sequence[Slice], width: int, states: bool) -> NDArray[np.float32]:
        """What is wanted of each token, [wanted tokens, width]."""
        check(slices, self.config, self.pages)
        first = np.cumsum([0, *(len(s.tokens) for s in slices)], dtype=np.int32)
        tokens = np.fromiter((token for s in slices for token in s.tokens), np.int32, first[-1])
        positions = np.concatenate([np.arange(s.start, s.start + len(s.tokens), dtype=np.int32) for s in slices])
        table = np.zeros((len(slices), max(len(s.pages) for s in slices)), np.int32)
        for row, s in zip(table, slices, strict=True):
            row[: len(s.pages)] = s.pages
        want = np.concatenate(
            [np.arange(end - s.wanted, end, dtype=np.int32) for s, end in zip(slices, first[1:], strict=True)]
        )
        found = np.empty((len(want), width), np.float32)
        arrays = (first, tokens, positions, table, want)
        batch = _Batch(len(slices), len(tokens), len(want), table.shape[1], *(array.ctypes.data for array in arrays))
        needed = self._library.atoll_scratch_floats(ctypes.byref(self._model), len(tokens), self.threads)
        if needed > len(self._scratch):
            self._scratch = np.empty(needed, np.float32)
        self._library.atoll_forward(
            ctypes.byref(self._model),
            ctypes.byref(self._pages),
            ctypes.byref(batch),
            self.integers,
            self.threads,
            self._scratch.ctypes.data,
            states,
            found.ctypes.data,
        )
        return found

    def save(self, pages: Sequence[int]) -> Saved:
        """See `paged.PagedModel`."""
        return Saved(self._keys[:, list(pages)], self._values[:, list(pages)])

    def restore(self, pages: Sequence[int], saved: Saved) -> None:
        """See `paged.PagedModel`."""
        self._keys[:, list(pages)] = saved.keys
        self._values[:, list(pages)] = saved.values

    def _described(self, weights: Packed) -> _Model:
        config = weights.config
        sizes = (config.layers, config.width, config.mlp_width, config.heads, config.key_heads, config.head_width)
        angles = _angles(config.context, config.head_width, config.rope_theta)
        layers = (_Layer * config.layers)(*(self._layer(weights, f"model.layers.{i}.") for i in range(config.layers)))
        return _Model(
            *sizes,
            config.context,
            config.norm_eps,
            self._address(np.cos(angles)),
            self._address(np.sin(angles)),
            self._address(weights.vectors[NORM]),
            self._matrix(weights.embedding),
            self._matrix(weights.head),
            layers,
        )

    def _layer(self, weights: Packed, prefix: str) -> _Layer:
        return _Layer(
            self._address(weights.vectors[f"{prefix}input_layernorm.weight"]),
            self._address(weights.vectors[f"{prefix}post_attention_layernorm.weight"]),
            *(self._matrix(weights.matrices[f"{prefix}{name}.weight"]) for _, name in _PARTS),
        )

    def _matrix(self, matrix: Matrix) -> _Matrix:
        """As it lies; in float32 where the kernel doesn't know the packing."""
        if matrix.packing.name not in _PACKINGS:
            matrix = Matrix(unpacked(matrix.packing, matrix.rows).view(np.uint8), FLOAT32)
        return _Matrix(self._address(matrix.rows), _PACKINGS[matrix.packing.name], len(matrix.rows), matrix.inputs)

    def _address(self, array: NDArray[Any]) -> int:
        """Of what lies there as long as this model does."""
        self._held.append(np.ascontiguousarray(array))
        return self._held[-1].ctypes.data


def _angles(context: int, head_width: int, theta: float) -> NDArray[np.float32]:
    """By position and pair, as `Transformer` has them."""
    frequency = theta ** (-torch.arange(0, head_width, 2) / head_width)
    return torch.outer(torch.arange(context), frequency).numpy()


@cache
def library() -> ctypes.CDLL:
    """The compiled kernel. Unavailable where it can't be had, with the reason."""
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CXX", ""), *COMPILERS))), None)
    if compiler is None:
        raise Unavailable(f"no C++ compiler is installed (looked for $CXX, {', '.join(COMPILERS)})")
    openmp = _openmp()
    command = [compiler, *_FLAGS, *openmp]
    key = hashlib.sha256("\0".join((SOURCE.read_text(), *command, _version(compiler), _processor())).encode())
    folder = _folder()
    built = folder / f"{key.hexdigest()[:32]}.so"
    if not built.exists():
        _compile(command, built)
    try:
        found = ctypes.CDLL(str(built))
    except OSError as error:
        raise Unavailable(f"the compiled kernel can't be loaded: {error}") from error
    found.atoll_scratch_floats.restype = ctypes.c_size_t
    pointer = ctypes.c_void_p
    found.atoll_scratch_floats.argtypes = (pointer, ctypes.c_int, ctypes.c_int)
    found.atoll_forward.argtypes = (*[pointer] * 3, ctypes.c_int, ctypes.c_int, pointer, ctypes.c_int, pointer)
    found.atoll_forward.restype = None
    return found


def _compile(command: Sequence[str], built: Path) -> None:
    """To a file beside it, which then gets its name."""
    try:
        built.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=built.parent) as aside:
            made = Path(aside) / "kernel.so"
            # Libraries go after what needs them.
            subprocess.run(
                [command[0], str(SOURCE), "-o", str(made), *command[1:]],
                check=True,
                capture_output=True,
                text=True,
                timeout=COMPILE_S,
            )
            made.replace(built)
    except subprocess.CalledProcessError as error:
        reason = next((line for line in error.stderr.splitlines() if "error" in line), error.stderr.strip()[-200:])
        raise Unavailable(f"{command[0]} can't compile the kernel: {reason}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"the kernel can't be compiled: {error}") from error


def _openmp() -> tuple[str, ...]:
    """Threads come from the library that PyTorch has loaded already: two of them in a process stall each other."""
    theirs = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*"))
    if platform.system() == "Linux":
        return ("-fopenmp", *map(str, theirs[:1]))
    return ()


def _version(compiler: str) -> str:
    try:
        return subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=COMPILE_S).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _processor() -> str:
    """What `-march=native` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "") + platform.machine()


def _folder() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(cache) if os.path.isabs(cache) else Path.home() / ".cache") / "atoll" / "kernels"
