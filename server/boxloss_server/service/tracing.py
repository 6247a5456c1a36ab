"""Traces: a span for each call, below the caller's, and below it one for each stage. Needs the extra "tracing".

Where spans go, which are sampled and how the service is called is set by OpenTelemetry's own OTEL_ variables.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, TypeAlias
from urllib.parse import unquote

import structlog
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.propagate import extract
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, StatusCode, set_span_in_context

from boxloss.errors import BoxlossError
from boxloss_server import __version__
from boxloss_server.batching import Outcome
from boxloss_server.security import Context
from boxloss_server.service.status import cancellation

Exemplar: TypeAlias = dict[str, str] | None

_FAULTS = {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
"""Codes that OpenTelemetry's conventions count as errors of a server; others are the caller's."""

_log = structlog.get_logger()


class _Traced(NamedTuple):
    """The span of a call or message."""

    span: Span
    exemplar: Exemplar


_current: ContextVar[_Traced | None] = ContextVar("traced", default=None)
"""That of the call that this task answers. Each call has a task, and so has each message of a stream."""


class Tracing:
    """Makes spans and sends them to an OTLP receiver, from a thread of its own."""

    def __init__(self) -> None:
        _pass_logs_on()
        own = Resource({"service.name": "boxloss-server", "service.version": __version__, "process.pid": os.getpid()})
        resource = Resource.create().merge(own).merge(OTELResourceDetector().detect())  # What the user says wins.
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("boxloss_server", __version__)

    def close(self) -> None:
        """Sends what is left, and ends. Where no receiver answers, that takes OTEL_EXPORTER_OTLP_TIMEOUT."""
        self._provider.shutdown()

    @staticmethod
    def exemplar() -> Exemplar:
        """The trace of the current call as labels, if it is sampled."""
        traced = _current.get()
        return traced.exemplar if traced else None

    def unary(
        self, method: str, answer: Callable[[bytes, Context], Awaitable[bytes]]
    ) -> Callable[[bytes, Context], Awaitable[bytes]]:
        """The same RPC, traced.

        Args:
            method: "package.Service/Method".
            answer: answers it.
        """

        async def traced(data: bytes, context: Context) -> bytes:
            with self._call(method, context):
                return await answer(data, context)

        return traced

    def stream(
        self, method: str, answer: Callable[[AsyncIterator[bytes], Context], AsyncIterator[bytes]]
    ) -> Callable[[AsyncIterator[bytes], Context], AsyncIterator[bytes]]:
        """The same RPC, traced."""

        async def traced(messages: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
            with self._call(method, context):
                async for response in answer(messages, context):
                    yield response

        return traced

    @contextmanager
    def message(self, number: int) -> Iterator[None]:
        """A span for a message of the current stream, counted from 0. To be used in a task of the message's own."""
        stream = _current.get()
        if stream is None or not stream.span.is_recording():
            yield
            return
        context = set_span_in_context(stream.span)
        span = self._tracer.start_span("message", context, attributes={"boxloss.message.number": number})
        _current.set(_Traced(span, stream.exemplar))
        code, description = "OK", ""
        try:
            yield
        except asyncio.CancelledError:
            code = "CANCELLED"
            raise
        except BoxlossError as error:
            code, description = error.code, str(error)
            raise
        except Exception as error:
            code, description = "INTERNAL", type(error).__name__
            raise
        finally:
            _end(span, code, description)

    def stages(self, outcome: Outcome[Any], written: float) -> None:
        """Adds the stages of a request, which is answered, to the span of its call or message.

        Args:
            outcome: how its result came about.
            written: when its answer was written, as time.monotonic() tells it.
        """
        traced = _current.get()
        if traced is None or not traced.span.is_recording():
            return
        context = set_span_in_context(traced.span)
        batch = {"boxloss.batch.requests": outcome.batch_requests, "boxloss.batch.pairs": outcome.batch_pairs}
        epoch = time.time_ns() - time.monotonic_ns()
        end = epoch + int((outcome.ended - outcome.compute_time - outcome.copy_time - outcome.queue_time) * 1e9)
        for name, seconds, attributes in (
            ("queue", outcome.queue_time, None),
            # Copies are made before and after the function; as spans they come first.
            ("copy", outcome.copy_time, batch),
            ("compute", outcome.compute_time, batch),
            ("answer", written - outcome.ended, None),
        ):
            span = self._tracer.start_span(name, context, attributes=attributes, start_time=end)
            end += int(seconds * 1e9)
            span.end(end)

    @contextmanager
    def _call(self, method: str, context: Context) -> Iterator[None]:
        metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        attributes = {"rpc.system.name": "grpc", "rpc.method": method, **_peer(context.peer())}
        span = self._tracer.start_span(method, extract(metadata), SpanKind.SERVER, attributes)
        sampled = span.get_span_context().trace_flags.sampled
        _current.set(_Traced(span, {"trace_id": f"{span.get_span_context().trace_id:032x}"} if sampled else None))
        cancelled = ""
        try:
            yield
        except (asyncio.CancelledError, GeneratorExit):
            cancelled = cancellation(context)
            raise
        finally:
            code: Any = context.code()  # None, unless the call was aborted.
            _end(span, cancelled or (code.name if code else "OK"), context.details())


def _end(span: Span, code: str, description: str) -> None:
    span.set_attribute("rpc.response.status_code", code)
    if code in _FAULTS:
        span.set_attribute("error.type", code)
        span.set_status(StatusCode.ERROR, description)
    span.end()


def _peer(peer: str) -> dict[str, str | int]:
    """Attributes of a peer that gRPC calls, for example, "ipv4:127.0.0.1:4711"."""
    kind, _, rest = peer.partition(":")
    if kind not in ("ipv4", "ipv6"):
        return {"network.transport": "unix"} if kind == "unix" else {}
    address, _, port = unquote(rest).rpartition(":")
    return {"network.peer.address": address.strip("[]"), "network.peer.port": int(port)}


def _pass_logs_on() -> None:
    """Has OpenTelemetry's complaints, of a receiver that is not there, written as the server's log is."""
    logger = logging.getLogger("opentelemetry")
    logger.handlers = [_Handler()]
    logger.propagate = False


class _Handler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        _log.log(record.levelno, "tracing", message=record.getMessage())
