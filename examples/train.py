"""Data-parallel training that survives its peers. Start a master, then this on as many computers as you like:

atoll master --listen 0.0.0.0:48148 --token-file team.token
python train.py HOST:48148 team.token
"""

import sys
from pathlib import Path

import torch
from torch import nn

import atoll


def main(address: str, steps: int = 200, token: bytes | None = None) -> float:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 1))
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05)
    state = atoll.SharedState(dict(model.named_parameters()))  # what must be the same bits on all peers
    loss = torch.zeros(())

    with atoll.join(address, token=token) as group:
        seen = -1
        while state.revision < steps:
            try:
                if group.peers_pending():  # somebody wants in; all peers read the same answer
                    group.update_topology()
                if group.epoch != seen:  # somebody came or went: agree on the state
                    group.sync(state)
                    seen = group.epoch
                    continue

                torch.manual_seed(state.revision * group.world + group.rank)  # other data on every peer
                x = torch.randn(32, 16)
                loss = nn.functional.mse_loss(model(x), (x.sum(dim=1, keepdim=True) / 4).sin())
                optimiser.zero_grad()
                loss.backward()

                works = [group.all_reduce_async(p.grad, "avg", tag=t) for t, p in enumerate(model.parameters())]
                atoll.wait_all(works)
            except atoll.PeerLost as lost:
                print(lost)  # gradients that were decided are averaged, the others as they were:
                continue  # simply do the step again with those who are left
            optimiser.step()
            state.revision += 1
            if state.revision % 20 == 0 and group.rank == 0:
                print(f"step {state.revision}, {group.world} peers, loss {loss.item():.4f}, state {state.digest()[:8]}")
        try:
            group.barrier()  # leave together
        except atoll.PeerLost:
            pass
    return loss.item()


if __name__ == "__main__":
    main(sys.argv[1], token=Path(sys.argv[2]).read_bytes())
