"""The same program on every member of a group in virtual time: results by rank."""

from collections.abc import Callable
from typing import Any

import atoll
from atoll.group.facade import Group
from atoll.group.virtual import World


def start(world: World, size: int, main: Callable[[Group], Any]) -> None:
    """`size` processes that run `main` once all have joined, and leave together; they start in the order of ranks."""

    def program() -> Any:
        with atoll.join("master:1", min_world=size) as group:
            result = main(group)
            group.barrier()
            return result

    for i in range(size):
        world.start(f"peer-{i}", program)


def together(size: int, main: Callable[[Group], Any], **options: Any) -> list[Any]:
    """What `main` returned on each rank."""
    world = World(**options)
    start(world, size, main)
    world.run()
    return [p.program.result for p in world.processes]
