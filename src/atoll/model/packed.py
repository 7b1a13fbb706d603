"""Program: a model's weights as rows that are still packed, for engines that unpack them while they multiply."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from atoll.model.quants import FLOAT32, Packing, unpacked
from atoll.model.transformer import Transformer, TransformerConfig

EMBEDDING: Final = "model.embed_tokens.weight"
HEAD: Final = "lm_head.weight"
NORM: Final = "model.norm.weight"


@dataclass(frozen=True, slots=True)
class Matrix:
    """`rows`, [outputs, bytes], packed as `packing` says. It may be a view of a file."""

    rows: NDArray[np.uint8]
    packing: Packing

    @property
    def inputs(self) -> int:
        width: int = self.rows.shape[1] // self.packing.nbytes * self.packing.numbers
        return width


@dataclass(frozen=True)
class Packed:
    """All weights of a model, by Hugging Face's names: matrices, and the vectors that norms multiply with."""

    config: TransformerConfig
    matrices: Mapping[str, Matrix]
    vectors: Mapping[str, NDArray[np.float32]]

    @property
    def embedding(self) -> Matrix:
        """A row for each token."""
        return self.matrices[EMBEDDING]

    @property
    def head(self) -> Matrix:
        """What gives the logits."""
        return self.matrices[EMBEDDING if self.config.tie_embeddings else HEAD]

    @classmethod
    def of(cls, model: Transformer) -> "Packed":
        """The weights of a model in float32: views of them."""
        matrices, vectors = dict[str, Matrix](), dict[str, NDArray[np.float32]]()
        for name, weight in model.named_parameters():
            numbers = weight.detach().numpy()
            if numbers.ndim == 2:
                matrices[name] = Matrix(np.ascontiguousarray(numbers).view(np.uint8), FLOAT32)
            else:
                vectors[name] = numbers
        return cls(model.config, matrices, vectors)

    def transformer(self) -> Transformer:
        """The model in float32. InvalidTensor where the weights don't fit it."""
        weights = {name: torch.from_numpy(unpacked(m.packing, m.rows)) for name, m in self.matrices.items()}
        weights |= {name: torch.from_numpy(vector) for name, vector in self.vectors.items()}
        return Transformer.holding(self.config, weights)
