"""Interface: the group in virtual time: the very master, peer policy, schedules and codecs over simulated links.

world = World(seed=1, fabric=leaf_spine(64, 8, 4, bytes_per_s=1e9))
for i in range(64):
    world.start(f"peer-{i}", main)      # main() calls atoll.join(...) as it would for real
world.run()

Above a thousand ranks there are no programs: `simulate` walks the same schedules over flows, for a tensor that is only
`Sized`.
"""

from atoll.group.virtual.process import Process
from atoll.group.virtual.sized import Sized, Took, simulate
from atoll.group.virtual.world import World

__all__ = ["Process", "Sized", "Took", "World", "simulate"]
