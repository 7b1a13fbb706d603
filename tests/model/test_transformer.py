import math

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from atoll.errors import InvalidConfig, InvalidTensor
from atoll.model.transformer import Transformer, TransformerConfig

SMALL = TransformerConfig(vocab_size=61, width=32, layers=2, heads=4, context=16)


def tokens(batch: int = 2, time: int = 16, vocab_size: int = 61) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(vocab_size, size=(batch, time)))


@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        TransformerConfig(vocab_size=61, width=32, layers=1, heads=4, kv_heads=2, hidden=40, context=16),
        TransformerConfig(
            vocab_size=61, width=32, layers=1, heads=2, rope_theta=500.0, context=16, tie_embeddings=False
        ),
    ],
    ids=["plain", "grouped queries", "untied"],
)
def test_is_hugging_faces_llama(config):
    """The same weights by the same names give the same logits, loss and gradients."""
    theirs = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.width,
            intermediate_size=config.mlp_width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.key_heads,
            max_position_embeddings=config.context,
            rms_norm_eps=config.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            tie_word_embeddings=config.tie_embeddings,
        )
    )
    ours = Transformer(config)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = tokens()
    torch.testing.assert_close(ours(x), theirs(x).logits, atol=1e-5, rtol=1e-4)

    loss, reference = ours.loss(x), theirs(x, labels=x).loss
    torch.testing.assert_close(loss, reference, atol=1e-5, rtol=1e-5)
    loss.backward()
    reference.backward()
    gradients = {name: weight.grad for name, weight in theirs.named_parameters()}
    for name, weight in ours.named_parameters():
        torch.testing.assert_close(weight.grad, gradients[name], atol=1e-5, rtol=1e-3, msg=name)


def test_sees_only_what_came_before():
    model, x = Transformer(SMALL), tokens(1)
    changed = x.clone()
    changed[0, 9] = (x[0, 9] + 1) % 61
    same = (model(x) == model(changed)).all(-1)[0]
    assert same[:9].all()
    assert not same[9:].any()


def test_shorter_texts_give_the_same_logits():
    model, x = Transformer(SMALL), tokens()
    torch.testing.assert_close(model(x[:, :5]), model(x)[:, :5])


def test_refuses_more_tokens_than_its_context():
    with pytest.raises(InvalidTensor, match="17 tokens"):
        Transformer(SMALL)(tokens(time=17))


def test_initial_weights_depend_on_seed_and_name_only():
    torch.manual_seed(1)
    one = Transformer(SMALL)
    one.initialise(7)
    torch.manual_seed(2)
    two = Transformer(TransformerConfig(vocab_size=61, width=32, layers=1, heads=4, context=8))
    two.initialise(7)
    weights = dict(one.named_parameters())
    for name, weight in two.named_parameters():
        if not name.endswith(("o_proj.weight", "down_proj.weight")):  # these are scaled by the number of layers
            assert torch.equal(weight, weights[name]), name
    two.initialise(8)
    assert not torch.equal(two.model.embed_tokens.weight, one.model.embed_tokens.weight)


def test_making_a_model_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    Transformer(SMALL)
    assert torch.equal(before, torch.random.get_rng_state())


def test_initial_deviations():
    model = Transformer(TransformerConfig(width=128, layers=2))
    attention = model.model.layers[1].self_attn
    assert attention.q_proj.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert attention.o_proj.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert torch.equal(model.model.norm.weight, torch.ones(128))


def test_an_untrained_model_knows_nothing():
    assert Transformer(SMALL).loss(tokens(8)).item() == pytest.approx(math.log(61), abs=0.05)


def test_learns_a_text_by_heart_and_recites_it():
    text = torch.arange(17)[None] * 7 % 61
    model = Transformer(SMALL)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        model.loss(text).backward()
        optimizer.step()
    assert model.loss(text).item() < 0.1
    recited = model.generate(text[:, :1], 16, temperature=0, rng=np.random.default_rng(0))
    assert torch.equal(recited, text)


def test_generates_beyond_its_context():
    out = Transformer(SMALL).generate(tokens(2, 10), 20, temperature=1.0, rng=np.random.default_rng(0))
    assert out.shape == (2, 30)
    assert torch.equal(out[:, :10], tokens(2, 10))


def test_samples_from_the_softmax_at_the_temperature():
    model = Transformer(TransformerConfig(vocab_size=4, width=8, layers=1, heads=1, context=4))
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(30)
    x = torch.tensor([[1, 2]])
    drawn = model.generate(x.expand(20000, -1), 1, temperature=2.0, rng=np.random.default_rng(0))[:, -1]
    expected = (model(x)[0, -1] / 2.0).softmax(-1)
    assert expected.max() - expected.min() > 0.02
    torch.testing.assert_close(drawn.bincount(minlength=4) / 20000, expected, atol=0.015, rtol=0)


@pytest.mark.parametrize("tied", [True, False])
def test_holds_the_weights_it_is_given_without_a_copy(tied):
    config = TransformerConfig(vocab_size=61, width=32, layers=2, heads=4, context=16, tie_embeddings=tied)
    weights = {name: weight.detach() + 1 for name, weight in Transformer(config).named_parameters()}
    held = Transformer.holding(config, weights)
    for name, weight in held.named_parameters():
        assert weight.data_ptr() == weights[name].data_ptr()
        assert weight.requires_grad
    assert (held.lm_head.weight is held.model.embed_tokens.weight) == tied
    copied = Transformer(config)
    copied.load_state_dict(weights, strict=False)
    assert torch.equal(held(tokens()), copied(tokens()))


def test_holds_nothing_that_does_not_fit():
    weights = dict(Transformer(SMALL).named_parameters())
    norm = weights.pop("model.norm.weight")
    for changed, named in (
        ({}, "holds"),
        ({"norm": norm}, "model.norm.weight is missing"),
        ({"model.norm.weight": norm.reshape(4, 8)}, r"model.norm.weight is .*\[4, 8\]; the model takes float32 \[32\]"),
        ({"model.norm.weight": norm.double()}, "model.norm.weight is torch.float64"),
    ):
        with pytest.raises(InvalidTensor, match=named):
            Transformer.holding(SMALL, {**weights, **changed})
    huge = TransformerConfig(**{**vars(SMALL), "context": 1 << 40})
    with pytest.raises(InvalidTensor, match="context"):
        Transformer.holding(huge, {**weights, "model.norm.weight": norm})


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"width": 100, "heads": 3}, "width 100"),
        ({"width": 12, "heads": 4}, "width 12"),  # heads of width 3 can't be turned by pairs
        ({"heads": 4, "kv_heads": 3}, "kv_heads"),
        ({"layers": 0}, "layers"),
        ({"hidden": 0}, "hidden"),
        ({"norm_eps": float("nan")}, "norm_eps"),
        ({"heads": 0}, "heads"),
    ],
)
def test_settings_that_do_not_fit_are_named(settings, named):
    with pytest.raises(InvalidConfig, match=named):
        TransformerConfig(**settings)


@pytest.mark.parametrize(("width", "hidden"), [(128, 352), (192, 512), (256, 704)])
def test_default_mlp_width(width, hidden):
    assert TransformerConfig(width=width).mlp_width == hidden
