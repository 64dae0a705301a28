"""Figures for Prometheus under vLLM's names and meanings, so that dashboards carry over."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

_GAUGES = {
    "num_requests_running": ("running", "Requests in the running batch"),
    "num_requests_waiting": ("waiting", "Requests that wait for their turn"),
    "kv_cache_usage_perc": ("cache_usage", "Share of cache blocks in use, 0 to 1"),
}
_COUNTERS = {
    "prefix_cache_queries": ("prefix_queries", "Prompt tokens looked up in the prefix cache"),
    "prefix_cache_hits": ("prefix_hits", "Prompt tokens found in the prefix cache"),
    "num_preemptions": ("preemptions", "Requests that had to give their blocks back"),
    "spec_decode_num_draft_tokens": ("drafts", "Tokens drafted"),
    "spec_decode_num_accepted_tokens": ("accepted", "Drafted tokens accepted"),
}
_SECONDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)


class _EngineCollector:
    """Reads the engine's own counters when asked, so that nothing is counted twice."""

    def __init__(self, stats: Callable[[], Any], model: str) -> None:
        self._stats, self._model = stats, model

    def collect(self) -> Iterator[Metric]:
        """The engine's figures of now."""
        stats = self._stats()
        read = stats.get if isinstance(stats, dict) else lambda name, default: getattr(stats, name, default)
        for name, (own, text) in _GAUGES.items():
            gauge = GaugeMetricFamily(f"vllm:{name}", text, labels=["model_name"])
            gauge.add_metric([self._model], float(read(own, 0) or 0))
            yield gauge
        for name, (own, text) in _COUNTERS.items():
            counter = CounterMetricFamily(f"vllm:{name}", text, labels=["model_name"])
            counter.add_metric([self._model], float(read(own, 0) or 0))
            yield counter


class Metrics:
    """The server's own figures beside the engine's."""

    def __init__(self, stats: Callable[[], Any], model: str) -> None:
        self._registry, self._model = CollectorRegistry(), model
        self._registry.register(_EngineCollector(stats, model))  # type: ignore[arg-type]
        self._prompt = self._counter("prompt_tokens", "Prompt tokens processed")
        self._made = self._counter("generation_tokens", "Tokens generated")
        self._success = Counter(
            "vllm:request_success", "Requests that finished, by reason", ["model_name", "finished_reason"], registry=self._registry
        )
        self._refused = Counter(
            "vllm:request_errors", "Requests refused or failed, by status", ["model_name", "status"], registry=self._registry
        )
        self._first = self._histogram("time_to_first_token_seconds", "From a request to its first token", _SECONDS)
        self._between = self._histogram("inter_token_latency_seconds", "Between two tokens of a request", _SECONDS)
        self._whole = self._histogram("e2e_request_latency_seconds", "From a request to its end", _SECONDS)
        self._prompt_size = self._histogram("request_prompt_tokens", "Prompt tokens of a request", _TOKENS)
        self._made_size = self._histogram("request_generation_tokens", "Tokens generated for a request", _TOKENS)

    def _counter(self, name: str, text: str) -> Any:
        return Counter(f"vllm:{name}", text, ["model_name"], registry=self._registry).labels(self._model)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Any:
        return Histogram(f"vllm:{name}", text, ["model_name"], registry=self._registry, buckets=buckets).labels(self._model)

    def text(self) -> bytes:
        """All figures in Prometheus' text form."""
        return generate_latest(self._registry)

    def refused(self, status: int) -> None:
        """Counts an error answer."""
        self._refused.labels(self._model, str(status)).inc()

    def begin(self, prompt_tokens: int) -> Watch:
        """A request that the engine took."""
        self._prompt.inc(prompt_tokens)
        self._prompt_size.observe(prompt_tokens)
        return Watch(self)


class Watch:
    """Times one request."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics, self._began, self._last, self._count = metrics, time.perf_counter(), 0.0, 0

    def tokens(self, count: int) -> None:
        """Tokens that came together."""
        now = time.perf_counter()
        if count and not self._last:
            self._metrics._first.observe(now - self._began)
        elif count:
            for _ in range(count):
                self._metrics._between.observe((now - self._last) / count)
        self._last, self._count = now if count else self._last, self._count + count
        self._metrics._made.inc(count)

    def choice(self, reason: str) -> None:
        """One choice's end."""
        self._metrics._success.labels(self._metrics._model, reason).inc()

    def end(self, finished: bool) -> None:
        """The request's end."""
        if not finished:
            self.choice("abort")
        self._metrics._whole.observe(time.perf_counter() - self._began)
        self._metrics._made_size.observe(self._count)
