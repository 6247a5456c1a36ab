"""The Prometheus metrics: the conventional ones of a gRPC server, and what happens to a request inside."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info

from boxloss_server import __version__
from boxloss_server.batching import Capacity

_SECONDS = tuple(50e-6 * 2**step for step in range(18))
"""50 us to 6.6 s; the default buckets start at 5 ms, where most requests are long answered."""

_LONG = tuple(0.01 * 2**step for step in range(15))
"""10 ms to 160 s."""

_REQUESTS = tuple(2.0**step for step in range(11))
_PAIRS = tuple(4.0**step for step in range(1, 12))
_RPC = ("grpc_type", "grpc_service", "grpc_method")


class RpcMetrics:
    """The conventional metrics of one RPC.

    Args:
        started: counts calls that start.
        handled: gives the counter of calls that end with a status code.
        handling: hears how many seconds they took.
    """

    def __init__(self, started: Counter, handled: Callable[[str], Counter], handling: Histogram) -> None:
        self._started = started
        self._handled = cache(handled)
        self._handling = handling

    def started(self) -> None:
        """Counts a call that starts."""
        self._started.inc()

    def handled(self, code: str, seconds: float) -> None:
        """Counts a call that ends with a status code."""
        self._handled(code).inc()
        self._handling.observe(seconds)


class Metrics:
    """All metrics of one server, in a registry of their own. Observes its batcher."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._started = self._counter("grpc_server_started", "RPCs started.", _RPC)
        self._handled = self._counter("grpc_server_handled", "RPCs completed, by status code.", (*_RPC, "grpc_code"))
        self._handling = self._histogram("grpc_server_handling_seconds", "Time until the answer.", _SECONDS, _RPC)
        self._queue = self._histogram("boxloss_queue_seconds", "Time from admission to the batch.", _SECONDS)
        self._compute = self._histogram("boxloss_compute_seconds", "Time to compute a batch.", _SECONDS)
        self._batch_requests = self._histogram("boxloss_batch_requests", "Requests in a batch.", _REQUESTS)
        self._batch_pairs = self._histogram("boxloss_batch_pairs", "Pairs in a batch.", _PAIRS)
        self._batches = self._counter("boxloss_batches", "Batches, by what closed them.", ("reason",))
        self._rejected = self._counter("boxloss_rejected", "Requests turned away while waiting.", ("reason",))
        self._failures = self._counter(
            "boxloss_batch_failures", "Batches that failed and were split; requests that failed alone.", ("outcome",)
        )
        for outcome in ("split", "request"):
            self._failures.labels(outcome)
        self._losses = self._counter("boxloss_losses", "Requests for a loss.", ("loss",))
        self._waiting_requests = self._gauge("boxloss_waiting_requests", "Requests admitted and not yet answered.")
        self._waiting_pairs = self._gauge("boxloss_waiting_pairs", "Pairs admitted and not yet answered.")
        # A counter of some label takes longer to find than to count.
        self._batches_of = cache(self._batches.labels)
        self._requests_for = cache(self._losses.labels)
        self._kernels = self._counter("boxloss_kernels", "Compiled functions, by how they were obtained.", ("outcome",))
        for outcome in ("compiled", "loaded", "failed"):
            self._kernels.labels(outcome)
        self._compiling = self._histogram("boxloss_kernel_seconds", "Time to obtain a compiled function.", _LONG)
        self._build = Info("boxloss_build", "Version and device of the server.", registry=self.registry)

    def rpc(self, kind: str, service: str, method: str) -> RpcMetrics:
        """The metrics of an RPC: of its type ("unary", "bidi_stream"), service and method."""
        labels = kind, service, method
        return RpcMetrics(
            self._started.labels(*labels),
            lambda code: self._handled.labels(*labels, code),
            self._handling.labels(*labels),
        )

    def asked(self, loss: str) -> None:
        """Counts a request for a loss."""
        self._requests_for(loss).inc()

    def serves_on(self, device: str) -> None:
        """Notes what computes."""
        self._build.info({"version": __version__, "device": device})

    def watch(self, capacity: Capacity) -> None:
        """Tells how much waits, when asked."""
        self._waiting_requests.set_function(lambda: capacity.requests)
        self._waiting_pairs.set_function(lambda: capacity.pairs)

    def compiled(self, outcome: str, seconds: float) -> None:
        """Counts a function that was "compiled" or "loaded", or "failed" to be."""
        self._kernels.labels(outcome).inc()
        self._compiling.observe(seconds)

    def queued(self, seconds: float) -> None:
        self._queue.observe(seconds)

    def closed(self, reason: str, requests: int, pairs: int) -> None:
        self._batches_of(reason).inc()
        self._batch_requests.observe(requests)
        self._batch_pairs.observe(pairs)

    def computed(self, seconds: float) -> None:
        self._compute.observe(seconds)

    def rejected(self, reason: str) -> None:
        self._rejected.labels(reason).inc()

    def failed(self, outcome: str) -> None:
        self._failures.labels(outcome).inc()

    def _counter(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], labels: tuple[str, ...] = ()) -> Histogram:
        return Histogram(name, text, labels, buckets=buckets, registry=self.registry)
