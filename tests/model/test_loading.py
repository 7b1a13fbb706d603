"""A real model, against an independent implementation: transformers, and for tokens a BPE of a few lines.

The real one is fetched once into the user's cache. Small ones written here stand for what it doesn't have.
"""

import json
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import regex
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from atoll.errors import InvalidData
from atoll.model import llama
from atoll.model.gguf import GGUF
from atoll.model.loading import describe, load, read_chat, read_tokenizer
from atoll.model.saved import save_model
from atoll.model.tokenizer import ByteTokenizer, byte_symbols
from atoll.model.transformer import Transformer, TransformerConfig
from tests.model.gguf_files import TOKENS, gguf, metadata, tensors

SAMPLE = [
    "Hello world! 123",
    "The capital of France is",
    "def f(x: int) -> int:\n\treturn x ** 2  # squares\n\n\n\nif __name__ == '__main__':\n    print(f(12_345))\n",
    "for(;;){a[i++]^=b[j]<<3|c->d;}//\t\t\ttabs\r\n\r\nand CRLF",
    '{"a": [1, 2.5e-10, null], "b": "\\u00e9\\n"}',
    "   leading, trailing   ",
    " \t \n \n\n  \u00a0\u2003\u3000 \u2028\u200b x",
    "I'll, we've, it's, DON'T, he'd, they're, 'tis, l'été, O’Neill",
    "🏝🏝 👩‍👩‍👧‍👦 🇫🇷 👍🏽 ☃️ \U0001fae8 \U0010ffff",
    "日本語の文章と、한국어 문장, 简体中文。繁體中文！ไทย",
    "Привет, мир! Ελληνικά, עברית, العربية, हिन्दी",
    "naïve café ﬁn e\u0301 ẞ ǅ",
    "1234567890 0.001 1,000,000 3x4 a1b2c3 v1.2.3-rc4",
    "<|im_start|>user\nWho?<|im_end|>\n<|endoftext|><file_sep>plain<|im_star t|>",
    "\x00\x01\x7f\x80\xad\xff",
    "",
    "a" * 500,
    " " * 300 + "." * 300,
    "https://example.org/~a/b?c=d&e=%20#f_g, user@host.tld, C:\\dir\\file",
]
DIGITS = "العربية ١٢٣, हिन्दी १२३, ½ ² Ⅷ ４５"
"""Transformers takes no notice of `tokenizer.ggml.pre`, by which each is a piece of its own: only by the book."""
TALK = [{"role": "user", "content": "Which city is the capital of France?"}]


@cache
def transformers_tokenizer(path: Path):
    return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


@cache
def ours(path: Path):
    return read_tokenizer(GGUF.open(path))


def by_the_book(file: GGUF, text: str) -> list[int]:
    """Cut, then merge the pair of the lowest rank, again and again (Sennrich et al., 2016). No special tokens."""
    tokens = {spelling: token for token, spelling in enumerate(file.metadata["tokenizer.ggml.tokens"])}
    ranks = {merge: rank for rank, merge in enumerate(file.metadata["tokenizer.ggml.merges"])}
    symbols = byte_symbols()
    found = []
    for digitless in regex.findall(r"\p{N}|[^\p{N}]+", text):
        for piece in regex.findall(
            r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+", digitless
        ):
            parts = [symbols[byte] for byte in piece.encode()]
            while len(parts) > 1:
                pairs = [ranks.get(f"{a} {b}", len(ranks)) for a, b in pairwise(parts)]
                best = min(range(len(pairs)), key=pairs.__getitem__)
                if pairs[best] == len(ranks):
                    break
                parts[best : best + 2] = [parts[best] + parts[best + 1]]
            found += [tokens[part] for part in parts]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("text", SAMPLE)
def test_tokens_are_those_of_transformers(smollm2, text):
    theirs, tokenizer = transformers_tokenizer(smollm2), ours(smollm2)
    tokens = tokenizer.encode(text)
    assert [*tokenizer.prefix, *tokens] == theirs(text)["input_ids"]
    assert tokenizer.decode(tokens) == theirs.decode(tokens, skip_special_tokens=True)


@pytest.mark.parametrize("text", [*SAMPLE, DIGITS])
def test_a_text_comes_back_whole_and_in_pieces(smollm2, text):
    tokenizer = ours(smollm2)
    tokens = tokenizer.encode(text)
    for special in ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<file_sep>"):
        text = text.replace(special, "")
    assert tokenizer.decode(tokens) == text
    stream = tokenizer.pieces()
    assert "".join([*map(stream.push, tokens), stream.end()]) == text


def test_tokens_are_those_of_a_bpe_by_the_book(smollm2):
    file, tokenizer = GGUF.open(smollm2), ours(smollm2)
    for text in (*SAMPLE, DIGITS):
        if "<|" not in text:
            assert tokenizer.encode(text) == by_the_book(file, text), text


def test_known_tokens(smollm2):
    """As others have published them for this model."""
    assert ours(smollm2).encode("Hello world! 123") == [19556, 905, 17, 216, 33, 34, 35]
    assert ours(smollm2).encode("\n") == [198]


@pytest.mark.slow
@pytest.mark.parametrize(
    "talk",
    [
        TALK,
        [{"role": "system", "content": "Be brief."}, *TALK, {"role": "assistant", "content": "Paris."}, *TALK],
        [{"role": "user", "content": " \n<b>é</b> 🏝 {{ x }} {% endfor %}\n"}],
    ],
)
def test_the_text_of_a_conversation_is_that_of_transformers(smollm2, talk):
    file = GGUF.open(smollm2)
    text = read_chat(file, ours(smollm2)).text(talk)
    theirs = transformers_tokenizer(smollm2)
    assert text == theirs.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
    assert ours(smollm2).encode(text) == theirs.apply_chat_template(talk, add_generation_prompt=True)["input_ids"]


def test_what_the_file_says_of_itself(smollm2):
    about = describe(smollm2, "smollm2")
    assert (about.parameters, about.quantisation, about.context) == (134515008, "Q4_1", 8192)
    assert ours(smollm2).ends >= {2}


@cache
def whole(path: Path):
    return load(path)


@pytest.mark.slow
@pytest.mark.timeout(600)
@torch.inference_mode()
def test_logits_are_those_of_transformers(smollm2):
    loaded = whole(smollm2)
    theirs = _of_transformers(smollm2)
    text = " ".join(SAMPLE[:5]) + " " + (Path(__file__).parents[2] / "README.md").read_text("utf-8")
    tokens = torch.tensor([loaded.tokenizer.encode(text)[:200]])
    assert tokens.shape == (1, 200)
    found, wanted = loaded.weights.transformer()(tokens), theirs(tokens).logits
    apart = (found - wanted).abs().max().item()
    print(f"largest difference of logits: {apart:.1e}, of {wanted.abs().max():.0f}")
    assert apart < 1e-3
    assert torch.equal(found.argmax(-1), wanted.argmax(-1))
    weights = theirs.state_dict()
    for name, weight in loaded.weights.transformer().named_parameters():
        assert torch.equal(weight, weights[name]), name


@pytest.mark.slow
@pytest.mark.timeout(600)
@torch.inference_mode()
def test_it_knows_a_capital(smollm2):
    loaded = whole(smollm2)
    prompt = loaded.tokenizer.encode(loaded.chat.text(TALK))
    said = loaded.weights.transformer().generate(torch.tensor([prompt]), 9, 0.0, np.random.default_rng(0))[
        0, len(prompt) :
    ]
    assert "Paris" in loaded.tokenizer.decode(said.tolist())


def _of_transformers(path: Path) -> LlamaForCausalLM:
    """Read by transformers, without its detour over random weights."""
    file = llama.read_config(GGUF.open(path))  # the shape only
    config = LlamaConfig(
        vocab_size=file.vocab_size, hidden_size=file.width, intermediate_size=file.mlp_width,
        num_hidden_layers=file.layers, num_attention_heads=file.heads, num_key_value_heads=file.key_heads,
    )  # fmt: skip
    with torch.device("meta"):
        empty = LlamaForCausalLM(config)
    read = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=empty)
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**{**read["config"], "tie_word_embeddings": True}))
    model.load_state_dict({name: tensor.float() for name, tensor in read["tensors"].items()}, strict=False, assign=True)
    model.tie_weights()
    model.model.rotary_emb = LlamaRotaryEmbedding(model.config)
    return model.eval()


def test_a_small_file_is_all_there(tmp_path):
    path = tmp_path / "small.gguf"
    path.write_bytes(gguf(metadata(), tensors()))
    loaded = load(path)
    assert loaded.name == "Small"
    assert loaded.weights.transformer().config.rope_theta == 5000.0
    assert loaded.tokenizer.ends == {TOKENS.index("<|end|>")}
    text = loaded.chat.text([{"role": "user", "content": "hello"}])
    assert text == "<|start|>user\nhello<|end|>\n<|start|>assistant\n"
    assert loaded.tokenizer.encode(text)[0] == TOKENS.index("<|start|>")
    assert describe(path, "x").quantisation == "F32"
    assert describe(path, "x").parameters == loaded.weights.transformer().config.parameters


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"tokenizer.ggml.model": "llama"}, "tokenizer.ggml.model is 'llama'"),
        ({"tokenizer.ggml.model": None}, "has no tokenizer.ggml.model"),
        ({"tokenizer.ggml.tokens": None}, "has no tokenizer.ggml.tokens"),
        ({"tokenizer.ggml.tokens": np.arange(9, dtype=np.int32)}, "tokenizer.ggml.tokens is no list"),
        ({"tokenizer.ggml.tokens": [["a"]]}, "tokenizer.ggml.tokens is no list of texts"),
        ({"tokenizer.ggml.merges": None}, "has no tokenizer.ggml.merges"),
        ({"tokenizer.ggml.merges": ["h zz"]}, "tokenizer.ggml: the merges don't fit"),
        ({"tokenizer.ggml.pre": None}, "has no tokenizer.ggml.pre"),
        ({"tokenizer.ggml.pre": "qwen9"}, "tokenizer.ggml: .*'qwen9'"),
        ({"tokenizer.ggml.token_type": None}, "tokenizer.ggml.token_type isn't there for each"),
        ({"tokenizer.ggml.token_type": np.ones(3, np.int32)}, "tokenizer.ggml.token_type isn't there for each"),
        ({"tokenizer.ggml.token_type": 3}, "tokenizer.ggml.token_type isn't there for each"),
        ({"tokenizer.ggml.eos_token_id": 9999}, "tokenizer.ggml: the special token 9999"),
        ({"tokenizer.ggml.bos_token_id": "x"}, "tokenizer.ggml.bos_token_id is no whole number"),
        ({"tokenizer.ggml.padding_token_id": 9999}, "tokenizer.ggml.padding_token_id is 9999"),
        ({"tokenizer.chat_template": "{% for %}"}, "tokenizer.chat_template: the chat template is no template"),
        ({"tokenizer.chat_template": 3}, "tokenizer.chat_template is no text"),
    ],
)
def test_a_file_without_sound_tokens_is_refused_by_the_field(tmp_path, changed, named):
    path = tmp_path / "small.gguf"
    held = {key: value for key, value in {**metadata(), **changed}.items() if value is not None}
    path.write_bytes(gguf(held, tensors()))
    with pytest.raises(InvalidData, match=rf"small\.gguf: .*{named}") as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_more_tokens_than_the_model_knows_are_refused(tmp_path):
    path = tmp_path / "small.gguf"
    held = {**metadata(), "tokenizer.ggml.tokens": [*TOKENS, "more"]}
    held["tokenizer.ggml.token_type"] = np.append(held["tokenizer.ggml.token_type"], np.int32(1))
    path.write_bytes(gguf(held, tensors()))
    with pytest.raises(InvalidData, match=f"has {len(TOKENS) + 1} tokens, and a model that knows {len(TOKENS)}"):
        load(path)


@pytest.fixture
def folder(tmp_path):
    """A model as `atoll train` saves it."""
    model = Transformer(TransformerConfig(width=16, layers=1, heads=2, context=16))
    save_model(tmp_path / "mine", model, ByteTokenizer())
    return tmp_path / "mine"


def test_what_was_trained_here_is_loaded(folder):
    loaded = load(folder)
    assert (loaded.name, loaded.chat, loaded.tokenizer.ends) == ("mine", None, frozenset())
    assert loaded.tokenizer.encode("é") == list("é".encode())
    x = torch.arange(16)[None]
    assert torch.equal(loaded.weights.transformer()(x), Transformer(loaded.weights.transformer().config)(x))
    about = describe(folder, "mine")
    assert (about.parameters, about.quantisation) == (loaded.weights.transformer().config.parameters, "F32")


@pytest.mark.parametrize("where", ["tokenizer_config.json", "named", "chat_template.jinja"])
def test_templates_and_ends_of_a_folder_are_found(folder, where):
    template = "{{ eos_token }}{{ messages[0].content }}"
    about = {"eos_token": {"content": "!", "special": True}, "bos_token": None}
    if where == "chat_template.jinja":
        (folder / where).write_text(template)
    else:
        named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": template}]
        about["chat_template"] = template if where == "tokenizer_config.json" else named
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 9]}))
    loaded = load(folder)
    assert loaded.chat.text([{"role": "user", "content": "x"}]) == "!x"
    assert loaded.tokenizer.ends == {ord("!"), 7, 9}


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json", "model.safetensors"])
@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe{", b"{}"])
def test_a_broken_file_of_a_folder_is_named(folder, name, content):
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(InvalidData, match=name.replace(".", r"\.")):
        load(folder)
