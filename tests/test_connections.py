"""Clients that stall, vanish or talk nonsense, and connections that age: nobody else is harmed, and nothing is kept."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import grpc.aio
import numpy as np
import psutil
import pytest
from google.protobuf.message import Message
from h2.events import ConnectionTerminated, DataReceived, PingAckReceived, StreamEnded, StreamReset

import boxloss
from boxloss import CIoU
from boxloss.contract import wire
from boxloss.v1 import array_pb2, loss_service_pb2
from boxloss.v1.audit_service_pb2 import AuditId, AuditImage, AuditLabels, AuditPredictions, AuditRequest, AuditRules
from boxloss.v1.loss_service_pb2_grpc import LossServiceStub
from tests.http2 import Http2Client
from tests.network import Network
from tests.servers import ServerProcess

A, B = [[0.0, 0.0, 4.0, 4.0]], [[1.0, 2.0, 5.0, 8.0]]
CIOU_OF_A_AND_B = 0.9361860890731847
IMAGE = AuditImage(
    id=AuditId(number=1),
    class_names=["box"],
    labels=AuditLabels(boxes=array_pb2.Array(values=[0, 0, 4, 4] * 50), classes=[0] * 50),
    predictions=AuditPredictions(
        boxes=array_pb2.Array(values=[0, 0, 4, 4] * 50), classes=[0] * 50, scores=array_pb2.Array(values=[0.5] * 50)
    ),
)
CALLS_OF_A_CONNECTION = 1024
SILENCE = 1.0
"""Seconds after which the impatient server asks whether a client is there, and for which it waits for the answer."""


@pytest.fixture(scope="module")
def impatient() -> Iterator[ServerProcess]:
    with ServerProcess(f"--keepalive-s={SILENCE}") as process:
        with boxloss.Client(process.address) as client:
            client.info()  # gRPC keeps a server's first call: it alone cannot be ended for its client.
        yield process


def request_of(pairs: int) -> loss_service_pb2.EvaluateRequest:
    boxes = array_pb2.Array(data=np.tile(np.array([0, 0, 4, 4], "<f4"), (pairs, 1)).tobytes())
    return loss_service_pb2.EvaluateRequest(
        predictions=boxes, targets=boxes, losses=[wire.loss_to_message(CIoU())], prediction_gradients=True
    )


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it does not come true"
        time.sleep(0.01)


def connections(server: ServerProcess) -> set[int]:
    """The ports of the clients that the server is connected to."""
    return {
        each.raddr.port
        for each in psutil.Process(server.pid).net_connections()
        if each.status == psutil.CONN_ESTABLISHED and each.laddr.port == server.port
    }


@contextmanager
def others(server: ServerProcess) -> Iterator[None]:
    """A client that calls all the while: each call is answered, and right."""
    over = threading.Event()

    def call() -> int:
        calls = 0
        with boxloss.Client(server.address, timeout=60) as client:
            while not (over.is_set() and calls > 10):
                assert client.evaluate(A, B, CIoU()).loss == pytest.approx([CIOU_OF_A_AND_B])
                calls += 1
                over.wait(0.01)
        return calls

    with ThreadPoolExecutor(1) as thread:
        calling = thread.submit(call)
        try:
            yield
        finally:
            over.set()
        assert calling.result() > 10


NONSENSE = {
    "garbage": np.random.default_rng(60).bytes(10_000),
    "HTTP/1.1": b"POST /boxloss.v1.LossService/Evaluate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nabc",
    "TLS hello": bytes.fromhex("160301020001") + bytes(512),
    "garbage after the preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + np.random.default_rng(61).bytes(10_000),
}


@pytest.mark.parametrize("data", NONSENSE.values(), ids=NONSENSE)
def test_nonsense_ends_its_connection_and_no_other(impatient: ServerProcess, data: bytes) -> None:
    with others(impatient), socket.create_connection(("127.0.0.1", impatient.port), timeout=30) as stranger:
        stranger.sendall(data)
        try:
            while stranger.recv(2**16):
                pass
        except ConnectionResetError:
            pass


def test_who_connects_and_says_nothing_is_sent_away(impatient: ServerProcess) -> None:
    with others(impatient), socket.create_connection(("127.0.0.1", impatient.port), timeout=30) as silent:
        heard = b""
        while data := silent.recv(2**16):
            heard += data
    assert b"handshake" in heard  # Which has a time of its own, also with TLS.


def test_a_client_that_vanishes_in_the_middle_of_a_request_is_missed(impatient: ServerProcess) -> None:
    with others(impatient), Http2Client(impatient.port) as client:
        client.send(client.start("Evaluate"), request_of(1000), share=0.5)
        client.until_closed()
    until(lambda: impatient.total("boxloss_waiting_requests") == 0)


def test_a_request_that_never_ends_is_over_at_its_deadline(impatient: ServerProcess) -> None:
    with others(impatient), Http2Client(impatient.port) as client:
        client.send(client.start("Evaluate", ("grpc-timeout", "300m")), request_of(1000), share=0.5)
        assert impatient.total("boxloss_waiting_pairs") <= 1  # That of another call.
        client.read_until(StreamEnded)
    until(lambda: impatient.total("boxloss_waiting_requests") == 0)


def test_answers_that_nobody_reads_are_few_and_go_with_their_client(impatient: ServerProcess) -> None:
    with others(impatient), Http2Client(impatient.port, window=0) as client:
        assert client.http2.remote_settings.max_concurrent_streams == CALLS_OF_A_CONNECTION
        handled = impatient.total("grpc_server_handled_total", grpc_method="Evaluate")
        for _ in range(100):
            client.send(client.start("Evaluate"), request_of(1000))
        until(lambda: impatient.total("grpc_server_handled_total", grpc_method="Evaluate") >= handled + 100)
        client.until_closed()
    until(lambda: impatient.total("boxloss_waiting_requests") == 0)


def test_a_stream_whose_answers_are_not_read_stands_still_until_they_are(server: ServerProcess) -> None:
    computed = server.total("boxloss_batch_pairs_sum")
    pairs = 3000
    message = loss_service_pb2.EvaluateStreamRequest(request=request_of(pairs))
    with Http2Client(server.port, window=0) as client:
        call = client.start("EvaluateStream")
        for number in range(30):
            client.send(call, message, last=number == 29)
        with others(server):
            until(lambda: server.total("boxloss_batch_pairs_sum") >= computed + 4 * pairs)
        # The one that is being sent, four in the queue, and the one to be put there.
        assert server.total("boxloss_batch_pairs_sum") < computed + 7 * pairs
        client.http2.increment_flow_control_window(2**24)
        client.http2.increment_flow_control_window(2**24, call)
        data = b"".join(event.data for event in client.read_until(StreamEnded) if isinstance(event, DataReceived))
    assert len(data) > 30 * pairs * 20  # Loss and gradient.


@pytest.mark.parametrize("method", ["Evaluate", "PairwiseIou", "EvaluateStream", "/boxloss.v1.AuditService/Audit"])
def test_an_answer_that_nobody_reads_keeps_its_room_until_its_call_is_ended(
    impatient: ServerProcess, method: str
) -> None:
    """The connection, whose client answers pings, goes on."""
    boxes = request_of(1000).predictions
    messages: dict[str, list[Message]] = {
        "Evaluate": [request_of(1000)],
        "PairwiseIou": [loss_service_pb2.PairwiseIouRequest(a=boxes, b=request_of(10).predictions)],
        "EvaluateStream": [loss_service_pb2.EvaluateStreamRequest(request=request_of(1000))] * 2,
        "/boxloss.v1.AuditService/Audit": [AuditRequest(rules=AuditRules()), *[AuditRequest(image=IMAGE)] * 2],
    }
    ended = impatient.total("boxloss_unread_answers_total")
    with others(impatient), Http2Client(impatient.port, window=0) as client:
        call = client.start(method)
        *first, last = messages[method]
        for message in first:
            client.send(call, message, last=False)
        client.send(call, last)
        until(lambda: impatient.total("boxloss_waiting_pairs") >= 100)
        ends: list[int] = []
        while not ends:
            ends = [event.stream_id for event in client.read() if isinstance(event, StreamEnded | StreamReset)]
        assert ends == [call]
        until(lambda: impatient.total("boxloss_waiting_pairs") <= 1)
        assert impatient.total("boxloss_unread_answers_total") == ended + 1
        client.ping()
        client.read_until(PingAckReceived)


def test_the_sdk_goes_on_with_a_stream_that_was_not_read_in_time(impatient: ServerProcess) -> None:
    """One whose user takes a while for each result, and whose answers are too large to be received meanwhile."""
    boxes = np.tile(np.array([0, 0, 4, 4], "<f4"), (60_000, 1))
    ended = impatient.total("boxloss_unread_answers_total")
    with boxloss.Client(impatient.address, timeout=60) as client:
        results = client.evaluate_stream(((boxes, boxes) for _ in range(12)), CIoU(), gradients=True)
        assert len(next(results).loss) == len(boxes)
        with others(impatient):
            until(lambda: impatient.total("boxloss_unread_answers_total") > ended)
        assert [len(result.loss) for result in results] == [len(boxes)] * 11


def test_a_large_answer_to_a_client_that_has_gone_is_dropped(server: ServerProcess) -> None:
    with others(server):
        started = server.total("grpc_server_started_total", grpc_method="Evaluate")
        for end in (Http2Client.close, Http2Client.reset) * 3:
            client = Http2Client(server.port)
            client.send(client.start("Evaluate"), request_of(2**18))
            end(client)
        until(lambda: server.total("grpc_server_started_total", grpc_method="Evaluate") > started + 10)
    until(lambda: server.total("boxloss_waiting_requests") == 0)


def test_hundreds_of_connections_opened_and_dropped_leave_nothing_behind() -> None:
    with ServerProcess() as server:
        process = psutil.Process(server.pid)

        def drop_hundreds() -> int:
            """Returns the memory that the server has afterwards."""
            for _ in range(100):
                with boxloss.Client(server.address) as client:
                    client.info()
            for end in (Http2Client.close, Http2Client.reset) * 50:
                raw = Http2Client(server.port)
                raw.send(raw.start("Evaluate"), request_of(1000), share=0.5)
                raw.send(raw.start("Evaluate"), request_of(1000))
                end(raw)
            until(lambda: not connections(server))
            until(lambda: server.total("boxloss_waiting_requests") == 0)
            return process.memory_info().rss

        drop_hundreds()
        descriptors, memory = process.num_fds(), drop_hundreds()
        assert drop_hundreds() < memory + 5 * 2**20
        until(lambda: process.num_fds() <= descriptors)
        codes = ("OK", "CANCELLED", "INVALID_ARGUMENT")
        calls = server.total("grpc_server_started_total")
        assert sum(server.total("grpc_server_handled_total", grpc_code=code) for code in codes) == calls
        with boxloss.Client(server.address) as client:
            assert client.evaluate(A, B, CIoU()).loss == pytest.approx([CIOU_OF_A_AND_B])


def test_clients_may_ask_every_second_whether_the_server_is_there(server: ServerProcess) -> None:
    with Http2Client(server.port) as client:
        for _ in range(5):
            client.ping()
            events = client.read_until(PingAckReceived)
            assert not any(isinstance(event, ConnectionTerminated) for event in events)
            time.sleep(1.05)  # Time is what this is about.
        client.ping()
        client.read_until(PingAckReceived)


def test_a_client_that_the_network_has_lost_is_missed(impatient: ServerProcess) -> None:
    with Network(impatient.port) as network, boxloss.Client(network.address) as client:
        before = connections(impatient)
        client.info()
        (lost,) = connections(impatient) - before
        network.cut()
        until(lambda: lost not in connections(impatient))


async def test_a_server_that_the_network_has_lost_is_missed_while_a_call_waits(server: ServerProcess) -> None:
    with Network(server.port) as network, boxloss.Client(network.address) as client:
        async with boxloss.AsyncClient(network.address) as connected:
            client.info()
            await connected.info()
            network.cut()
            blocking = asyncio.to_thread(client.evaluate, A, B, CIoU(), timeout=60)
            for result in await asyncio.gather(blocking, connected.evaluate(A, B, CIoU(), timeout=60)):
                assert result.loss == pytest.approx([CIOU_OF_A_AND_B])


async def test_no_call_is_lost_when_connections_are_over_age() -> None:
    """Neither with the SDK nor without: gRPC sends anew what no server has begun."""
    with ServerProcess("--max-connection-age-s=1") as server:
        seen: set[int] = set()
        calls = 0

        async def call(client: boxloss.AsyncClient) -> None:
            nonlocal calls
            while len(seen) < 8:
                assert (await client.evaluate(A, B, CIoU())).loss == pytest.approx([CIOU_OF_A_AND_B])
                calls += 1

        async def call_raw(stub: Any) -> None:
            while len(seen) < 8:
                assert (await stub.Evaluate(request_of(10))).results

        raw = grpc.aio.insecure_channel(server.address)
        async with boxloss.AsyncClient(server.address) as client, raw, asyncio.TaskGroup() as callers:
            for _ in range(8):
                callers.create_task(call(client))
                callers.create_task(call_raw(LossServiceStub(raw)))
            while len(seen) < 8:
                seen |= await asyncio.to_thread(connections, server)
        assert calls > 100


def test_a_stream_goes_on_when_its_connection_is_over_age() -> None:
    with (
        ServerProcess("--max-connection-age-s=0.3", "--shutdown-grace-s=0.3") as server,
        boxloss.Client(server.address) as client,
    ):
        seen: set[int] = set()
        asked = 0

        def batches() -> Iterator[tuple[Any, Any]]:
            nonlocal asked
            while len(seen) < 4:
                asked += 1
                yield A, B

        answered = 0
        for result in client.evaluate_stream(batches(), CIoU()):
            assert result.loss == pytest.approx([CIOU_OF_A_AND_B])
            answered += 1
            if answered % 10 == 0:
                seen |= connections(server)
        assert answered == asked
