"""Faults, caused on real servers: nothing is lost, and every failure says what it is."""

from __future__ import annotations

import asyncio
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

import boxloss
from boxloss import CIoU, GIoU
from boxloss.connection.status import error_of
from boxloss.contract import wire
from boxloss.v1 import array_pb2, loss_service_pb2
from boxloss.v1.loss_service_pb2_grpc import LossServiceServicer, LossServiceStub, add_LossServiceServicer_to_server
from tests.boxes import random_boxes
from tests.servers import ServerProcess, free_port

A, B = [[0.0, 0.0, 4.0, 4.0]], [[1.0, 2.0, 5.0, 8.0]]
CIOU_OF_A_AND_B = 0.9361860890731847
LARGE = np.tile(np.array([0, 0, 4, 4], "<f4"), (2**18, 1))
"""So many boxes that computing them takes a while."""


def large_request(losses: int = 1) -> loss_service_pb2.EvaluateRequest:
    boxes = array_pb2.Array(data=LARGE.tobytes())
    return loss_service_pb2.EvaluateRequest(
        predictions=boxes, targets=boxes, losses=[wire.loss_to_message(CIoU())] * losses, prediction_gradients=True
    )


def until_waiting(server: ServerProcess) -> None:
    """Waits until a request has been admitted and is not yet answered."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with urllib.request.urlopen(server.metrics_url) as response:
            if b"boxloss_waiting_requests 1.0" in response.read():
                return
    raise AssertionError("no request was admitted")


def connect(server: ServerProcess) -> grpc.Channel:
    return grpc.insecure_channel(server.address, [("grpc.max_receive_message_length", -1)])


def send(channel: grpc.Channel, request: loss_service_pb2.EvaluateRequest) -> Any:
    """Sends a request without waiting for its answer."""
    return LossServiceStub(channel).Evaluate.future(request)


async def test_killing_the_server_loses_no_call_whose_deadline_allows_a_retry() -> None:
    port = free_port()
    server = ServerProcess(f"--port={port}")
    half_done = asyncio.Event()
    answers = 0

    async def caller(client: boxloss.AsyncClient) -> None:
        nonlocal answers
        for _ in range(20):
            result = await client.evaluate(A, B, CIoU(), timeout=60)
            assert result.loss == pytest.approx([CIOU_OF_A_AND_B])
            answers += 1
            if answers == 640:
                half_done.set()

    async with boxloss.AsyncClient(server.address) as client, asyncio.TaskGroup() as callers:
        for _ in range(64):
            callers.create_task(caller(client))
        await half_done.wait()
        server.kill()
        server = await asyncio.to_thread(ServerProcess, f"--port={port}")
    server.stop()
    assert answers == 64 * 20


def test_killing_the_server_loses_no_call_of_a_thread() -> None:
    port = free_port()
    server = ServerProcess(f"--port={port}")
    answered = threading.Semaphore(0)

    def caller(client: boxloss.Client) -> int:
        for _ in range(20):
            assert client.evaluate(A, B, CIoU(), timeout=60).loss == pytest.approx([CIOU_OF_A_AND_B])
            answered.release()
        return 20

    with boxloss.Client(server.address) as client, ThreadPoolExecutor(16) as threads:
        callers = [threads.submit(caller, client) for _ in range(16)]
        for _ in range(100):
            answered.acquire(timeout=60)
        server.kill()
        server = ServerProcess(f"--port={port}")
        assert sum(each.result() for each in callers) == 16 * 20
    server.stop()


@pytest.mark.parametrize("end", ["kill", "terminate"])
def test_a_stream_goes_on_with_the_next_server(end: str) -> None:
    port = free_port()
    server = ServerProcess(f"--port={port}")
    rng = np.random.default_rng(50)
    batches = [(random_boxes(rng, n), random_boxes(rng, n)) for n in rng.integers(1, 30, 60)]
    with boxloss.Client(server.address, timeout=60) as client:
        results = []
        for result in client.evaluate_stream(batches, GIoU()):
            results.append(result)
            if len(results) == 20:
                if end == "kill":
                    server.kill()
                else:
                    assert server.stop() == 0
                server = ServerProcess(f"--port={port}")
        assert len(results) == 60
        for (predictions, targets), result in zip(batches, results, strict=True):
            np.testing.assert_array_equal(result.loss, client.evaluate(predictions, targets, GIoU()).loss)
    server.stop()


async def test_an_asyncio_stream_goes_on_with_the_next_server() -> None:
    port = free_port()
    server = ServerProcess(f"--port={port}")
    count = 0
    async with boxloss.AsyncClient(server.address, timeout=60) as client:
        async for result in client.evaluate_stream([(A, B)] * 60, CIoU()):
            assert result.loss == pytest.approx([CIOU_OF_A_AND_B])
            count += 1
            if count == 20:
                server.kill()
                server = await asyncio.to_thread(ServerProcess, f"--port={port}")
    server.stop()
    assert count == 60


def test_sigterm_answers_what_was_accepted_and_exits_0() -> None:
    server = ServerProcess()
    with connect(server) as channel:
        stub = LossServiceStub(channel)
        health: Any = health_pb2_grpc.HealthStub(channel)
        watch = health.Watch(health_pb2.HealthCheckRequest(service="boxloss.v1.LossService"))
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        calls = [send(channel, large_request()) for _ in range(4)]
        list(stub.EvaluateStream(iter([])))  # An answer that comes after the four were accepted.
        server.terminate()
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert list(watch) == []
        for call in calls:
            assert len(call.result().results[0].loss.data) == 4 * len(LARGE)
        assert server.wait() == 0
    assert server.log[-1]["event"] == "stopped"


def test_sigterm_does_not_wait_for_an_idle_stream() -> None:
    server = ServerProcess()
    release = threading.Event()

    def messages() -> Iterator[loss_service_pb2.EvaluateStreamRequest]:
        yield loss_service_pb2.EvaluateStreamRequest(request=large_request())
        release.wait(timeout=60)

    with connect(server) as channel:
        answers = LossServiceStub(channel).EvaluateStream(messages())
        assert next(answers).response.results
        server.terminate()
        with pytest.raises(grpc.RpcError) as ended:
            next(answers)
        error: Any = ended.value
        assert error.code() == grpc.StatusCode.UNAVAILABLE
        assert "shutting down" in error.details()
        release.set()
    assert server.wait() == 0


def test_an_expired_deadline_is_its_own_error(client: boxloss.Client) -> None:
    with pytest.raises(boxloss.DeadlineExceededError, match=r"did not answer Evaluate in time.*allow a longer"):
        client.evaluate(LARGE, LARGE, CIoU(), gradients=True, timeout=0.02)
    assert client.evaluate(A, B, CIoU()).loss == pytest.approx([CIOU_OF_A_AND_B])


def test_a_cancelled_call_frees_its_place(server: ServerProcess, client: boxloss.Client) -> None:
    with connect(server) as channel:
        calls = [send(channel, large_request()) for _ in range(4)]
        for call in calls:
            call.cancel()
        assert client.evaluate(A, B, CIoU()).loss == pytest.approx([CIOU_OF_A_AND_B])


def test_a_full_queue_pushes_back_and_the_sdk_comes_again() -> None:
    limit = len(LARGE)
    flags = f"--max-request-pairs={limit}", f"--max-waiting-pairs={limit}", f"--max-batch-pairs={limit}"
    with ServerProcess(*flags) as server, connect(server) as channel:
        calls = [send(channel, large_request()) for _ in range(4)]
        codes = [call.code() for call in calls]
        assert codes.count(grpc.StatusCode.OK) >= 1
        assert codes.count(grpc.StatusCode.RESOURCE_EXHAUSTED) >= 1
        refused = calls[codes.index(grpc.StatusCode.RESOURCE_EXHAUSTED)]
        assert "the queue is full" in refused.details()
        assert int(dict(refused.trailing_metadata())["grpc-retry-pushback-ms"]) > 0
        with boxloss.Client(server.address, timeout=60) as client, ThreadPoolExecutor(4) as threads:
            results = threads.map(lambda _: client.evaluate(LARGE, LARGE, CIoU()), range(8))
            assert sum(len(result.loss) for result in results) == 8 * limit
        # A stream is slowed down instead.
        with boxloss.Client(server.address) as client:
            for result in client.evaluate_stream([(LARGE, LARGE)] * 8, CIoU()):
                assert not result.loss.any()


def test_a_queue_that_stays_full_is_its_own_error() -> None:
    limit = 16 * len(LARGE)
    with (
        ServerProcess(f"--max-request-pairs={limit}", f"--max-waiting-pairs={limit}") as server,
        connect(server) as channel,
        boxloss.Client(server.address) as client,
    ):
        client.info()
        slow = send(channel, large_request(losses=16))
        until_waiting(server)
        with pytest.raises(boxloss.ServerBusyError, match="the queue is full") as busy:
            client.evaluate(A, B, CIoU(), timeout=0.2)
        assert busy.value.retry_after > 0
        assert slow.result().results


def test_bad_input_in_a_crowd_harms_nobody_else(server: ServerProcess) -> None:
    async def crowd() -> list[Any]:
        async with boxloss.AsyncClient(server.address) as client:
            bad = [[5.0, 2.0, 1.0, 8.0]]
            calls = [client.evaluate(A, bad if i % 4 == 0 else B, CIoU()) for i in range(64)]
            return await asyncio.gather(*calls, return_exceptions=True)

    for i, answer in enumerate(asyncio.run(crowd())):
        if i % 4 == 0:
            assert isinstance(answer, boxloss.InvalidInputError)
        else:
            assert answer.loss == pytest.approx([CIOU_OF_A_AND_B])


def test_a_stopped_server_is_named() -> None:
    address = f"127.0.0.1:{free_port()}"
    with (
        boxloss.Client(address, timeout=0.5) as client,
        pytest.raises(boxloss.ServerUnavailableError, match=f"no boxloss server answers at {address}.*start one") as e,
    ):
        client.evaluate(A, B, CIoU())
    assert isinstance(e.value, ConnectionError)


async def test_asyncio_errors_are_the_same(server: ServerProcess) -> None:
    async with boxloss.AsyncClient(f"127.0.0.1:{free_port()}", timeout=0.5) as client:
        with pytest.raises(boxloss.ServerUnavailableError):
            await client.evaluate(A, B, CIoU())
    async with boxloss.AsyncClient(server.address) as client:
        await client.info()
        with pytest.raises(boxloss.DeadlineExceededError):
            await client.evaluate(LARGE, LARGE, CIoU(), timeout=0.01)
    with pytest.raises(boxloss.BoxlossError, match="closed"):
        await client.evaluate(A, B, CIoU())


def test_a_connection_that_breaks_while_a_message_is_written_is_tried_again() -> None:
    """Whether a killed server is noticed by a write or by a read is a matter of microseconds."""
    nothing = grpc.aio.Metadata()
    broken = grpc.aio.AioRpcError(grpc.StatusCode.INTERNAL, nothing, nothing, "Internal error from Core")
    error = error_of(broken, "somewhere:1", "EvaluateStream")
    assert isinstance(error, boxloss.ServerUnavailableError)
    assert "the connection to somewhere:1 broke" in str(error)
    reset = grpc.aio.AioRpcError(grpc.StatusCode.INTERNAL, nothing, nothing, "Received RST_STREAM with error code 2")
    assert isinstance(error_of(reset, "somewhere:1", "EvaluateStream"), boxloss.ServerUnavailableError)
    failed = grpc.aio.AioRpcError(grpc.StatusCode.INTERNAL, nothing, nothing, "something else")
    assert isinstance(error_of(failed, "somewhere:1", "Evaluate"), boxloss.ServerError)


def test_an_older_server_is_named() -> None:
    """A server of a version that had neither PairwiseIou nor EvaluateStream."""

    class Older(LossServiceServicer):
        def ListLosses(self, request: Any, context: Any) -> loss_service_pb2.ListLossesResponse:
            limits = loss_service_pb2.Limits(message_bytes=2**20, request_pairs=1000)
            return loss_service_pb2.ListLossesResponse(limits=limits, server_version="0.0.1")

    with ThreadPoolExecutor(2) as threads:
        older = grpc.server(threads)
        add_LossServiceServicer_to_server(Older(), older)  # type: ignore[abstract]
        address = f"127.0.0.1:{older.add_insecure_port('127.0.0.1:0')}"
        older.start()
        with boxloss.Client(address) as client:
            with pytest.raises(boxloss.UnsupportedError, match=r"PairwiseIou: is not offered by .*upgrade"):
                client.pairwise_iou(A, B)
            with pytest.raises(boxloss.UnsupportedError, match="EvaluateStream: is not offered"):
                list(client.evaluate_stream([(A, B)], CIoU()))
        older.stop(None).wait()


def test_limits_that_shrank_are_heeded() -> None:
    port = free_port()
    server = ServerProcess(f"--port={port}")
    boxes = LARGE[:1000]
    with boxloss.Client(server.address) as client:
        client.evaluate(boxes, boxes, CIoU())
        server.stop()
        with ServerProcess(f"--port={port}", "--max-message-bytes=4096"):
            assert len(client.evaluate(boxes, boxes, CIoU()).loss) == 1000
            assert client.pairwise_iou(boxes[:400], boxes[:400]).shape == (400, 400)
            with pytest.raises(boxloss.RequestTooLargeError, match="raise the server's --max-message-bytes"):
                client.compare(boxes[:1], boxes[:1], [CIoU()] * 2000)  # Which cannot be cut.
