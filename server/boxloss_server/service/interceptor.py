"""What every RPC has in common: parsing, metrics, and errors turned into statuses."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import grpc
import grpc.aio
import structlog
from google.protobuf.message import DecodeError

from boxloss.errors import BoxlossError, InvalidInputError, ServerError, Violation
from boxloss_server.service.metrics import Metrics
from boxloss_server.service.status import status_of

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = Any
"""grpc.RpcMethodHandler, whose published types know only the blocking stack."""

_log = structlog.get_logger()


class Interceptor(grpc.aio.ServerInterceptor):
    """Wraps every unary and every bidirectional RPC.

    The request is parsed here rather than by gRPC, which would answer unreadable bytes with INTERNAL.

    Args:
        metrics: where the calls are counted.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._wrapped: dict[str, Handler] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        method: str = handler_call_details.method
        if method not in self._wrapped:
            handler = await continuation(handler_call_details)
            if handler is None:
                return handler  # gRPC answers UNIMPLEMENTED; unknown names are not kept.
            self._wrapped[method] = self._wrap(method, handler)
        return self._wrapped[method]

    def _wrap(self, method: str, handler: Handler) -> Handler:
        _, service, name = method.split("/")
        if handler.unary_unary:

            async def unary(data: bytes, context: Context) -> Any:
                async with self._call(("unary", service, name), context):
                    return await handler.unary_unary(_parse(handler, data), context)

            return grpc.unary_unary_rpc_method_handler(unary, None, handler.response_serializer)
        if handler.stream_stream:

            async def stream(messages: AsyncIterator[bytes], context: Context) -> AsyncIterator[Any]:
                async with self._call(("bidi_stream", service, name), context):
                    requests = (_parse(handler, data) async for data in messages)
                    async for response in handler.stream_stream(requests, context):
                        yield response

            return grpc.stream_stream_rpc_method_handler(stream, None, handler.response_serializer)
        return handler

    @asynccontextmanager
    async def _call(self, rpc: tuple[str, str, str], context: Context) -> AsyncIterator[None]:
        """Counts a call, and ends it with the status that its error stands for."""
        started = time.perf_counter()
        self._metrics.started(rpc)
        code = "OK"
        try:
            yield
        except asyncio.CancelledError:
            remaining = context.time_remaining()
            code = "CANCELLED" if remaining is None or remaining > 0 else "DEADLINE_EXCEEDED"
            raise
        except Exception as error:
            if not isinstance(error, BoxlossError):
                _log.exception("call failed", method=rpc[2])
                error = ServerError(f"the server failed to compute an answer ({type(error).__name__}); see its log")
            status = status_of(error)
            code = status.code.name
            _log.debug("call refused", method=rpc[2], code=code, message=status.message)
            await context.abort(status.code, status.message, status.trailers)
        finally:
            self._metrics.handled(rpc, code, time.perf_counter() - started)


def _parse(handler: Handler, data: bytes) -> Any:
    try:
        return handler.request_deserializer(data)
    except DecodeError:
        raise InvalidInputError(
            [Violation("request", "is not a message of the contract; generate the client from boxloss/v1")]
        ) from None
