"""Devices, network and faults in one world: a kernel that sends suffers what happens to its link and its host."""

import pytest

from atoll.fabric import star
from atoll.sim.device import Device, Spec, waves
from atoll.sim.faults import Crash, Fault, LinkDegrade, LinkDown, Timed
from atoll.sim.injector import Injector
from atoll.sim.loop import Loop
from atoll.sim.net import Network
from atoll.sim.stream import Kernel

SPEC = Spec(sms=4, flops_per_s=1.0, hbm_bytes_per_s=1e12)
SECOND = 1.0  # flops of one SM


class World:
    """Two hosts with a device each, joined by 1 MB/s; host 0 sends 4 MB from a kernel with an SM while it computes."""

    def __init__(self, *faults: Timed) -> None:
        self.loop = Loop()
        self.network = Network(self.loop, star(2, 1e6))
        self.ends: dict[str, float] = {}
        self.devices = {f"host{i}": Device(self.network.fluid, f"host{i}", SPEC, waves) for i in range(2)}
        self.start()
        Injector(self.loop, self).play(faults)
        self.loop.run()

    def start(self) -> None:
        device = self.devices["host0"]
        send = Kernel("send", 0, is_comm=True, c_sms=1)
        sent = device.stream("comm").launch(
            send, beside=lambda done: self.network.send("host0", "host1", 4_000_000, done)
        )
        computed = device.stream("main").launch(Kernel("k", 24, SECOND))
        sent.then(lambda: self.ends.__setitem__("sent", self.loop.now_s))
        computed.then(lambda: self.ends.__setitem__("computed", self.loop.now_s))

    def apply(self, fault: Fault) -> None:
        match fault:
            case LinkDown(link=name):
                self.network.set_link(self.network.fabric.links[name], 0)
            case LinkDegrade(link=name, bandwidth=left):
                link = self.network.fabric.links[name]
                self.network.set_link(link, left * link.bytes_per_s)
            case Crash(node=node):
                self.devices[node].abort()
                self.network.abort_host(node)

    def lift(self, fault: Fault) -> None:
        assert isinstance(fault, LinkDown | LinkDegrade)
        link = self.network.fabric.links[fault.link]
        self.network.set_link(link, link.bytes_per_s)

    def restart(self, node: str, incarnation: int) -> None:
        self.start()


LINK = next(iter(name for name in star(2, 1.0).links if "host0" in name))


def test_sending_takes_an_sm_for_as_long_as_its_message() -> None:
    # 4 waves of 3 while it is on its way, then 3 of 4.
    assert World().ends == pytest.approx({"sent": 4, "computed": 7})


def test_a_link_that_is_down_holds_the_sm_longer() -> None:
    # 6 waves of 3 until the message is through at 6 s, then 2 of 4.
    assert World(Timed(1, LinkDown(LINK), for_s=2)).ends == pytest.approx({"sent": 6, "computed": 8})


def test_a_slower_link_too() -> None:
    assert World(Timed(2, LinkDegrade(LINK, bandwidth=0.5), for_s=2)).ends["sent"] == pytest.approx(5)


def test_a_crash_ends_both_and_a_new_incarnation_begins_anew() -> None:
    assert World(Timed(3.5, Crash("host0"), for_s=1)).ends == pytest.approx({"sent": 8.5, "computed": 11.5})
    assert World(Timed(3.5, Crash("host0"))).ends == {}
