"""The Prometheus metrics: the conventional ones of a gRPC server, and what happens to a request inside."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info

from boxloss_server import __version__

_SECONDS = tuple(50e-6 * 2**step for step in range(18))
"""50 us to 6.6 s; the default buckets start at 5 ms, where most requests are long answered."""

_REQUESTS = tuple(2.0**step for step in range(11))
_PAIRS = tuple(4.0**step for step in range(1, 12))
_RPC = ("grpc_type", "grpc_service", "grpc_method")


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
        self._losses = self._counter("boxloss_losses", "Requests for a loss.", ("loss",))
        self._waiting_requests = Gauge(
            "boxloss_waiting_requests", "Requests admitted and not yet answered.", registry=self.registry
        )
        self._waiting_pairs = Gauge(
            "boxloss_waiting_pairs", "Pairs admitted and not yet answered.", registry=self.registry
        )
        self._build = Info("boxloss_build", "Version and device of the server.", registry=self.registry)

    def started(self, rpc: tuple[str, str, str]) -> None:
        """Counts an RPC that starts; `rpc` is its type, service and method."""
        self._started.labels(*rpc).inc()

    def handled(self, rpc: tuple[str, str, str], code: str, seconds: float) -> None:
        """Counts an RPC that ends with a status code."""
        self._handled.labels(*rpc, code).inc()
        self._handling.labels(*rpc).observe(seconds)

    def asked(self, loss: str) -> None:
        """Counts a request for a loss."""
        self._losses.labels(loss).inc()

    def serves_on(self, device: str) -> None:
        """Notes what computes."""
        self._build.info({"version": __version__, "device": device})

    def admitted(self, waiting_requests: int, waiting_pairs: int) -> None:
        self._waiting_requests.set(waiting_requests)
        self._waiting_pairs.set(waiting_pairs)

    def queued(self, seconds: float) -> None:
        self._queue.observe(seconds)

    def closed(self, reason: str, requests: int, pairs: int) -> None:
        self._batches.labels(reason).inc()
        self._batch_requests.observe(requests)
        self._batch_pairs.observe(pairs)

    def computed(self, seconds: float) -> None:
        self._compute.observe(seconds)

    def rejected(self, reason: str) -> None:
        self._rejected.labels(reason).inc()

    def _counter(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], labels: tuple[str, ...] = ()) -> Histogram:
        return Histogram(name, text, labels, buckets=buckets, registry=self.registry)
