"""Policy: texts as vectors, as OpenAI's API asks for them and writes them."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from atoll.endpoint.api import Delta, Request
from atoll.endpoint.asking import Drawn, prompts, standing
from atoll.endpoint.fields import Fields
from atoll.errors import InvalidRequest

MOST_INPUTS: Final = 2048
"""Of one call, as OpenAI's."""
TOGETHER: Final = 32
"""Of them that are asked for at once: an engine's queue is for others too."""


CALLED: Final = {"prompt": "input"}
"""What endpoints call a field, and what it is here."""


@dataclass
class Vectors:
    """A call, and its vectors as they come. `dimensions`: as many as they must have."""

    model: str
    requests: Sequence[Request]
    in_base64: bool
    dimensions: int | None
    found: dict[int, NDArray[np.float32]] = field(default_factory=dict)
    tokens: int = 0

    def take(self, number: int, delta: Delta) -> None:
        """InvalidRequest where it is of another length than was asked for."""
        if self.dimensions not in (None, len(delta.embedding)):
            raise InvalidRequest(
                "dimensions",
                f"dimensions must be {len(delta.embedding)}, the width of this model: it can't be shortened",
            )
        self.found[number] = np.asarray(delta.embedding, "<f4")
        self.tokens += delta.prompt_tokens

    def body(self) -> dict[str, Any]:
        """When all have come."""
        data = [
            {"object": "embedding", "index": i, "embedding": self._written(self.found[i])}
            for i in range(len(self.requests))
        ]
        usage = {"prompt_tokens": self.tokens, "total_tokens": self.tokens}
        return {"object": "list", "data": data, "model": self.model, "usage": usage}

    def _written(self, vector: NDArray[np.float32]) -> Any:
        """As numbers, or as the bytes of little-endian float32."""
        return base64.b64encode(vector.tobytes()).decode() if self.in_base64 else vector.tolist()


def embeddings(fields: Fields, drawn: Drawn) -> Vectors:
    """A body of /v1/embeddings."""
    inputs = prompts(fields, "input", MOST_INPUTS)
    form = fields.text("encoding_format", "float")
    if form not in ("float", "base64"):
        raise fields.wrong("encoding_format", "must be float or base64")
    common = standing(fields)
    requests = [
        Request(id=f"{drawn.id}-{i}", prompt=each, max_tokens=0, embed=True, **common) for i, each in enumerate(inputs)
    ]
    return Vectors(common["model"], requests, form == "base64", fields.whole("dimensions", 1, 1 << 20))
