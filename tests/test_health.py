"""The health service: the standard's answers, bounds for what anybody may ask, and no watcher that holds up another."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from h2.events import ResponseReceived

import boxloss
from boxloss import CIoU
from boxloss_server.service import Server, health
from boxloss_server.service.health import MAX_CONNECTION_WATCHERS, MAX_REQUEST_BYTES
from boxloss_server.settings import Settings
from tests.http2 import Http2Client
from tests.servers import ServerProcess, wait_until

A, B = [[0.0, 0.0, 4.0, 4.0]], [[1.0, 2.0, 5.0, 8.0]]
WATCH = "/grpc.health.v1.Health/Watch"
SERVICES = "", "boxloss.v1.LossService", "boxloss.v1.AuditService"
DECOMPRESSED = 2**20
"""Bytes that a small message may become."""


@pytest.fixture(scope="module")
def stub(server: ServerProcess) -> Iterator[Any]:
    with grpc.insecure_channel(server.address) as channel:
        yield health_pb2_grpc.HealthStub(channel)


def watching(server: ServerProcess) -> float:
    """Watches of a server that are under way."""
    watch = {"grpc_service": "grpc.health.v1.Health", "grpc_method": "Watch"}
    return server.total("grpc_server_started_total", **watch) - server.total("grpc_server_handled_total", **watch)


def test_each_service_serves_and_others_are_not_known(stub: Any) -> None:
    for service in SERVICES:
        assert stub.Check(HealthCheckRequest(service=service)).status == HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError) as error:
        stub.Check(HealthCheckRequest(service="boxloss.v2.LossService"))
    assert error.value.code() is grpc.StatusCode.NOT_FOUND
    watch = stub.Watch(HealthCheckRequest(service="boxloss.v2.LossService"))
    assert next(watch).status == HealthCheckResponse.SERVICE_UNKNOWN
    watch.cancel()


def test_list_has_every_service(server: ServerProcess) -> None:
    with grpc.insecure_channel(server.address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        listed = stub.List(vars(health_pb2)["HealthListRequest"]())
    assert {name: each.status for name, each in listed.statuses.items()} == dict.fromkeys(
        SERVICES, HealthCheckResponse.SERVING
    )


def request_of(size: int) -> HealthCheckRequest:
    """A request of so many bytes."""
    request = HealthCheckRequest(service="x" * size)
    request.service = "x" * (2 * size - request.ByteSize())
    assert request.ByteSize() == size
    return request


@pytest.mark.parametrize("size", [MAX_REQUEST_BYTES - 1, MAX_REQUEST_BYTES])
@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
def test_names_may_be_so_long(stub: Any, size: int, compression: grpc.Compression) -> None:
    with pytest.raises(grpc.RpcError) as error:
        stub.Check(request_of(size), compression=compression)
    assert error.value.code() is grpc.StatusCode.NOT_FOUND
    watch = stub.Watch(request_of(size), compression=compression)
    assert next(watch).status == HealthCheckResponse.SERVICE_UNKNOWN
    watch.cancel()


@pytest.mark.parametrize(
    ("size", "compression", "fault"),
    [
        (MAX_REQUEST_BYTES + 1, grpc.Compression.NoCompression, "service: makes a request of over 1024 bytes; send "),
        (MAX_REQUEST_BYTES + 1, grpc.Compression.Gzip, "service: makes a request of over 1024 bytes; send "),
        (DECOMPRESSED, grpc.Compression.Gzip, "service: has 1048572 bytes; send at most 4096"),
        (DECOMPRESSED + 1, grpc.Compression.Gzip, "request: is over 1048576 bytes once decompressed, from "),
        (2**24, grpc.Compression.Gzip, "request: is over 1048576 bytes once decompressed, from "),
    ],
)
def test_names_are_bounded(stub: Any, size: int, compression: grpc.Compression, fault: str) -> None:
    """While they are decompressed and as a text, as in every message, and as a name."""
    for call in (stub.Check, lambda *args, **options: next(stub.Watch(*args, **options))):
        with pytest.raises(grpc.RpcError) as error:
            call(request_of(size), compression=compression)
        assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert str(error.value.details()).startswith(fault)


def test_a_connection_has_so_many_watches_and_no_more(server: ServerProcess, stub: Any) -> None:
    request = HealthCheckRequest()
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(server.address, options) as channel, ExitStack() as stack:
        crowd: Any = health_pb2_grpc.HealthStub(channel)
        watches = [crowd.Watch(request) for _ in range(MAX_CONNECTION_WATCHERS)]
        for each in watches:
            stack.callback(each.cancel)
            assert next(each).status == HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError, match=f"watches {MAX_CONNECTION_WATCHERS} times") as error:
            next(crowd.Watch(request))
        assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert next(stub.Watch(request)).status == HealthCheckResponse.SERVING  # Others may.
        under_way = watching(server)
        watches[0].cancel()
        wait_until(lambda: watching(server) < under_way, "its place is free")
        last = crowd.Watch(request)
        stack.callback(last.cancel)
        assert next(last).status == HealthCheckResponse.SERVING


async def test_a_server_has_so_many_watches_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "MAX_WATCHERS", 2)
    server = Server(Settings(_cli_parse_args=[], port=0, device="cpu"))
    await server.start()
    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", options) for _ in range(3)]
    stubs: list[Any] = [health_pb2_grpc.HealthStub(channel) for channel in channels]
    watches = [stub.Watch(HealthCheckRequest()) for stub in stubs[:2]]
    for watch in watches:
        assert (await watch.read()).status == HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError, match="2 calls watch, and no more may") as error:
        await stubs[2].Watch(HealthCheckRequest()).read()
    assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (await stubs[2].Check(HealthCheckRequest())).status == HealthCheckResponse.SERVING
    for channel in channels:
        await channel.close()
    await server.stop()


def test_a_watcher_that_reads_nothing_holds_up_nobody() -> None:
    """Neither other watchers, nor clients that ask for health, nor the end of the server."""
    grace = 300
    with (
        ServerProcess(f"--shutdown-grace-s={grace}") as server,
        Http2Client(server.port, window=0) as stuck,
        grpc.insecure_channel(server.address) as channel,
    ):
        for service in SERVICES:
            call = stuck.start(WATCH)
            stuck.send(call, HealthCheckRequest(service=service))
        stuck.read_until(ResponseReceived, len(SERVICES))
        with boxloss.Client([server.address, server.address]) as client:  # Which watches each address.
            assert client.evaluate(A, B, CIoU()).loss
        stub: Any = health_pb2_grpc.HealthStub(channel)
        watch = stub.Watch(HealthCheckRequest(service=SERVICES[1]))
        assert next(watch).status == HealthCheckResponse.SERVING
        started = time.monotonic()
        server.terminate()
        assert [each.status for each in watch] == [HealthCheckResponse.NOT_SERVING]
        assert server.wait() == 0
        assert time.monotonic() - started < grace / 10


class _Context:
    """Of a watcher that takes a message only when it is let."""

    def __init__(self, let: bool) -> None:
        self.statuses: list[int] = []
        self.callbacks: list[Callable[[Any], None]] = []
        self._let = asyncio.Event()
        if let:
            self._let.set()

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self.callbacks.append(callback)

    async def write(self, response: HealthCheckResponse) -> None:
        await self._let.wait()
        self.statuses.append(response.status)

    def let(self) -> None:
        self._let.set()


async def test_a_slow_watcher_hears_the_latest_status_and_then_the_end() -> None:
    service = health.Health()
    slow, quick = _Context(let=False), _Context(let=True)
    watches = [asyncio.create_task(service.Watch(HealthCheckRequest(), context)) for context in (slow, quick)]  # type: ignore[arg-type]
    await asyncio.sleep(0)
    service.serve("")
    await asyncio.sleep(0)
    service.serve("", "another")
    ending = asyncio.create_task(service.end())
    await asyncio.sleep(0)
    slow.let()
    await asyncio.gather(ending, *watches)
    assert quick.statuses == [
        HealthCheckResponse.SERVICE_UNKNOWN,
        HealthCheckResponse.SERVING,
        HealthCheckResponse.NOT_SERVING,
    ]
    assert slow.statuses == [HealthCheckResponse.SERVICE_UNKNOWN, HealthCheckResponse.NOT_SERVING]
    service.serve("")
    last = _Context(let=True)
    await service.Watch(HealthCheckRequest(), last)  # type: ignore[arg-type]
    assert last.statuses == [HealthCheckResponse.NOT_SERVING]
