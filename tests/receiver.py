"""A receiver of traces: what the OTLP exporters of real processes send over gRPC, span by span."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.common.v1.common_pb2 import KeyValue


class Span:
    """A span as it was received.

    Args:
        message: the span.
        resource: of the process that sent it.
    """

    def __init__(self, message: Any, resource: Any) -> None:
        self.name: str = message.name
        self.trace: str = message.trace_id.hex()
        self.id: str = message.span_id.hex()
        self.parent: str = message.parent_span_id.hex()
        self.start: int = message.start_time_unix_nano
        self.end: int = message.end_time_unix_nano
        self.kind: int = message.kind
        self.status: int = message.status.code
        self.attributes = _values(message.attributes)
        self.links = [(link.trace_id.hex(), link.span_id.hex()) for link in message.links]
        self.resource = _values(resource.attributes)


class Receiver(trace_service_pb2_grpc.TraceServiceServicer):
    """Receives on a free port of loopback, once constructed."""

    def __init__(self) -> None:
        self._spans: list[Span] = []
        self._came = threading.Condition()
        self._server = grpc.server(ThreadPoolExecutor(2))
        add: Any = trace_service_pb2_grpc.add_TraceServiceServicer_to_server
        add(self, self._server)
        self._port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    @property
    def variables(self) -> dict[str, str]:
        """What an exporter is told in its environment."""
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self._port}", "OTEL_BSP_SCHEDULE_DELAY": "50"}

    def Export(
        self, request: trace_service_pb2.ExportTraceServiceRequest, context: grpc.ServicerContext
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        with self._came:
            self._spans += [
                Span(span, sent.resource)
                for sent in request.resource_spans
                for scope in sent.scope_spans
                for span in scope.spans
            ]
            self._came.notify_all()
        return trace_service_pb2.ExportTraceServiceResponse()

    def until(self, condition: Callable[[list[Span]], bool]) -> list[Span]:
        """All spans, once they are as they should be."""
        deadline = time.monotonic() + 60
        with self._came:
            while not condition(self._spans):
                assert self._came.wait(deadline - time.monotonic()), [span.name for span in self._spans]
            return list(self._spans)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.stop(None).wait()


def _values(attributes: Any) -> dict[str, Any]:
    def value(attribute: KeyValue) -> Any:
        kind = attribute.value.WhichOneof("value")
        return getattr(attribute.value, kind) if kind else None

    return {attribute.key: value(attribute) for attribute in attributes}
