import pytest
import torch

import atoll
from atoll.errors import Diverged
from atoll.group.local import LocalGroup
from atoll.group.virtual import World
from atoll.runtime.api import here
from atoll.train.exchange import Exchange, finite


def together(n, body, make=Exchange, **world_settings):
    """Run `body(i, exchange, group, world)` on `n` peers; returns what they returned."""
    world = World(**world_settings)

    def main(i):
        with atoll.join("m:1", min_world=n) as group:
            exchange = make()
            exchange.enter(group)
            return body(i, exchange, group, world)

    processes = [world.start(f"peer-{i}", lambda i=i: main(i)) for i in range(n)]
    world.run()
    return [p.program.result for p in processes]


def vector(i: int) -> torch.Tensor:
    return torch.arange(10.0) * (i + 1)


def same(vector):
    return vector


def test_all_get_the_mean_in_the_memory_they_gave():
    def body(i, exchange, group, world):
        mine = vector(i)
        assert exchange.start(0, mine)
        assert exchange.under_way == [0]
        done = exchange.finish(0, same)
        assert exchange.under_way == []
        assert done.mean is mine
        return done

    for done in together(3, body):
        assert torch.equal(done.mean, torch.arange(10.0) * 2)
        assert (done.world, done.refused, done.fit) == (3, (), True)
        assert done.bytes_sent > 0


def test_alone_the_mean_is_what_was_given_and_nothing_is_sent():
    exchange = Exchange()
    exchange.enter(LocalGroup())
    exchange.start(0, vector(2))
    done = exchange.finish(0, same)
    assert torch.equal(done.mean, vector(2))
    assert done.world == 1


def test_fragments_are_under_way_at_once_and_finished_in_any_order():
    def body(i, exchange, group, world):
        for fragment in range(5):
            exchange.start(fragment, vector(i) + fragment)
        assert exchange.under_way == [0, 1, 2, 3, 4]
        here().sleep(1.0)
        assert exchange.landed()
        return [exchange.finish(fragment, same).mean for fragment in (3, 0, 4, 1, 2)]

    for means in together(3, body):
        for fragment, mean in zip((3, 0, 4, 1, 2), means, strict=True):
            assert torch.equal(mean, torch.arange(10.0) * 2 + fragment)


@pytest.mark.parametrize("crash_ms", [1, 60, 1000])  # before it commences, while data travels, or not at all
def test_after_a_loss_the_same_vectors_are_averaged_by_those_who_are_left(crash_ms):
    def body(i, exchange, group, world):
        if i == 1:
            world.loop.post(round(crash_ms * 1e6), world.processes[1].crash)
        here().sleep(0.005 * i)
        exchange.start(0, vector(i))
        return exchange.finish(0, same)

    first, _, third = together(3, body, bytes_per_s=1e3, latency_s=1e-4)  # a few bytes take milliseconds
    assert torch.equal(first.mean, third.mean)
    assert (first.world, third.world) == ((2, 2) if crash_ms < 1000 else (3, 3))
    assert torch.equal(first.mean, torch.arange(10.0) * 2)  # of 1 and 3, or of 1, 2 and 3


@pytest.mark.parametrize("crash_ms", range(1, 120, 17))
def test_several_under_way_when_somebody_goes_are_each_measured_anew(crash_ms):
    """Whatever has been decided by then stays; the rest is of two."""

    def body(i, exchange, group, world):
        if i == 1:
            world.loop.post(round(crash_ms * 1e6), world.processes[1].crash)
        here().sleep(0.01 * i)
        for fragment in range(4):
            exchange.start(fragment, vector(i) + fragment)
        asked = []

        def anew(given, fragment):
            asked.append(fragment)
            assert torch.equal(given, vector(i) + fragment)  # as it was
            return vector(i) * 10 + fragment

        return [exchange.finish(p, lambda given, p=p: anew(given, p)) for p in range(4)], asked

    (first, asked), _, (third, also) = together(3, body, bytes_per_s=3e3, latency_s=1e-4)
    assert asked == also
    for fragment, (one, other) in enumerate(zip(first, third, strict=True)):
        assert torch.equal(one.mean, other.mean)
        again = fragment in asked
        assert one.world == other.world == (2 if again else 3)
        assert bool(one.losses) == again
        assert torch.equal(one.mean, torch.arange(10.0) * (20 if again else 2) + fragment)


def test_who_wants_nothing_anew_gives_up():
    def body(i, exchange, group, world):
        if i == 1:
            world.loop.post(round(1e6), world.processes[1].crash)
            here().sleep(1)
        exchange.start(0, vector(i))
        done = exchange.finish(0, lambda given: None)
        exchange.start(0, vector(i))
        return done, exchange.finish(0, same)

    (given_up, after), _, (other, _) = together(3, body)
    assert given_up.mean is other.mean is None
    assert len(given_up.losses) == 1
    assert torch.equal(after.mean, torch.arange(10.0) * 2)


def test_the_last_one_left_keeps_its_own_vector():
    def body(i, exchange, group, world):
        if i == 1:
            world.loop.post(round(1e6), world.processes[1].crash)
            here().sleep(1)
        exchange.start(0, vector(i))
        return exchange.finish(0, same)

    done, _ = together(2, body)
    assert torch.equal(done.mean, vector(0))
    assert done.world == 1


def test_what_travels_while_others_compute_costs_no_wait():
    def body(i, exchange, group, world):
        exchange.start(0, vector(i))
        here().sleep(10.0)
        return exchange.finish(0, same).waited_s

    def eager(i, exchange, group, world):
        exchange.start(0, vector(i))
        return exchange.finish(0, same).waited_s

    assert together(2, body, bytes_per_s=1e3) == [0.0, 0.0]
    assert min(together(2, eager, bytes_per_s=1e3)) > 0.02


def test_what_was_under_way_in_another_group_is_dropped():
    exchange = Exchange()
    exchange.enter(LocalGroup())
    exchange.start(0, vector(0))
    exchange.enter(LocalGroup())
    assert exchange.under_way == []


@pytest.mark.parametrize("codec", [None, "bf16", "uint8", "e3m0", "int4"])
@pytest.mark.parametrize("n", [10, 5000, 100_000])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_no_number_is_refused_and_the_rest_is_averaged(bad, n, codec):
    def body(i, exchange, group, world):
        exchange.codec = codec
        mine = torch.full((n,), float(group.rank))
        if group.rank == 1:
            mine[n // 2] = bad
        fit = exchange.start(0, mine)
        assert fit == (group.rank != 1)
        done = exchange.finish(0, same)
        assert done.fit == fit
        return done

    for done in together(4, body):
        assert done.refused == (1,)
        torch.testing.assert_close(done.mean, torch.full((n,), 5 / 3), rtol=0.01, atol=0)


def test_where_nobody_has_numbers_all_stop():
    def body(i, exchange, group, world):
        exchange.start(0, vector(i) * float("nan"))
        with pytest.raises(Diverged, match="no peer has numbers"):
            exchange.finish(0, same)
        return True

    assert together(3, body) == [True] * 3


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("n", [1, 7, 64, 1025])
def test_what_is_no_number_is_found_wherever_it_stands(n, bad):
    numbers = torch.linspace(-1.0, 1.0, n) * 3e38
    assert finite(numbers)
    for place in {0, n // 2, n - 1}:
        broken = numbers.clone()
        broken[place] = bad
        assert not finite(broken)


# -- error feedback ----------------------------------------------------------------------------------------------------


def uneven(i: int, n: int = 3000) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(i)) * 0.7**i


def exchange_with(feedback: bool, n: int = 3000):
    return lambda: Exchange("e3m0", "none", owed=[torch.zeros(n)] if feedback else None)


@pytest.mark.parametrize("feedback", [True, False])
def test_with_error_feedback_what_rounding_takes_comes_later(feedback):
    """The sum of all means stays within what is owed of the true one; without, it is off by more and more."""

    def body(i, exchange, group, world):
        total, off = torch.zeros(3000), []
        for _ in range(40):
            exchange.start(0, uneven(i))
            total += exchange.finish(0, same).mean
            truth = (uneven(0) + uneven(1) + uneven(2)) / 3
            off.append(float((total - truth * (len(off) + 1)).abs().max()))
        return off, exchange.memory("")

    told = together(3, body, exchange_with(feedback))
    off = told[0][0]
    if not feedback:
        assert off[39] == pytest.approx(40 * off[0], rel=1e-3)
        assert told[0][1] == {}
        return
    owed = sum(memory["owed.0"] for _, memory in told) / 3
    assert off[39] == pytest.approx(float(owed.abs().max()), rel=1e-3)
    assert max(off) < 4 * off[0]


def test_after_a_loss_what_is_owed_goes_out_once():
    def body(i, exchange, group, world):
        exchange.start(0, uneven(i))
        exchange.finish(0, same)
        owed = exchange.owed[0].clone()
        if i == 1:
            world.loop.post(0, world.processes[1].crash)
            here().sleep(1.0)
        exchange.start(0, uneven(i))
        done = exchange.finish(0, same)
        return done.mean, uneven(i) + owed - exchange.owed[0], bool(done.losses)

    first, _, third = together(3, body, exchange_with(True))
    assert first[2]
    assert third[2]
    assert torch.equal(first[0], third[0])
    torch.testing.assert_close(first[0], (first[1] + third[1]) / 2)


def test_who_was_refused_owes_nothing():
    def body(i, exchange, group, world):
        exchange.start(0, uneven(i))
        exchange.finish(0, same)
        exchange.start(0, torch.full((3000,), float("nan")) if i else uneven(i))
        done = exchange.finish(0, same)
        return done.refused, bool(exchange.owed[0].any())

    assert together(2, body, exchange_with(True)) == [((1,), True), ((1,), False)]
