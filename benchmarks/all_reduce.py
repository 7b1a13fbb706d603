"""All-reduce of atoll against torch's gloo on this machine: same processes, same run, interleaved, one thread each.

    python benchmarks/all_reduce.py [--quick | --full] [--json] [--world 2 4]

atoll's times include the votes (a master in a process of its own); gloo has no votes, no master and survives no loss.
Prints a row per size: median and min-max in milliseconds of both, and the ratio gloo / atoll (above 1: atoll is
faster).
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from datetime import date
from typing import Any

ROUNDS = {"quick": 5, "full": 20}
SIZES = {
    "quick": {4 << 10: 200, 256 << 10: 60, 64 << 20: 3},
    "full": {4 << 10: 250, 256 << 10: 100, 4 << 20: 20, 64 << 20: 4, 256 << 20: 2},
}
"""Bytes and operations per round."""


def peer(address: str, gloo_port: int, rank: int, world: int, mode: str) -> None:
    """One process: both libraries side by side; rank 0 prints a JSON line per measurement."""
    import numpy as np
    import torch
    import torch.distributed as dist

    import atoll

    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(gloo_port)}
    dist.init_process_group("gloo", rank=rank, world_size=world)
    memory, tcp = address.split(",")
    with atoll.join(memory, min_world=world) as group, atoll.join(tcp, min_world=world, shared_memory=False) as far:
        for nbytes, repeat in SIZES[mode].items():
            x, t = np.ones(nbytes // 4, np.float32), torch.ones(nbytes // 4)
            y = np.ones_like(x)
            ways: dict[str, Any] = {
                "atoll": lambda x=x, y=y: group.all_reduce(x, "avg", out=y),
                "atoll in place": lambda x=x: group.all_reduce(x, "avg"),
                "gloo": lambda t=t: dist.all_reduce(t),
                "atoll TCP": lambda x=x, y=y: far.all_reduce(x, "avg", out=y),
                "TCP in place": lambda x=x: far.all_reduce(x, "avg"),
            }
            if nbytes == 4 << 10:
                ways["gather_bytes"] = lambda: group.gather_bytes(b"x")
            times: dict[str, list[float]] = {name: [] for name in ways}
            for warm_up_and_rounds in range(1 + ROUNDS[mode]):
                for name, call in ways.items():
                    dist.barrier()
                    for _ in range(repeat):
                        began = time.perf_counter()
                        call()
                        if warm_up_and_rounds:
                            times[name].append(1e3 * (time.perf_counter() - began))
                    t.fill_(1.0)
            if group.rank == 0:
                for name, ms in times.items():
                    print(json.dumps({"world": world, "bytes": nbytes, "what": name, **summary(ms)}), flush=True)
        group.barrier()
    dist.destroy_process_group()


def summary(ms: list[float]) -> dict[str, float]:
    ms = sorted(ms)
    return {
        "median_ms": round(statistics.median(ms), 4),
        "min_ms": round(ms[0], 4),
        "max_ms": round(ms[-1], 4),
        "p99_ms": round(ms[min(len(ms) - 1, int(len(ms) * 0.99))], 4),
        "n": len(ms),
    }


def free_port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def measure(world: int, mode: str) -> list[dict[str, Any]]:
    code = "import atoll; m = atoll.Master(); print(m.address, flush=True); m.run()"
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    masters = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=env) for _ in range(2)
    ]
    try:
        address, port = ",".join(m.stdout.readline().strip() for m in masters if m.stdout), free_port()
        common = [sys.executable, __file__, "--peer", address, str(port)]
        peers = [
            subprocess.Popen([*common, str(r), str(world), mode], stdout=subprocess.PIPE, text=True, env=env)
            for r in range(world)
        ]
        out = [p.communicate(timeout=900)[0] for p in peers]
        if any(p.returncode for p in peers):
            raise SystemExit("a peer failed")
    finally:
        for master in masters:
            master.kill()
    return [json.loads(line) for text in out for line in text.splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="more sizes and rounds")
    parser.add_argument("--quick", action="store_true", help="the default")
    parser.add_argument("--json", action="store_true", help="one object per measurement, the last a summary")
    parser.add_argument("--world", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--peer", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        address, port, rank, world, mode = options.peer
        peer(address, int(port), int(rank), int(world), mode)
        return
    mode = "full" if options.full else "quick"
    ratios: dict[str, float] = {}
    if not options.json:
        print(f"{date.today()}, {os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}")
        print(f"{'W':>2} {'bytes':>10} {'what':<15} {'median ms':>10} {'min-max':>20} {'gloo/this':>10}")
    for world in options.world:
        rows = measure(world, mode)
        for row in rows:
            gloo = next(r for r in rows if r["bytes"] == row["bytes"] and r["what"] == "gloo")
            ratio = round(gloo["median_ms"] / row["median_ms"], 3)
            if "atoll" in row["what"] or "place" in row["what"]:
                ratios[f"{row['what']}, world {world}, {row['bytes']} bytes"] = ratio
            if options.json:
                print(json.dumps({**row, "gloo_over_this": ratio}))
            else:
                spread = f"{row['min_ms']:.3f}-{row['max_ms']:.3f}"
                name, median = row["what"], row["median_ms"]
                print(f"{world:>2} {row['bytes']:>10} {name:<15} {median:>10.3f} {spread:>20} {ratio:>10.2f}")
    if options.json:
        machine = {"cores": os.cpu_count(), "machine": platform.machine(), "date": str(date.today())}
        print(json.dumps({"summary": "gloo / atoll, medians", "ratios": ratios, **machine}))


if __name__ == "__main__":
    main()
