"""More calls than the server can compute, and a server that stops under load: who is answered, and how soon."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any, NamedTuple

import grpc
import grpc.aio
import numpy as np
import pytest
from h2.events import ResponseReceived

import boxloss
from boxloss import IoU, SmoothL1, wire
from boxloss.v1 import array_pb2, loss_service_pb2
from boxloss.v1.loss_service_pb2_grpc import LossServiceStub
from tests.http2 import Http2Client
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
    """A connection of its own without retries."""
    return grpc.aio.insecure_channel(
        server.address, [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]
    )


async def until_read(server: ServerProcess, calls: int) -> None:
    """Waits until the server has read so many calls."""
    async with asyncio.timeout(30):
        while await asyncio.to_thread(server.total, "grpc_server_started_total", grpc_method="Evaluate") < calls:
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


def test_a_full_server_refuses_calls_before_it_has_received_their_messages() -> None:
    boxes = array_pb2.Array(data=np.tile(BOXES, (200, 1)).tobytes())
    full = "--max-waiting-pairs=1000000", "--max-request-pairs=1000000"
    with ServerProcess(*full, module="tests.slow_server") as server, Http2Client(server.port) as client:
        first = client.start("Evaluate")  # It takes two seconds.
        client.send(first, loss_service_pb2.EvaluateRequest(predictions=boxes, targets=boxes, losses=LOSSES))
        while server.total("boxloss_waiting_pairs") < 1_000_000:
            pass
        for method in ("Evaluate", "PairwiseIou"):
            client.start(method)
            events = client.read_until(ResponseReceived)
            (headers,) = (dict(event.headers) for event in events if isinstance(event, ResponseReceived))
            assert headers[b"grpc-status"] == b"8"
            assert 0 < int(headers[b"grpc-retry-pushback-ms"]) <= 1000
        with boxloss.Client(server.address) as other:
            assert other.info().losses
        assert server.total("boxloss_rejected_total", reason="queue_full") == 2
        assert server.total("grpc_server_handled_total", grpc_code="RESOURCE_EXHAUSTED") == 2
        assert server.stop() == 0
        assert all("event" in line for line in server.log)  # Neither warnings of Python's nor lines of gRPC's.


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
    boxes = array_pb2.Array(data=np.tile(BOXES, (200, 1)).tobytes())
    with ServerProcess(module="tests.slow_server") as server:
        async with raw_channel(server) as channel:
            stub: Any = LossServiceStub(channel)
            first = stub.Evaluate(loss_service_pb2.EvaluateRequest(predictions=boxes, targets=boxes, losses=LOSSES))
            await until_read(server, 1)  # It takes two seconds.
            expiring = [stub.Evaluate(REQUEST, timeout=0.7) for _ in range(5)]
            cancelled = [stub.Evaluate(REQUEST) for _ in range(5)]
            kept = stub.Evaluate(REQUEST)
            await until_read(server, 12)
            for call in cancelled:
                call.cancel()
            assert [await call.code() for call in expiring] == [grpc.StatusCode.DEADLINE_EXCEEDED] * 5
            assert (await first).results
            assert (await kept).results
        assert server.total("boxloss_batch_requests_sum") == 2
        assert server.stop() == 0
        assert server.log[-1]["computed"] == 2


async def test_the_sdk_comes_again_when_grpc_drops_calls_that_the_server_has_not_read(server: ServerProcess) -> None:
    small = loss_service_pb2.EvaluateRequest(
        predictions=array_pb2.Array(data=BOXES[:1].tobytes()),
        targets=array_pb2.Array(data=BOXES[:1].tobytes()),
        losses=LOSSES,
    )
    async with contextlib.AsyncExitStack() as stack:
        channels = [await stack.enter_async_context(raw_channel(server)) for _ in range(8)]
        client = await stack.enter_async_context(boxloss.AsyncClient(server.address))
        await client.info()
        stubs: list[Any] = [LossServiceStub(channel) for channel in channels]
        flooding = asyncio.gather(*(stub.Evaluate(small).code() for stub in stubs for _ in range(1000)))
        calls = [client.evaluate(BOXES[:100], BOXES[:100], SmoothL1(beta=number)) for number in range(1, 50)]
        assert [len(result.loss) for result in await asyncio.gather(*calls)] == [100] * 49
        codes = Counter(await flooding)
    assert codes.keys() == {grpc.StatusCode.OK, grpc.StatusCode.CANCELLED}


async def test_a_server_that_stops_under_load_answers_what_it_has_accepted(slow_server: ServerProcess) -> None:
    codes: Counter[grpc.StatusCode] = Counter()
    loaded = asyncio.Event()

    async def call(stub: Any) -> None:
        while not codes[grpc.StatusCode.UNAVAILABLE]:
            codes[await stub.Evaluate(REQUEST).code()] += 1
            if codes[grpc.StatusCode.OK] == 50:
                loaded.set()

    async with raw_channel(slow_server) as channel, asyncio.TaskGroup() as callers:
        for _ in range(2 * ROOM):
            callers.create_task(call(LossServiceStub(channel)))
        await loaded.wait()
        slow_server.terminate()
    assert slow_server.wait() == 0
    busy, ended = grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE
    dropped = grpc.StatusCode.CANCELLED  # By gRPC, which had received them: the server has not read them.
    assert {grpc.StatusCode.OK, busy, ended} <= codes.keys() <= {grpc.StatusCode.OK, busy, ended, dropped}
    assert codes[grpc.StatusCode.OK] == slow_server.log[-1]["computed"]
    assert codes[grpc.StatusCode.OK] + codes[busy] == slow_server.log[-1]["read"]


async def test_no_call_is_lost_when_one_of_two_servers_stops_under_load() -> None:
    boxes = BOXES[:1]
    answers = 0
    half_done = asyncio.Event()

    async def call(client: boxloss.AsyncClient) -> None:
        nonlocal answers
        for _ in range(20):
            assert len((await client.evaluate(boxes, boxes, IoU())).loss) == 1
            answers += 1
            if answers == 640:
                half_done.set()

    with ServerProcess() as first, ServerProcess() as second:
        clients = [boxloss.AsyncClient(f"ipv4:{first.address},{second.address}") for _ in range(8)]
        async with asyncio.TaskGroup() as callers:
            for client in clients * 8:
                callers.create_task(call(client))
            await half_done.wait()
            first.terminate()
        for client in clients:
            await client.close()
        assert first.wait() == 0
        assert second.total("grpc_server_handled_total", grpc_method="Evaluate", grpc_code="OK") > 0
    assert answers == 64 * 20
