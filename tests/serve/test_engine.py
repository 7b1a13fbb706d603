"""Every request gets the answer it would get alone, whatever else happens; nothing waits for ever, no page is lost."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from atoll.endpoint.api import Delta, Request, Sampling, Text, Tokens
from atoll.errors import ContextExceeded, DeadlineImpossible, InvalidRequest, Overloaded
from atoll.model.kernel import KernelModel
from atoll.model.packed import Packed
from atoll.model.paged import PAGE_TOKENS
from atoll.model.speculative import lookup
from atoll.model.torch_pages import TorchModel
from atoll.runtime.api import settle
from atoll.serve import engine as driver
from atoll.serve.engine import Engine
from atoll.serve.sampling import draw
from atoll.serve.scheduler import Limits
from tests.serve.bytes_model import END, Bytes, model
from tests.serve.page_model import PageModel, answer

GREEDY = Sampling(temperature=0)


def request(id: str, prompt, **options) -> Request:
    options = {"max_tokens": 10, "sampling": GREEDY, **options}
    return Request(id=id, model="m", prompt=Tokens(tuple(prompt)), **options)


def finish(engine: Engine) -> dict[str, list[Delta]]:
    """Step until nobody waits."""
    said: dict[str, list[Delta]] = {}
    steps = 0
    while engine.busy:
        for id, delta in engine.step():
            said.setdefault(id, []).append(delta)
        steps += 1
        assert steps < 20_000, "it doesn't come to an end"
    return said


def tokens_of(deltas: list[Delta]) -> list[int]:
    assert [delta.finish for delta in deltas[:-1]] == [None] * (len(deltas) - 1)
    assert deltas[-1].finish is not None
    return [token for delta in deltas for token in delta.tokens]


def engine(pages: int = 40, guesses: int = 0, **limits) -> Engine:
    return Engine(PageModel(pages), Bytes(), Limits(**limits), guesses)


@pytest.mark.parametrize("seed", range(120))
def test_all_get_their_answers_whatever_happens(seed):
    rng = np.random.default_rng(seed)
    pages = int(rng.integers(3, 30))
    served = engine(
        pages,
        guesses=int(rng.choice([0, 0, 3])),
        batch=int(rng.integers(1, 9)),
        step_tokens=None if rng.random() < 0.2 else int(rng.integers(1, 60)),
        preemption=str(rng.choice(["recompute", "swap"])),
    )
    common = rng.integers(32, 60, 64).tolist()
    wanted, dropped, said = {}, set(), {}
    for i in range(int(rng.integers(1, 25))):
        room = pages * PAGE_TOKENS
        prompt = common[: int(rng.integers(0, 50))] + rng.integers(32, 60, int(rng.integers(1, 40))).tolist()
        prompt = prompt[: room - 1]
        n = int(rng.integers(1, min(60, room - len(prompt)) + 1))
        end = frozenset({int(rng.integers(32, 52))}) if rng.random() < 0.5 else frozenset()
        asked = request(f"{i}", prompt, max_tokens=n, stop_tokens=tuple(end), priority=int(rng.integers(0, 2)))
        served.add(asked)
        wanted[asked.id] = answer(prompt, n, end)
        for _ in range(int(rng.integers(0, 6))):
            for id, delta in served.step():
                said.setdefault(id, []).append(delta)
        if rng.random() < 0.15:
            gone = str(rng.integers(0, i + 1))
            served.drop(gone)
            dropped.add(gone)
    for id, deltas in finish(served).items():
        said.setdefault(id, []).extend(deltas)
    for id, tokens in wanted.items():
        if id in dropped and (id not in said or said[id][-1].finish is None):
            continue
        assert tokens_of(said[id]) == tokens, f"seed {seed}, request {id}"
    pool = served.scheduler.pool
    assert pool.free == pool.pages, "pages were lost"
    limit = served.limits.step_tokens
    assert limit is None or served.model.largest <= limit


def test_guesses_that_are_right_save_steps_and_change_nothing():
    prompt = [32, 33, 34] * 10
    counts = []
    for guesses in (0, 4):
        served = engine(guesses=guesses)
        served.add(request("a", prompt, max_tokens=60))
        assert tokens_of(finish(served)["a"]) == answer(prompt, 60)
        counts.append(served.counts)
    assert counts[1].spec_accepted_tokens > 0
    assert counts[1].engine_steps == counts[0].engine_steps - counts[1].spec_accepted_tokens


def test_a_beginning_that_was_there_is_not_computed_again():
    served = engine()
    first = list(range(32, 132))
    served.add(request("a", first))
    finish(served)
    before = served.counts.iteration_tokens
    served.add(request("b", first))
    (delta, *_) = finish(served)["b"]
    assert delta.cached_tokens == 96
    assert served.counts.iteration_tokens - before == 100 - 96 + 9


def test_prompts_in_chunks_let_answers_go_on():
    served = engine(step_tokens=20, batch=4)
    served.add(request("short", [40, 41], max_tokens=200))
    served.step()
    served.add(request("long", [42] * 300))
    for _ in range(10):
        assert [id for id, _ in served.step()] == ["short"]
    assert served.model.largest <= 20


def test_lower_priorities_go_first_and_stay():
    served = engine(batch=1)
    served.add(request("late", [40], priority=1))
    served.add(request("soon", [41], priority=0))
    assert [id for id, _ in served.step()] == ["soon"]


def test_what_can_never_fit_is_refused_with_both_numbers():
    served = engine(pages=2)
    with pytest.raises(ContextExceeded, match=r"30 tokens and the answer may have 10; the context has room for 32"):
        served.add(request("a", [40] * 30))
    served.add(request("b", [40] * 30, max_tokens=None))
    assert len(tokens_of(finish(served)["b"])) == 2


@pytest.mark.parametrize("prompt", [[], [-1], [256]])
def test_prompts_that_are_none_are_refused(prompt):
    with pytest.raises(InvalidRequest):
        engine().add(request("a", prompt))


@pytest.mark.parametrize("token", [-1, 256, 1 << 30])
def test_tokens_that_the_model_has_not_are_refused_or_end_nothing(token):
    served = engine()
    with pytest.raises(InvalidRequest, match="logit_bias") as caught:
        served.add(request("a", [40], sampling=Sampling(temperature=0, bias={token: 1.0})))
    assert caught.value.field == "logit_bias"
    served.add(request("b", [40, 41], stop_tokens=(token,), min_tokens=3))
    assert tokens_of(finish(served)["b"]) == answer([40, 41], 10)


def test_texts_are_for_others():
    with pytest.raises(InvalidRequest, match="takes tokens"):
        engine().add(Request(id="a", model="m", prompt=Text("a")))


def test_who_comes_when_too_many_wait_is_told_so():
    served = engine(waiting=2)
    served.add(request("a", [40]))
    served.add(request("b", [40]))
    with pytest.raises(Overloaded):
        served.add(request("c", [40]))
    assert set(finish(served)) == {"a", "b"}


class Padded(PageModel):
    """Knows more tokens than there are, and finds those the likeliest."""

    def forward(self, slices):
        return np.pad(super().forward(slices), ((0, 0), (0, 44)), constant_values=20)


def test_what_is_no_token_is_never_drawn_nor_taken():
    padded = Engine(Padded(40), Bytes(), Limits())
    padded.model.config = replace(padded.model.config, vocab_size=300)
    padded.add(request("a", [40, 41], logprobs=5, prompt_logprobs=True))
    assert tokens_of(finish(padded)["a"]) == answer([40, 41], 10)
    for wrong in (request("b", [299]), request("c", [40], sampling=Sampling(bias={256: 1.0}))):
        with pytest.raises(InvalidRequest, match="outside 0 to 255"):
            padded.add(wrong)


def test_at_least_so_many_tokens_come_before_the_end():
    prompt = [40, 41]
    first = answer(prompt, 1)[0]
    served = engine()
    served.add(request("a", prompt, stop_tokens=(first,), min_tokens=5))
    said = tokens_of(finish(served)["a"])
    assert first not in said[:5]


def test_nothing_is_drawn_where_only_the_prompt_is_asked_about():
    served = engine(step_tokens=7)
    prompt = [40 + i % 9 for i in range(40)]
    served.add(request("a", prompt, max_tokens=0, logprobs=2, prompt_logprobs=True))
    (delta,) = finish(served)["a"]
    assert delta.finish == "length"
    assert delta.tokens == ()
    assert [chosen.token for chosen in delta.prompt] == prompt
    assert delta.prompt[0].logprob is None
    rows = model_logits = np.zeros(256)
    model_logits[0] = 9
    least = float(-np.log(np.exp(rows).sum()))
    for at, chosen in enumerate(delta.prompt[1:], 1):
        right = answer(prompt[:at], 1)[0] == chosen.token
        assert chosen.logprob == pytest.approx(9 + least if right else least, abs=1e-4)
        assert len(chosen.top) == 2


# -- a real model ------------------------------------------------------------------------------------------------------


def real(**limits) -> Engine:
    transformer = model()
    return Engine(KernelModel(Packed.of(transformer), 20, threads=2), Bytes(), Limits(**limits), 0)


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=1.5, seed=5), Sampling(top_p=0.9, top_k=50)])
def test_the_same_request_gets_the_same_answer_alone_and_in_a_crowd(sampling):
    rng = np.random.default_rng(0)
    prompts = [rng.integers(1, 256, int(n)).tolist() for n in rng.integers(1, 60, 8)]

    def all_of(served, some):
        for i in some:
            served.add(request(f"{i}", prompts[i], sampling=sampling, max_tokens=30, logprobs=1))
        return finish(served)

    alone = [all_of(real(), [i])[f"{i}"] for i in range(8)]
    crowd = all_of(real(batch=5, step_tokens=11, preemption="swap"), range(8))
    for i, deltas in enumerate(alone):
        assert tokens_of(crowd[f"{i}"]) == tokens_of(deltas)
        logprobs = [[c.logprob for d in some for c in d.chosen] for some in (crowd[f"{i}"], deltas)]
        assert logprobs[0] == logprobs[1]


def test_what_is_said_is_what_the_tokens_say():
    served = real()
    served.add(request("a", list(b"hello"), max_tokens=40, logprobs=3))
    deltas = finish(served)["a"]
    tokens = tokens_of(deltas)
    assert "".join(delta.text for delta in deltas) == Bytes().decode(tokens)
    chosen = [chosen for delta in deltas for chosen in delta.chosen]
    assert b"".join(chosen_.nbytes for chosen_ in chosen) == bytes(t for t in tokens if t != END)
    assert all(chosen_.logprob == chosen_.top[0][3] for chosen_ in chosen), "the likeliest is the one that was taken"


def test_an_answer_held_to_a_grammar_matches_it():
    pytest.importorskip("llguidance")
    from llguidance import LLMatcher

    grammar = LLMatcher.grammar_from_regex("[a-c]{3}-[0-9]{2}")
    served = real()
    for seed in range(5):
        served.add(request(f"{seed}", b"x", sampling=Sampling(temperature=2.0, seed=seed), grammar=grammar))
    for deltas in finish(served).values():
        text = "".join(delta.text for delta in deltas)
        assert len(text) == 6
        assert set(text[:3]) <= set("abc")
        assert text[4:].isdigit()
        assert deltas[-1].finish == "stop"


def test_what_is_no_grammar_is_refused():
    pytest.importorskip("llguidance")
    with pytest.raises(InvalidRequest, match="held to it"):
        real().add(request("a", b"x", grammar="{nonsense"))


# -- texts as vectors --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def theirs():
    """The same model, by Hugging Face's library."""
    transformers = pytest.importorskip("transformers")
    made = model()
    c = made.config
    config = transformers.LlamaConfig(
        vocab_size=c.vocab_size, hidden_size=c.width, num_hidden_layers=c.layers, num_attention_heads=c.heads,
        num_key_value_heads=c.key_heads, intermediate_size=c.mlp_width, max_position_embeddings=c.context,
        rms_norm_eps=c.norm_eps, rope_theta=c.rope_theta, tie_word_embeddings=True, attn_implementation="eager",
    )  # fmt: skip
    other = transformers.LlamaForCausalLM(config).eval()
    other.load_state_dict(made.state_dict() | {"lm_head.weight": made.lm_head.weight}, strict=True)
    return other


@pytest.mark.parametrize("plain", [False, True])
def test_a_text_is_the_mean_of_its_last_hidden_states(theirs, plain):
    rng = np.random.default_rng(1)
    texts = [rng.integers(1, 256, n).tolist() for n in (1, 40, 90)]
    paged = TorchModel(model(), 20) if plain else KernelModel(Packed.of(model()), 20, threads=2)
    served = Engine(paged, Bytes(), Limits(step_tokens=33))
    for i, text in enumerate(texts):
        served.add(request(f"{i}", text, embed=True, max_tokens=None))
    served.add(request("beside", texts[1]))
    said = finish(served)
    assert len(tokens_of(said["beside"])) == 10
    for i, text in enumerate(texts):
        (delta,) = said[f"{i}"]
        with torch.inference_mode():
            states = theirs(torch.tensor([text]), output_hidden_states=True).hidden_states[-1][0]
        wanted = torch.nn.functional.normalize(states.mean(0), dim=0).numpy()
        np.testing.assert_allclose(delta.embedding, wanted, atol=2e-5)
        assert (delta.prompt_tokens, delta.tokens, delta.finish) == (len(text), (), "stop")


@pytest.mark.parametrize("preemption", ["recompute", "swap"])
def test_who_steps_back_while_it_is_read_is_scored_and_embedded_as_if_alone(preemption):
    prompt = [40 + i % 9 for i in range(60)]
    asks = {"score": {"max_tokens": 0, "logprobs": 1, "prompt_logprobs": True}, "embed": {"embed": True}}
    for name, options in asks.items():
        alone = engine()
        alone.add(request(name, prompt, **options))
        (wanted,) = finish(alone)[name]
        crowded = engine(pages=10, batch=4, step_tokens=6, preemption=preemption)
        for i in range(3):
            crowded.add(request(f"{i}", [50 + i] * 14, max_tokens=50))
        for _ in range(8):
            crowded.step()
        crowded.add(request(name, prompt, **options))
        (delta,) = finish(crowded)[name]
        assert crowded.counts.preemptions > 0
        assert delta.prompt == wanted.prompt
        np.testing.assert_allclose(delta.embedding, wanted.embedding, atol=1e-6)


# -- mistakes, and deadlines -------------------------------------------------------------------------------------------


def planted(name: str):
    def fail(*args, **kwargs):
        raise ZeroDivisionError(name)

    return fail


@pytest.mark.parametrize("where", ["draw", "text", "end of the text", "grammar", "guess", "mean"])
def test_a_mistake_in_one_answer_is_no_others_concern(where, monkeypatch, caplog):
    served = engine(guesses=3)
    for i in range(4):
        served.add(request(f"{i}", [40 + i] * 20, embed=where == "mean" and i == 2))
    asked = served._asked["2"]
    if where == "draw":
        whole = asked.sequence.sampling = Sampling(temperature=1.0)
        monkeypatch.setattr(
            driver, "draw", lambda row, sampling, *rest: 1 // 0 if sampling is whole else draw(row, sampling, *rest)
        )
    elif where == "text":
        asked.answer.push = planted(where)
    elif where == "end of the text":
        asked.answer.end = planted(where)
    elif where == "grammar":
        asked.grammar = SimpleNamespace(allowed=planted(where))
    elif where == "guess":
        monkeypatch.setattr(driver, "lookup", lambda tokens, n: 1 // 0 if tokens[0] == 42 else lookup(tokens, n))
    else:
        asked.mean = SimpleNamespace(take=planted(where))
    said = finish(served)
    assert said["2"][-1] == Delta(finish="error")
    for i in (0, 1, 3):
        assert tokens_of(said[f"{i}"]) == answer([40 + i] * 20, 10)
    assert served.scheduler.pool.free == served.scheduler.pool.pages
    assert "request 2 failed" in caplog.text
    assert "ZeroDivisionError" in caplog.text
    assert served.counts.answers_failed == 1


class Clock:
    """A world in which a pass takes a second, and a tenth more for each token."""

    def __init__(self):
        self.t = 0.0

    def now(self):
        return self.t

    def compute(self, op, fn):
        self.t += 1.0 + 0.1 * (op.prefill_tokens + sum(1 for _ in range(op.batch) if not op.prefill_tokens))
        return fn()


@pytest.fixture
def clock():
    clock = Clock()
    settle(clock)
    yield clock
    settle(None)


def test_a_deadline_that_can_not_be_met_is_said_at_once(clock):
    served = engine(step_tokens=10)
    served.add(request("unknown", [40] * 30, deadline_s=0.1))
    served.drop("unknown")
    served.add(request("learn", [41] * 35, max_tokens=8))
    finish(served)
    # Thirty tokens are three passes of a second and ten tenths each.
    served.add(request("in time", [42] * 30, max_tokens=1, deadline_s=6.5))
    assert finish(served)["in time"][-1].finish == "length"
    with pytest.raises(DeadlineImpossible, match=r"takes 6 s at least.*deadline is in 5.5 s"):
        served.add(request("vain", [43] * 30, max_tokens=1, deadline_s=5.5))
    with pytest.raises(DeadlineImpossible):
        served.add(request("long", [44] * 30, max_tokens=4, ignore_end=True, deadline_s=9.0))
    served.add(request("before", [45] * 100, max_tokens=1))
    with pytest.raises(DeadlineImpossible, match="20 s of it until it is its turn") as caught:
        served.add(request("behind", [46] * 30, max_tokens=1, deadline_s=25.5))
    assert caught.value.retry_s == pytest.approx(20, rel=0.02)
    served.add(request("first", [47] * 30, max_tokens=1, deadline_s=6.5, priority=-1))
    assert {deltas[-1].finish for deltas in finish(served).values()} == {"length"}
    served.add(request("known", [42] * 30, max_tokens=1, deadline_s=4.0))
    assert finish(served)["known"][-1].finish == "length", "sixteen of its tokens were there"


def test_what_takes_how_long_is_told_at_the_end(clock):
    served = engine(step_tokens=10, batch=1)
    served.add(request("a", [40] * 20, max_tokens=4))
    served.add(request("b", [41] * 20, max_tokens=1))
    said = finish(served)
    times = said["a"][-1].times
    assert (times.queue_s, times.prefill_s, times.decode_s) == pytest.approx((0.0, 4.0, 3.3))
    times = said["b"][-1].times
    assert (times.queue_s, times.prefill_s, times.decode_s) == pytest.approx((7.3, 4.0, 0.0))
    assert served.load().steps[:5] == (3, 0, 0, 0, 4)
