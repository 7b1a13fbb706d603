"""Islands and shards: FSDP inside an island, where links are fast; atoll between islands, which come and go.

An island is one torchrun, here of two processes; its process i holds shard i of the model. Every few steps it averages
the change of its shard with those who hold the same shard in the other islands (DiLoCo, arXiv 2311.08105).

atoll master --listen 0.0.0.0:48148 --token-file team.token
torchrun --standalone --nproc-per-node 2 fsdp.py HOST:48148 team.token      # once for each island
"""

import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

import atoll


def main(address: str, rounds: int = 20, token: bytes | None = None) -> tuple[list[float], torch.Tensor]:
    dist.init_process_group("gloo")
    shard, shards = dist.get_rank(), dist.get_world_size()
    dist.broadcast_object_list(name := [os.urandom(8)])  # all of an island say the same
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 1))
    for part in (model[0], model[2], model):
        fully_shard(part)
    inner = torch.optim.AdamW(model.parameters(), lr=0.01)
    torch.manual_seed(int.from_bytes(os.urandom(7)))  # other data in every process

    mine = [p.to_local().detach() for p in model.parameters()]  # this process's shard of each: changes with the model
    agreed = torch.cat([p.flatten() for p in mine])  # what all holders of this shard agreed on last
    velocity = torch.zeros_like(agreed)
    state = atoll.SharedState({"agreed": agreed, "velocity": velocity})
    losses, seen = [], -1

    with atoll.join(address, token=token) as group:
        while state.revision < rounds:
            try:
                if group.peers_pending():
                    group.update_topology()
                if group.epoch != seen:
                    names = group.gather_bytes(name[0])
                    if seen >= 0 and names.count(name[0]) < shards:
                        sys.exit("this island has lost a process: start it again")
                    if any(names.count(other) < shards for other in names):
                        time.sleep(0.1)  # an island is still arriving, or leaving
                        continue
                    holders = group.subgroup(f"shard {shard}")
                    holders.sync(state)
                    group.barrier()  # only when all shards are agreed on may an island use its model
                    load(mine, agreed)
                    seen = group.epoch

                for _ in range(10):
                    x = torch.randn(32, 16)
                    loss = nn.functional.mse_loss(model(x), (x.sum(dim=1, keepdim=True) / 4).sin())
                    inner.zero_grad()
                    loss.backward()
                    inner.step()
                change = agreed - torch.cat([p.flatten() for p in mine])
                holders.all_reduce(change, "avg", codec="uint8")
                group.barrier()  # all shards have it, or all do the round again
            except atoll.PeerLost as lost:
                print(lost)
                continue
            velocity.mul_(0.9).add_(change)
            agreed.sub_(change + 0.9 * velocity, alpha=0.5)
            load(mine, agreed)
            state.revision += 1
            losses.append(loss.item())
            print(f"round {state.revision}, shard {shard} on {holders.world} islands: {state.digest()[:8]}, {loss:.4f}")
        try:
            group.barrier()  # leave together
        except atoll.PeerLost:
            pass
    return losses, torch.cat([p.flatten() for p in mine])


def load(shards: list[torch.Tensor], flat: torch.Tensor) -> None:
    for p, values in zip(shards, flat.split([p.numel() for p in shards]), strict=True):
        p.copy_(values.view_as(p))


if __name__ == "__main__":
    main(sys.argv[1], token=Path(sys.argv[2]).read_bytes())
    dist.destroy_process_group()
