"""What Prometheus scrapes: counters that are kept as things happen, and gauges that are read at a scrape."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from devicekit.engine.capturing import EngineGraphs
from devicekit.release import ReleasePoints
from devicekit.scheduling.messages import Operation, Reply, Step, UpdateReply
from devicekit.scheduling.request import FinishKind
from devicekit.server.inventory import PoolCount
from devicekit.server.latency import Counts, Latency, SGLangNames
from devicekit.server.loop import EngineLoop
from devicekit.weights.operations import MemoryReply

_SECONDS = (0.001, 0.01, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """The metrics of one server, in a registry of its own."""

    def __init__(self, model_name: str, *, sglang: bool = False) -> None:
        self.registry = CollectorRegistry()
        self.latency = Latency(self.registry, model_name, sglang=sglang)
        self.counts = Counts()
        self._model_name = model_name
        self._sglang = sglang

        def counter(name: str, text: str, labels: Sequence[str] = ()) -> Counter:
            return Counter(f"devicekit_{name}", text, labels, registry=self.registry)

        def seconds(name: str, text: str, labels: Sequence[str]) -> Histogram:
            return Histogram(f"devicekit_{name}", text, labels, buckets=_SECONDS, registry=self.registry)

        self._requests = counter("requests", "Generation requests that have ended, by reason.", ["finish"])
        self._prompt = counter("prompt_tokens", "Prompt tokens of requests that have ended.")
        self._cached = counter("cached_tokens", "Prompt tokens that were found in the prefix cache.")
        self._output = counter("output_tokens", "Tokens generated.")
        self._retractions = counter("retractions", "Times that a request lost its KV and started over.")
        self.rejected = counter("requests_rejected", "Generation requests that were answered 429.")
        self._operations = seconds("operation_seconds", "Control operations.", ["operation", "success"])
        self._occupation = counter(
            "memory_occupation_bytes", "Memory of a region given back, or taken again.", ["tag", "operation"]
        )
        self._updates = seconds("weight_update_seconds", "Weight updates that wrote something.", ["source"])

    def watch(self, loop: EngineLoop, releases: ReleasePoints, graphs: EngineGraphs, page_size: int) -> None:
        """Read gauges from these objects when scraped."""
        self.registry.register(_Gauges(loop, releases))
        self.registry.register(_Graphs(graphs))
        if self._sglang:
            names = SGLangNames(self.counts, self._model_name, page_size, lambda: loop.snapshot)
            self.registry.register(names)

    def exposition(self, pools: Mapping[str, PoolCount] | None) -> bytes:
        """All metrics, in Prometheus' text format; ``pools`` as counted just now, if they could be."""
        counted = CollectorRegistry()
        counted.register(_Pools(pools or {}))
        return generate_latest(self.registry) + generate_latest(counted)

    def count(self, step: Step) -> None:
        """Count what requests gave out in a step."""
        outputs = step.told
        made = sum(len(output.tokens) for output in outputs)
        if step.columns is not None:
            made += len(step.columns.tokens)
        counts = self.counts
        self._output.inc(made)
        counts.output_tokens += made
        counts.rate.add(made)
        for output in outputs:
            if output.finish is not None:
                self._requests.labels(output.finish.kind.value).inc()
                self._prompt.inc(output.prompt_tokens)
                self._cached.inc(output.cached_tokens)
                self._retractions.inc(output.retractions)
                counts.prompt_tokens += output.prompt_tokens
                counts.cached_tokens += output.cached_tokens
                counts.requests += 1
                counts.aborted += output.finish.kind is FinishKind.ABORT

    def answered(self, operation: Operation, reply: Reply) -> None:
        """Count an operation."""
        name = type(operation).__name__
        self._operations.labels(name, str(reply.success).lower()).observe(reply.seconds)
        if isinstance(reply, MemoryReply):
            for region in reply.regions:
                if region.changed and region.bytes is not None:
                    verb = "release" if region.released else "resume"
                    self._occupation.labels(region.tag, verb).inc(region.bytes)
        if isinstance(reply, UpdateReply) and reply.tensors:
            source = name.removeprefix("UpdateWeightsFrom").lower()
            self._updates.labels(source).observe(reply.seconds)


class _Gauges(Collector):
    """The state of the engine at the moment of a scrape."""

    def __init__(self, loop: EngineLoop, releases: ReleasePoints) -> None:
        self._loop = loop
        self._releases = releases

    def collect(self) -> Iterator[Metric]:
        now = self._loop.snapshot
        yield _gauge("running_requests", "Requests that hold KV.", now.running + now.prefilling)
        yield _gauge("waiting_requests", "Requests that wait for room.", now.waiting)
        yield _gauge("paused", "1 while generation is paused.", now.paused)
        yield _gauge("healthy", "0 once the device is lost or the engine has died.", self._healthy)
        pages = GaugeMetricFamily("devicekit_pages", "Pages of KV, by what they are.", labels=["state"])
        pages.add_metric(["used"], now.pages_used)
        pages.add_metric(["cached"], now.pages_cached)
        pages.add_metric(["free"], now.pages_free)
        yield pages
        blockers = GaugeMetricFamily("devicekit_blockers", "Why the engine is not idle.", labels=["name"])
        for blocker in now.blockers:
            blockers.add_metric([blocker.name], blocker.count)
        yield blockers
        yield self._pending()
        yield CounterMetricFamily("devicekit_steps", "Steps of the scheduler.", value=now.steps)
        yield CounterMetricFamily(
            "devicekit_computed_tokens", "Tokens that went through the model.", value=now.computed_tokens
        )
        yield CounterMetricFamily(
            "devicekit_invalid_logits",
            "Tokens for which the model's logits were NaN or infinite.",
            value=now.invalid_logits,
        )
        if now.cache_hit_rate is not None:
            yield _gauge(
                "cache_hit_rate",
                "Share of prompt tokens found in the prefix cache, since it was last flushed.",
                now.cache_hit_rate,
            )
        yield from self._release_points()

    @property
    def _healthy(self) -> bool:
        return self._loop.failure is None and self._loop.snapshot.healthy

    def _pending(self) -> Metric:
        family = GaugeMetricFamily(
            "devicekit_operation_pending_seconds",
            "Age of the oldest operation that has no answer yet.",
            labels=["operation"],
        )
        ages: dict[str, float] = {}
        for pending in self._loop.pending:
            name = type(pending.operation).__name__
            ages[name] = max(ages.get(name, 0.0), time.monotonic() - pending.since)
        for name, age in ages.items():
            family.add_metric([name], age)
        return family

    def _release_points(self) -> Iterator[Metric]:
        reached = CounterMetricFamily(
            "devicekit_release_points", "Times a release point was reached.", labels=["point", "emptied"]
        )
        released = CounterMetricFamily(
            "devicekit_released_bytes", "Bytes handed back, where the backend counts.", labels=["point"]
        )
        seconds = CounterMetricFamily(
            "devicekit_release_seconds", "Time spent handing memory back.", labels=["point"]
        )
        for point, counters in self._releases.counters.items():
            reached.add_metric([point.value, "true"], counters.emptied)
            reached.add_metric([point.value, "false"], counters.skipped)
            if counters.counted or not counters.emptied:  # emptied and never counted: unknown, not 0
                released.add_metric([point.value], counters.released)
            seconds.add_metric([point.value], counters.seconds)
        yield from (reached, released, seconds)


class _Graphs(Collector):
    """What decodes from captured graphs."""

    def __init__(self, graphs: EngineGraphs) -> None:
        self._graphs = graphs

    def collect(self) -> Iterator[Metric]:
        now = self._graphs.figures
        yield _gauge("decode_graphs", "Captured graphs that decoding is replayed from.", now.graphs)
        passes = CounterMetricFamily(
            "devicekit_decode_passes",
            "Passes that only decoded, on a device where those are captured.",
            labels=["how"],
        )
        passes.add_metric(["replayed"], now.replays)
        passes.add_metric(["eager"], now.eager)
        yield passes


class _Pools(Collector):
    """Where the ids of every pool are: available + evictable + protected + owned + missing == total."""

    def __init__(self, pools: Mapping[str, PoolCount]) -> None:
        self._pools = pools

    def collect(self) -> Iterator[Metric]:
        ids = GaugeMetricFamily(
            "devicekit_pool_ids", "Ids of a pool, by where they are.", labels=["pool", "state"]
        )
        total = GaugeMetricFamily("devicekit_pool_size", "Ids that a pool has.", labels=["pool"])
        run = GaugeMetricFamily(
            "devicekit_pool_largest_free_run",
            "Longest run of consecutive free ids; against those available, how fragmented a pool is.",
            labels=["pool"],
        )
        for name, pool in self._pools.items():
            for state in ("available", "evictable", "protected", "owned", "missing"):
                ids.add_metric([name, state], getattr(pool, state))
            total.add_metric([name], pool.total)
            run.add_metric([name], pool.largest_free_run)
        yield from (ids, total, run)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"devicekit_{name}", text, value=float(value))
