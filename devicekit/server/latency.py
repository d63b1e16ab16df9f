"""How long requests take, by endpoint: histograms for Prometheus, under SGLang's names too where that is set."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from devicekit.scheduling.messages import Output
from devicekit.server.snapshot import Snapshot

_LABELS = ("endpoint", "model_name")
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640)
_BETWEEN = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5)
_WINDOW = 10.0  # seconds over which a rate is taken

# What is measured: our name, SGLang's, what it is, and its buckets.
_FAMILIES = (
    ("request_seconds", "e2e_request_latency_seconds", "From arrival to end.", _SECONDS),
    ("first_token_seconds", "time_to_first_token_seconds", "From arrival to the first token.", _SECONDS),
    ("queue_seconds", "queue_time_seconds", "From arrival to the first forward pass.", _SECONDS),
    (
        "inter_token_seconds",
        "inter_token_latency_seconds",
        "Mean time between the tokens of a request.",
        _BETWEEN,
    ),
)


class Latency:
    """The histograms of one server.

    Args:
        sglang: offer each under SGLang's name too.
    """

    def __init__(self, registry: CollectorRegistry, model_name: str, *, sglang: bool) -> None:
        self._model = model_name
        self._families: dict[str, list[Histogram]] = {}
        for name, other, text, buckets in _FAMILIES:
            names = [f"devicekit_{name}", *([f"sglang:{other}"] if sglang else [])]
            self._families[name] = [
                Histogram(one, text, _LABELS, buckets=buckets, registry=registry) for one in names
            ]

    def ended(self, endpoint: str, output: Output) -> None:
        """Record a request that has ended."""
        times = output.times
        if times is None:
            return
        self._observe("request_seconds", endpoint, times.total)
        self._observe("queue_seconds", endpoint, times.queued)
        self._observe("first_token_seconds", endpoint, times.first_token)
        if times.first_token is not None and output.output_tokens > 1:
            between = (times.total - times.first_token) / (output.output_tokens - 1)
            self._observe("inter_token_seconds", endpoint, between)

    def _observe(self, name: str, endpoint: str, seconds: float | None) -> None:
        if seconds is not None:
            for family in self._families[name]:
                family.labels(endpoint, self._model).observe(max(0.0, seconds))


class Rate:
    """Tokens per second over the last seconds."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def add(self, tokens: int) -> None:
        """Count tokens that came now."""
        now = time.monotonic()
        self._seen.append((now, tokens))
        self._forget(now)

    @property
    def value(self) -> float:
        """Tokens a second."""
        self._forget(time.monotonic())
        return sum(tokens for _, tokens in self._seen) / _WINDOW

    def _forget(self, now: float) -> None:
        while self._seen and self._seen[0][0] < now - _WINDOW:
            self._seen.popleft()


class Counts:
    """Totals of one server, reported under both families of names."""

    def __init__(self) -> None:
        self.prompt_tokens = self.cached_tokens = self.output_tokens = self.requests = self.aborted = 0
        self.rate = Rate()


class SGLangNames(Collector):
    """The gauges and counters that SGLang's published dashboard asks for."""

    def __init__(
        self, counts: Counts, model_name: str, page_size: int, snapshot: Callable[[], Snapshot]
    ) -> None:
        self._counts = counts
        self._model = model_name
        self._page_size = page_size
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        counts, now, size = self._counts, self._snapshot(), self._page_size
        gauges = {
            "num_running_reqs": now.running + now.prefilling,
            "num_queue_reqs": now.waiting,
            "num_used_tokens": now.pages_used * size,
            "token_usage": now.pages_used / now.pages_total if now.pages_total else 0.0,
            "gen_throughput": counts.rate.value,
            "max_total_num_tokens": now.pages_total * size,
        }
        if now.cache_hit_rate is not None:
            gauges["cache_hit_rate"] = now.cache_hit_rate
        for name, value in gauges.items():
            gauge = GaugeMetricFamily(f"sglang:{name}", f"As SGLang's {name}.", labels=["model_name"])
            gauge.add_metric([self._model], float(value))
            yield gauge
        counters = {
            "prompt_tokens": counts.prompt_tokens,
            "cached_tokens": counts.cached_tokens,
            "generation_tokens": counts.output_tokens,
            "num_requests": counts.requests,
            "num_aborted_requests": counts.aborted,
        }
        for name, value in counters.items():
            counter = CounterMetricFamily(f"sglang:{name}", f"As SGLang's {name}.", labels=["model_name"])
            counter.add_metric([self._model], float(value))
            yield counter
