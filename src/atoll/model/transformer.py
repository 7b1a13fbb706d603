"""Program: a decoder-only transformer of the Llama family (Touvron et al., 2023, arXiv 2302.13971), for training loops.

Parameters bear Hugging Face's names for `LlamaForCausalLM`, so weights move between the two as they are. RMSNorm (Zhang
and Sennrich, 2019, arXiv 1910.07467), rotary positions (Su et al., 2021, arXiv 2104.09864), SwiGLU (Shazeer, 2020,
arXiv 2002.05202), grouped-query attention (Ainslie et al., 2023, arXiv 2305.13245).
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import sqrt
from typing import Final, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from atoll.errors import InvalidConfig, InvalidTensor
from atoll.rng import normal

MOST_ROTATIONS: Final = 1 << 29
"""Numbers in a table of angles: four million tokens with heads of 128. It is made whatever the weights' file holds."""

Rotation = tuple[Tensor, Tensor]  # cosines and signed sines, each [time, 1, head width]


@dataclass(frozen=True)
class TransformerConfig:
    """The shape of a model. `context` is in tokens; InvalidConfig where the settings don't fit together."""

    vocab_size: int = 256
    width: int = 128
    layers: int = 4
    heads: int = 4
    kv_heads: int | None = None
    """Heads that have keys and values of their own; None: all."""
    hidden: int | None = None
    """Width inside the MLP; None: 8/3 of `width`, rounded up to a multiple of 32."""
    context: int = 128
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    tie_embeddings: bool = True

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and field.name != "tie_embeddings" and not value > 0:
                raise InvalidConfig(f"{field.name} is {value}; it must be above 0")
        if self.width % (2 * self.heads):
            raise InvalidConfig(
                f"width {self.width} can't be split over {self.heads} heads of an even width: "
                f"take a multiple of {2 * self.heads}"
            )
        if self.heads % self.key_heads:
            raise InvalidConfig(f"heads {self.heads} can't share {self.key_heads} kv_heads: take a divisor of heads")

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    @property
    def key_heads(self) -> int:
        """`kv_heads`, resolved."""
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def mlp_width(self) -> int:
        """`hidden`, resolved."""
        return -(-8 * self.width // 96) * 32 if self.hidden is None else self.hidden

    @property
    def parameters(self) -> int:
        """How many numbers a model of this shape learns; tied ones count once."""
        attention = 2 * self.width * (self.width + self.key_heads * self.head_width)
        layer = attention + 3 * self.width * self.mlp_width + 2 * self.width
        return self.vocab_size * self.width * (1 if self.tie_embeddings else 2) + self.layers * layer + self.width


class Linear(nn.Linear):
    def reset_parameters(self) -> None:
        """Nothing: `Transformer.initialise` sets all weights; PyTorch's way draws from its global generator."""


class Embedding(nn.Embedding):
    def reset_parameters(self) -> None:
        """Nothing, as in `Linear`."""


class Attention(nn.Module):
    """Causal self-attention; query heads share `key_heads` keys and values."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.head_width = config.head_width
        self.grouped = config.key_heads != config.heads
        self.q_proj = Linear(config.width, config.width, bias=False)
        self.k_proj = Linear(config.width, config.key_heads * config.head_width, bias=False)
        self.v_proj = Linear(config.width, config.key_heads * config.head_width, bias=False)
        self.o_proj = Linear(config.width, config.width, bias=False)

    def forward(self, x: Tensor, rotation: Rotation) -> Tensor:
        heads = (*x.shape[:2], -1, self.head_width)
        q = rotate(self.q_proj(x).view(heads), rotation).transpose(1, 2)
        k = rotate(self.k_proj(x).view(heads), rotation).transpose(1, 2)
        v = self.v_proj(x).view(heads).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.grouped)
        out: Tensor = self.o_proj(mixed.transpose(1, 2).flatten(2))
        return out


class SwiGLU(nn.Module):
    """The MLP: one projection gates the other."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(config.width, config.mlp_width, bias=False)
        self.up_proj = Linear(config.width, config.mlp_width, bias=False)
        self.down_proj = Linear(config.mlp_width, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Block(nn.Module):
    """Attention, then MLP, each on a normalised copy of the residual stream."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.width, config.norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = nn.RMSNorm(config.width, config.norm_eps)
        self.mlp = SwiGLU(config)

    def forward(self, x: Tensor, rotation: Rotation) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rotation)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Decoder(nn.Module):
    """Tokens to the last hidden states."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.embed_tokens = Embedding(config.vocab_size, config.width)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.width, config.norm_eps)
        cos, sin = _rotation(config)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        time = tokens.shape[1]
        rotation = (self.get_buffer("cos")[:time], self.get_buffer("sin")[:time])
        x: Tensor = self.embed_tokens(tokens)
        for block in self.layers:
            x = block(x, rotation)
        out: Tensor = self.norm(x)
        return out


class Transformer(nn.Module):
    """A language model. It starts with the weights of seed 0."""

    def __init__(self, config: TransformerConfig) -> None:
        self._build(config)
        self.initialise(0)

    @classmethod
    def unset(cls, config: TransformerConfig) -> Self:
        """A model whose weights are whatever lay in memory: for who sets them."""
        made = cls.__new__(cls)
        made._build(config)
        return made

    @classmethod
    def holding(cls, config: TransformerConfig, weights: Mapping[str, Tensor]) -> Self:
        """A model of these weights, by name of parameter, tied ones once. They are kept, not copied.

        InvalidTensor where one is missing, left over, or of another shape or type than float32.
        """
        held = sum(weight.numel() for weight in weights.values())
        if held != config.parameters:
            raise InvalidTensor(f"it holds {held} numbers; the model has {config.parameters}")
        if config.context * config.head_width > MOST_ROTATIONS:
            raise InvalidTensor(f"a context of {config.context} tokens is too long for a model of this width")
        made = cls.unset(config)
        places = dict(made.named_parameters())
        for name in sorted(places.keys() | weights.keys()):
            if name not in weights or name not in places:
                raise InvalidTensor(f"{name} is {'missing' if name in places else 'no tensor of such a model'}")
            if weights[name].shape != places[name].shape or weights[name].dtype != torch.float32:
                found, wanted = (list(tensor.shape) for tensor in (weights[name], places[name]))
                raise InvalidTensor(f"{name} is {weights[name].dtype} {found}; the model takes float32 {wanted}")
        made.load_state_dict(weights, strict=False, assign=True)
        made._tie()
        return made

    def _build(self, config: TransformerConfig) -> None:
        """All but the values of the weights."""
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.lm_head = Linear(config.width, config.vocab_size, bias=False)
        self._tie()

    def _tie(self) -> None:
        if self.config.tie_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def initialise(self, seed: int) -> None:
        """Set every weight anew, as `seed` and its name say.

        Normal with deviation 0.02; what writes to the residual stream is scaled by 1/sqrt(2 * layers), so that its
        variance doesn't grow with depth (Radford et al., 2019).
        """
        for name, weight in self.named_parameters():
            if weight.ndim == 1:
                nn.init.ones_(weight)
                continue
            residual = name.endswith(("o_proj.weight", "down_proj.weight"))
            deviation = 0.02 / sqrt(2 * self.config.layers) if residual else 0.02
            values = normal((seed, "init", name), weight.shape)
            with torch.no_grad():
                weight.copy_(torch.from_numpy(values * np.float32(deviation)))

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [batch, time, vocab] of the token after each of `tokens` [batch, time], time <= context."""
        if tokens.shape[1] > self.config.context:
            raise InvalidTensor(f"{tokens.shape[1]} tokens don't fit the model's context of {self.config.context}")
        logits: Tensor = self.lm_head(self.model(tokens))
        return logits

    def loss(self, tokens: Tensor) -> Tensor:
        """Mean cross entropy, in nats per token, of each of `tokens` [batch, time + 1] given those before it."""
        logits = self(tokens[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())

    @torch.no_grad()
    def generate(self, tokens: Tensor, n: int, temperature: float, rng: np.random.Generator) -> Tensor:
        """`tokens` [batch, time >= 1] and `n` more after them; at temperature 0 always the likeliest."""
        for _ in range(n):
            logits = self(tokens[:, -self.config.context :])[:, -1]
            # argmax(logits / t + Gumbel noise) samples softmax(logits / t); times t it holds for t = 0 too.
            noise = torch.from_numpy(rng.gumbel(size=logits.shape)).to(logits)
            tokens = torch.cat((tokens, (logits + temperature * noise).argmax(-1, keepdim=True)), dim=1)
        return tokens


def _rotation(config: TransformerConfig) -> Rotation:
    """Element i of a head turns together with element i + head_width / 2, as in Hugging Face's models."""
    frequency = config.rope_theta ** (-torch.arange(0, config.head_width, 2) / config.head_width)
    angle = torch.outer(torch.arange(config.context), frequency)[:, None]
    return torch.cat((angle.cos(), angle.cos()), -1), torch.cat((-angle.sin(), angle.sin()), -1)


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    cos, sin = rotation
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)
