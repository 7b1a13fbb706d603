import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from atoll.errors import InvalidData
from atoll.model.hugging_face import read_config, read_model

SHAPE = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-3,
}


def theirs(**changed) -> LlamaForCausalLM:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**{**SHAPE, **changed})).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn_like(weight) / 4)
    return model


def tokens() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(61, size=(2, 50)))


@pytest.mark.parametrize("shards", ["1GB", "20KB"], ids=["one file", "many files"])
@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"tie_word_embeddings": True},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 300.0}},
        {"num_key_value_heads": 4, "rms_norm_eps": 1e-6},
    ],
    ids=["plain", "tied", "theta", "defaults left out"],
)
def test_what_transformers_saves_is_the_same_model(tmp_path, changed, shards):
    saved = theirs(**changed)
    saved.save_pretrained(tmp_path, max_shard_size=shards)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shards == "20KB")
    with torch.inference_mode():
        torch.testing.assert_close(read_model(tmp_path)(tokens()), saved(tokens()).logits, atol=1e-4, rtol=1e-4)


def test_bfloat16_becomes_float32(tmp_path):
    saved = theirs().bfloat16()
    saved.save_pretrained(tmp_path)
    ours = read_model(tmp_path)
    wanted = dict(saved.named_parameters())
    for name, weight in ours.named_parameters():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, wanted[name].float()), name


def test_a_config_of_older_tools_is_read(tmp_path):
    old = {"model_type": "llama", **SHAPE, "rope_theta": 300.0, "rope_scaling": None, "torch_dtype": "float16"}
    (tmp_path / "config.json").write_text(json.dumps(old))
    config = read_config(tmp_path / "config.json")
    assert (config.rope_theta, config.key_heads, config.tie_embeddings) == (300.0, 2, False)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"model_type": "gpt2"}, "model_type is 'gpt2'"),
        ({"model_type": None}, "model_type is None"),
        ({"hidden_size": None}, "hidden_size"),
        ({"hidden_size": 30}, "hidden_size 30"),
        ({"num_hidden_layers": "two"}, "num_hidden_layers"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"head_dim": 16}, "head_dim is 16"),
        ({"sliding_window": 4096}, "sliding_window is 4096"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_scaling is of type 'llama3'"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_parameters is of type 'yarn'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ],
)
def test_what_no_model_here_can_be_is_named(tmp_path, changed, named):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **SHAPE, **changed}))
    with pytest.raises(InvalidData, match=rf"config\.json: .*{named}") as caught:
        read_config(tmp_path / "config.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "[]", "{", '"llama"', "[" * 5000])
def test_no_json_object_is_named(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(InvalidData, match=r"config\.json"):
        read_config(tmp_path / "config.json")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda w: w.pop("model.norm.weight"), "holds"),
        (lambda w: w.update({"model.norm.bias": torch.zeros(32)}), "holds"),
        (lambda w: w.update({"model.norms.weight": w.pop("model.norm.weight")}), "model.norm.weight is missing"),
        (lambda w: w.update({"model.norm.weight": torch.zeros(4, 8)}), r"model.norm.weight .*\[4, 8\]"),
        (lambda w: w.update({"model.norm.weight": torch.zeros(32, dtype=torch.int8)}), "model.norm.weight is of type"),
    ],
)
def test_weights_that_do_not_fit_are_named(tmp_path, change, named):
    saved = theirs()
    saved.config.save_pretrained(tmp_path)
    weights = {name: weight.detach().clone() for name, weight in saved.named_parameters()}
    change(weights)
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(InvalidData, match=rf"model\.safetensors: .*{named}"):
        read_model(tmp_path)


@pytest.mark.parametrize(
    "index", [{}, {"weight_map": {}}, {"weight_map": {"a": "../../etc/passwd"}}, {"weight_map": 3}]
)
def test_an_index_names_files_beside_it_or_is_refused(tmp_path, index):
    theirs().config.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InvalidData, match=r"index\.json"):
        read_model(tmp_path)
