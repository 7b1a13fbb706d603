"""Peers as Ray actors: Ray finds room for them and starts another where one was lost; atoll keeps the state alive.

atoll master --listen 0.0.0.0:48148 --token-file token
python ray_train.py HOST:48148 --token-file token --peers 8       # on a computer of the Ray cluster
"""

import argparse
import os
import socket
from pathlib import Path

import ray
import torch
from ray.exceptions import RayActorError
from torch import nn

import atoll


@ray.remote(num_cpus=1)
class Peer:
    """One peer. With FSDP inside, an actor group of several would be an island; see fsdp.py."""

    def where(self) -> tuple[str, int]:
        return socket.gethostname(), os.getpid()

    def train(self, address: str, token: str, steps: int) -> tuple[float, str]:
        """The loss and the digest of the state at the end."""
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 1))
        optimiser = torch.optim.SGD(model.parameters(), lr=0.05)
        state = atoll.SharedState(dict(model.named_parameters()))
        loss, seen = torch.zeros(()), -1
        with atoll.join(address, **({"token": token} if token else {})) as group:
            while state.revision < steps:
                try:
                    if group.peers_pending():
                        group.update_topology()
                    if group.epoch != seen:
                        group.sync(state)  # who comes late, or again, gets what the others have learnt
                        seen = group.epoch
                        continue
                    torch.manual_seed(state.revision * group.world + group.rank)
                    x = torch.randn(32, 16)
                    loss = nn.functional.mse_loss(model(x), (x.sum(dim=1, keepdim=True) / 4).sin())
                    optimiser.zero_grad()
                    loss.backward()
                    atoll.wait_all([group.all_reduce_async(p.grad, tag=t) for t, p in enumerate(model.parameters())])
                except atoll.PeerLost:
                    continue
                optimiser.step()
                state.revision += 1
            try:
                group.barrier()
            except atoll.PeerLost:
                pass
        return loss.item(), state.digest()


def main(address: str, token: str = "", peers: int = 4, steps: int = 1000) -> list[tuple[float, str]]:
    """What each peer that reached the end returned."""
    running, ends = {}, []

    def start() -> None:
        actor = Peer.remote()
        running[actor.train.remote(address, token, steps)] = actor

    for _ in range(peers):
        start()
    while running:
        (first, *_), _ = ray.wait(list(running))
        actor = running.pop(first)
        try:
            ends.append(ray.get(first))
        except RayActorError as lost:
            print(f"lost {actor}: {str(lost).splitlines()[0]}")
            if not ends:  # not when the first has finished: it would find nobody and begin from the start
                start()
    return ends


if __name__ == "__main__":
    arguments = argparse.ArgumentParser()
    arguments.add_argument("address")
    arguments.add_argument("--token-file", type=Path)
    arguments.add_argument("--peers", type=int, default=4)
    given = arguments.parse_args()
    ray.init()
    print(main(given.address, given.token_file.read_text().strip() if given.token_file else "", given.peers))
