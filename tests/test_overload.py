"""More calls than the server can compute, and a server that stops under load: who is answered, and how soon."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from itertools import islice
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from h2.events import ResponseReceived

import boxloss
from boxloss import IoU, SmoothL1
from boxloss.contract import wire
from boxloss.v1 import array_pb2, loss_service_pb2
from boxloss.v1.loss_service_pb2_grpc import LossServiceStub
from tests.held_server import HeldServer
from tests.http2 import Http2Client
from tests.servers import ServerProcess, wait_until
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


async def until_waiting(server: ServerProcess, requests: int) -> None:
    """Waits until so many requests are admitted and not answered."""

    def there() -> bool:
        return server.total("boxloss_waiting_requests") == requests

    await asyncio.to_thread(wait_until, there, f"{requests} requests wait")


async def test_of_thrice_the_load_as_much_is_answered_and_the_rest_is_told_at_once_when_to_come_again() -> None:
    room = ROOM * PAIRS
    batches = 0.0
    with HeldServer(f"--max-waiting-pairs={room}", f"--max-request-pairs={room}") as server:
        for turn, load in enumerate((ROOM, 3 * ROOM)):
            async with raw_channel(server) as channel:
                with server.held():  # What is told meanwhile is told at once.
                    calls: list[Any] = [LossServiceStub(channel).Evaluate(REQUEST) for _ in range(load)]
                    endings = [asyncio.create_task(call.code()) for call in calls]
                    codes = [await first for first in islice(asyncio.as_completed(endings), load - ROOM)]
                    assert codes == [grpc.StatusCode.RESOURCE_EXHAUSTED] * (load - ROOM)
                    for call in calls:
                        if call.done():
                            trailers = dict(await call.trailing_metadata())
                            assert 0 < int(trailers["grpc-retry-pushback-ms"]) <= 1000
                    await until_waiting(server, ROOM)
                assert [await ending for ending in endings].count(grpc.StatusCode.OK) == ROOM
            await until_waiting(server, 0)
            # What is refused costs the device nothing, and the others are computed together.
            assert server.total("boxloss_batch_requests_sum") == (turn + 1) * ROOM
            batches, before = server.total("boxloss_batches_total"), batches
            assert batches - before == 2  # The first that came, and all that came while it was computed.


def test_a_full_server_refuses_calls_before_it_has_received_their_messages() -> None:
    full = f"--max-waiting-pairs={PAIRS}", f"--max-request-pairs={PAIRS}"
    with HeldServer(*full) as server, Http2Client(server.port) as client:
        with server.held():
            client.send(client.start("Evaluate"), REQUEST)
            wait_until(lambda: server.total("boxloss_waiting_pairs") == PAIRS, "the server is full")
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
    # Half of them, but that callers on a busy machine come late where they have been refused.
    assert min(answered.values()) > sum(answered.values()) / 8


async def test_dead_calls_are_not_computed() -> None:
    with HeldServer() as server:
        async with raw_channel(server) as channel:
            stub: Any = LossServiceStub(channel)
            with server.held():
                first = stub.Evaluate(REQUEST)
                await until_read(server, 1)
                cancelled = [stub.Evaluate(REQUEST) for _ in range(5)]
                kept = stub.Evaluate(REQUEST)
                await until_read(server, 7)
                expiring = [stub.Evaluate(REQUEST, timeout=0.5) for _ in range(5)]
                assert [await call.code() for call in expiring] == [grpc.StatusCode.DEADLINE_EXCEEDED] * 5
                for call in cancelled:
                    call.cancel()
                await until_waiting(server, 2)
            assert (await first).results
            assert (await kept).results
        assert server.total("boxloss_batch_requests_sum") == 2
        assert server.stop() == 0


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
