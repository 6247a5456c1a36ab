"""Evaluation streams of the SDK, blocking and asyncio, against a real server; tests/test_reliability.py breaks them."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from itertools import repeat
from typing import Any, TypeAlias

import grpc
import numpy as np
import pytest

import boxloss
from boxloss import BoxlossError, CIoU, GIoU, InvalidInputError, LossResult
from tests.boxes import random_boxes
from tests.servers import ServerProcess, endings, free_port, frozen, wait_until
from tests.test_hostile_server import GOOD, HostileServer

A, B = [[0.0, 0.0, 4.0, 4.0]], [[1.0, 2.0, 5.0, 8.0]]
LARGE = np.tile(np.array([0, 0, 4, 4], "f4"), (2**17, 1))
"""Boxes whose answers no connection holds, so that they are not on their way before they are read."""

Condition: TypeAlias = Callable[[ServerProcess], bool]
Read: TypeAlias = Callable[..., list[LossResult]]


def batches(count: int, seed: int = 45) -> list[tuple[Any, Any]]:
    rng = np.random.default_rng(seed)
    return [(random_boxes(rng, n), random_boxes(rng, n)) for n in rng.integers(0, 60, count)]


def test_a_stream_yields_one_result_for_each_batch_in_order(client: boxloss.Client) -> None:
    given = batches(50)
    results = list(client.evaluate_stream(iter(given), CIoU(), gradients=True))
    assert len(results) == 50
    for result, (predictions, targets) in zip(results, given, strict=True):
        np.testing.assert_array_equal(result.loss, client.evaluate(predictions, targets, CIoU()).loss)


def test_stream_batches_may_have_weights(client: boxloss.Client) -> None:
    (result,) = client.evaluate_stream([(A, B, [2.0])], CIoU(), reduction="sum")
    assert result.loss == pytest.approx(2 * 0.9361860890731847)


def test_an_empty_stream_yields_nothing(client: boxloss.Client) -> None:
    assert list(client.evaluate_stream([], CIoU())) == []


def test_a_stream_raises_after_the_results_before_the_fault(client: boxloss.Client) -> None:
    for bad, complaint in (
        ((A, B * 2), r"batches\[3\].targets: has 2 rows for 1 predictions"),
        ((A, [[5, 2, 1, 8]]), "targets: row 0 is inverted"),
    ):
        results = client.evaluate_stream([(A, B), (A, B), (A, B), bad, (A, B)], CIoU())
        for _ in range(3):
            assert next(results).loss.shape == (1,)
        with pytest.raises(InvalidInputError, match=complaint):
            next(results)


def test_a_stream_reads_few_batches_ahead(client: boxloss.Client) -> None:
    read = 0

    def source() -> Iterator[tuple[Any, Any]]:
        nonlocal read
        for _ in range(100):
            read += 1
            yield A, B

    results = client.evaluate_stream(source(), CIoU())
    next(results)
    assert read <= 10
    results.close()  # type: ignore[attr-defined]


async def test_asyncio_streams_take_both_kinds_of_iterables(server: ServerProcess, client: boxloss.Client) -> None:
    given = batches(30)

    async def source() -> AsyncIterator[tuple[Any, Any]]:
        for batch in given:
            await asyncio.sleep(0)
            yield batch

    expected = [result.loss for result in client.evaluate_stream(given, GIoU())]
    async with boxloss.AsyncClient(server.address) as connected:
        for iterable in (given, source()):
            results = [result.loss async for result in connected.evaluate_stream(iterable, GIoU())]
            for result, loss in zip(results, expected, strict=True):
                np.testing.assert_array_equal(result, loss)


def test_batches_over_the_limits_are_split_and_joined(client: boxloss.Client) -> None:
    rng = np.random.default_rng(48)
    given = [(random_boxes(rng, n), random_boxes(rng, n)) for n in (250, 0, 30, 500)]
    with (
        ServerProcess("--max-request-pairs=100", "--max-message-bytes=4096") as server,
        boxloss.Client(server.address) as narrow,
    ):
        parts = list(narrow.evaluate_stream(given, CIoU()))
    for first, second in zip(client.evaluate_stream(given, CIoU()), parts, strict=True):
        np.testing.assert_array_equal(first.loss, second.loss)


# How streams end


@pytest.fixture(params=["blocking", "asyncio"])
def read(request: pytest.FixtureRequest) -> Read:
    """Has a new client of either kind read a stream to its end, and closes it at once."""

    def blocking(address: str, given: list[Any], **options: Any) -> list[LossResult]:
        with boxloss.Client(address) as client:
            return list(client.evaluate_stream(given, CIoU(), **options))

    async def with_asyncio(address: str, given: list[Any], **options: Any) -> list[LossResult]:
        async with boxloss.AsyncClient(address) as client:
            return [result async for result in client.evaluate_stream(given, CIoU(), **options)]

    if request.param == "blocking":
        return blocking
    return lambda *given, **options: asyncio.run(with_asyncio(*given, **options))


def test_streams_that_are_read_to_their_end_are_successes_to_the_server(read: Read) -> None:
    with ServerProcess() as server:
        for number in range(1, 31):
            assert len(read(server.address, [(A, B)] * number)) == number
        assert endings(server, "EvaluateStream") == {"OK": 30}


def over(server: ServerProcess) -> bool:
    """Whether its only stream is over. Of one without unread answers, gRPC may tell the end before the cancellation."""
    return sum(endings(server, "EvaluateStream").values()) == 1


def cancelled(server: ServerProcess) -> bool:
    """Whether its only stream was cancelled."""
    return endings(server, "EvaluateStream") == {"CANCELLED": 1}


ABANDONED = pytest.mark.parametrize(
    ("batches", "condition"),
    [(repeat((A, B)), over), ([(LARGE, LARGE)] * 8, cancelled)],
    ids=["endless", "all asked and little answered"],
)


@ABANDONED
def test_a_stream_that_the_caller_abandons_is_cancelled(batches: Any, condition: Condition) -> None:
    with ServerProcess() as server, boxloss.Client(server.address) as client:
        results = client.evaluate_stream(batches, CIoU())
        next(results)
        assert isinstance(results, Generator)
        results.close()
        wait_until(lambda: condition(server), "the stream is cancelled")


@ABANDONED
async def test_an_asyncio_stream_that_the_caller_abandons_is_cancelled(batches: Any, condition: Condition) -> None:
    with ServerProcess() as server:
        async with boxloss.AsyncClient(server.address) as client:
            results = client.evaluate_stream(batches, CIoU())
            await anext(results)
            assert isinstance(results, AsyncGenerator)
            await results.aclose()
            await asyncio.to_thread(wait_until, lambda: condition(server), "the stream is cancelled")


class LateServer(HostileServer):
    """Answers a stream when its input has ended, and ends it half a second later, or never."""

    def __init__(self) -> None:
        super().__init__()
        self.answers |= GOOD
        self.patience: float | None = 0.5
        self.cancelled: bool | None = None

    def _stream(self, requests: Any, context: grpc.ServicerContext) -> Iterator[bytes]:
        over = threading.Event()
        context.add_callback(over.set)
        for _ in list(requests):
            yield self._answer("EvaluateStream", context)
        self.cancelled = over.wait(self.patience)


@pytest.fixture
def late() -> Iterator[LateServer]:
    server = LateServer()
    yield server
    server.stop()


def test_a_server_is_told_of_the_end_before_it_answers_and_may_take_a_moment_to_end(
    late: LateServer, read: Read
) -> None:
    assert len(read(late.address, [(A * 2, B * 2)] * 3, gradients=True)) == 3
    assert late.cancelled is False


def test_a_server_that_never_ends_an_answered_stream_is_not_waited_for(late: LateServer, read: Read) -> None:
    late.patience = None
    started = time.monotonic()
    assert len(read(late.address, [(A * 2, B * 2)] * 3, gradients=True)) == 3
    assert time.monotonic() - started < 10  # Later, gRPC itself ends the connection.
    wait_until(lambda: late.cancelled is True, "the stream is cancelled")


def test_a_stream_that_breaks_when_all_is_asked_goes_on_and_ends() -> None:
    port = free_port()
    first = ServerProcess(f"--port={port}")
    with boxloss.Client(first.address, timeout=60) as client:
        results = client.evaluate_stream([(LARGE, LARGE)] * 5, CIoU(), gradients=True)
        next(results)
        first.kill()
        with ServerProcess(f"--port={port}") as successor:
            assert len(list(results)) == 4
            assert endings(successor, "EvaluateStream") == {"OK": 1}


async def test_closing_an_asyncio_client_ends_its_streams_with_a_clear_error(server: ServerProcess) -> None:
    asked = asyncio.Event()

    async def source() -> AsyncIterator[tuple[Any, Any]]:
        yield A, B
        asked.set()

    connected = boxloss.AsyncClient(server.address)
    await connected.info()
    with frozen(server):
        reading = asyncio.ensure_future(anext(connected.evaluate_stream(source(), CIoU())))
        await asked.wait()
        await connected.close()
        with pytest.raises(BoxlossError, match="this client is closed"):
            await reading
