"""Driver: how well a curve through few sizes knows all-reduces over NVLink that others have measured. (Simulator, "Done
when" 7.)"""

from collections.abc import Iterator
from typing import Final

from atoll.cost import CostCurve, CostModel, Op, Sample
from atoll.reproduce.api import Line, Say, judged
from atoll.reproduce.simulator.tables import table

_POWERS: Final = range(11, 27)
"""Fitted: the sizes nearest to these powers of 2, in bytes."""


def nvlink(say: Say) -> Iterator[Line]:
    """Within a DGX of A100 or H100, by Vidur (Agrawal et al., 2024, arXiv 2405.05465)."""
    say("all-reduces over NVLink that others measured")
    told, medians, count = [], [], 0
    for (gpu, world), samples in _published().items():
        sizes = {min((s.op.bytes for s in samples), key=lambda n: abs(n - 2**power)) for power in _POWERS}
        fitted, judges = ([s for s in samples if (s.op.bytes in sizes) == seen] for seen in (True, False))
        curve = CostCurve.fit("all-reduce", "bytes", fitted, held_out=judges)
        straight = CostModel.fit("all-reduce", ("1", "bytes"), fitted, held_out=judges)
        medians.append(curve.residuals.median)
        count = max(count, len(fitted))
        told.append(f"{gpu} x{world} {curve.residuals.median:.1%} ({straight.residuals.median:.1%})")
    yield Line(
        "7c",
        f"all-reduces over NVLink, 2 KiB to 64 MiB, curves through {count} sizes (alpha-beta in brackets)",
        "median error of sizes held out <= 10 %",
        ", ".join(told),
        judged(all(median <= 0.10 for median in medians)),
        "simulated",
    )


def _published() -> dict[tuple[str, str], list[Sample]]:
    """By GPU and world."""
    found: dict[tuple[str, str], list[Sample]] = {}
    for gpu, world, nbytes, ms in table("all-reduce"):
        found.setdefault((gpu.upper(), world), []).append(Sample(Op("all-reduce", bytes=int(nbytes)), float(ms) * 1e-3))
    return found
