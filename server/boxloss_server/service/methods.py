"""What every RPC has in common: parsing, metrics, and errors turned into statuses."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any, NoReturn, TypeAlias

import grpc
import grpc.aio
import structlog
from google.protobuf.message import DecodeError

from boxloss.errors import BoxlossError, InvalidInputError, ServerError, Violation
from boxloss_server.service.metrics import Metrics, RpcMetrics
from boxloss_server.service.status import status_of

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = Any
"""grpc.RpcMethodHandler, whose published types know only the blocking stack."""

_log = structlog.get_logger()


class Methods(grpc.GenericRpcHandler):
    """The methods that a server answers. Generated code adds services to it as it would to a server.

    Not an interceptor: grpc.aio asks its interceptors anew, in coroutines, for every call. Requests are parsed here
    rather than by gRPC, which would answer unreadable bytes with INTERNAL.

    Args:
        metrics: where the calls are counted.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._handlers: dict[str, Handler] = {}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler:
        """The handler of a call; without one, gRPC answers UNIMPLEMENTED."""
        return self._handlers.get(handler_call_details.method)

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """Called by generated code, before it adds the same handlers by name."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Handler]) -> None:
        """Called by generated code with a service's handlers."""
        for name, handler in handlers.items():
            self._handlers[f"/{service}/{name}"] = self._wrapped(service, name, handler)

    def _wrapped(self, service: str, name: str, handler: Handler) -> Handler:
        if handler.unary_unary:
            metrics = self._metrics.rpc("unary", service, name)
            return grpc.unary_unary_rpc_method_handler(_unary(handler, metrics), None, None)
        if handler.stream_stream:
            metrics = self._metrics.rpc("bidi_stream", service, name)
            return grpc.stream_stream_rpc_method_handler(_stream(handler, metrics), None, None)
        metrics = self._metrics.rpc("server_stream", service, name)
        return grpc.unary_stream_rpc_method_handler(_watch(handler, metrics), None, handler.response_serializer)


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
            code = _cancelled(context)
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

    return unary


def _stream(handler: Handler, metrics: RpcMetrics) -> Any:
    serialize = handler.response_serializer

    async def stream(messages: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
        started = time.perf_counter()
        metrics.started()
        code = "OK"
        try:
            async for response in handler.stream_stream((_parse(handler, data) async for data in messages), context):
                yield serialize(response)
        except asyncio.CancelledError:
            code = _cancelled(context)
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
            code = _cancelled(context)
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


def _cancelled(context: Context) -> str:
    """The code of a call that was cancelled: by its caller, or by its deadline."""
    remaining = context.time_remaining()
    return "CANCELLED" if remaining is None or remaining > 0 else "DEADLINE_EXCEEDED"


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
