"""The service of a server without its socket: real handlers, batcher and engine, called with bytes."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self

import grpc
import grpc.aio
import psutil
import structlog
import torch
import uvloop
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from grpc_reflection.v1alpha.reflection_pb2_grpc import add_ServerReflectionServicer_to_server

from boxloss_server.batching import Batcher, Capacity
from boxloss_server.engine import Engine, Kernels
from boxloss_server.security import Access
from boxloss_server.service import bulk
from boxloss_server.service.audits import AuditServicer
from boxloss_server.service.calls import Calls
from boxloss_server.service.decode import Limits
from boxloss_server.service.health import SERVICE_NAME, Health
from boxloss_server.service.methods import Methods
from boxloss_server.service.metrics import Metrics
from boxloss_server.service.servicer import LossServicer
from boxloss_server.service.streams import Streams

LOSS_SERVICE = "/boxloss.v1.LossService"
AUDIT_SERVICE = "/boxloss.v1.AuditService"
LIMITS = Limits(message_bytes=2**20, request_pairs=2**10)
"""Small: what is over them is as easily found as what is within."""


class Outcome(NamedTuple):
    """How a call ended."""

    code: grpc.StatusCode
    message: str
    trailers: tuple[tuple[str, str | bytes], ...]
    answers: list[bytes]
    seconds: float


class Target:
    """A server's service on an event loop of its own, put together as `boxloss_server.service.Server` does.

    Args:
        bulky: bytes from which on arrays are taken out of messages; few, so that small inputs reach that code too.
    """

    def __init__(self, bulky: int = 48) -> None:
        self._bulky, bulk._BULKY = bulk._BULKY, bulky
        self.complaints: list[str] = []
        """What the service wrote to its log that it must not: errors, warnings and forgotten exceptions."""
        self._handler = _Complaints(self.complaints)
        self._listen()
        self.loop = uvloop.new_event_loop()
        self.loop.set_exception_handler(lambda loop, context: self.complaints.append(f"event loop: {context}"))
        self.capacity = Capacity(4 * LIMITS.request_pairs)
        self._methods: Any = self.loop.run_until_complete(self._serve())

    async def _serve(self) -> Methods:
        metrics = Metrics()
        device = torch.device("cpu")
        engine = Engine(device, Kernels(device))
        engine.warm_up()
        self._batcher = Batcher(
            engine.run,
            engine.watch.read,
            self.capacity,
            window=0.002,
            batch_pairs=LIMITS.request_pairs,
            small_pairs=64,
            observer=metrics,
        )
        metrics.watch(self.capacity, self._batcher, device)
        access = Access(None, certified=False, by_address=False)
        streams = Streams()
        servicer = LossServicer(self._batcher, LIMITS, "cpu", metrics, access, streams)
        audits = AuditServicer(self._batcher, LIMITS, metrics, access, streams)
        methods: Any = Methods(
            metrics,
            access,
            self._batcher,
            [f"{LOSS_SERVICE}/{name}" for name in ("Evaluate", "PairwiseIou")],
            LIMITS,
            Calls(float("inf"), metrics.unread),
        )
        methods.add_registered_method_handlers(LOSS_SERVICE[1:], servicer.handlers)
        methods.add_registered_method_handlers(AUDIT_SERVICE[1:], audits.handlers)
        health = Health()
        health_pb2_grpc.add_HealthServicer_to_server(health, methods)
        reflected = reflection.aio.ReflectionServicer((LOSS_SERVICE[1:], SERVICE_NAME, reflection.SERVICE_NAME))
        add_ServerReflectionServicer_to_server(reflected, methods)  # type: ignore[no-untyped-call]
        health.serve("", LOSS_SERVICE[1:])
        return methods  # type: ignore[no-any-return]

    def call(self, *calls: tuple[str, Sequence[bytes]]) -> list[Outcome]:
        """Makes calls at the same time, each of a method with its messages, and waits until nothing runs any more."""
        return self.loop.run_until_complete(_together([self._call(*each) for each in calls]))

    def memory(self) -> int:
        """Resident bytes, without garbage."""
        gc.collect()
        resident: int = psutil.Process().memory_info().rss
        return resident

    def close(self) -> None:
        """Ends it, and leaves the process as it was."""
        self.loop.close()
        self._batcher.shut_down()
        logging.captureWarnings(False)
        logging.getLogger().removeHandler(self._handler)
        structlog.configure(**self._logs)
        bulk._BULKY = self._bulky

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def _call(self, method: str, messages: Sequence[bytes]) -> Outcome:
        started = time.perf_counter()
        handler = self._methods.service(_Details(method))
        context = _Context()
        answers: list[bytes] = []
        try:
            if handler.unary_unary:
                answers.append(await handler.unary_unary(messages[0], context))
            else:
                answers.extend([answer async for answer in handler.stream_stream(_each(messages), context)])
        except grpc.aio.AbortError:
            pass
        except BaseException as error:
            context.status = grpc.StatusCode.UNKNOWN, f"raised {error!r}", ()
        finally:
            context.end()
        return Outcome(*context.status, answers, time.perf_counter() - started)

    def _listen(self) -> None:
        def heard(_logger: Any, level: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
            if level not in ("debug", "info"):
                self.complaints.append(f"log: {event}")
            raise structlog.DropEvent

        self._logs = structlog.get_config()
        structlog.configure(processors=[heard])
        logging.getLogger().addHandler(self._handler)
        logging.captureWarnings(True)


class _Complaints(logging.Handler):
    """Keeps what libraries log."""

    def __init__(self, complaints: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._complaints = complaints

    def emit(self, record: logging.LogRecord) -> None:
        self._complaints.append(f"log: {record.getMessage()}")


class _Details(NamedTuple):
    """What gRPC tells of a call to find its handler."""

    method: str


class _Context:
    """What the handlers need of a call's context."""

    def __init__(self) -> None:
        self.status: tuple[grpc.StatusCode, str, tuple[Any, ...]] = grpc.StatusCode.OK, "", ()
        self._aborted = False
        self._callbacks: list[Callable[[Any], None]] = []

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"

    def time_remaining(self) -> float:
        return 30.0

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self._callbacks.append(callback)

    def end(self) -> None:
        for callback in self._callbacks:
            callback(self)

    def code(self) -> grpc.StatusCode:
        return self.status[0]

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Any = ()) -> None:
        if self._aborted:
            raise RuntimeError("the call has been aborted already")
        self._aborted = True
        self.status = code, details, tuple(trailing_metadata)
        raise grpc.aio.AbortError


async def _together(calls: Sequence[Coroutine[Any, Any, Outcome]]) -> list[Outcome]:
    outcomes = await asyncio.gather(*calls)
    for _ in range(1000):
        if len(asyncio.all_tasks()) == 1:
            break
        await asyncio.sleep(0.001)
    return list(outcomes)


async def _each(messages: Sequence[bytes]) -> AsyncIterator[bytes]:
    for message in messages:
        yield message
