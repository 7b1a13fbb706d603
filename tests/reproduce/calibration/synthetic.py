"""A machine that does not exist, with costs that are known."""

import math
from dataclasses import replace

import numpy as np

from atoll.reproduce.calibration.api import BYTE_WORK, Control, Measured, Reduced

SIZES = tuple(64 << 10 << i for i in range(11))
LAUNCH_S, VOTE_S, TURN_S, MESSAGE_S, FRAME_S = 20e-6, 5e-6, 30e-6, 10e-6, 15e-6
MASTER = 1.2
EXIT_S, EXIT_BYTE_S = 1e-3, 1e-10
FLOP_S, MATMUL_S = 1e-11, 2e-6
DISK_S, DISK_BYTE_S = 2e-3, 5e-9
NS_PER_BYTE = {work: 0.05 * (i + 1) for i, work in enumerate(BYTE_WORK)}


def measured(noise: float = 0.0, seed: int = 1, sizes: tuple[int, ...] = SIZES) -> Measured:
    """With log-normal noise on all that took time."""
    dice = np.random.default_rng(seed)

    def about(seconds: float) -> float:
        return seconds * math.exp(noise * dice.standard_normal())

    widths = (64, 96, 128, 192, 256, 384, 512)
    return Measured(
        machine={"cpu": "abacus", "cores": "2"},
        cores=2,
        bytes={
            work: {n: about(n * NS_PER_BYTE.get(work, 0.3) * 1e-9) for n in sizes} for work in (*BYTE_WORK, "loopback")
        },
        together=1.25,
        control=Control(
            vote_s=300e-6,
            vote_core_s=VOTE_S + TURN_S + 2 * MESSAGE_S,
            master_core_s=MASTER * (2 * TURN_S + 4 * MESSAGE_S),
            message_core_s=LAUNCH_S + 1.5 * TURN_S + 3 * FRAME_S,
            frame_core_s=MESSAGE_S,
            vote_alone_core_s=VOTE_S,
            reduce_alone_core_s=LAUNCH_S,
            form_s=2e-3,
        ),
        reduced=tuple(
            Reduced(world, direct, n, about(1e-3 + n * world * (1 if direct else 3) * 1e-10))
            for world in (2, 4)
            for direct in (True, False)
            for n in sizes
        ),
        matmul=tuple((2.0 * w**3, about(MATMUL_S + 2.0 * w**3 * FLOP_S)) for w in widths),
        disk=tuple((n, about(DISK_S + n * DISK_BYTE_S)) for n in sizes),
        exits=tuple((n << 20, about(EXIT_S + (n << 20) * EXIT_BYTE_S)) for n in (0, 32, 64, 128, 192, 256)),
    )


def poisoned(clean: Measured, sizes: set[int]) -> Measured:
    """Another machine at these sizes, a hundred times slower, and at every size of groups that no fit may see."""

    def spoil(by_size: dict[int, float]) -> dict[int, float]:
        return {n: 100 * s if n in sizes else s for n, s in by_size.items()}

    return replace(
        clean,
        bytes={work: spoil(by_size) for work, by_size in clean.bytes.items()},
        reduced=tuple(
            replace(r, seconds=100 * r.seconds) if r.nbytes in sizes or r.world != 2 else r for r in clean.reduced
        ),
        disk=tuple((n, 100 * s if n in sizes else s) for n, s in clean.disk),
    )
