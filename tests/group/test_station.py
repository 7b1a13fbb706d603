"""Where data of small operations goes that comes before its time, or after."""

from typing import Any

import numpy as np
import pytest

from atoll.errors import ProtocolError
from atoll.group.api import LARGEST_FRAME, Series, Start, Ticket, unvoted_seq
from atoll.group.messages import Seat
from atoll.group.peer import Peer, Running
from atoll.group.station import Station

SIZE = 10_000


class Idle:
    """A carrier with nobody at the other end."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


class Elsewhere:
    """What another process lends; it counts who reads it."""

    def __init__(self, values: Any) -> None:
        self.bytes, self.reads = values.tobytes(), 0

    def __len__(self) -> int:
        return len(self.bytes)

    def read(self, at: int, into: memoryview) -> None:
        self.reads += 1
        into[:] = self.bytes[at : at + len(into)]


@pytest.fixture
def station() -> Station:
    return Station(Peer(Seat(1, "127.0.0.1", 1)), Idle())


def begin(station: Station, nth: int) -> Any:
    ticket = Ticket("all_reduce", 1, tensor=np.ones(SIZE), algorithm="eager")
    run = unvoted_seq(Series(0, 0), nth), 0
    station._start(Start(run, ticket, (1, 2), 0))
    return station.runs[run].execution


def test_what_is_lent_before_its_time_stays_where_it_is_and_is_read_once(station: Station) -> None:
    lent = Elsewhere(np.full(SIZE, 5.0))
    frame = 2, unvoted_seq(Series(0, 0), 1), 1 << 1, lent
    assert not station.arrived(*frame), "hold it"
    assert lent.reads == 0
    execution = begin(station, 1)
    assert station.arrived(*frame)
    assert execution.done
    assert (execution.result == 5.0).all()
    assert lent.reads == 1


def test_what_is_lent_for_an_operation_that_never_came_is_not_read(station: Station) -> None:
    """Its owner has heard of the mismatch, and may have given the memory back."""
    lent = Elsewhere(np.full(SIZE, 5.0))
    begin(station, 2)
    assert station.arrived(2, unvoted_seq(Series(0, 0), 1), 1 << 1, lent), "forget it"
    assert lent.reads == 0


def test_more_than_any_frame_holds_is_refused_before_its_time(station: Station) -> None:
    lent = Elsewhere(np.zeros(LARGEST_FRAME + 1, np.uint8))
    with pytest.raises(ProtocolError, match="at most"):
        station.arrived(2, unvoted_seq(Series(0, 0), 1), 1 << 1, lent)


class Heard(Idle):
    """A carrier that keeps what the master is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def tell(self, message: Any, patient: bool = False) -> None:
        self.told.append(message)


@pytest.mark.parametrize("when", ["begun", "taken", "landed"])
def test_a_data_phase_that_runs_out_of_memory_fails_alone_and_says_so(
    when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`MemoryError` has no text of its own, and no text means that all went well."""
    heard = Heard()
    station = Station(Peer(Seat(1, "127.0.0.1", 1)), heard)
    taken: list[Any] = []
    heard.send = lambda to, seq, word, take: taken.append(take)  # type: ignore[attr-defined]
    ticket = Ticket("all_reduce", 1, tensor=np.ones(SIZE), algorithm="direct", codec="uint8")
    running = station.peer.running[Series(0, 0)] = Running(ticket, 1, (5, 0))

    def none_left(*_: Any) -> None:
        raise MemoryError

    def move(wanted: str) -> None:
        if when == wanted:
            monkeypatch.setattr(station.memory, "empty", none_left)

    move("begun")
    station._start(Start((5, 0), ticket, (1, 2), 0))
    move("taken")
    assert all(take() is not None for take in taken) == (when != "taken")
    if when == "landed":
        data = memoryview(bytearray(station.runs[5, 0].execution.outgoing(1, True)))  # as long as what rank 1 sends
        move("landed")
        assert station.arrived(2, 5, 1, data)
    assert running.reported
    assert station.runs == {}
    assert [(message.seq, message.fault) for message in heard.told] == [(5, "MemoryError")]
