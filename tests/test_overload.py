"""More calls than the server can compute, for a server that computes at a fixed rate: who is answered, and how soon."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any, NamedTuple

import grpc
import grpc.aio
import numpy as np
import pytest

from boxloss import IoU, wire
from boxloss.v1 import array_pb2, loss_service_pb2
from boxloss.v1.loss_service_pb2_grpc import LossServiceStub
from tests.servers import ServerProcess
from tests.slow_server import PAIRS_PER_SECOND

PAIRS = 5000
"""Of a request, which is large enough to wait for the worker."""
RATE = PAIRS_PER_SECOND / PAIRS
ROOM = 20
"""Requests that may wait."""
BOXES = np.tile(np.array([0, 0, 4, 4], "<f4"), (PAIRS, 1))
LOSSES = [wire.loss_to_message(IoU())]
REQUEST = loss_service_pb2.EvaluateRequest(
    predictions=array_pb2.Array(data=BOXES.tobytes()), targets=array_pb2.Array(data=BOXES.tobytes()), losses=LOSSES
)


@pytest.fixture
def slow_server() -> Iterator[ServerProcess]:
    """Computes `RATE` requests per second, and has room for `ROOM`."""
    room = ROOM * PAIRS
    flags = f"--max-waiting-pairs={room}", f"--max-request-pairs={room}", "--log-level=info"
    with ServerProcess(*flags, module="tests.slow_server") as process:
        yield process


def raw_channel(server: ServerProcess) -> grpc.aio.Channel:
    """A connection without retries."""
    return grpc.aio.insecure_channel(server.address, [("grpc.enable_retries", 0)])


async def until_waiting(server: ServerProcess, requests: int) -> None:
    """Waits until so many requests have been admitted and are not yet answered."""
    async with asyncio.timeout(30):
        while await asyncio.to_thread(server.total, "boxloss_waiting_requests") != requests:
            pass


class Answers(NamedTuple):
    """What became of some calls."""

    codes: list[grpc.StatusCode]
    pushbacks: list[int]
    queue_times: list[float]
    seconds: float

    @property
    def rate(self) -> float:
        """Calls answered per second."""
        return self.codes.count(grpc.StatusCode.OK) / self.seconds


async def offer(server: ServerProcess, rate: float, calls: int) -> Answers:
    """Makes calls at a rate, whether or not those before are answered."""
    codes: list[grpc.StatusCode] = []
    pushbacks: list[int] = []
    queue_times: list[float] = []
    async with raw_channel(server) as channel:
        stub: Any = LossServiceStub(channel)
        await stub.ListLosses(loss_service_pb2.ListLossesRequest())

        async def call(start: float) -> None:
            await asyncio.sleep(start - time.monotonic())
            try:
                response = await stub.Evaluate(REQUEST)
            except grpc.aio.AioRpcError as error:
                codes.append(error.code())
                trailers = dict(error.trailing_metadata())
                pushbacks.append(int(trailers.get("grpc-retry-pushback-ms", 0)))
            else:
                codes.append(grpc.StatusCode.OK)
                queue_times.append(response.execution.queue_time.ToNanoseconds() / 1e9)

        started = time.monotonic()
        await asyncio.gather(*(call(started + number / rate) for number in range(calls)))
        return Answers(codes, pushbacks, queue_times, time.monotonic() - started)


async def test_thrice_the_load_is_answered_as_fast_and_the_rest_is_told_when_to_come_again(
    slow_server: ServerProcess,
) -> None:
    fair = await offer(slow_server, RATE, calls=200)
    assert set(fair.codes) <= {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
    heavy = await offer(slow_server, 3 * RATE, calls=600)
    assert len(heavy.codes) == 600
    assert set(heavy.codes) == {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert all(0 < pushback <= 1000 for pushback in heavy.pushbacks)
    assert heavy.rate >= 0.9 * fair.rate
    # What is ahead of a call is computed first, and no more may be than there is room.
    assert max(heavy.queue_times) < 2 * ROOM / RATE
    assert slow_server.total("boxloss_waiting_requests") == 0


async def test_calls_and_streams_share_an_overloaded_server(slow_server: ServerProcess) -> None:
    answered = {"calls": 0, "streams": 0}

    def enough() -> bool:
        return sum(answered.values()) >= 2 * RATE

    async def call(stub: Any) -> None:
        while not enough():
            if await stub.Evaluate(REQUEST).code() is grpc.StatusCode.OK:
                answered["calls"] += 1
            else:
                await asyncio.sleep(1 / RATE)  # Sooner than asked to.

    async def stream(stub: Any) -> None:
        async def messages() -> AsyncIterator[loss_service_pb2.EvaluateStreamRequest]:
            while True:
                yield loss_service_pb2.EvaluateStreamRequest(request=REQUEST)

        answers = stub.EvaluateStream(messages())
        async for _ in answers:
            if enough():
                answers.cancel()
                return
            answered["streams"] += 1

    async with raw_channel(slow_server) as channel, asyncio.TaskGroup() as callers:
        for _ in range(2 * ROOM):
            callers.create_task(call(LossServiceStub(channel)))
            callers.create_task(stream(LossServiceStub(channel)))
    assert min(answered.values()) > sum(answered.values()) / 4


async def test_dead_calls_are_not_computed() -> None:
    boxes = array_pb2.Array(data=np.tile(BOXES, (100, 1)).tobytes())
    with ServerProcess(module="tests.slow_server") as server:
        async with raw_channel(server) as channel:
            stub: Any = LossServiceStub(channel)
            first = stub.Evaluate(loss_service_pb2.EvaluateRequest(predictions=boxes, targets=boxes, losses=LOSSES))
            await until_waiting(server, 1)  # It takes a second.
            expiring = [stub.Evaluate(REQUEST, timeout=0.7) for _ in range(5)]
            cancelled = [stub.Evaluate(REQUEST) for _ in range(5)]
            kept = stub.Evaluate(REQUEST)
            await until_waiting(server, 12)
            for call in cancelled:
                call.cancel()
            assert [await call.code() for call in expiring] == [grpc.StatusCode.DEADLINE_EXCEEDED] * 5
            assert (await first).results
            assert (await kept).results
        assert server.total("boxloss_batch_requests_sum") == 2
        assert server.stop() == 0
        assert server.log[-1]["requests"] == 2
