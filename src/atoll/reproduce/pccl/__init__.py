"""Driver: what PCCL promises, run here: real processes and threads over TCP (Keiblinger et al. 2025, arXiv
2505.14065)."""

from atoll.reproduce.api import Part, Say
from atoll.reproduce.pccl.collectives import collectives, quantised
from atoll.reproduce.pccl.elections import elections, peer_groups
from atoll.reproduce.pccl.faults import churn, kill_in_a_large_reduce, master_restarts, newcomer_during_a_reduce
from atoll.reproduce.pccl.misuse import strangers, wrong_use
from atoll.reproduce.pccl.networks import quantised_on_a_slow_link, silent_partition, slow_pair, stripes
from atoll.reproduce.pccl.speed import speed


def demonstrate(full: bool, seed: int, say: Say) -> dict[str, Part]:
    """As the sheet has them."""
    return {
        "1a": Part("collectives against NumPy", lambda: collectives(seed, say)),
        "1b": Part("collectives with codecs", lambda: quantised(seed, say)),
        "2": Part("churn", lambda: churn(600.0 if full else 60.0, seed, say)),
        "3": Part("a kill in a large reduce", lambda: kill_in_a_large_reduce(say)),
        "3c": Part("a silent partition", lambda: silent_partition(say)),
        "4": Part("a newcomer during a reduce", lambda: newcomer_during_a_reduce(say)),
        "5": Part("stripes on a long, lossy link", lambda: stripes(full, say)),
        "6": Part("speed beside gloo", lambda: speed(full, say)),
        "6d": Part("uint8 on 100 Mbit/s", lambda: quantised_on_a_slow_link(full, say)),
        "7": Part("a slow pair of hosts", lambda: slow_pair(full, say)),
        "8": Part("elections of shared state", lambda: elections(say)),
        "8j": Part("wrong use", lambda: wrong_use(say)),
        "8o": Part("strangers", lambda: strangers(say)),
        "8p": Part("peer groups", lambda: peer_groups(say)),
        "8q": Part("masters that are killed", lambda: master_restarts(say)),
    }
