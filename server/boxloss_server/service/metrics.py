"""The Prometheus metrics: the conventional ones of a gRPC server, and what happens to a request inside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, TypeAlias

import torch
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, Metric, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from boxloss.audit.finding import Kind
from boxloss.audit.rules import ImageAudit
from boxloss.errors import BoxlossError, InputError, RequestTooLargeError
from boxloss_server import __version__
from boxloss_server.batching import Batcher, Capacity
from boxloss_server.engine import memory_of
from boxloss_server.security import Certificates, Files, Tokens

_SECONDS = tuple(50e-6 * 2**step for step in range(18))
"""50 us to 6.6 s; the default buckets start at 5 ms, where most requests are long answered."""

_LONG = tuple(0.01 * 2**step for step in range(15))
"""10 ms to 160 s."""

_REQUESTS = tuple(2.0**step for step in range(11))
_PAIRS = tuple(4.0**step for step in range(1, 12))
_IOUS = tuple(step / 20 for step in range(1, 21))
_RPC = ("grpc_type", "grpc_service", "grpc_method")
Exemplar: TypeAlias = dict[str, str] | None
"""Labels of the trace that an observation is an example of."""

_CODES = (
    *("OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "UNIMPLEMENTED"),
    *("INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED"),
)
"""Status codes that are counted from 0: Prometheus does not see the increase to a counter's first value."""

_REASONS = ("queue_full", "deadline", "cancelled", "invalid", "too_large", "quota", "unauthenticated")
"""Why a request is not computed."""


def no_exemplar() -> Exemplar:
    """The exemplar of what is not traced."""
    return None


class RpcMetrics:
    """The conventional metrics of one RPC.

    Args:
        started: counts calls that start.
        handled: gives the counter of calls that end with a status code.
        handling: hears how many seconds they took.
        rejected: hears why a request is turned away.
        exemplar: tells the trace of the current call.
    """

    def __init__(
        self,
        started: Counter,
        handled: Callable[[str], Counter],
        handling: Histogram,
        rejected: Callable[[str], None],
        exemplar: Callable[[], Exemplar],
    ) -> None:
        self._started = started
        self._handled = cache(handled)
        self._handling = handling
        self._rejected = rejected
        self._exemplar = exemplar

    def started(self) -> None:
        """Counts a call that starts."""
        self._started.inc()

    def refused(self, error: BoxlossError) -> None:
        """Counts a request that is answered with an error, if the request is at fault."""
        if isinstance(error, InputError):
            self._rejected("too_large" if isinstance(error, RequestTooLargeError) else "invalid")

    def handled(self, code: str, seconds: float) -> None:
        """Counts a call that ends with a status code."""
        self._handled(code).inc()
        self._handling.observe(seconds, self._exemplar())


class Metrics:
    """All metrics of one server, in a registry of their own. Observes its batcher.

    Args:
        exemplar: tells the trace of the current call.
    """

    def __init__(self, exemplar: Callable[[], Exemplar] = no_exemplar) -> None:
        self._exemplar = exemplar
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._started = self._counter("grpc_server_started", "RPCs started.", _RPC)
        self._handled = self._counter("grpc_server_handled", "RPCs completed, by status code.", (*_RPC, "grpc_code"))
        self._handling = self._histogram("grpc_server_handling_seconds", "Time until the answer.", _SECONDS, _RPC)
        self._queue = self._histogram("boxloss_queue_seconds", "Time from admission to the batch.", _SECONDS)
        self._forming = self._histogram(
            "boxloss_forming_seconds", "Time from a batch's first request to its start.", _SECONDS
        )
        self._copy = self._histogram(
            "boxloss_copy_seconds", "Time that a batch took besides its function: joining, copying, taking.", _SECONDS
        )
        self._compute = self._histogram(
            "boxloss_compute_seconds", "Time that a batch's function took, compiled or eager.", _SECONDS
        )
        self._answer = self._histogram(
            "boxloss_answer_seconds", "Time from the batch's end until the answer is written.", _SECONDS
        )
        self._batch_requests = self._histogram("boxloss_batch_requests", "Requests in a batch.", _REQUESTS)
        self._batch_pairs = self._histogram("boxloss_batch_pairs", "Pairs in a batch.", _PAIRS)
        self._batches = self._counter("boxloss_batches", "Batches, by what closed them.", ("reason",))
        self._failures = self._counter(
            "boxloss_batch_failures", "Batches that failed and were split, requests that failed alone.", ("outcome",)
        )
        self._busy = self._counter("boxloss_device_busy_seconds", "Time in which the device computed or copied.")
        self._rejected = self._counter("boxloss_rejected", "Requests that were not computed, by reason.", ("reason",))
        self._losses = self._counter("boxloss_losses", "Requests for a loss.", ("loss",))
        self._formats = self._counter("boxloss_formats", "Requests with boxes in a format.", ("format",))
        self._masked = self._counter("boxloss_masked_boxes", "Rows masked because their boxes are invalid.")
        self._waiting_requests = self._gauge(
            "boxloss_waiting_requests", "Requests admitted whose answers are not yet written."
        )
        self._waiting_pairs = self._gauge("boxloss_waiting_pairs", "Pairs admitted whose answers are not yet written.")
        self._unread = self._counter("boxloss_unread_answers", "Calls ended because their client did not read.")
        self._limit = self._gauge("boxloss_waiting_pairs_limit", "Most pairs that may be admitted and not answered.")
        self._oldest = self._gauge(
            "boxloss_oldest_request_seconds", "Time since the oldest request that is not yet answered was admitted."
        )
        self._memory = self._gauge(
            "boxloss_device_memory_bytes",
            "Memory: of a GPU; of a CPU's, what the process uses and what the machine has.",
            ("device", "kind"),
        )
        # A counter of some label takes longer to find than to count.
        self._batches_of = cache(self._batches.labels)
        self._requests_for = cache(self._losses.labels)
        self._requests_in = cache(self._formats.labels)
        self._rejected_for = {reason: self._rejected.labels(reason) for reason in _REASONS}
        self._failures_by = {outcome: self._failures.labels(outcome) for outcome in ("split", "request")}
        self._audited = self._counter("boxloss_audit_images", "Images audited.")
        self._findings = self._counter("boxloss_audit_findings", "Findings of audits, by kind.", ("kind",))
        self._findings_of = {kind: self._findings.labels(kind) for kind in Kind}
        self._label_iou = self._histogram(
            "boxloss_audit_iou", "IoU of labels and the predictions that they match, in audits.", _IOUS
        )
        self._kernels = self._counter("boxloss_kernels", "Compiled functions, by how they were obtained.", ("outcome",))
        for outcome in ("compiled", "loaded", "failed", "postponed", "dropped"):
            self._kernels.labels(outcome)
        self._compiling = self._histogram("boxloss_kernel_seconds", "Time to obtain a compiled function.", _LONG)
        self._wanted = self._gauge("boxloss_processes_wanted", "Processes that should serve.")
        self._serving = self._gauge("boxloss_processes_serving", "Processes that serve.")
        self._build = Info("boxloss_build", "Version and device of the server.", registry=self.registry)

    def rpc(self, kind: str, service: str, method: str) -> RpcMetrics:
        """The metrics of an RPC: of its type ("unary", "bidi_stream"), service and method."""
        labels = kind, service, method
        for code in _CODES:
            self._handled.labels(*labels, code)
        return RpcMetrics(
            self._started.labels(*labels),
            lambda code: self._handled.labels(*labels, code),
            self._handling.labels(*labels),
            self.rejected,
            self._exemplar,
        )

    def asked(self, box_format: str, *losses: str) -> None:
        """Counts a request for losses of boxes in a format."""
        self._requests_in(box_format).inc()
        for loss in losses:
            self._requests_for(loss).inc()

    def masked(self, rows: int) -> None:
        """Counts rows that a request had masked."""
        if rows:
            self._masked.inc(rows)

    def audited(self, audit: ImageAudit) -> None:
        """Counts an image that was audited, and what was found in it."""
        self._audited.inc()
        for finding in audit.findings:
            self._findings_of[finding.kind].inc()
        for match in audit.matches:
            if match.iou is not None:
                self._label_iou.observe(match.iou)

    def answered(self, seconds: float) -> None:
        """Notes how long after its batch a request's answer was written."""
        self._answer.observe(seconds)

    def unread(self) -> None:
        """Counts a call that is ended because its client does not read its answer."""
        self._unread.inc()

    def serves_on(self, device: str) -> None:
        """Notes what computes."""
        self._build.info({"version": __version__, "device": device})

    def serves(self, serving: Callable[[], bool], processes: int) -> None:
        """Tells, when asked, whether this process serves, and how many should."""
        self._serving.set_function(serving)
        self._wanted.set(processes)

    def follows(self, certificates: Certificates | None, tokens: Files[Tokens] | None) -> None:
        """Tells, when asked, of the files that are read again when they change."""
        self.registry.register(FileMetrics(certificates, tokens))

    def watch(self, capacity: Capacity, batcher: Batcher, device: torch.device) -> None:
        """Tells how much waits, for how long, and of the device's memory, when asked."""
        self._waiting_requests.set_function(lambda: capacity.requests)
        self._waiting_pairs.set_function(lambda: capacity.pairs)
        self._limit.set(capacity.limit)
        self._oldest.set_function(lambda: batcher.oldest)
        self._memory.labels(str(device), "used").set_function(lambda: memory_of(device).used)
        self._memory.labels(str(device), "total").set_function(lambda: memory_of(device).total)

    def compiled(self, outcome: str, seconds: float) -> None:
        """Counts a function that was "compiled" or "loaded", or "failed" to be, or was "postponed" for want of time; or
        whose kernel failed in use and was "dropped".
        """
        self._kernels.labels(outcome).inc()
        if outcome != "dropped":
            self._compiling.observe(seconds)

    def admitted(self) -> Exemplar:
        return self._exemplar()

    def queued(self, seconds: float, mark: Exemplar) -> None:
        self._queue.observe(seconds, mark)

    def closed(self, reason: str, requests: int, pairs: int, forming: float) -> None:
        self._batches_of(reason).inc()
        self._forming.observe(forming)
        self._batch_requests.observe(requests)
        self._batch_pairs.observe(pairs)

    def computed(self, copy: float, compute: float, mark: Exemplar) -> None:
        self._copy.observe(copy)
        self._compute.observe(compute, mark)

    def busy(self, seconds: float) -> None:
        self._busy.inc(seconds)

    def rejected(self, reason: str) -> None:
        self._rejected_for[reason].inc()

    def failed(self, outcome: str) -> None:
        self._failures_by[outcome].inc()

    def _counter(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
        return Gauge(name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], labels: tuple[str, ...] = ()) -> Histogram:
        return Histogram(name, text, labels, buckets=buckets, registry=self.registry)


class FileMetrics(Collector):
    """Metrics of the files that are read again when they change.

    Args:
        certificates: of TLS, if that is used.
        tokens: of callers, if they need any.
    """

    def __init__(self, certificates: Certificates | None, tokens: Files[Tokens] | None) -> None:
        self._certificates = certificates
        self._files: dict[str, Files[Any]] = {}
        if certificates:
            self._files["certificates"] = certificates.files
        if tokens:
            self._files["tokens"] = tokens

    def collect(self) -> Iterator[Metric]:
        read = GaugeMetricFamily(
            "boxloss_files_read_timestamp_seconds", "When files were last read with success.", labels=["files"]
        )
        failures = CounterMetricFamily(
            "boxloss_files_read_failures", "Changes of files that could not be read.", labels=["files"]
        )
        for name, files in self._files.items():
            read.add_metric([name], files.reloaded)
            failures.add_metric([name], files.failures)
        yield read
        yield failures
        if self._certificates:
            yield GaugeMetricFamily(
                "boxloss_certificate_expiry_timestamp_seconds",
                "When the first of the server's certificates expires.",
                value=self._certificates.expires,
            )
