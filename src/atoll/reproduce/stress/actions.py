"""Driver: what stress does beyond spawning, killing and stopping: it cuts and slows links, lets strangers in, and kills
the master."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Final

from atoll.errors import InvalidConfig
from atoll.reproduce.churn import Churn, Member, Open, Plan, kill, spawn, stop
from atoll.reproduce.stress.gates import Gate, Street
from atoll.reproduce.stress.strangers import visit, words

PORT: Final = 7048
_HOSTS: Final = 250
_QUIET: Final = 0.3, 0.9
"""From which to which part of a run the master is left alive: how its memory grows shows only in a long life."""
UNMEASURED: Final = ("--no-measure",)
"""To measure links takes a while in which all wait: seconds for ten peers under a new master, which knows none yet."""
GIVE_BACK: Final = (("MALLOC_TRIM_THRESHOLD_", "131072"), ("MALLOC_MMAP_THRESHOLD_", "131072"))
"""Have glibc return what is freed: it keeps up to 30 MB of it else, and one couldn't see what is really held."""
SIZES: Final = "16,600,16,20000"


@dataclass
class Place:
    """Where a peer lives."""

    host: str
    port: int
    data: Gate
    """Others' links to it go through here."""
    master: Gate
    """And what it, and its helper, says to the master through here."""


class Streets(Open):
    """Each peer has an address of its own, behind gates. Every second one shares no memory with the others, so that
    its links are TCP, and so are others' links to it."""

    def __init__(self, street: Street, owner: int) -> None:
        if sys.platform != "linux":
            raise InvalidConfig("stress needs Linux: its peers have loopback addresses of their own")
        self.street = street
        self.places: dict[str, Place] = {}
        self._net = f"127.66.{owner % _HOSTS}"
        self._numbers = count()
        self.master = self._place(next(self._numbers))

    def _place(self, number: int) -> tuple[str, int]:
        """An address that nobody else has in this run: no connection takes it by chance."""
        return f"{self._net}.{1 + number % _HOSTS}", PORT + number // _HOSTS

    def enter(self, member: Member, master: str) -> tuple[str, list[str]]:
        """Build its gates."""
        number = next(self._numbers)
        host, port = self._place(number)
        place = Place(host, port, self.street.gate(host, port), self.street.gate(*self.master))
        self.places[member.name] = place
        options = ["--listen", f"{host}:{port}", "--advertise", place.data.address]
        if number % 2:
            options.append("--no-shared-memory")
        return place.master.address, options

    def leave(self, member: Member) -> None:
        """Nobody is behind them any more."""
        place = self.places.pop(member.name)
        place.data.close()
        place.master.close()


class Trouble:
    """Each method is an action, and does something that real networks and machines do."""

    def __init__(self, streets: Streets) -> None:
        self._streets = streets

    def plan(self) -> Plan:
        """How often each of it."""
        return Plan(
            actions=(
                (5, spawn),
                (3, kill),
                (3, stop),
                (2, self.stall_links),
                (2, self.refuse_links),
                (2, self.reset_links),
                (2, self.slow_links),
                (1, self.silence),
                (1, self.reset_master),
                (2, self.strangers),
                (3, self.restart_master),
            ),
            pause_s=(0.2, 1.0),
            master="{}:{}".format(*self._streets.master),
            master_options=UNMEASURED,
            first=4,
            most=10,
            elders=3,
            options=("--tags", "5", "--carry", "3", "--size", SIZES),
            env=GIVE_BACK,
            surroundings=self._streets,
        )

    def _victim(self, churn: Churn) -> tuple[Member, Place] | None:
        member = churn.pick()
        return None if member is None else (member, self._streets.places[member.name])

    def _close(
        self,
        churn: Churn,
        gate: Callable[[Place], Gate],
        how: Callable[[Gate], None],
        seconds_between: tuple[float, float],
        what: str,
        did: str,
    ) -> str:
        """Close a gate of somebody's for a while, unless another thing holds the group up just now."""
        found = self._victim(churn)
        if found is None or churn.held:
            return ""
        member, place = found
        seconds = float(churn.dice.uniform(*seconds_between))
        how(gate(place))
        churn.hinder(member, seconds, gate(place).heal, hold=True)
        churn.report.done[what] += 1
        return f"{did} {member.name} for {seconds:.1f} s"

    # -- links between peers ------------------------------------------------------------------------------------------

    def stall_links(self, churn: Churn) -> str:
        """The links to a peer go dead without a word, and come back."""
        return self._close(
            churn, lambda place: place.data, Gate.stall, (0.3, 3.0), "links stalled", "stalled the links to"
        )

    def refuse_links(self, churn: Churn) -> str:
        """The links to a peer break, and for a while it can't be reached."""
        return self._close(churn, lambda place: place.data, Gate.refuse, (0.1, 3.0), "links cut", "cut the links to")

    def reset_links(self, churn: Churn) -> str:
        """The links to a peer break; new ones are welcome."""
        found = self._victim(churn)
        if found is None:
            return ""
        found[1].data.reset()
        churn.report.done["links reset"] += 1
        return f"reset the links to {found[0].name}"

    def slow_links(self, churn: Churn) -> str:
        """The links to a peer become slow for a while."""
        found = self._victim(churn)
        if found is None:
            return ""
        member, place = found
        seconds, rate = float(churn.dice.uniform(1.0, 6.0)), float(churn.dice.uniform(1e6, 10e6))
        place.data.slow(rate)
        churn.later(seconds, place.data.heal)
        churn.report.done["links slowed"] += 1
        return f"slowed the links to {member.name} to {rate / 1e6:.1f} MB/s for {seconds:.1f} s"

    # -- the master, and the way to it --------------------------------------------------------------------------------

    def silence(self, churn: Churn) -> str:
        """Nothing gets from a peer to the master or back: it is lost, and comes again."""
        return self._close(churn, lambda place: place.master, Gate.stall, (0.3, 6.0), "silenced", "silenced")

    def reset_master(self, churn: Churn) -> str:
        """A peer's connections to the master break."""
        found = self._victim(churn)
        if found is None:
            return ""
        found[1].master.reset()
        churn.report.done["master cut off"] += 1
        return f"reset the master's connections to {found[0].name}"

    def restart_master(self, churn: Churn) -> str:
        """SIGKILL, and after a while another at the same address, with the same file."""
        if churn.held or _QUIET[0] < churn.elapsed_s / churn.total_s < _QUIET[1] or len(churn.able()) <= 2:
            return ""
        seconds = float(churn.dice.uniform(0.1, 1.0))
        churn.hold()
        churn.kill_master()

        def again() -> None:
            churn.start_master(churn.address, *UNMEASURED)
            churn.release()

        churn.later(seconds, again)
        churn.report.done["masters killed"] += 1
        return f"killed the master for {seconds:.1f} s"

    # -- strangers ----------------------------------------------------------------------------------------------------

    def strangers(self, churn: Churn) -> str:
        """Some dozens of connections to the master or a peer, each with nonsense."""
        places = [self._streets.master, *((place.host, place.port) for place in self._streets.places.values())]
        host, port = places[0] if churn.dice.random() < 0.5 else places[int(churn.dice.integers(len(places)))]
        number = int(churn.dice.integers(10, 60))
        for _ in range(number):
            says, stays_s = words(churn.dice), float(churn.dice.uniform(0.0, 4.0))
            self._streets.street.send(visit(host, port, says, stays_s))
        churn.report.done["strangers"] += number
        return f"{number} strangers at {host}:{port}"
