"""Traces of what a client sends, with OpenTelemetry's API: pip install 'boxloss[tracing]'."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.propagate import inject
from opentelemetry.trace import Link, SpanKind, StatusCode

from boxloss.errors import BoxlossError

Headers: TypeAlias = "tuple[tuple[str, str], ...]"
"""Metadata of a call."""

_SERVICE = "boxloss.v1.LossService"


class Span:
    """The span of a message or stream, from now on until its end.

    Args:
        method: name of the RPC.
        callers: the contexts of those who ask; of none, the current one.

    Attributes:
        headers: tell the server of it.
    """

    def __init__(self, method: str, callers: Sequence[Context] = ()) -> None:
        parent, *others = callers or [current()]
        name = f"{_SERVICE}/{method}"
        spans = [trace.get_current_span(other).get_span_context() for other in others]
        self._span = trace.get_tracer("boxloss").start_span(
            name,
            parent,
            SpanKind.CLIENT,
            {"rpc.system.name": "grpc", "rpc.method": name},
            [Link(span) for span in spans if span.is_valid],
        )
        carrier: dict[str, str] = {}
        inject(carrier, trace.set_span_in_context(self._span, parent))
        self.headers: Headers = tuple(carrier.items())

    def end(self, error: BaseException | None = None) -> None:
        """Ends it, with the error that it ended with, if any."""
        code = "OK"
        if error is not None:
            code = "UNKNOWN" if isinstance(error, Exception) else "CANCELLED"
            if isinstance(error, BoxlossError):
                code = error.code
            self._span.set_attribute("error.type", code)
            self._span.set_status(StatusCode.ERROR, str(error))
        self._span.set_attribute("rpc.response.status_code", code)
        self._span.end()


def current() -> Context:
    """The context of the caller."""
    return context.get_current()


@contextmanager
def traced(method: str, callers: Sequence[Context] = ()) -> Iterator[Headers]:
    """A span for a message that is sent and answered within; gives the headers that tell the server of it."""
    span = Span(method, callers)
    try:
        yield span.headers
    except BaseException as error:
        span.end(error)
        raise
    span.end()
