"""What every RPC has in common: parsing, metrics, and errors turned into statuses."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

import grpc
import grpc.aio
import structlog
from google.protobuf.message import DecodeError

from boxloss.errors import BoxlossError, InvalidInputError, ServerError, UnauthenticatedError, Violation
from boxloss_server.batching import Batcher
from boxloss_server.security import Access, Context
from boxloss_server.service.health import SERVICE_NAME
from boxloss_server.service.metrics import Metrics, RpcMetrics
from boxloss_server.service.status import cancellation, status_of

if TYPE_CHECKING:
    from boxloss_server.service.tracing import Tracing

Handler: TypeAlias = Any
"""grpc.RpcMethodHandler, whose published types know only the blocking stack."""

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
        tracing: makes the calls' spans, if any.
    """

    def __init__(
        self,
        metrics: Metrics,
        access: Access,
        batcher: Batcher,
        computing: Collection[str],
        tracing: Tracing | None = None,
    ) -> None:
        self._metrics = metrics
        self._access = access
        self._batcher = batcher
        self._computing = computing
        self._tracing = tracing
        self._handlers: dict[str, Handler] = {}
        self._strangers: dict[str, Handler] = {}
        """What answers calls without a token."""
        self._late: dict[str, Handler] = {}
        """What answers calls for which there is no room."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler:
        """The handler of a call; without one, gRPC answers UNIMPLEMENTED."""
        path = handler_call_details.method
        if path in self._strangers and not self._access.admits(handler_call_details.invocation_metadata):
            return self._strangers[path]
        if path in self._late and self._batcher.full:
            return self._late[path]
        return self._handlers.get(path)

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """Called by generated code, before it adds the same handlers by name."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Handler]) -> None:
        """Called by generated code with a service's handlers."""
        for name, handler in handlers.items():
            path = f"/{service}/{name}"
            self._handlers[path] = self._wrapped(service, name, handler)
            if self._access.restricted and service != SERVICE_NAME:
                self._strangers[path] = self._refusal(service, name, handler, self._refuse_stranger)
            if path in self._computing:
                self._late[path] = self._refusal(service, name, handler, self._batcher.refuse)

    def _wrapped(self, service: str, name: str, handler: Handler) -> Handler:
        # Not grpc.health.v1 and the like: most traces would be of health checks.
        tracing = None if service.startswith("grpc.") else self._tracing
        if handler.unary_unary:
            unary = _unary(handler, self._metrics.rpc("unary", service, name))
            if tracing:
                unary = tracing.unary(f"{service}/{name}", unary)
            return grpc.unary_unary_rpc_method_handler(unary, None, None)
        if handler.stream_stream:
            stream = _stream(handler, self._metrics.rpc("bidi_stream", service, name))
            if tracing:
                stream = tracing.stream(f"{service}/{name}", stream)
            return grpc.stream_stream_rpc_method_handler(stream, None, None)
        watch = _watch(handler, self._metrics.rpc("server_stream", service, name))
        return grpc.unary_stream_rpc_method_handler(watch, None, handler.response_serializer)

    def _refusal(self, service: str, name: str, handler: Handler, refuse: Callable[[], BoxlossError]) -> Handler:
        """What refuses a call. It takes streams: so the call is refused before its message is received."""

        async def answers(_messages: Any, _context: Context) -> AsyncIterator[bytes]:
            raise refuse()
            yield b""

        metrics = self._metrics.rpc("unary" if handler.unary_unary else "bidi_stream", service, name)
        refusal: Handler = grpc.stream_stream_rpc_method_handler(answers, None, None)
        return grpc.stream_stream_rpc_method_handler(_stream(refusal, metrics), None, None)

    def _refuse_stranger(self) -> UnauthenticatedError:
        self._metrics.rejected("unauthenticated")
        return UnauthenticatedError("the call has no token that this server knows; send 'authorization: Bearer TOKEN'")


def _unary(handler: Handler, metrics: RpcMetrics) -> Any:
    answer, serialize = handler.unary_unary, handler.response_serializer

    async def unary(data: bytes, context: Context) -> bytes:
        started = time.perf_counter()
        metrics.started()
        code = "OK"
        try:
            response: bytes = serialize(await answer(_parse(handler, data), context))
            return response
        except asyncio.CancelledError:
            code = cancellation(context)
            raise
        except grpc.aio.AbortError:
            code = _aborted(context)
            raise
        except Exception as error:
            known = _known(error)
            metrics.refused(known)
            status = status_of(known)
            code = status.code.name
            await _abort(context, status)
        finally:
            metrics.handled(code, time.perf_counter() - started)

    return unary


def _stream(handler: Handler, metrics: RpcMetrics) -> Any:
    serialize = handler.response_serializer

    async def stream(messages: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
        started = time.perf_counter()
        metrics.started()
        code = "OK"
        try:
            async for response in handler.stream_stream(_parsed(handler, messages), context):
                yield serialize(response)
        except asyncio.CancelledError:
            code = cancellation(context)
            raise
        except grpc.aio.AbortError:
            code = _aborted(context)
            raise
        except Exception as error:
            known = _known(error)
            metrics.refused(known)
            status = status_of(known)
            code = status.code.name
            await _abort(context, status)
        finally:
            metrics.handled(code, time.perf_counter() - started)

    return stream


def _watch(handler: Handler, metrics: RpcMetrics) -> Any:
    """For methods that write their answers to the context."""

    async def watch(data: bytes, context: Context) -> None:
        started = time.perf_counter()
        metrics.started()
        code = "OK"
        try:
            await handler.unary_stream(_parse(handler, data), context)
        except asyncio.CancelledError:
            code = cancellation(context)
            raise
        except grpc.aio.AbortError:
            code = _aborted(context)
            raise
        except Exception as error:
            status = status_of(_known(error))
            code = status.code.name
            await _abort(context, status)
        finally:
            metrics.handled(code, time.perf_counter() - started)

    return watch


def _parse(handler: Handler, data: bytes) -> Any:
    try:
        return handler.request_deserializer(data)
    except DecodeError:
        raise InvalidInputError(
            [Violation("request", "is not a message of the contract; generate the client from boxloss/v1")]
        ) from None


async def _parsed(handler: Handler, messages: AsyncIterator[bytes]) -> AsyncIterator[Any]:
    # Not a generator expression: that would take hold of messages which are not going to be read.
    async for data in messages:
        yield _parse(handler, data)


def _aborted(context: Context) -> str:
    """The code of a call that its handler has ended itself, as those of gRPC's own services do."""
    code: grpc.StatusCode = context.code()
    return code.name


def _known(error: Exception) -> BoxlossError:
    """The error that a call ends with; what is unforeseen goes to the log."""
    if isinstance(error, BoxlossError):
        return error
    _log.error("call failed", exc_info=error)
    return ServerError(f"the server failed to compute an answer ({type(error).__name__}); see its log")


async def _abort(context: Context, status: Any) -> NoReturn:
    _log.debug("call refused", code=status.code.name, message=status.message)
    await context.abort(status.code, status.message, status.trailers)
    raise AssertionError("abort raises")
