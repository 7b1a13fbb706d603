"""What `atoll serve` does under load, asked over HTTP as users ask it.

    python benchmarks/serving.py [--gaps] [--streams] [--memory] [--cpu] [--eight] [--quick | --full] [--json]
                                 [--kernel exact|fast] [--threads N]

Without a part's flag, all parts. Medians and min-max of rounds; SmolLM2-135M-Instruct, Q4_1 (`atoll model pull
smollm2`), but where a part says otherwise.

--gaps     time between two tokens of four answers under way while three prompts of 1,000 tokens come: prompts in
           chunks of 64 against whole ones, two servers in turn
--streams  200 streams at once on a server as it comes: how many are whole
--memory   resident memory of server and engine over short requests, after a warm-up: what each request leaves
           behind (a random model of 0.1 million parameters, so that requests are what it is about)
--cpu      processor time of the server's own process, the engine's not counted, for each token of 50 streams (the same
           small model, which gives the server no pause)
--eight    eight answers at once: all of the server and HTTP, against llama.cpp's own batch of eight in this process
           (by llama-cpp-python, if it is installed; it has no server that writes several answers at once)
"""

import argparse
import asyncio
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from atoll.model.store import find
from atoll.model.transformer import TransformerConfig
from atoll.reproduce.server import Server, cores, random_model, serving

PARTS = ("gaps", "streams", "memory", "cpu", "eight")
MODEL = "smollm2"
PATIENCE_S = 600.0
LONG_TOKENS, RUNNING, BURST = 1000, 4, 3
STREAMS = 200
Row = dict[str, Any]


async def stream(server: Server, prompt: Sequence[int], tokens: int, times: list[float]) -> None:
    """Asks for so many tokens, and notes when they come. RuntimeError: the answer isn't whole."""
    host, port = server.url.removeprefix("http://").split(":")
    ask = {"model": server.model, "prompt": list(prompt), "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    body = json.dumps({**ask, "stream": True}).encode()
    reader, writer = await asyncio.open_connection(host, int(port))
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    try:
        status, whole = await reader.readline(), False
        async for line in reader:
            if line.startswith(b"data: {"):
                times.append(time.perf_counter())
            whole |= line.startswith(b"data: [DONE]")
        if not whole or b'"error"' in line:
            raise RuntimeError(f"{status.decode().strip()}, {len(times)} tokens, and then {line!r}")
    finally:
        writer.close()


@contextmanager
def small(*flags: str) -> Iterator[Server]:
    """Of a random model with 0.1 million parameters."""
    with tempfile.TemporaryDirectory() as folder:
        shape = TransformerConfig(width=64, layers=2, heads=4, context=256)
        with serving(random_model(Path(folder, "model"), 0, shape), "--threads", "1", *flags) as server:
            yield server


def asked(rng: np.random.Generator, tokens: int) -> list[int]:
    """A prompt like no other."""
    return rng.integers(33, 127, tokens).tolist()


# -- gaps --------------------------------------------------------------------------------------------------------------


def gaps(rounds: int, flags: Sequence[str]) -> Iterator[Row]:
    rng = np.random.default_rng(0)
    found: dict[str, list[float]] = {"chunks of 64": [], "whole": []}
    with serving(MODEL, *flags) as chunked, serving(MODEL, *flags, "--chunk", "0") as whole:
        for round_ in range(rounds + 1):
            for name, server in zip(found, (chunked, whole), strict=True):
                p99_s = asyncio.run(_gap(server, rng))
                if round_:  # the first warms up
                    found[name].append(1e3 * p99_s)
    for name, values in found.items():
        yield row("gaps", f"P99 between tokens, prompts {name}", "ms", values)
    ratio = statistics.median(found["whole"]) / statistics.median(found["chunks of 64"])
    yield {"part": "gaps", "what": "whole over chunked", "median": ratio, "unit": "x", "asked": ">= 3"}


async def _gap(server: Server, rng: np.random.Generator) -> float:
    """The 99th percentile of the gaps that end while the long prompts are read."""
    running: list[list[float]] = [[] for _ in range(RUNNING)]
    tasks = [asyncio.create_task(stream(server, asked(rng, 16), 1000, times)) for times in running]
    async with asyncio.timeout(PATIENCE_S):
        while min(map(len, running)) < 5:
            await asyncio.sleep(0.01)
        began = time.perf_counter()
        await asyncio.gather(*(stream(server, asked(rng, LONG_TOKENS), 1, []) for _ in range(BURST)))
        ended = time.perf_counter()
        while min(times[-1] for times in running) < ended:  # or the longest gaps aren't over yet
            await asyncio.sleep(0.01)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    within = [b - a for times in running for a, b in pairwise(times) if b > began and a < ended]
    return float(np.percentile(within, 99))


# -- streams -----------------------------------------------------------------------------------------------------------


def streams(rounds: int, flags: Sequence[str]) -> Iterator[Row]:
    rng, wholes, seconds = np.random.default_rng(1), [], []
    with serving(MODEL, *flags) as server:
        for _ in range(rounds):
            began = time.perf_counter()
            whole, error = asyncio.run(_whole(server, rng))
            seconds.append(time.perf_counter() - began)
            wholes.append(float(whole))
            if error:
                yield {"part": "streams", "what": "an error", "said": error}
    yield {**row("streams", f"whole of {STREAMS} at once, 16 tokens each", "", wholes), "asked": f"{STREAMS}"}
    yield row("streams", "until the last had ended", "s", seconds)


async def _whole(server: Server, rng: np.random.Generator) -> tuple[int, str]:
    """How many, and what was wrong with one that isn't."""
    asking = [stream(server, asked(rng, 16), 16, []) for _ in range(STREAMS)]
    async with asyncio.timeout(PATIENCE_S):
        ended = await asyncio.gather(*asking, return_exceptions=True)
    wrong = [repr(error) for error in ended if error is not None]
    return STREAMS - len(wrong), next(iter(wrong), "")


# -- memory ------------------------------------------------------------------------------------------------------------


def memory(requests: int) -> Iterator[Row]:
    """Half of them warm up: caches fill, pages of keys and values are touched for the first time."""
    with small("--kv-memory", "4MiB") as server:
        counts, sizes = asyncio.run(_sizes(server, requests))
    half = len(counts) // 2
    for name, column in zip(("server", "engine"), zip(*sizes, strict=True), strict=True):
        slope = float(np.polyfit(counts[half:], column[half:], 1)[0])
        yield {
            "part": "memory", "what": f"{name}, bytes left behind by each of the last {requests // 2:,} of "
            f"{requests:,} requests", "median": slope, "unit": "B",
            "MiB": [round(column[i] / (1 << 20), 1) for i in (0, half, -1)], "asked": "flat",
        }  # fmt: skip


async def _sizes(server: Server, requests: int) -> tuple[list[int], list[tuple[int, ...]]]:
    """Resident bytes of both processes, after so many requests."""
    rng, step = np.random.default_rng(2), max(16, requests // 50)
    processes = [psutil.Process(pid) for pid in (server.pid, server.engine_pid)]
    counts, sizes = [], []
    async with asyncio.timeout(PATIENCE_S):
        for done in range(0, requests, step):
            for _ in range(step // 16):
                await asyncio.gather(*(stream(server, asked(rng, 16), 4, []) for _ in range(16)))
            counts.append(done + step)
            sizes.append(tuple(process.memory_info().rss for process in processes))
    return counts, sizes


# -- cpu ---------------------------------------------------------------------------------------------------------------


def cpu(rounds: int) -> Iterator[Row]:
    rng, each = np.random.default_rng(3), list[float]()
    with small("--max-batch", "50", "--chunk", "1024") as server:
        for round_ in range(rounds + 1):
            few_s, many_s = (asyncio.run(_spent(server, rng, tokens)) for tokens in (8, 208))
            if round_:
                each.append(1e3 * (many_s - few_s) / (50 * 200))
    yield {**row("cpu", "server's own, each token of 50 streams", "ms", each), "asked": "< 0.1"}


async def _spent(server: Server, rng: np.random.Generator, tokens: int) -> float:
    """Processor seconds for 50 streams of so many tokens."""
    process = psutil.Process(server.pid)
    used = process.cpu_times()
    async with asyncio.timeout(PATIENCE_S):
        await asyncio.gather(*(stream(server, asked(rng, 16), tokens, []) for _ in range(50)))
    now = process.cpu_times()
    return now.user + now.system - used.user - used.system


# -- eight -------------------------------------------------------------------------------------------------------------


def eight(rounds: int, flags: Sequence[str], threads: int) -> Iterator[Row]:
    rng = np.random.default_rng(4)
    rates: dict[str, list[float]] = {"atoll serve": []}
    rival: LlamaCpp | None = None
    with suppress(ImportError):
        rival = LlamaCpp(threads)
        rates["llama.cpp, in process"] = []
    if rival is None:
        yield {"part": "eight", "what": "llama-cpp-python isn't installed: without llama.cpp"}
    with serving(MODEL, *flags) as server:
        for round_ in range(rounds + 1):
            prompts = [asked(rng, 64) for _ in range(8)]
            found = {"atoll serve": asyncio.run(_rate(server, prompts))}
            if rival is not None:
                found["llama.cpp, in process"] = rival.rate(prompts)
            for name, rate in found.items():
                if round_:
                    rates[name].append(rate)
    for name, values in rates.items():
        yield row("eight", f"{name}: eight answers of 64 tokens at once, after prompts of 64", "tokens/s", values)
    if rival is not None:
        ours, theirs = (statistics.median(values) for values in rates.values())
        yield {"part": "eight", "what": "atoll serve over llama.cpp", "median": ours / theirs, "unit": "x"}


async def _rate(server: Server, prompts: Sequence[Sequence[int]]) -> float:
    """From the first token of all to the end."""
    times: list[list[float]] = [[] for _ in prompts]
    async with asyncio.timeout(PATIENCE_S):
        await asyncio.gather(*(stream(server, p, 64, each) for p, each in zip(prompts, times, strict=True)))
    begun, ended = max(each[0] for each in times), max(each[-1] for each in times)
    return sum(at > begun for each in times for at in each) / (ended - begun)


class LlamaCpp:
    """Eight sequences in one batch, greedily, as the slots of its server are."""

    def __init__(self, threads: int) -> None:
        import llama_cpp

        self.api: Any = llama_cpp
        self.llama: Any = llama_cpp.Llama(str(find(MODEL)), n_ctx=64, verbose=False)
        options = llama_cpp.llama_context_default_params()
        options.n_ctx, options.n_batch, options.n_seq_max = 8 * 256, 512, 8
        options.n_threads = options.n_threads_batch = threads
        self.context: Any = llama_cpp.llama_init_from_model(self.llama.model, options)

    def rate(self, prompts: Sequence[Sequence[int]]) -> float:
        api = self.api
        api.llama_memory_clear(api.llama_get_memory(self.context), True)
        batch = api.llama_batch_init(512, 0, 8)
        try:
            rows = [(token, at, s, at == 63) for s, prompt in enumerate(prompts) for at, token in enumerate(prompt)]
            last = self._decode(batch, rows)
            began = time.perf_counter()
            for i in range(63):
                last = self._decode(batch, [(token, 64 + i, s, True) for s, token in enumerate(last)])
            return 8 * 63 / (time.perf_counter() - began)
        finally:
            api.llama_batch_free(batch)

    def _decode(self, batch: Any, rows: Sequence[tuple[int, int, int, bool]]) -> list[int]:
        """The likeliest token after each row that asks for one."""
        batch.n_tokens = len(rows)
        for i, (token, at, sequence, wanted) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, at, 1, wanted
            batch.seq_id[i][0] = sequence
        if self.api.llama_decode(self.context, batch):
            raise RuntimeError("llama.cpp can't decode")
        vocab = self.llama.n_vocab()
        wanted_rows = [i for i, each in enumerate(rows) if each[3]]
        logits = (self.api.llama_get_logits_ith(self.context, i) for i in wanted_rows)
        return [int(np.ctypeslib.as_array(each, (vocab,)).argmax()) for each in logits]


# -- all ---------------------------------------------------------------------------------------------------------------


def row(part: str, what: str, unit: str, values: Sequence[float]) -> Row:
    median, low, high = statistics.median(values), min(values), max(values)
    return {"part": part, "what": what, "median": median, "min": low, "max": high, "unit": unit}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for part in PARTS:
        parser.add_argument(f"--{part}", action="store_true")
    parser.add_argument("--full", action="store_true", help="more rounds, 10,000 requests for memory")
    parser.add_argument("--quick", action="store_true", help="the default")
    parser.add_argument("--json", action="store_true", help="one object per measurement, the last a summary")
    parser.add_argument("--kernel", choices=("exact", "fast"), default="exact")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    flags = ("--kernel", options.kernel, "--threads", str(options.threads))
    rounds = 7 if options.full else 3
    parts = {
        "gaps": lambda: gaps(rounds, flags),
        "streams": lambda: streams(rounds if options.full else 1, flags),
        "memory": lambda: memory(10_000 if options.full else 2_000),
        "cpu": lambda: cpu(rounds),
        "eight": lambda: eight(rounds, flags, options.threads),
    }
    chosen = [part for part in PARTS if getattr(options, part)] or PARTS
    if not options.json:
        about = f"{os.cpu_count()} cores, {options.threads} threads, {platform.machine()}, kernel {options.kernel}"
        print(f"{date.today()}, {about}; {cores()}")
    summary = {}
    for part in chosen:
        for found in parts[part]():
            if "median" in found:
                summary[f"{part}: {found['what']}"] = found["median"]
            print(json.dumps(found) if options.json else told(found), flush=True)
    if options.json:
        print(json.dumps({"summary": summary}))


def told(found: Row) -> str:
    if "median" not in found:
        return "  ".join(str(value) for value in found.values())
    spread = f" ({found['min']:.4g}-{found['max']:.4g})" if "min" in found else ""
    beside = "".join(f"; {key} {found[key]}" for key in ("MiB", "asked") if key in found)
    return f"{found['part']:<8} {found['what']}: {found['median']:.4g}{spread} {found['unit']}{beside}"


if __name__ == "__main__":
    main()
