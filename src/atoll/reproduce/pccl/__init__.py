"""Driver: what PCCL promises, run here: real processes and threads over TCP (Keiblinger et al. 2025, arXiv
2505.14065)."""

from collections.abc import Iterator

from atoll.reproduce.api import Line, Say
from atoll.reproduce.pccl.collectives import collectives, quantised
from atoll.reproduce.pccl.elections import elections
from atoll.reproduce.pccl.faults import churn, kill_in_a_large_reduce, newcomer_during_a_reduce
from atoll.reproduce.pccl.misuse import wrong_use


def demonstrate(full: bool, seed: int, say: Say) -> Iterator[Line]:
    """The lines of the sheet's "Done when", in order."""
    yield collectives(seed, say)
    yield quantised(seed, say)
    yield churn(600.0 if full else 60.0, seed, say)
    yield from kill_in_a_large_reduce(say)
    yield _not_yet("3c", "a silent partition (no FIN) is detected within 3 s", "needs a lab of networks to show it")
    yield newcomer_during_a_reduce(say)
    yield _not_yet("5", "300 Mbit/s, 100 ms, 1e-4 loss: 8 connections against one, >= 2.5x", "a link is one connection")
    yield _not_yet("6", "gloo: <= 256 KiB as fast, 64-256 MiB >= 0.8x", "what is reached: docs/performance.md")
    yield _not_yet("7", "the ring avoids a slow pair of hosts", "the ring's order is that of arrival")
    yield from elections(say)
    yield from wrong_use(say)
    yield _not_yet("8p", "peer groups: same keys in two, syncs at once in two", "there are no subgroups")


def _not_yet(number: str, claim: str, why: str) -> Line:
    return Line(number, claim, "", why, "not yet", "-")
