"""The end of a server: its grace is a bound, every call hears how it ended, and nobody can hold it up."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status as RpcStatus
from h2.events import ConnectionTerminated, DataReceived, StreamEnded, TrailersReceived

import boxloss
from boxloss import CIoU, IoU
from boxloss.contract import wire
from boxloss.v1 import array_pb2, audit_service_pb2
from boxloss.v1.audit_service_pb2_grpc import AuditServiceStub
from boxloss.v1.loss_service_pb2 import EvaluateRequest, EvaluateStreamRequest
from boxloss.v1.loss_service_pb2_grpc import LossServiceStub
from boxloss_server import embedded
from boxloss_server.engine import Engine
from boxloss_server.service import Server
from tests.faulty_server import HANGS
from tests.held_server import HeldServer
from tests.http2 import Http2Client
from tests.servers import ServerProcess, wait_until

LARGE = 5000
"""Pairs of a request that is computed in the worker's thread."""
VERY_LARGE = 100_000
"""Pairs whose answer is more than the kernel of a client takes before it reads, and less than what the kernels of both
keep.
"""
WINDOW = 2**24
"""Bytes of an answer that HTTP/2 lets the server send."""
GRACE = 1.0
MARGIN = 10.0
"""Seconds that a busy machine may take; far less than what hangs."""
LONG_GRACE = 300.0


def request(first: float, pairs: int = LARGE) -> EvaluateRequest:
    boxes = np.tile(np.array([0, 0, 4, 4], "<f4"), (pairs, 1))
    boxes[0, 0] = first
    array = array_pb2.Array(data=boxes.tobytes())
    return EvaluateRequest(predictions=array, targets=array, losses=[wire.loss_to_message(CIoU())])


def hanging(*flags: str) -> ServerProcess:
    """A server whose computations last for ever where a box asks for it."""
    return ServerProcess("--hang-timeout-s=0", *flags, module="tests.faulty_server")


def stops(server: ServerProcess) -> bool:
    return any(line.get("event") == "shutting down" for line in list(server.log))


def ending_of(error: Any) -> tuple[str, str]:
    """The code of a failed call, and the reason that it was given; empty if none."""
    status = RpcStatus.FromString(dict(error.trailing_metadata() or ()).get("grpc-status-details-bin", b""))
    info = ErrorInfo()
    return error.code().name, info.reason if any(each.Unpack(info) for each in status.details) else ""


def ending(call: Any) -> tuple[str, str]:
    """The code and the reason that a call, or a stream, ends with."""
    try:
        call.result()
    except grpc.RpcError as error:
        return ending_of(error)
    return "OK", ""


def test_the_grace_is_a_bound_and_every_call_hears_how_it_ended() -> None:
    with hanging(f"--shutdown-grace-s={GRACE}") as server, grpc.insecure_channel(server.address) as channel:
        losses, audits = LossServiceStub(channel), AuditServiceStub(channel)
        until_asked = threading.Event()

        def forever(*messages: Any) -> Iterator[Any]:
            yield from messages
            until_asked.wait()

        computed = losses.Evaluate.future(request(HANGS))
        wait_until(lambda: server.total("boxloss_waiting_requests") == 1, "the call is computed")
        waiting = losses.Evaluate.future(request(0.0))
        stream = losses.EvaluateStream(forever(EvaluateStreamRequest(request=request(0.0))))
        rules = audit_service_pb2.AuditRequest(rules=audit_service_pb2.AuditRules())
        audit = audits.Audit(forever(rules))
        wait_until(lambda: server.total("boxloss_waiting_requests") == 3, "the others wait")
        started = time.monotonic()
        server.terminate()
        endings = [ending(call) for call in (computed, waiting, stream, audit)]
        assert server.wait() == 0
        until_asked.set()
    assert endings == [("UNAVAILABLE", "UNAVAILABLE")] * 4
    assert GRACE < time.monotonic() - started < GRACE + MARGIN


def test_an_answer_reaches_a_client_that_reads_late_and_goes_on_talking() -> None:
    """Where its connection is closed before it has read, the kernel drops the rest of the answer."""
    with HeldServer() as server, Http2Client(server.port, WINDOW) as client:
        with server.held():
            call = ask(client, server, VERY_LARGE, waiting=1)
            server.terminate()
            wait_until(lambda: server.total("boxloss_processes_serving") == 0, "it stops")
            client.read_for(0.3)  # And answers what gRPC asks before it closes a connection.
        assert_reads_late(client, server, call)


def test_so_does_that_of_a_call_which_comes_later() -> None:
    with HeldServer() as server, Http2Client(server.port, WINDOW) as client, Http2Client(server.port) as other:
        with server.held():
            ask(other, server, LARGE, waiting=1)
            server.terminate()
            wait_until(lambda: stops(server), "it stops")
            call = ask(client, server, VERY_LARGE, waiting=2)
            other.close()  # Nothing that came before SIGTERM is under way any more.
            client.read_until(ConnectionTerminated)
        assert_reads_late(client, server, call)


def ask(client: Http2Client, server: ServerProcess, pairs: int, waiting: int) -> int:
    client.grant(WINDOW)
    call = client.start("Evaluate")
    client.send(call, request(0.0, pairs))
    wait_until(lambda: server.total("boxloss_waiting_requests") == waiting, "the call is computed")
    return call


def assert_reads_late(client: Http2Client, server: ServerProcess, call: int) -> None:
    wait_until(lambda: server.total("grpc_server_handled_total", grpc_method="Evaluate", grpc_code="OK") == 1, "it is")
    for _ in range(2):
        client.ping()
    events = client.read_until(StreamEnded)
    assert sum(len(event.data) for event in events if isinstance(event, DataReceived)) > 4 * VERY_LARGE
    (trailers,) = (event.headers for event in events if isinstance(event, TrailersReceived))
    assert (b"grpc-status", b"0") in trailers
    assert server.wait() == 0


def test_a_second_signal_ends_the_server_at_once() -> None:
    with hanging(f"--shutdown-grace-s={LONG_GRACE}") as server, grpc.insecure_channel(server.address) as channel:
        call = LossServiceStub(channel).Evaluate.future(request(HANGS))
        wait_until(lambda: server.total("boxloss_waiting_requests") == 1, "the call is computed")
        process = psutil.Process(server.pid)
        process.send_signal(signal.SIGINT)
        wait_until(lambda: stops(server), "it stops")
        process.send_signal(signal.SIGINT)
        assert server.wait() == -signal.SIGINT
        assert ending(call)[0] == "UNAVAILABLE"


def test_signals_are_heeded_while_the_event_loop_hangs() -> None:
    """By the grace, and without waiting for it by a second signal."""
    for grace, signals, status in ((GRACE, 1, 0), (LONG_GRACE, 2, -signal.SIGTERM)):
        with hanging(f"--shutdown-grace-s={grace}") as server, grpc.insecure_channel(server.address) as channel:
            call = LossServiceStub(channel).Evaluate.future(request(HANGS, pairs=1))
            wait_until(lambda: server.total("grpc_server_started_total", grpc_method="Evaluate") == 1, "it hangs")
            for number in range(signals):
                server.terminate()
                time.sleep(0.2 * (number + 1 < signals))  # Two signals at once are one.
            assert server.wait() == status
            assert ending(call)[0] == "UNAVAILABLE"


def test_a_second_signal_ends_several_processes_at_once() -> None:
    with (
        ServerProcess("--processes=2", f"--shutdown-grace-s={LONG_GRACE}") as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        angles = np.tile(np.array([0, 0, 4, 4, 0.1], "<f4"), (1_000_000, 1))
        long = request(0.0)
        long.predictions.data = long.targets.data = angles.tobytes()
        long.box_format = array_pb2.BOX_FORMAT_CXCYWHA_RADIANS
        long.losses[0].CopyFrom(wire.loss_to_message(IoU()))
        call = LossServiceStub(channel).Evaluate.future(long)
        wait_until(lambda: server.total("boxloss_waiting_requests") == 1, "the call is computed")
        processes = psutil.Process(server.pid).children()
        assert len(processes) == 2
        server.terminate()
        wait_until(lambda: stops(server), "it stops")
        server.terminate()
        assert server.wait() == 1
        assert not any(process.is_running() for process in processes)
        assert ending(call)[0] == "UNAVAILABLE"


class _StuckEngine(Engine):
    """Computes when it is let."""

    let = threading.Event()

    def run(self, work: Any, requests: Sequence[Any]) -> Sequence[Any]:
        self.let.wait()
        return super().run(work, requests)


async def test_an_embedded_server_stops_within_its_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BOXLOSS_SHUTDOWN_GRACE_S", "0.2")
    monkeypatch.setattr(embedded, "Server", partial(Server, engine=_StuckEngine))
    server = await asyncio.to_thread(embedded.EmbeddedServer, "cpu")
    try:
        async with grpc.aio.insecure_channel(server.address) as channel:
            stub: Any = LossServiceStub(channel)
            call = asyncio.create_task(_ended(stub.Evaluate(request(0.0))))
            waiting = server._server.registry.get_sample_value
            async with asyncio.timeout(30):
                while not waiting("boxloss_waiting_requests"):  # noqa: ASYNC110 - the server has a loop of its own.
                    await asyncio.sleep(0.01)
            async with asyncio.timeout(MARGIN):
                await asyncio.to_thread(server.stop)
            assert await call == ("UNAVAILABLE", "UNAVAILABLE")
    finally:
        _StuckEngine.let.set()


async def _ended(call: Any) -> tuple[str, str]:
    try:
        await call
    except grpc.RpcError as error:
        return ending_of(error)
    return "OK", ""


def test_the_sdk_goes_on_with_the_next_server_after_the_grace() -> None:
    with (
        hanging(f"--shutdown-grace-s={GRACE}") as first,
        ServerProcess() as second,
        boxloss.Client([first.address, second.address], timeout=60) as client,
        ThreadPoolExecutor() as threads,
    ):
        boxes = np.frombuffer(request(HANGS).predictions.data, "<f4").reshape(-1, 4)
        calls = [threads.submit(client.evaluate, boxes, boxes, CIoU()) for _ in range(4)]
        wait_until(lambda: first.total("boxloss_waiting_requests") > 0, "the first server computes")
        first.terminate()
        for call in calls:
            assert len(call.result().loss) == LARGE
        assert first.wait() == 0
