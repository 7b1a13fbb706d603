import pytest
import torch

import atoll
from atoll.group.local import LocalGroup
from atoll.group.virtual import World
from atoll.runtime.api import here
from atoll.train.exchange import Exchange


def together(n, body, **world_settings):
    """Run `body(i, exchange, group, world)` on `n` peers; returns what they returned."""
    world = World(**world_settings)

    def main(i):
        with atoll.join("m:1", min_world=n) as group:
            exchange = Exchange()
            exchange.enter(group)
            return body(i, exchange, group, world)

    processes = [world.start(f"peer-{i}", lambda i=i: main(i)) for i in range(n)]
    world.run()
    return [p.program.result for p in processes]


def vector(i: int) -> torch.Tensor:
    return torch.arange(10.0) * (i + 1)


def test_all_get_the_mean_in_the_memory_they_gave():
    def body(i, exchange, group, world):
        mine = vector(i)
        exchange.start(mine)
        assert exchange.under_way
        done = exchange.finish()
        assert not exchange.under_way
        assert done.mean is mine
        return done

    for done in together(3, body):
        assert torch.equal(done.mean, torch.arange(10.0) * 2)
        assert done.world == 3
        assert done.bytes_sent > 0


def test_alone_the_mean_is_what_was_given_and_nothing_is_sent():
    exchange = Exchange()
    exchange.enter(LocalGroup())
    exchange.start(vector(2))
    done = exchange.finish()
    assert torch.equal(done.mean, vector(2))
    assert (done.world, done.bytes_sent) == (1, 0)


@pytest.mark.parametrize("crash_ms", [1, 60, 1000])  # before it commences, while data travels, or not at all
def test_after_a_loss_the_same_vectors_are_averaged_by_those_who_are_left(crash_ms):
    def body(i, exchange, group, world):
        if i == 1:
            world.loop.post(round(crash_ms * 1e6), world.processes[1].crash)
        here().sleep(0.005 * i)
        exchange.start(vector(i))
        return exchange.finish()

    first, _, third = together(3, body, bytes_per_s=1e3, latency_s=1e-4)  # a few bytes take milliseconds
    assert torch.equal(first.mean, third.mean)
    assert (first.world, third.world) == ((2, 2) if crash_ms < 1000 else (3, 3))
    assert torch.equal(first.mean, torch.arange(10.0) * 2)  # of 1 and 3, or of 1, 2 and 3


def test_the_last_one_left_keeps_its_own_vector():
    def body(i, exchange, group, world):
        if i == 1:
            world.loop.post(round(1e6), world.processes[1].crash)
            here().sleep(1)
        exchange.start(vector(i))
        return exchange.finish()

    done, _ = together(2, body)
    assert torch.equal(done.mean, vector(0))
    assert done.world == 1


def test_what_travels_while_others_compute_costs_no_wait():
    def body(i, exchange, group, world):
        exchange.start(vector(i))
        here().sleep(10.0)
        return exchange.finish().waited_s

    def eager(i, exchange, group, world):
        exchange.start(vector(i))
        return exchange.finish().waited_s

    assert together(2, body, bytes_per_s=1e3) == [0.0, 0.0]
    assert min(together(2, eager, bytes_per_s=1e3)) > 0.02


def test_what_was_under_way_in_another_group_is_dropped():
    exchange = Exchange()
    exchange.enter(LocalGroup())
    exchange.start(vector(0))
    exchange.enter(LocalGroup())
    assert not exchange.under_way
