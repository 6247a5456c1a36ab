"""What every RPC has in common: parsing, metrics, and errors turned into statuses."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

import grpc
import grpc.aio
import structlog
from google.protobuf.descriptor_pool import Default
from google.protobuf.message import DecodeError

from boxloss.errors import (
    BoxlossError,
    InvalidInputError,
    ServerError,
    ServerUnavailableError,
    UnauthenticatedError,
    Violation,
)
from boxloss_server.batching import Batcher
from boxloss_server.security import Access, Context
from boxloss_server.service.bounds import check
from boxloss_server.service.calls import Calls
from boxloss_server.service.compression import Decompression
from boxloss_server.service.decode import Limits
from boxloss_server.service.health import MAX_REQUEST_BYTES, SERVICE_NAME
from boxloss_server.service.metrics import Metrics, RpcMetrics
from boxloss_server.service.status import cancellation, status_of

if TYPE_CHECKING:
    from boxloss_server.service.tracing import Tracing

Handler: TypeAlias = Any
"""grpc.RpcMethodHandler, whose published types know only the blocking stack."""

Parse: TypeAlias = Callable[[bytes], Coroutine[Any, Any, Any]]
"""Reads a request."""

_POOL: Any = Default()

_log = structlog.get_logger()


class Methods(grpc.GenericRpcHandler):
    """The methods that a server answers. Generated code adds services to it as it would to a server.

    Not an interceptor: grpc.aio asks its interceptors anew, in coroutines, for every call. Requests are parsed here
    rather than by gRPC, which would answer unreadable bytes with INTERNAL.

    Args:
        metrics: where the calls are counted.
        access: who may call; all may call the health service.
        batcher: has no room for calls of the computing methods when it is full.
        computing: paths of the methods whose calls need room, such as "/boxloss.v1.LossService/Evaluate".
        limits: on a message.
        calls: where the calls under way are kept.
        tracing: makes the calls' spans, if any.
    """

    def __init__(
        self,
        metrics: Metrics,
        access: Access,
        batcher: Batcher,
        computing: Collection[str],
        limits: Limits,
        calls: Calls,
        tracing: Tracing | None = None,
    ) -> None:
        self._metrics = metrics
        self._access = access
        self._batcher = batcher
        self._computing = computing
        self._limits = limits
        self._decompression = Decompression(limits.message_bytes)
        self._calls = calls
        self._tracing = tracing
        self._handlers: dict[str, Handler] = {}
        self._unauthenticated: dict[str, Handler] = {}
        """What answers calls without a token."""
        self._when_full: dict[str, Handler] = {}
        """What answers calls for which there is no room."""
        self._last: dict[str, Handler] = {}
        """What answers calls that may be the last of their connections."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler:
        """The handler of a call; without one, gRPC answers UNIMPLEMENTED."""
        self._calls.come()
        path = handler_call_details.method
        if path in self._unauthenticated and not self._access.admits(handler_call_details.invocation_metadata):
            return self._unauthenticated[path]
        if path in self._when_full and self._batcher.full:
            return self._when_full[path]
        if self._calls.draining and path in self._last:
            return self._last[path]
        return self._handlers.get(path)

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """Called by generated code, before it adds the same handlers by name."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Handler]) -> None:
        """Called by generated code with a service's handlers."""
        for name, handler in handlers.items():
            path = f"/{service}/{name}"
            self._handlers[path] = wrapped = self._wrapped(service, name, handler)
            if wrapped.unary_unary:
                self._last[path] = _last(wrapped.unary_unary, self._calls)
            if self._access.restricted and service != SERVICE_NAME:
                self._unauthenticated[path] = self._refusal(service, name, handler, self._refuse_unauthenticated)
            if path in self._computing:
                self._when_full[path] = self._refusal(service, name, handler, self._batcher.refuse)

    def _wrapped(self, service: str, name: str, handler: Handler) -> Handler:
        if service == SERVICE_NAME:
            handler = handler._replace(request_deserializer=_short(handler.request_deserializer))
        # Not grpc.health.v1 and the like: most traces would be of health checks.
        tracing = None if service.startswith("grpc.") else self._tracing
        parse = self._parser(service, name, handler)
        if handler.unary_unary:
            unary = _unary(handler, parse, self._metrics.rpc("unary", service, name), self._calls)
            if tracing:
                unary = tracing.unary(f"{service}/{name}", unary)
            return grpc.unary_unary_rpc_method_handler(unary, None, None)
        if handler.stream_stream:
            stream = _stream(handler, parse, self._metrics.rpc("bidi_stream", service, name), self._calls)
            if tracing:
                stream = tracing.stream(f"{service}/{name}", stream)
            return grpc.stream_stream_rpc_method_handler(stream, None, None)
        watch = _watch(handler, parse, self._metrics.rpc("server_stream", service, name), self._calls)
        return grpc.unary_stream_rpc_method_handler(watch, None, handler.response_serializer)

    def _parser(self, service: str, name: str, handler: Handler) -> Parse:
        """What reads the requests of a method: decompresses, refuses what holds too much, and parses."""
        kind = _POOL.FindMethodByName(f"{service}.{name}").input_type
        read = handler.request_deserializer

        async def parse(data: bytes) -> Any:
            data = await self._decompression.message(data)
            try:
                check(kind, data, self._limits)
                return read(data)
            except DecodeError:
                raise InvalidInputError(
                    [Violation("request", "is not a message of the contract; generate the client from boxloss/v1")]
                ) from None

        return parse

    def _refusal(self, service: str, name: str, handler: Handler, refuse: Callable[[], BoxlossError]) -> Handler:
        """What refuses a call. It takes streams: so the call is refused before its message is received."""

        async def answers(_messages: Any, _context: Context) -> AsyncIterator[bytes]:
            raise refuse()
            yield b""

        metrics = self._metrics.rpc("unary" if handler.unary_unary else "bidi_stream", service, name)
        refusal: Handler = grpc.stream_stream_rpc_method_handler(answers, None, None)
        return grpc.stream_stream_rpc_method_handler(_stream(refusal, _as_it_is, metrics, self._calls), None, None)

    def _refuse_unauthenticated(self) -> UnauthenticatedError:
        self._metrics.rejected("unauthenticated")
        return UnauthenticatedError("the call has no token that this server knows; send 'authorization: Bearer TOKEN'")


class _Handling:
    """What all calls have in common: they are timed and counted, and what goes wrong becomes their status."""

    __slots__ = ("_calls", "_code", "_context", "_metrics", "_started")

    def __init__(self, metrics: RpcMetrics, calls: Calls, context: Context) -> None:
        self._started = time.perf_counter()
        metrics.started()
        self._metrics = metrics
        self._calls = calls
        self._context = context
        self._code = "OK"

    async def failed(self, error: BaseException) -> None:
        """Ends the call with the status of an error, unless it has ended.

        Raises:
            AbortError: its caller has been told.
        """
        if isinstance(error, asyncio.CancelledError):
            await self._cancelled()
        elif isinstance(error, grpc.aio.AbortError):
            self._code = self._context.code().name  # So the handlers of gRPC's own services end a call.
        else:
            known = _known(error)
            self._metrics.refused(known)
            status = status_of(known)
            self._code = status.code.name
            await self._calls.before_end(self._context)
            await _abort(self._context, status)

    def over(self) -> None:
        """Counts the call."""
        self._metrics.handled(self._code, time.perf_counter() - self._started)

    async def _cancelled(self) -> None:
        """Tells the caller if it was the server who cancelled."""
        if self._calls.stopped():
            error = ServerUnavailableError("the server is shutting down; send the call to another, or later")
            self._code = error.code
            with contextlib.suppress(grpc.aio.AbortError):
                await _abort(self._context, status_of(error))
        else:
            self._code = cancellation(self._context)


_FAILURES = (Exception, asyncio.CancelledError)


def _unary(handler: Handler, parse: Parse, metrics: RpcMetrics, calls: Calls) -> Any:
    answer, serialize = handler.unary_unary, handler.response_serializer

    async def unary(data: bytes, context: Context) -> bytes:
        handling = _Handling(metrics, calls, context)
        call = calls.begin(context)
        try:
            response: bytes = serialize(await answer(await parse(data), context))
            return call.sends(response)
        except _FAILURES as error:
            await handling.failed(error)
            raise
        finally:
            handling.over()

    return unary


def _last(unary: Callable[[bytes, Context], Awaitable[bytes]], calls: Calls) -> Handler:
    """The same method as `unary`, which gives gRPC the answer and the end of the call one by one. That costs time."""

    async def last(data: bytes, context: Context) -> AsyncIterator[bytes]:
        yield await unary(data, context)
        await calls.before_end(context)

    handler: Handler = grpc.unary_stream_rpc_method_handler(last, None, None)
    return handler


def _stream(handler: Handler, parse: Parse, metrics: RpcMetrics, calls: Calls) -> Any:
    answers, serialize = handler.stream_stream, handler.response_serializer

    async def stream(messages: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
        handling = _Handling(metrics, calls, context)
        call = calls.begin(context)
        try:
            async for response in answers(_parsed(parse, messages), context):
                yield call.sends(serialize(response))
                call.has_sent()
            await calls.before_end(context)
        except _FAILURES as error:
            await handling.failed(error)
            raise
        finally:
            handling.over()

    return stream


def _watch(handler: Handler, parse: Parse, metrics: RpcMetrics, calls: Calls) -> Any:
    """For methods that write their answers to the context."""
    answers = handler.unary_stream

    async def watch(data: bytes, context: Context) -> None:
        handling = _Handling(metrics, calls, context)
        try:
            await answers(await parse(data), context)
        except _FAILURES as error:
            await handling.failed(error)
            raise
        finally:
            handling.over()

    return watch


async def _as_it_is(data: bytes) -> bytes:
    return data


def _short(parse: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Parses requests of the health service, which anybody may send."""

    def parse_short(data: bytes) -> Any:
        if len(data) > MAX_REQUEST_BYTES:
            raise InvalidInputError(
                [Violation("service", f"makes a request of over {MAX_REQUEST_BYTES} bytes; send the name of a service")]
            )
        return parse(data)

    return parse_short


async def _parsed(parse: Parse, messages: AsyncIterator[bytes]) -> AsyncIterator[Any]:
    # Not a generator expression: that would take hold of messages which are not going to be read.
    async for data in messages:
        yield await parse(data)


def _known(error: BaseException) -> BoxlossError:
    """The error that a call ends with; what is unforeseen goes to the log."""
    if isinstance(error, BoxlossError):
        return error
    _log.error("call failed", exc_info=error)
    return ServerError(f"the server failed to compute an answer ({type(error).__name__}); see its log")


async def _abort(context: Context, status: Any) -> NoReturn:
    _log.debug("call refused", code=status.code.name, message=status.message)
    await context.abort(status.code, status.message, status.trailers)
    raise AssertionError("abort raises")
