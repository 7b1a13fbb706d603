"""Driver: what a served model does, as Prometheus reads it, by the prometheus_client library."""

from collections.abc import Iterator
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from atoll.endpoint.api import Delta, Endpoint

_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_GAPS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.5)
_TOKENS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)
_THEIRS: Final = {
    "requests_running": "num_requests_running",
    "requests_waiting": "num_requests_waiting",
    "kv_cache_usage_ratio": "kv_cache_usage_perc",
    "prompt_tokens": "prompt_tokens",
    "generation_tokens": "generation_tokens",
    "preemptions": "num_preemptions",
    "prefix_cache_queries": "prefix_cache_queries",
    "prefix_cache_hits": "prefix_cache_hits",
    "time_to_first_token": "time_to_first_token_seconds",
    "inter_token_latency": "inter_token_latency_seconds",
    "e2e_request_latency": "e2e_request_latency_seconds",
    "request_prompt_tokens": "request_prompt_tokens",
    "request_generation_tokens": "request_generation_tokens",
}
"""Ours: what vLLM calls the same."""
_UNKNOWN: Final = "unknown"
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Told of requests by the HTTP face; reads the rest off the endpoint when it is asked."""

    def __init__(self, endpoint: Endpoint, vllm_names: bool = False) -> None:
        self._endpoint, self._vllm_names = endpoint, vllm_names
        self._registry = CollectorRegistry()

        def counter(name: str, help: str, *labels: str) -> Counter:
            return Counter(f"atoll_{name}", help, ["model", *labels], registry=self._registry)

        def histogram(name: str, help: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"atoll_{name}", help, ["model"], buckets=buckets, registry=self._registry)

        self.requests = counter("requests", "Answers that ended", "status", "finish_reason")
        self.prompt_tokens = counter("prompt_tokens", "Tokens of prompts")
        self.generation_tokens = counter("generation_tokens", "Tokens of answers")
        self.first = histogram("time_to_first_token", "Seconds", _SECONDS)
        self.gap = histogram("inter_token_latency", "Seconds between tokens", _GAPS)
        self.whole = histogram("e2e_request_latency", "Seconds", _SECONDS)
        self.request_prompt = histogram("request_prompt_tokens", "Tokens of a prompt", _TOKENS)
        self.request_generation = histogram("request_generation_tokens", "Tokens of an answer", _TOKENS)
        self._registry.register(_Loads(endpoint))

    def text(self) -> bytes:
        """Prometheus's text, version 0.0.4."""
        found: bytes = generate_latest(_Renamed(self._registry) if self._vllm_names else self._registry)
        return found

    def watch(self, model: str, now: float) -> "Watch":
        """A request begins. Names that clients make up are one label."""
        known = any(served.name == model for served in self._endpoint.describe())
        return Watch(self, model if known else _UNKNOWN, now)


class Watch:
    """One request, for the histograms. Times in seconds by any clock."""

    def __init__(self, metrics: Metrics, model: str, now: float) -> None:
        self._metrics, self._model, self._began, self._last = metrics, model, now, now
        self._tokens, self._begun = 0, False
        self._gap = metrics.gap.labels(model)
        self._written = metrics.generation_tokens.labels(model)

    def delta(self, delta: Delta, now: float) -> None:
        """More of the answer has come."""
        n = len(delta.tokens) or bool(delta.text)
        if not self._begun:
            self._begun = True
            self._metrics.first.labels(self._model).observe(now - self._began)
            self._metrics.prompt_tokens.labels(self._model).inc(delta.prompt_tokens)
            self._metrics.request_prompt.labels(self._model).observe(delta.prompt_tokens)
        elif n:
            self._gap.observe((now - self._last) / n)
        self._last = now
        written = len(delta.tokens) + delta.unnumbered
        self._tokens += written
        self._written.inc(written)

    def end(self, status: int, finish: str, now: float) -> None:
        """It is over, however."""
        self._metrics.requests.labels(self._model, str(status), finish).inc()
        self._metrics.whole.labels(self._model).observe(now - self._began)
        self._metrics.request_generation.labels(self._model).observe(self._tokens)


class _Loads:
    """What the endpoint itself knows."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    def collect(self) -> Iterator[Metric]:
        load = self._endpoint.load()
        used = (load.pages - load.free_pages) / load.pages if load.pages else 0.0
        for name, help, value in (
            ("requests_running", "Answers being computed", load.running),
            ("requests_waiting", "Requests that wait", load.waiting),
            ("kv_cache_usage_ratio", "Share of the pages of keys and values in use", used),
            ("kv_blocks_total", "Pages of keys and values", load.pages),
            ("kv_blocks_free", "Pages that can be taken", load.free_pages),
        ):
            yield GaugeMetricFamily(f"atoll_{name}", help, value=value)
        for name, total in load.counts.items():
            yield CounterMetricFamily(f"atoll_{name}", name.replace("_", " "), value=total)


class _Renamed:
    """A registry that also gives what vLLM has under its names."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        for metric in self._registry.collect():
            yield metric
            theirs = _THEIRS.get(metric.name.removeprefix("atoll_"))
            if theirs is not None:
                copy = Metric(f"vllm:{theirs}", metric.documentation, metric.type)
                for sample in metric.samples:
                    labels = {("model_name" if k == "model" else k): v for k, v in sample.labels.items()}
                    name = sample.name.replace(metric.name, f"vllm:{theirs}", 1)
                    copy.add_sample(name, labels, sample.value, sample.timestamp, sample.exemplar)
                yield copy
