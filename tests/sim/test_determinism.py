"""The same seed gives the same world, to the last digit, in every process and for every hash of strings."""

import os
import subprocess
import sys

SAY = """
import hashlib, itertools, sys
from atoll.rng import stream
from atoll.sim.clocks import *
from atoll.sim.device import *
from atoll.sim.faults import *
from atoll.sim.fluid import Fluid
from atoll.sim.host import Cpu
from atoll.sim.injector import Injector
from atoll.sim.loop import Loop
from atoll.workload.generate import lengths
from atoll.workload.generate.loops import open_loop
from atoll.workload.generate.processes import Mmpp
from atoll.workload.trace.lines import write

seed = int(sys.argv[1])
prompts, outputs = lengths.LogNormal(300, 1), lengths.LogNormal(80, 1)
demands = list(itertools.islice(open_loop(Mmpp((1, 9), (5, 2)), prompts, outputs, seed), 400))
racks = {rack: [Crash(f"{rack}{i}") for i in range(4)] for rack in "abc"}
names = [crash.node for rack in racks.values() for crash in rack]

loop, said = Loop(), [line.decode() for line in write(demands)]
fluid = Fluid(loop)
span = lambda *fields: said.append(repr(fields))
devices = {name: Device(fluid, name, Spec(8, 1e5, 1e6), mode, span) for name, mode in zip(names, [waves, roofline] * 6)}
cpu = Cpu(fluid, "host", 4)

class World:
    def apply(self, fault):
        said.append(f"{loop.now_ns} {fault}")
        if isinstance(fault, Crash):
            devices[fault.node].abort()
        else:
            devices[fault.node].set_speed(fault.factor)
    def lift(self, fault):
        devices[fault.node].set_speed(1)
    def restart(self, node, incarnation):
        said.append(f"{loop.now_ns} {node} {incarnation}")

def ask(demand):
    for name in names[demand.arrival.number % 12 :][:3]:
        kernel = Kernel(str(demand.arrival.number), demand.arrival.prompt_tokens, 1e3, 1e3)
        cpu.run(0.01, lambda to=devices[name], k=kernel: to.stream("main").launch(k))
        devices[name].stream("comm").launch(Kernel("c", 2, 0, 1e5, is_comm=True, c_sms=2))

for demand in demands:
    loop.post(round(demand.arrival.at_s * 1e9), ask, demand)
faults = merge(
    each([Slow(name, 2) for name in names], Weibull(50, 0.7), LogNormal(5, 1), seed),
    together(racks, Exponential(90), Exponential(3), seed, share=0.7, spread_s=1),
)
Injector(loop, World()).play(faults, until_s=100)
loop.run()
print(len(said), loop.now_ns, hashlib.sha256("\\n".join(said).encode()).hexdigest())
"""


def said(seed: int, string_hash: str) -> str:
    command, environment = [sys.executable, "-c", SAY, str(seed)], os.environ | {"PYTHONHASHSEED": string_hash}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


def test_the_same_seed_gives_the_same_world_in_every_process_and_for_every_string_hash() -> None:
    first = said(1, "1")
    assert int(first.split()[0]) > 800
    assert said(1, "2") == first
    assert said(2, "1") != first
