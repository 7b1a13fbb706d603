"""The memory of the outer optimiser, split among peers."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import atoll
from atoll.errors import InvalidData, PeerLost
from atoll.group.virtual import World
from atoll.runtime.api import here
from atoll.train import strategies
from atoll.train.momentum import BLOCK, Momentum
from atoll.train.sharded import Layout, ShardedExchange, Taken, _range
from tests.train.tiny import Run, check_agreement, group_of, tiny

HOW = {"strategy": "co2", "outer_momentum": 0.6, "outer_clip": 0.3, "steps": 22}


def trained(world: int, shards: int, monkeypatch: pytest.MonkeyPatch, **changes) -> Run:
    """By the sharded exchange, even where there is one shard."""
    with monkeypatch.context() as patched:
        patched.setattr(strategies, "ShardedExchange", lambda outer, of, _: ShardedExchange(outer, of, shards))
        run = group_of(world, tiny(**{**HOW, "shards": 2, **changes})).run()
    assert [peer.error for peer in run.peers] == [None] * world
    assert all(peer.done for peer in run.peers)
    check_agreement(run.peers)
    return run


@given(n=st.integers(0, 50_000), world=st.integers(1, 12), shards=st.integers(1, 12))
def test_each_number_is_in_one_shard_and_everybody_gets_all_from_its_owners(n, world, shards):
    layout = Layout(n, world, shards)
    places = [layout.shard(i) for i in range(layout.count)]
    assert [place for part in places for place in range(part.start, part.stop)] == list(range(n))
    assert all(part.start % BLOCK == 0 or part.start == n for part in places)
    assert max(part.stop - part.start for part in places) <= n / layout.count + BLOCK
    for rank in range(world):
        assert layout.source(rank % layout.count, rank) == rank
        assert all(layout.of(layout.source(i, rank)) == part for i, part in enumerate(places))


@pytest.mark.sampled(2)
@pytest.mark.parametrize("world", [2, 3, 4, 5])
@pytest.mark.parametrize("penalty", [None, 1.0])
def test_however_it_is_split_the_bits_are_the_same(world, penalty, monkeypatch):
    one = trained(world, 1, monkeypatch, penalty=penalty)
    plain = group_of(world, tiny(**HOW, penalty=penalty)).run()
    torch.testing.assert_close(one.peers[0].parameters, plain.peers[0].parameters, rtol=1e-4, atol=1e-6)
    for shards in {2, 3, world} - {world + 1}:
        other = trained(world, shards, monkeypatch, penalty=penalty)
        assert [p.hashes().keys() for p in other.peers] == [one.peers[0].hashes().keys()] * world
        assert torch.equal(other.peers[0].parameters, one.peers[0].parameters)


def test_each_peer_remembers_its_shard_only(monkeypatch):
    run = trained(4, 4, monkeypatch)
    n = len(run.peers[0].parameters)
    sizes = [len(peer.trainer.strategy.exchange.mine.velocity) for peer in run.peers]
    assert sum(sizes) == n
    assert max(sizes) <= n / 4 + BLOCK


@pytest.mark.parametrize("shards", [2, 4])
def test_momentum_goes_on_with_whoever_is_left_and_only_what_nobody_holds_begins_anew(shards):
    """Of four, ranks 0 and 2 own the same one of two shards; of four shards each has one owner."""
    n = 4 * BLOCK + 100
    world, processes, ends = World(0), [], []

    def peer() -> None:
        with atoll.join("m:1", min_world=4) as group:
            exchange = ShardedExchange(Taken(torch.zeros(n)), lambda x: Momentum(x, 1.0, 0.9), shards)
            exchange.enter(group)
            exchange.meet()
            mine = Layout(n, 4, shards).of(group.rank)
            exchange.mine.velocity.copy_(torch.arange(1.0, n + 1)[mine])
            if group.rank == 0:
                world.loop.post(0, processes[0].crash)
                here().sleep(1.0)
            with pytest.raises(PeerLost):
                group.barrier()
            exchange.meet()
            mine = Layout(n, 3, shards).of(group.rank)
            exchange.collect()
            ends.append((mine, exchange.mine.velocity.clone(), exchange.memory("")["momentum"].clone()))

    processes += [world.start(f"peer-{i}", peer) for i in range(4)]
    world.run()
    expected = torch.arange(1.0, n + 1)
    if shards == 4:
        expected[Layout(n, 4, 4).of(0)] = 0.0
    assert len(ends) == 3
    for mine, velocity, whole in ends:
        assert torch.equal(velocity, expected[mine])
        assert torch.equal(whole, expected)


@pytest.mark.parametrize("said", [b"", b"\xc1", b"\x92\x05\x03", b"\x92\xff\x03", b"\x92\x00\xcd\x10\x00"])
def test_what_is_no_range_is_refused(said):
    with pytest.raises(InvalidData, match="a peer"):
        _range(said, 100)
