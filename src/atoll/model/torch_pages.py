"""Driver: a paged model in plain PyTorch, float32: for machines without a compiler, and to hold the kernel against."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from atoll.model.paged import PAGE_TOKENS, Logits, Saved, Slice, States, check
from atoll.model.transformer import Rotation, Transformer, rotate


class TorchModel:
    """`api.PagedModel` of a `Transformer`.

    `batch_invariant`: every token passes the matrices alone. It takes several times as long.
    """

    def __init__(self, model: Transformer, pages: int, batch_invariant: bool = False) -> None:
        self.config = model.config
        self.pages = pages
        self.batch_invariant = batch_invariant
        self._model = model.requires_grad_(False)
        shape = (self.config.layers, pages, self.config.key_heads, PAGE_TOKENS, self.config.head_width)
        self._keys, self._values = torch.zeros(shape), torch.zeros(shape)

    def forward(self, slices: Sequence[Slice]) -> Logits:
        """See `paged.PagedModel`."""
        with torch.inference_mode():
            found: Logits = self._each(self._model.lm_head, self._hidden(slices)).numpy()
        return found

    def states(self, slices: Sequence[Slice]) -> States:
        """See `paged.PagedModel`."""
        with torch.inference_mode():
            found: States = self._hidden(slices).numpy()
        return found

    def save(self, pages: Sequence[int]) -> Saved:
        """See `paged.PagedModel`."""
        return Saved(self._keys[:, list(pages)].numpy(), self._values[:, list(pages)].numpy())

    def restore(self, pages: Sequence[int], saved: Saved) -> None:
        """See `paged.PagedModel`."""
        self._keys[:, list(pages)] = torch.from_numpy(saved.keys)
        self._values[:, list(pages)] = torch.from_numpy(saved.values)

    def _hidden(self, slices: Sequence[Slice]) -> Tensor:
        """The normed states of the tokens that are wanted."""
        check(slices, self.config, self.pages)
        decoder: Any = self._model.model
        positions = torch.cat([torch.arange(s.start, s.start + len(s.tokens)) for s in slices])
        rotation = (decoder.get_buffer("cos")[positions], decoder.get_buffer("sin")[positions])
        x: Tensor = decoder.embed_tokens(torch.tensor([token for s in slices for token in s.tokens]))
        for i, block in enumerate(decoder.layers):
            x = x + self._attend(i, block.self_attn, block.input_layernorm(x), rotation, slices)
            x = x + self._each(block.mlp, block.post_attention_layernorm(x))
        ends = np.cumsum([len(s.tokens) for s in slices])
        wanted = [at for s, end in zip(slices, ends, strict=True) for at in range(end - s.wanted, end)]
        normed: Tensor = decoder.norm(x[torch.tensor(wanted, dtype=torch.long)])
        return normed

    def _each(self, layer: Any, x: Tensor) -> Tensor:
        """The layer on all rows; on one after the other where the number of rows must not matter."""
        if not self.batch_invariant or not len(x):
            out: Tensor = layer(x)
            return out
        return torch.cat([layer(row[None]) for row in x])

    def _attend(self, i: int, layer: Any, x: Tensor, rotation: Rotation, slices: Sequence[Slice]) -> Tensor:
        width = self.config.head_width
        heads = (len(x), -1, width)
        q = rotate(self._each(layer.q_proj, x).view(heads), rotation)
        k = rotate(self._each(layer.k_proj, x).view(heads), rotation)
        v = self._each(layer.v_proj, x).view(heads)
        mixed, at = [], 0
        for s in slices:
            here = slice(at, at := at + len(s.tokens))
            mixed.append(self._attend_slice(i, q[here], k[here], v[here], s))
        return self._each(layer.o_proj, torch.cat(mixed).flatten(1))

    def _attend_slice(self, i: int, q: Tensor, k: Tensor, v: Tensor, s: Slice) -> Tensor:
        """One slice's heads [tokens, heads, width], after its keys and values have gone to its pages."""
        end = s.start + len(s.tokens)
        pages = torch.tensor(s.pages[: -(-end // PAGE_TOKENS)])
        at = torch.arange(s.start, end)
        self._keys[i][pages[at // PAGE_TOKENS], :, at % PAGE_TOKENS] = k
        self._values[i][pages[at // PAGE_TOKENS], :, at % PAGE_TOKENS] = v
        keys, values = (kept[i][pages].transpose(1, 2).flatten(0, 1)[:end] for kept in (self._keys, self._values))
        if not self.batch_invariant:
            return _attention(q, keys, values, s.start)
        return torch.cat(
            [_attention(q[n : n + 1], keys[: m + 1], values[: m + 1], m) for n, m in enumerate(at.tolist())]
        )


def _attention(q: Tensor, keys: Tensor, values: Tensor, start: int) -> Tensor:
    """Queries [tokens, heads, width] from position `start` on, over keys and values [positions, key heads, width]."""
    visible = torch.arange(len(keys)) <= torch.arange(start, start + len(q))[:, None]
    grouped = q.shape[1] != keys.shape[1]
    q, keys, values = (each.transpose(0, 1)[None] for each in (q, keys, values))
    mixed = F.scaled_dot_product_attention(q, keys, values, attn_mask=visible, enable_gqa=grouped)
    return mixed[0].transpose(0, 1)
