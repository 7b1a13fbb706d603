"""Driver: what a served model does, as Prometheus reads it, by the prometheus_client library."""

from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request as Call
from starlette.responses import Response
from starlette.routing import Route

from atoll.endpoint.api import Delta, Endpoint, Load, Request
from atoll.endpoint.refusals import http_error

_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_GAPS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.5)
_TOKENS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)
_THEIRS: Final = {
    "requests_running": "num_requests_running",
    "requests_waiting": "num_requests_waiting",
    "kv_cache_usage_ratio": "kv_cache_usage_perc",
    "requests": "request_success",
    "prompt_tokens": "prompt_tokens",
    "generation_tokens": "generation_tokens",
    "preemptions": "num_preemptions",
    "prefix_cache_queries": "prefix_cache_queries",
    "prefix_cache_hits": "prefix_cache_hits",
    "spec_drafted_tokens": "spec_decode_num_draft_tokens",
    "spec_accepted_tokens": "spec_decode_num_accepted_tokens",
    "iteration_tokens": "iteration_tokens_total",
    "time_to_first_token": "time_to_first_token_seconds",
    "inter_token_latency": "inter_token_latency_seconds",
    "e2e_request_latency": "e2e_request_latency_seconds",
    "request_queue_time": "request_queue_time_seconds",
    "request_prefill_time": "request_prefill_time_seconds",
    "request_decode_time": "request_decode_time_seconds",
    "request_prompt_tokens": "request_prompt_tokens",
    "request_generation_tokens": "request_generation_tokens",
}
"""Ours: what vLLM calls the same."""
_THEIR_LABELS: Final = {"model": "model_name", "finish_reason": "finished_reason", "status": None, "role": None}
"""None: they have no such label."""
_ENGINE: Final = ("engine", "role")
_LABELS: Final = ("model", *_ENGINE)
_ONE: Final = "0"
"""The engine's name, where there is one."""
_ROLE: Final = "mixed"
"""It reads prompts and writes answers."""
_UNKNOWN: Final = "unknown"
_OTHER: Final = "other"
_MOST_CLASSES: Final = 32
"""Of promises, that are told apart: clients make their names up."""
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Told of requests by the HTTP face; reads the rest off the endpoint when it is asked."""

    def __init__(self, endpoint: Endpoint, vllm_names: bool = False) -> None:
        self._endpoint, self._vllm_names = endpoint, vllm_names
        self._registry = CollectorRegistry()
        self._classes: set[str] = set()

        def counter(name: str, help: str, *labels: str) -> Counter:
            return Counter(f"atoll_{name}", help, ["model", *labels], registry=self._registry)

        def histogram(name: str, help: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"atoll_{name}", help, ["model", *labels], buckets=buckets, registry=self._registry)

        def phase(name: str, help: str) -> Histogram:
            return histogram(name, help, _SECONDS, *_ENGINE)

        self.requests = counter("requests", "Answers that ended", "status", "finish_reason")
        self.promises = counter("slo_attained", "Requests with targets, by whether all were kept", "class", "result")
        self.prompt_tokens = counter("prompt_tokens", "Tokens of prompts")
        self.generation_tokens = counter("generation_tokens", "Tokens of answers")
        self.first = histogram("time_to_first_token", "Seconds", _SECONDS)
        self.gap = histogram("inter_token_latency", "Seconds between tokens", _GAPS)
        self.whole = histogram("e2e_request_latency", "Seconds", _SECONDS)
        self.queue = phase("request_queue_time", "Seconds until its engine took a request up")
        self.prefill = phase("request_prefill_time", "Seconds for its prompt, up to the first token")
        self.decode = phase("request_decode_time", "Seconds from the first token to the last")
        self.request_prompt = histogram("request_prompt_tokens", "Tokens of a prompt", _TOKENS)
        self.request_generation = histogram("request_generation_tokens", "Tokens of an answer", _TOKENS)
        self._registry.register(_Loads(endpoint))
        self.app = Starlette(
            routes=[Route("/metrics", self.page, methods=["GET"])], exception_handlers={HTTPException: http_error}
        )
        """/metrics and nothing else, for a port of its own."""

    async def page(self, call: Call) -> Response:
        """What Prometheus asks for."""
        return Response(self.text(), headers={"Content-Type": CONTENT_TYPE})

    def text(self) -> bytes:
        """Prometheus's text, version 0.0.4."""
        found: bytes = generate_latest(_Renamed(self._registry) if self._vllm_names else self._registry)
        return found

    def watch(self, request: Request, now: float) -> "Watch":
        """A request begins. Names that clients make up are one label."""
        known = any(served.name == request.model for served in self._endpoint.describe())
        return Watch(self, request, request.model if known else _UNKNOWN, now)

    def promised(self, name: str) -> str:
        """The label for a class of promises."""
        if len(self._classes) < _MOST_CLASSES:
            self._classes.add(name)
        return name if name in self._classes else _OTHER


class Watch:
    """One request, for the histograms. Times in seconds by any clock."""

    def __init__(self, metrics: Metrics, request: Request, model: str, now: float) -> None:
        self._metrics, self._request, self._model = metrics, request, model
        self._came = self._first = self._last = now
        self._tokens, self._begun = 0, False
        self._gap = metrics.gap.labels(model)
        self._written = metrics.generation_tokens.labels(model)

    def delta(self, delta: Delta, now: float) -> None:
        """More of the answer has come."""
        n = len(delta.tokens) or bool(delta.text)
        if not self._begun:
            self._begun, self._first = True, now
            if not self._request.embed:
                self._metrics.first.labels(self._model).observe(now - self._came)
            self._metrics.prompt_tokens.labels(self._model).inc(delta.prompt_tokens)
            self._metrics.request_prompt.labels(self._model).observe(delta.prompt_tokens)
        elif n:
            self._gap.observe((now - self._last) / n)
        self._last = now
        written = len(delta.tokens) + delta.unnumbered
        self._tokens += written
        self._written.inc(written)
        if delta.times is not None:
            labels = (self._model, delta.times.engine, _ROLE)
            self._metrics.queue.labels(*labels).observe(delta.times.queue_s)
            self._metrics.prefill.labels(*labels).observe(delta.times.prefill_s)
            if not self._request.embed:
                self._metrics.decode.labels(*labels).observe(delta.times.decode_s)

    def end(self, status: int, finish: str, now: float) -> None:
        """It is over, however."""
        self._metrics.requests.labels(self._model, str(status), finish).inc()
        self._metrics.whole.labels(self._model).observe(now - self._came)
        if not self._request.embed:
            self._metrics.request_generation.labels(self._model).observe(self._tokens)
        kept = self._kept(now)
        if kept is not None:
            name = self._metrics.promised(self._request.labels.get("class", ""))
            result = "attained" if kept and status == 200 else "missed"
            self._metrics.promises.labels(self._model, name, result).inc()

    def _kept(self, now: float) -> bool | None:
        """Was all in time: the first token, the mean time between two, the whole? None: nothing was promised."""
        took_s = {
            "ttft_ms": self._first - self._came,
            "tbt_ms": (self._last - self._first) / max(1, self._tokens - 1),
            "deadline_ms": now - self._came,
        }
        targets = {name: float(value) for name, value in self._request.labels.items() if name in took_s}
        return all(1000 * took_s[name] <= target for name, target in targets.items()) if targets else None


class _Loads:
    """What the endpoint itself knows."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._model = ""

    def collect(self) -> Iterator[Metric]:
        total = self._endpoint.load()
        name = self._name()
        engines = total.engines or {_ONE: total}
        loads: dict[tuple[str, ...], Load] = {(name, engine, _ROLE): load for engine, load in engines.items()}
        gauges: tuple[tuple[str, str, Callable[[Load], float]], ...] = (
            ("requests_running", "Answers being computed", lambda load: load.running),
            ("requests_waiting", "Requests that wait", lambda load: load.waiting),
            ("kv_cache_usage_ratio", "Share of the pages of keys and values in use", _used),
            ("kv_blocks_total", "Pages of keys and values", lambda load: load.pages),
            ("kv_blocks_free", "Pages that can be taken", lambda load: load.free_pages),
        )
        for what, help, value in gauges:
            gauge = GaugeMetricFamily(f"atoll_{what}", help, labels=_LABELS)
            for labels, load in loads.items():
                gauge.add_metric(labels, value(load))
            yield gauge
        instances = GaugeMetricFamily("atoll_instances", "Engines, by what they do", labels=["model", "role", "state"])
        for state, n in total.instances.items():
            instances.add_metric([name, _ROLE, state], n)
        yield instances
        for what in dict.fromkeys(what for load in loads.values() for what in load.counts):
            if what != "iteration_tokens":
                counter = CounterMetricFamily(f"atoll_{what}", what.replace("_", " "), labels=_LABELS)
                for labels, load in loads.items():
                    if what in load.counts:
                        counter.add_metric(labels, load.counts[what])
                yield counter
        yield _iterations(loads)

    def _name(self) -> str:
        """Of the model, if there is one; an engine that starts again keeps its name."""
        served = self._endpoint.describe()
        if served:
            self._model = served[0].name if len(served) == 1 else ""
        return self._model


def _used(load: Load) -> float:
    return (load.pages - load.free_pages) / load.pages if load.pages else 0.0


def _iterations(loads: Mapping[tuple[str, ...], Load]) -> Metric:
    """How many tokens pass in a step."""
    found = HistogramMetricFamily("atoll_iteration_tokens", "Tokens of a step", labels=_LABELS)
    for labels, load in loads.items():
        if load.steps:
            sizes = [f"{1 << i}.0" for i in range(len(load.steps) - 1)] + ["+Inf"]
            buckets = list(zip(sizes, accumulate(load.steps), strict=True))
            found.add_metric(labels, buckets, load.counts.get("iteration_tokens", 0))
    return found


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
                    if sample.labels.get("status", "200") != "200":
                        continue
                    names = {key: _THEIR_LABELS.get(key, key) for key in sample.labels}
                    labels = {name: sample.labels[key] for key, name in names.items() if name is not None}
                    name = sample.name.replace(metric.name, f"vllm:{theirs}", 1)
                    copy.add_sample(name, labels, sample.value, sample.timestamp, sample.exemplar)
                yield copy
