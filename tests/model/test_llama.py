from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import quantize
from transformers import LlamaConfig, LlamaForCausalLM

from atoll.errors import InvalidData
from atoll.model import llama
from atoll.model.gguf import GGUF
from atoll.model.transformer import rotate
from tests.model.gguf_files import HEADS, KEY_HEADS, LAYERS, TOKENS, WIDTH, gguf, metadata, tensors


def file(changed_metadata=None, changed_tensors=None, tied=True) -> GGUF:
    return GGUF(Path("a.gguf"), gguf({**metadata(), **(changed_metadata or {})}, changed_tensors or tensors(tied=tied)))


def rotated_by_neighbours(x: np.ndarray, theta: float) -> np.ndarray:
    """llama.cpp's rotation of `x` [time, heads, head width]: elements 2i and 2i + 1 turn together."""
    time, _, width = x.shape
    angle = np.arange(time)[:, None] * theta ** (-np.arange(0, width, 2) / width)
    turn = np.exp(1j * angle)[:, None]
    turned = (x[..., 0::2] + 1j * x[..., 1::2]) * turn
    return np.stack((turned.real, turned.imag), -1).reshape(x.shape)


def test_attention_scores_are_those_of_the_files_own_layout():
    """q and k of the file, rotated as llama.cpp does, score as ours do: by each head's dot products over time."""
    held = tensors()
    shape = (WIDTH, WIDTH)
    q = np.frombuffer(held["blk.0.attn_q.weight"][2], "<f4").reshape(shape)
    k = np.frombuffer(held["blk.0.attn_k.weight"][2], "<f4").reshape(WIDTH * KEY_HEADS // HEADS, WIDTH)
    model = llama.read(file()).transformer()
    x = np.random.default_rng(5).normal(size=(9, WIDTH)).astype(np.float32)

    def scores(queries, keys):
        return np.einsum("thd,shd->hts", queries, np.repeat(keys, HEADS // KEY_HEADS, axis=1))

    head = WIDTH // HEADS
    wanted = scores(
        rotated_by_neighbours((x @ q.T).reshape(9, HEADS, head), 5000.0),
        rotated_by_neighbours((x @ k.T).reshape(9, KEY_HEADS, head), 5000.0),
    )
    attention = model.model.layers[0].self_attn
    rotation = (model.model.cos[:9], model.model.sin[:9])
    with torch.inference_mode():
        ours = [
            rotate(projection(torch.from_numpy(x)).view(1, 9, -1, head), rotation)[0].numpy()
            for projection in (attention.q_proj, attention.k_proj)
        ]
    np.testing.assert_allclose(scores(*ours), wanted, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("tied", [True, False])
def test_logits_are_those_of_transformers_with_the_files_weights(tied):
    held = tensors(tied=tied)
    theirs = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(TOKENS),
            hidden_size=WIDTH,
            intermediate_size=96,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=KEY_HEADS,
            max_position_embeddings=128,
            rms_norm_eps=1e-5,
            rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
            tie_word_embeddings=tied,
        )
    ).eval()
    names = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    inside = {
        "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
    }  # fmt: skip
    state = {}
    for name, (_, shape, data) in held.items():
        weight = torch.from_numpy(np.frombuffer(data, "<f4").reshape(shape).copy())
        parts = name.split(".")
        if parts[0] != "blk":
            state[f"{names[parts[0]]}.weight"] = weight
            continue
        if parts[2] in ("attn_q", "attn_k"):  # undo what the converter did, head by head
            heads = HEADS if parts[2] == "attn_q" else KEY_HEADS
            weight = torch.cat([torch.cat((head[0::2], head[1::2])) for head in weight.chunk(heads)])
        state[f"model.layers.{parts[1]}.{inside[parts[2]]}.weight"] = weight
    theirs.load_state_dict(state, strict=not tied)
    x = torch.from_numpy(np.random.default_rng(0).integers(len(TOKENS), size=(2, 60)))
    with torch.inference_mode():
        torch.testing.assert_close(llama.read(file(tied=tied)).transformer()(x), theirs(x).logits, atol=1e-4, rtol=1e-4)


def test_packed_rows_in_our_order_unpack_to_the_models_weights():
    held = tensors()
    for name, (_, shape, data) in list(held.items()):
        if len(shape) == 2:
            packed = quantize(np.frombuffer(data, "<f4").reshape(shape), GGMLQuantizationType.Q8_0)
            held[name] = (8, shape, packed.tobytes())
    packed_file = file(changed_tensors=held)
    packed = llama.read(packed_file)
    weights = dict(packed.transformer().named_parameters())
    for place in llama.places(packed.config):
        if (matrix := packed.matrices.get(place.name)) is None:
            continue
        numbers = matrix.packing.unpack(np.ascontiguousarray(matrix.rows).reshape(-1, matrix.packing.nbytes))
        np.testing.assert_array_equal(numbers.reshape(weights[place.name].shape), weights[place.name].detach())
        assert matrix.rows.flags.writeable == bool(place.heads), "copied without need"


def without(key: str) -> dict:
    return {name: held for name, held in metadata().items() if name != key}


@pytest.mark.parametrize(
    "key",
    [
        "general.architecture", "llama.block_count", "llama.context_length", "llama.embedding_length",
        "llama.feed_forward_length", "llama.attention.head_count", "llama.attention.layer_norm_rms_epsilon",
    ],
)  # fmt: skip
def test_a_missing_field_is_named(key):
    with pytest.raises(InvalidData, match=rf"^a\.gguf: has no {key}$"):
        llama.read(GGUF(Path("a.gguf"), gguf(without(key), tensors())))


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"general.architecture": "gemma"}, "general.architecture is 'gemma'; known here: llama"),
        ({"llama.rope.scaling.type": "yarn"}, "llama.rope.scaling.type is 'yarn'"),
        ({"llama.expert_count": 8}, "llama.expert_count is 8"),
        ({"llama.attention.key_length": 32}, "llama.attention.key_length is 32"),
        ({"llama.attention.head_count_kv": np.array([2, 2], np.int32)}, "llama.attention.head_count_kv is no whole"),
        ({"llama.attention.head_count": 5}, "describes no model known here"),
        ({"llama.block_count": 1 << 31}, "has no tensor blk.2.attn_norm.weight"),
        ({"llama.block_count": 1}, "holds blk.1"),
        ({"llama.feed_forward_length": 64}, "the model it describes takes"),
        ({"llama.context_length": 1 << 31}, "context"),
        ({"split.count": 3}, "split.count is 3"),
    ],
)
def test_what_no_model_here_can_be_is_named(changed, named):
    with pytest.raises(InvalidData, match=rf"^a\.gguf: .*{named}"):
        llama.read(file(changed))


@pytest.mark.parametrize(
    ("name", "tensor", "named"),
    [
        ("blk.0.attn_q.weight", None, "has no tensor blk.0.attn_q.weight"),
        ("token_embd.weight", None, "has no tensor token_embd.weight"),
        ("blk.1.attn_q.bias", (0, (WIDTH,), bytes(4 * WIDTH)), "holds blk.1.attn_q.bias"),
        ("rope_freqs.weight", (0, (8,), bytes(32)), "holds rope_freqs.weight"),
        ("blk.0.attn_k.weight", (0, (8, WIDTH), bytes(32 * WIDTH)), "blk.0.attn_k.weight is"),
        ("blk.0.ffn_up.weight", (0, (WIDTH, 96), bytes(4 * 96 * WIDTH)), "blk.0.ffn_up.weight is"),
    ],
)
def test_a_tensor_that_is_missing_left_over_or_misshapen_is_named(name, tensor, named):
    changed = {**tensors(), name: tensor}
    if tensor is None:
        del changed[name]
    with pytest.raises(InvalidData, match=rf"^a\.gguf: .*{named}"):
        llama.read(file(changed_tensors=changed))
