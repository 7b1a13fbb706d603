"""Driver: a collective job in virtual time: the group's own schedules over flows, for thousands of ranks."""

from collections.abc import Callable
from typing import Final

from atoll import rng
from atoll.fabric import Fabric
from atoll.group.api import BLOCK
from atoll.group.collectives import schedules
from atoll.group.virtual.sized import Sized, Took, simulate
from atoll.record import Record
from atoll.reproduce.scenario.api import Check, Curve, Figure, Say, duration, share, volume
from atoll.reproduce.scenario.chronicle import Chronicle
from atoll.reproduce.scenario.fabrics import checked
from atoll.reproduce.scenario.pricing import prices
from atoll.reproduce.scenario.sampling import LinkSampler, Progress
from atoll.reproduce.scenario.settings import CollectiveJob, Scenario
from atoll.runtime.schedule import Schedule
from atoll.sim.loop import Loop
from atoll.sim.net import Network

FIRST_LOOK_NS: Final = 100_000
LATER: Final = 1.01
"""How much later the next look at links is than the last."""


class Collective:
    """One collective of all hosts."""

    def __init__(
        self, scenario: Scenario, job: CollectiveJob, record_for: Callable[[Callable[[], float]], Record]
    ) -> None:
        self.job, self.loop = job, Loop(scenario.tie_break)
        self.fabric = checked(scenario.fabric)
        self.network = Network(self.loop, self.fabric, tcp=scenario.fabric.tcp)
        self.hosts = self.fabric.hosts[: job.ranks]
        if job.placement == "shuffled":
            order = rng.stream(scenario.seed, "placement").permutation(len(self.fabric.hosts))
            self.hosts = [self.fabric.hosts[i] for i in order[: job.ranks]]
        self.prices = prices(scenario.cost, scenario.seed)
        self.record = record_for(lambda: self.loop.now_s)
        self.chronicle = Chronicle(lambda: self.loop.now_ns, self.record)
        self.ended_ns: int | None = None
        self.took = Took(0.0, [])
        self.looks = 0
        """Events that only watch."""

    def run(self, say: Say) -> None:
        """To the end."""
        self._watch(say)
        n, lanes = len(self.hosts), self._lanes()
        chunks = self.job.nbytes * (n if self.job.collective == "all_gather" else 1)
        self.took = simulate(self._schedule(n, lanes), Sized(chunks).pieces(n, lanes), self.hosts, self.network)
        self.ended_ns = self.loop.now_ns
        self.record.span("all/collective", f"{self.job.algorithm} {self.job.collective}", 0.0, self.took.seconds)
        self.chronicle.tell("took", "all", seconds=self.took.seconds, sent=self.took.sent, hosts=self.hosts)
        for link in self.fabric.links.values():
            self.chronicle.tell("carried", link.name, **self.network.usage(link)._asdict())

    @property
    def events(self) -> int:
        """Of the run itself."""
        return self.loop.count - self.looks

    def figures(self) -> dict[str, Figure]:
        """The table's columns."""
        seconds, sent = self.took.seconds, max(self.took.sent)
        rate = self.job.nbytes / seconds
        ideal_s = sent / min(_rate(self.fabric, host) for host in self.hosts)
        busiest = max(self.fabric.links.values(), key=lambda link: self.network.usage(link).utilisation)
        busy = self.network.usage(busiest).utilisation
        return {
            "ranks": Figure(len(self.hosts), f"{len(self.hosts):,}"),
            "time": Figure(seconds, duration(seconds)),
            "tensor per s": Figure(rate, f"{volume(rate)}/s"),
            "sent per rank": Figure(sent, volume(sent)),
            "of the hosts' links": Figure(ideal_s / seconds, share(ideal_s / seconds)),
            "busiest link": Figure(busy, f"{busiest.name} {share(busy)}"),
        }

    def curves(self) -> tuple[Curve, ...]:
        """How busy links were, from the busiest on."""
        busy = sorted((self.network.usage(link).utilisation for link in self.fabric.links.values()), reverse=True)
        used = [100 * u for u in busy if u > 0]
        ranks = [100 * (i + 1) / len(busy) for i in range(len(used))]
        return (Curve("links", "links, from the busiest on, %", "busy, % of capacity", ranks, used),)

    def checks(self) -> tuple[Check, ...]:
        """The laws."""
        hosts = set(self.fabric.hosts)
        links = self.fabric.links.values()
        out = sum(self.network.usage(link).work for link in links if link.source in hosts and link.shared is not link)
        into = sum(self.network.usage(link).work for link in links if link.target in hosts)
        sent = sum(self.took.sent)
        passed = all(link.source not in hosts or link.target not in hosts for link in links)
        return (
            Check(
                "bytes sent = arrived + dropped + on their way",
                abs(out - into) <= 1 + 1e-9 * out and not self.network.flows(),
                f"{volume(out)} = {volume(into)} + 0 B + 0 B",
            ),
            Check(
                "links carried what ranks sent, and frames' heads",
                sent <= out * (1 + 1e-9) and (not passed or out <= 1.02 * sent + 4096 * len(hosts)),
                f"{volume(sent)} of tensors in {volume(out)}",
            ),
        )

    # -- inside --------------------------------------------------------------------------------------------------------

    def _lanes(self) -> int:
        """In as many blocks as fit a frame is a chunk cut, but not too many."""
        return max(1, min(16, -(-self.job.nbytes // len(self.hosts) // BLOCK)))

    def _schedule(self, n: int, lanes: int) -> Callable[[int], Schedule]:
        make: Callable[[int, int, int], Schedule] = getattr(schedules, f"{self.job.algorithm}_{self.job.collective}")
        return lambda rank: make(rank, n, lanes)

    def _watch(self, say: Say) -> None:
        """Look at links and tell how far it is, as long as something happens."""
        sampler, progress = LinkSampler(self.network, self.record), Progress(say, None)

        def look() -> None:
            self.looks += 1
            if self.record.heard:
                sampler.look()
            progress.look(self.loop.now_s, f"{self.loop.count:,} events")
            if self.loop.pending():
                self.loop.post(max(FIRST_LOOK_NS, round((LATER - 1) * self.loop.now_ns)), look)

        self.loop.post(FIRST_LOOK_NS, look)


def _rate(fabric: Fabric, host: str) -> float:
    """Of its way out."""
    return sum(link.bytes_per_s for link in fabric.links.values() if link.source == host)
