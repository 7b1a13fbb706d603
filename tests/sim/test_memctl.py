"""An arbiter decides how long computation waits behind communication, and nothing else."""

import math
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.errors import InvalidConfig
from atoll.sim.loop import Loop
from atoll.sim.memctl import Arbiter, CommunicationAware, MemoryController, Source, compute_first, round_robin

ARBITERS = [round_robin, compute_first, CommunicationAware(2), CommunicationAware(3, patience_s=20e-9)]
BYTES_PER_NS = 10.0**9


def served(arbiter: Arbiter, *requests: tuple[int, Source, int], depth: int = 1) -> list[tuple[int, Source]]:
    """(when, whose), from requests of (when, whose, bytes), at one byte per nanosecond."""
    loop, order = Loop(), []
    controller = MemoryController(loop, BYTES_PER_NS, arbiter, depth)

    def ask(source: Source, nbytes: int) -> None:
        controller.request(source, nbytes, lambda: order.append((loop.now_ns, source)))

    for at_ns, source, nbytes in requests:
        loop.post(at_ns, ask, source, nbytes)
    loop.run()
    assert sum(controller.bytes_served.values()) == sum(nbytes for _, _, nbytes in requests)
    return order


BOTH = [(0, source, 10) for source in (Source.COMM, Source.COMPUTE) for _ in range(3)]


def test_round_robin_takes_turns_and_compute_first_does_not() -> None:
    alternating = [source for _, source in served(round_robin, *BOTH)]
    assert alternating == [Source.COMM, Source.COMPUTE] * 3
    firmly = [source for _, source in served(compute_first, *BOTH)]
    assert firmly == [Source.COMM] + [Source.COMPUTE] * 3 + [Source.COMM] * 2


@pytest.mark.parametrize("threshold", [1, 5, 30, math.inf])
def test_computation_waits_for_no_more_than_the_threshold_lets_in(threshold: float) -> None:
    burst = [(0, Source.COMM, 10)] * 100
    order = served(CommunicationAware(threshold), *burst, (1, Source.COMPUTE, 10), depth=64)
    waited = next(at_ns for at_ns, source in order if source is Source.COMPUTE)
    # All that was let in before, and itself; a full queue lets it in only when the first has been served.
    assert waited == 10 * (min(threshold, 64) + 1)
    assert order[-1][0] == 101 * 10  # and the DRAM never idles


def test_communication_is_not_starved_beyond_its_patience() -> None:
    stream = [(9 * i, Source.COMPUTE, 10) for i in range(100)]  # more than it can serve
    starved = served(CommunicationAware(5), *stream, (5, Source.COMM, 10))
    assert starved[-1][1] is Source.COMM
    patient = served(CommunicationAware(5, patience_s=100e-9), *stream, (5, Source.COMM, 10))
    assert next(at for at, source in patient if source is Source.COMM) <= 5 + 100 + 2 * 10


@given(
    st.sampled_from(ARBITERS),
    st.lists(st.tuples(st.integers(0, 50), st.sampled_from(Source), st.integers(1, 20)), max_size=30),
    st.integers(1, 5),
)
def test_every_arbiter_conserves_work(arbiter: Arbiter, requests: list[tuple[int, Source, int]], depth: int) -> None:
    order = served(arbiter, *requests, depth=depth)
    assert len(order) == len(requests)
    # Work conserving: it ends when a single server without an arbiter would.
    end = 0
    for at_ns, _, nbytes in sorted(requests, key=lambda request: request[0]):
        end = max(end, at_ns) + nbytes
    assert order == [] or order[-1][0] == end


def test_an_impossible_controller_is_refused() -> None:
    with pytest.raises(InvalidConfig, match="threshold=0"):
        CommunicationAware(threshold=0)
    for make in (partial(MemoryController, bytes_per_s=0), partial(MemoryController, bytes_per_s=1, depth=0)):
        with pytest.raises(InvalidConfig):
            make(Loop(), arbiter=round_robin)
