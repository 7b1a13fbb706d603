"""Driver: a model whose four-bit matrices stay so in PyTorch: for `torch_pages.TorchModel`, where there is no compiler.

PyTorch's own product of packed rows takes and gives bfloat16, and scales too: close to float32, not equal to it. Logits
are not made so, since many would be equal then.
"""

from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from atoll.model.packed import EMBEDDING, HEAD, Matrix, Packed
from atoll.model.quants import unpacked
from atoll.model.transformer import Transformer

_BLOCK: Final = 32
_ROWS: Final = 16
"""PyTorch packs so many together."""
_PACKINGS: Final = ("Q4_0", "Q4_1")


class Int4(nn.Module):
    """A product with rows in Q4_0 or Q4_1, whose numbers of four bits are taken as they are."""

    def __init__(self, matrix: Matrix) -> None:
        super().__init__()
        blocks = matrix.rows.reshape(len(matrix.rows), -1, matrix.packing.nbytes)
        scale = np.ascontiguousarray(blocks[..., :2]).view("<f2").astype(np.float32)
        middle = np.zeros_like(scale)
        if matrix.packing.name == "Q4_1":
            middle = np.ascontiguousarray(blocks[..., 2:4]).view("<f2").astype(np.float32) + 8 * scale
        pairs = blocks[..., -_BLOCK // 2 :]
        numbers = np.concatenate([pairs & 15, pairs >> 4], axis=-1).reshape(len(matrix.rows), -1)
        self._rows = torch.ops.aten._convert_weight_to_int4pack_for_cpu(torch.from_numpy(numbers.astype(np.int32)), 1)
        scales = np.concatenate([scale, middle], axis=-1).swapaxes(0, 1)
        self._scales = torch.from_numpy(np.ascontiguousarray(scales)).to(torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        """`x` [tokens, inputs] in float32; so is what comes, [tokens, outputs]."""
        found: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(
            x.to(torch.bfloat16), self._rows, _BLOCK, self._scales
        )
        return found.float()


def can(weights: Packed) -> bool:
    """Has this PyTorch a fast product of four-bit rows here, and the model such rows?"""
    fast = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    known = hasattr(torch.ops.aten, "_weight_int4pack_mm_for_cpu")
    return fast and known and any(map(_fits, weights.matrices.values()))


def in_four_bits(weights: Packed) -> Transformer:
    """The model; what is not in four bits is unpacked to float32."""
    made = Transformer.unset(weights.config)
    places = dict(made.named_parameters())
    for name, vector in weights.vectors.items():
        places[name].data = torch.from_numpy(vector)
    for name, matrix in weights.matrices.items():
        if name in (EMBEDDING, HEAD) or not _fits(matrix):
            places[name].data = torch.from_numpy(unpacked(matrix.packing, matrix.rows))
        else:
            made.set_submodule(name.removesuffix(".weight"), Int4(matrix))
    return made


def _fits(matrix: Matrix) -> bool:
    return matrix.packing.name in _PACKINGS and len(matrix.rows) % _ROWS == 0
