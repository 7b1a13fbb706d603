"""Driver: what PCCL promises, run here: real processes and threads over TCP (Keiblinger et al. 2025, arXiv
2505.14065)."""

from collections.abc import Iterator

from atoll.reproduce.api import Line, Say
from atoll.reproduce.pccl.collectives import collectives, quantised
from atoll.reproduce.pccl.elections import elections, peer_groups
from atoll.reproduce.pccl.faults import churn, kill_in_a_large_reduce, master_restarts, newcomer_during_a_reduce
from atoll.reproduce.pccl.misuse import wrong_use
from atoll.reproduce.pccl.networks import networks
from atoll.reproduce.pccl.speed import speed


def demonstrate(full: bool, seed: int, say: Say) -> Iterator[Line]:
    """The lines of the sheet's "Done when", in order."""
    yield collectives(seed, say)
    yield quantised(seed, say)
    yield churn(600.0 if full else 60.0, seed, say)
    yield from kill_in_a_large_reduce(say)
    yield newcomer_during_a_reduce(say)
    yield from networks(full, say)
    yield from speed(full, say)
    yield from elections(say)
    yield from wrong_use(say)
    yield peer_groups(say)
    yield master_restarts(say)
