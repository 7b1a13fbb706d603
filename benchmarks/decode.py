"""A model of 135 million parameters on this machine's cores: atoll's engines beside transformers and llama.cpp.

    python benchmarks/decode.py [--quick | --full] [--json] [--threads N]

The same weights (SmolLM2-135M-Instruct, Q4_1; `atoll model pull smollm2`), the same threads, in the same process, in
turn. Tokens per second, median and min-max of all rounds: one answer alone, eight at once, a prompt of 512 tokens.
transformers computes in float32; llama.cpp (if `llama-cpp-python` is installed) on the packed rows with its own 8-bit
activations, and one answer at a time. The ratios are those of atoll's modes to each rival.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date
from typing import Any

import numpy as np
import torch

from atoll.model.kernel import KernelModel
from atoll.model.loading import load
from atoll.model.paged import PAGE_TOKENS, PagedModel, Slice
from atoll.model.store import find
from atoll.model.torch_pages import TorchModel

CONTEXT, PROMPT, EIGHT = 130, 512, 8
ROUNDS = {"quick": 5, "full": 15}
TOKENS = {"one": 24, "eight": 8, "prompt": PROMPT}
PAGES = EIGHT * -(-PROMPT // PAGE_TOKENS) + 64
Rate = Callable[[], float]


class Paged:
    """One of atoll's engines."""

    def __init__(self, model: PagedModel, text: list[int]) -> None:
        self.model, self.text = model, text
        each = -(-PROMPT // PAGE_TOKENS)
        self.pages = [list(range(i * each, (i + 1) * each)) for i in range(EIGHT)]
        for pages in self.pages:
            model.forward([Slice(text[:CONTEXT], 0, pages)])

    def one(self) -> float:
        return self._decode(1)

    def eight(self) -> float:
        return self._decode(EIGHT)

    def prompt(self) -> float:
        began = time.perf_counter()
        self.model.forward([Slice(self.text[:PROMPT], 0, self.pages[0])])
        return PROMPT / (time.perf_counter() - began)

    def _decode(self, batch: int) -> float:
        n = TOKENS["one" if batch == 1 else "eight"]
        began = time.perf_counter()
        for i in range(n):
            at = CONTEXT + i
            self.model.forward([Slice([self.text[at]], at, pages) for pages in self.pages[:batch]]).argmax(-1)
        return batch * n / (time.perf_counter() - began)


class Transformers:
    """Hugging Face's, in float32."""

    def __init__(self, path: Any, text: list[int]) -> None:
        from transformers import LlamaConfig, LlamaForCausalLM

        packed = load(path).weights
        c = packed.config
        config = LlamaConfig(
            vocab_size=c.vocab_size, hidden_size=c.width, intermediate_size=c.mlp_width, num_hidden_layers=c.layers,
            num_attention_heads=c.heads, num_key_value_heads=c.key_heads, rope_theta=c.rope_theta,
            max_position_embeddings=c.context, rms_norm_eps=c.norm_eps, tie_word_embeddings=c.tie_embeddings,
        )  # fmt: skip
        self.model = LlamaForCausalLM(config).eval()
        self.model.load_state_dict(packed.transformer().state_dict(), strict=False)
        self.text = torch.tensor([text] * EIGHT)

    def one(self) -> float:
        return self._decode(1)

    def eight(self) -> float:
        return self._decode(EIGHT)

    @torch.inference_mode()
    def prompt(self) -> float:
        began = time.perf_counter()
        self.model(self.text[:1, :PROMPT], use_cache=True, logits_to_keep=1)
        return PROMPT / (time.perf_counter() - began)

    @torch.inference_mode()
    def _decode(self, batch: int) -> float:
        n = TOKENS["one" if batch == 1 else "eight"]
        cache = self.model(self.text[:batch, :CONTEXT], use_cache=True, logits_to_keep=1).past_key_values
        began = time.perf_counter()
        for i in range(n):
            token = self.text[:batch, CONTEXT + i : CONTEXT + i + 1]
            out = self.model(token, past_key_values=cache, use_cache=True)
            out.logits.argmax(-1)
        return batch * n / (time.perf_counter() - began)


class LlamaCpp:
    """llama.cpp by its Python binding."""

    def __init__(self, path: Any, text: list[int], threads: int) -> None:
        from llama_cpp import Llama

        self.model = Llama(
            str(path), n_ctx=1024, n_batch=512, n_threads=threads, n_threads_batch=threads, verbose=False
        )
        self.text = text

    def one(self) -> float:
        self.model.reset()
        self.model.eval(self.text[:CONTEXT])
        began = time.perf_counter()
        for i in range(TOKENS["one"]):
            self.model.eval([self.text[CONTEXT + i]])
            self.model.sample(temp=0.0)
        return TOKENS["one"] / (time.perf_counter() - began)

    def prompt(self) -> float:
        self.model.reset()
        began = time.perf_counter()
        self.model.eval(self.text[:PROMPT])
        return PROMPT / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="more rounds")
    parser.add_argument("--quick", action="store_true", help="the default")
    parser.add_argument("--json", action="store_true", help="one object per measurement, the last a summary")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    path = find("smollm2")
    loaded = load(path)
    text = np.random.default_rng(0).integers(300, 40_000, PROMPT + 64).tolist()
    engines: dict[str, Any] = {
        "atoll exact": Paged(KernelModel(loaded.weights, PAGES, threads=options.threads), text),
        "atoll fast": Paged(KernelModel(loaded.weights, PAGES, integers=True, threads=options.threads), text),
        "atoll torch": Paged(TorchModel(loaded.weights.transformer(), PAGES), text),
        "transformers": Transformers(path, text),
    }
    try:
        engines["llama.cpp"] = LlamaCpp(path, text, options.threads)
    except ImportError:
        print("llama-cpp-python isn't installed: without llama.cpp")
    found: dict[tuple[str, str], list[float]] = {}
    for round_ in range(ROUNDS["full" if options.full else "quick"] + 1):
        for name, engine in engines.items():
            for what in TOKENS:
                if hasattr(engine, what):
                    rate = getattr(engine, what)()
                    if round_:  # the first warms up
                        found.setdefault((name, what), []).append(rate)
    ratios = {}
    if not options.json:
        print(f"{date.today()}, {os.cpu_count()} cores, {options.threads} threads, {platform.machine()}; tokens/s")
    for (name, what), rates in found.items():
        row: dict[str, Any] = {
            "engine": name, "what": what, "median": statistics.median(rates), "min": min(rates), "max": max(rates),
        }  # fmt: skip
        for rival in ("transformers", "llama.cpp"):
            if (rival, what) in found and name.startswith("atoll"):
                row[f"over {rival}"] = ratios[f"{name}, {what}, over {rival}"] = row["median"] / statistics.median(
                    found[rival, what]
                )
        if options.json:
            print(json.dumps(row))
        else:
            over = "  ".join(f"{key} {value:.2f}x" for key, value in row.items() if key.startswith("over"))
            print(f"{name:<13} {what:<7} {row['median']:7.1f} ({row['min']:.1f}-{row['max']:.1f})  {over}")
    if options.json:
        print(json.dumps({"ratios": ratios}))


if __name__ == "__main__":
    main()
