import pytest
import torch
from torch import nn

from atoll.errors import InvalidConfig
from atoll.model.transformer import Transformer, TransformerConfig
from atoll.train.flat import FlatModel
from atoll.train.fragments import FragmentPlan


def model(layers: int = 6, tied: bool = True) -> Transformer:
    return Transformer(TransformerConfig(width=16, layers=layers, heads=2, context=16, tie_embeddings=tied))


def layers_of(plan: FragmentPlan) -> list[list[int]]:
    return [sorted({int(n.split(".")[2]) for n in names if ".layers." in n}) for names in plan.fragments]


@pytest.mark.parametrize(
    ("fragments", "strided", "sequential"),
    [
        (1, [[0, 1, 2, 3, 4, 5]], [[0, 1, 2, 3, 4, 5]]),
        (2, [[0, 2, 4], [1, 3, 5]], [[0, 1, 2], [3, 4, 5]]),
        (4, [[0, 4], [1, 5], [2], [3]], [[0, 1], [2], [3, 4], [5]]),
        (6, [[0], [1], [2], [3], [4], [5]], [[0], [1], [2], [3], [4], [5]]),
    ],
)
def test_blocks_are_dealt_whole(fragments, strided, sequential):
    assert layers_of(FragmentPlan.of(model(), fragments, "strided")) == strided
    assert layers_of(FragmentPlan.of(model(), fragments, "sequential")) == sequential


@pytest.mark.parametrize("pattern", ["strided", "sequential"])
def test_embeddings_go_first_and_norm_and_head_last(pattern):
    first, *_, last = FragmentPlan.of(model(tied=False), 3, pattern).fragments
    assert "model.embed_tokens.weight" in first
    assert {"model.norm.weight", "lm_head.weight"} <= set(last)
    first, *_, last = FragmentPlan.of(model(), 3, pattern).fragments  # tied: one tensor
    assert "lm_head.weight" not in last


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("pattern", ["strided", "sequential"])
@pytest.mark.parametrize("fragments", range(1, 7))
def test_each_parameter_is_in_one_slice_of_its_fragment(fragments, pattern, tied):
    """Told by addresses, which the plan doesn't know."""
    module = model(tied=tied)
    plan = FragmentPlan.of(module, fragments, pattern)
    plan.check(module)
    flat = FlatModel(module, plan)
    assert [s.start for s in flat.fragments] == [0, *[s.stop for s in flat.fragments[:-1]]]
    assert flat.fragments[-1].stop == flat.parameters.numel() == sum(p.numel() for p in module.parameters())
    base, filled = flat.parameters.data_ptr(), torch.zeros(flat.parameters.numel(), dtype=torch.int)
    where = dict(module.named_parameters())
    for part, names in zip(flat.fragments, plan.fragments, strict=True):
        for name in names:
            at = (where[name].data_ptr() - base) // 4
            assert part.start <= at <= at + where[name].numel() <= part.stop
            filled[at : at + where[name].numel()] += 1
            inside = flat.matrices if where[name].dim() > 1 else flat.vectors
            assert any(s.start <= at < s.stop for s in inside)
    assert (filled == 1).all()


def test_a_model_without_blocks_is_one_fragment():
    plan = FragmentPlan.of(nn.Linear(3, 4))
    assert plan.fragments == (("weight", "bias"),)
    with pytest.raises(InvalidConfig, match="fragments must be from 1 to 1, whole blocks"):
        FragmentPlan.of(nn.Linear(3, 4), 2)


def test_a_sequence_of_layers_has_blocks_too():
    module = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2))
    assert FragmentPlan.of(module, 2).fragments == (("0.weight", "0.bias"), ("2.weight", "2.bias"))


NAMES = tuple(name for name, _ in model(1).named_parameters())


@pytest.mark.parametrize(
    ("fragments", "says"),
    [
        ((NAMES, NAMES[:1]), "model.embed_tokens.weight is in 2 fragments"),
        ((NAMES, ("lm_head.weight",)), "is in 2 fragments"),  # another name of the same tensor
        ((NAMES[:-1],), "model.norm.weight is in no fragment"),
        ((NAMES, ()), "number 1 holds no parameter"),
        ((NAMES, ("w",)), "no parameter 'w'"),
    ],
)
def test_what_is_no_partition_is_refused(fragments, says):
    with pytest.raises(InvalidConfig, match=says):
        FlatModel(model(1), FragmentPlan(fragments))


@pytest.mark.parametrize("fragments", [0, 7])
def test_more_fragments_than_blocks_are_refused(fragments):
    with pytest.raises(InvalidConfig, match="fragments must be from 1 to"):
        FragmentPlan.of(model(6), fragments)
