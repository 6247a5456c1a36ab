"""Small concurrent calls are sent together, and each caller notices nothing but its speed."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import boxloss
from boxloss import AlphaIoU, CIoU, GIoU, InvalidInputError, IoU, LossResult, SmoothL1
from boxloss.calls.coalescing import CALL_PAIRS, PLACES, Lane
from boxloss.calls.exchange import Options, Question
from tests.boxes import FORMATS, from_corners, random_boxes
from tests.servers import ServerProcess, free_port, frozen

A, B = [[0.0, 0.0, 4.0, 4.0]], [[1.0, 2.0, 5.0, 8.0]]
CIOU_OF_A_AND_B = 0.9361860890731847


def inputs(count: int, seed: int = 60) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    """Predictions and targets of as many calls."""
    rng = np.random.default_rng(seed)
    return [(random_boxes(rng, n).astype("f4"), random_boxes(rng, n).astype("f4")) for n in rng.integers(1, 40, count)]


def messages(results: Sequence[LossResult]) -> int:
    """In how many messages the calls rode: each was served in its own way."""
    return len({result.executions for result in results})


def assert_same(first: LossResult, second: LossResult) -> None:
    for name in ("loss", "gradient", "target_gradient", "iou", "valid"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name), strict=True)
    assert first.spec == second.spec


def lane_of(client: boxloss.Client | boxloss.AsyncClient, timeout: float | None = None) -> Lane[Any]:
    """Where the calls meet that ask for the CIoU of A and B."""
    assert client._server
    lane = client._lane(Question(A, B, [CIoU()], Options()), timeout, client._server)
    assert lane
    return lane


def waiting(client: boxloss.Client | boxloss.AsyncClient, timeout: float | None = None) -> int:
    return len(lane_of(client, timeout)._waiting)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


async def start(
    client: boxloss.AsyncClient, calls: Sequence[Coroutine[Any, Any, LossResult]], timeout: float | None = None
) -> list[asyncio.Task[LossResult]]:
    """Starts calls that compute the CIoU; those for which there is no place wait then."""
    tasks = [asyncio.create_task(call) for call in calls]
    await asyncio.sleep(0)
    assert waiting(client, timeout) == max(len(calls) - PLACES, 0)
    return tasks


async def test_many_tasks_ride_in_few_messages(server: ServerProcess, client: boxloss.Client) -> None:
    given = inputs(64)
    async with boxloss.AsyncClient(server.address) as connected:
        await connected.info()
        together = await asyncio.gather(*[connected.evaluate(p, t, CIoU(), gradients=True) for p, t in given])
    assert messages(together) <= PLACES + 1
    for (predictions, targets), result in zip(given, together, strict=True):
        assert_same(result, client.evaluate(predictions, targets, CIoU(), gradients=True))


def test_many_threads_ride_in_few_messages(server: ServerProcess) -> None:
    with boxloss.Client(server.address) as client, ThreadPoolExecutor(32) as threads:
        alone = client.evaluate(A, B, CIoU())
        with frozen(server):
            calls = [threads.submit(client.evaluate, A, B, CIoU()) for _ in range(32)]
            until(lambda: waiting(client) == 32 - PLACES)
        together = [call.result() for call in calls]
    assert messages(together) <= 2 * PLACES
    for result in together:
        assert_same(result, alone)


def test_threads_that_call_again_and_again_ride_together(server: ServerProcess, client: boxloss.Client) -> None:
    given = inputs(16)
    alone = [client.evaluate(predictions, targets, GIoU(), gradients=True) for predictions, targets in given]

    def caller(pair: tuple[Any, Any]) -> list[LossResult]:
        return [client.evaluate(pair[0], pair[1], GIoU(), gradients=True) for _ in range(20)]

    with ThreadPoolExecutor(16) as threads:
        together = list(threads.map(caller, given))
    assert messages([result for results in together for result in results]) < 16 * 20 / 2
    for results, expected in zip(together, alone, strict=True):
        for result in results:
            assert_same(result, expected)


async def test_a_lone_caller_sends_its_call_itself(server: ServerProcess) -> None:
    async with boxloss.AsyncClient(server.address) as connected:
        await connected.info()
        with frozen(server):
            (call,) = await start(connected, [connected.evaluate(A, B, CIoU())])
            assert not connected._coalescer._sendings
        assert (await call).loss == pytest.approx([CIOU_OF_A_AND_B])


async def test_calls_that_ask_different_things_do_not_mix(server: ServerProcess, client: boxloss.Client) -> None:
    rng = np.random.default_rng(61)
    boxes = random_boxes(rng, 7), random_boxes(rng, 7)
    kinds: list[dict[str, Any]] = [
        {"losses": [CIoU()]},
        {"losses": [GIoU()]},
        {"losses": [AlphaIoU(GIoU(), alpha=2.0)]},
        {"losses": [AlphaIoU(GIoU(), alpha=3.0)]},
        {"losses": [CIoU(), GIoU(), IoU(form="log")], "gradients": True},
        {"losses": [GIoU(), CIoU(), IoU(form="log")], "gradients": True},
        {"losses": [CIoU()], "gradients": True},
        {"losses": [CIoU()], "target_gradients": True},
        {"losses": [CIoU()], "similarity": True},
        {"losses": [CIoU()], "invalid": "mask"},
        {"losses": [CIoU()], "weights": rng.uniform(0, 2, 7)},
        {"losses": [CIoU()], "timeout": 20.0},
        {"losses": [CIoU()], "crowd": [True] * 7},
        {"losses": [boxloss.WIoU(version=2)], "running_mean": 0.5},
        {"losses": [boxloss.WIoU(version=2)], "running_mean": 0.25},
        {"losses": [boxloss.MPDIoU()], "image_size": (640, 480)},
        {"losses": [boxloss.MPDIoU()], "image_size": np.array([320, 240])},
        *({"losses": [SmoothL1()], "gradients": True, "box_format": box_format} for box_format in FORMATS),
    ]
    calls = []
    for dtype in ("f4", "f8", "f2"):
        for kind in kinds:
            box_format = kind.get("box_format", "xyxy")
            pair = [from_corners(each, box_format).astype(dtype) for each in boxes]
            calls.append({"predictions": pair[0], "targets": pair[1]} | kind)
    async with boxloss.AsyncClient(server.address) as connected:
        await connected.info()
        together = await asyncio.gather(*[connected.compare(**call) for call in calls * 4])
    for call, results in zip(calls * 4, together, strict=True):
        for result, alone in zip(results, client.compare(**call), strict=True):
            assert_same(result, alone)
            assert result.running_mean == alone.running_mean


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
async def test_weights_masks_and_reductions_are_each_callers_own(
    server: ServerProcess, client: boxloss.Client, reduction: Any, dtype: str
) -> None:
    rng = np.random.default_rng(62)
    calls: list[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]] = []
    for predictions, targets in inputs(24):
        broken = predictions.astype(dtype)
        broken[rng.uniform(size=len(broken)) < 0.3] = np.nan
        calls.append((broken, targets.astype(dtype), rng.uniform(0, 2, len(broken))))
    calls[7][0][:] = np.nan
    options: dict[str, Any] = {"gradients": True, "reduction": reduction, "invalid": "mask"}
    async with boxloss.AsyncClient(server.address) as connected:
        await connected.info()
        together = await asyncio.gather(
            *[connected.evaluate(p, t, CIoU(), weights=weights, **options) for p, t, weights in calls]
        )
    assert messages(together) <= PLACES + 1
    # Streams are reduced by the server.
    tolerance = 1e-6 if dtype == "f4" else 1e-14
    near = partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance, strict=True)
    for result, expected in zip(together, client.evaluate_stream(calls, CIoU(), **options), strict=True):
        near(result.loss, expected.loss)
        near(result.gradient, expected.gradient)
        np.testing.assert_array_equal(result.iou, expected.iou)
        np.testing.assert_array_equal(result.valid, expected.valid)
    for call, result in zip(calls, together, strict=True):
        assert_same(result, client.evaluate(call[0], call[1], CIoU(), weights=call[2], **options))


async def test_results_are_each_callers_own(server: ServerProcess) -> None:
    async with boxloss.AsyncClient(server.address) as connected:
        await connected.info()
        first, *others = await asyncio.gather(
            *[connected.evaluate(A, B, CIoU(), gradients=True, target_gradients=True) for _ in range(8)]
        )
    for result in others:
        for array in (result.loss, result.gradient, result.target_gradient, result.iou, result.valid):
            assert array is not None
            array[:] = 0
    assert first.loss == pytest.approx([CIOU_OF_A_AND_B])
    assert first.iou == pytest.approx([3 / 17])
    assert first.valid.all()


async def test_a_call_asks_about_the_boxes_as_they_were_when_it_was_made(server: ServerProcess) -> None:
    boxes = np.array(A)
    async with boxloss.AsyncClient(server.address) as connected:
        await connected.info()
        calls = await start(connected, [connected.evaluate(boxes, B, CIoU()) for _ in range(8)])
        boxes[:] = 0
        for call in calls:
            assert (await call).loss == pytest.approx([CIOU_OF_A_AND_B])


async def test_a_faulty_call_fails_alone(server: ServerProcess) -> None:
    async with boxloss.AsyncClient(server.address) as connected:
        await connected.info()
        targets: list[Any] = [B * 3 for _ in range(24)]
        targets[11] = [*B, *B, [5, 2, 1, 8]]
        targets[17] = [*B, [5, 2, 1, 8], *B]
        answers: list[Any] = await asyncio.gather(
            *[connected.evaluate(A * 3, each, CIoU()) for each in targets], return_exceptions=True
        )
    for index, answer in enumerate(answers):
        if index in (11, 17):
            assert isinstance(answer, InvalidInputError)
            assert str(answer).startswith(f"targets: row {2 if index == 11 else 1} is inverted")
        else:
            assert answer.loss == pytest.approx([CIOU_OF_A_AND_B] * 3)


def test_a_faulty_call_of_a_thread_fails_alone(server: ServerProcess) -> None:
    with boxloss.Client(server.address) as client, ThreadPoolExecutor(12) as threads:
        client.info()
        with frozen(server):
            calls = [
                threads.submit(client.evaluate, A * 2, [*B, [5, 2, 1, 8]] if i % 4 == 0 else B * 2, CIoU())
                for i in range(12)
            ]
            until(lambda: waiting(client) == 12 - PLACES)
        for i, call in enumerate(calls):
            if i % 4 == 0:
                with pytest.raises(InvalidInputError, match=r"^targets: row 1 is inverted"):
                    call.result()
            else:
                assert call.result().loss == pytest.approx([CIOU_OF_A_AND_B] * 2)


async def test_messages_keep_to_the_servers_limits() -> None:
    port = free_port()
    given = inputs(32)
    async with boxloss.AsyncClient(f"127.0.0.1:{port}") as connected:
        with ServerProcess(f"--port={port}", "--max-request-pairs=100") as server:
            await connected.info()
            first = await asyncio.gather(*[connected.evaluate(p, t, CIoU()) for p, t in given])
        assert len(given) > messages(first) >= sum(len(p) for p, _ in given) / 100
        # The next server takes less, which its refusal tells.
        with ServerProcess(f"--port={port}", "--max-request-pairs=50") as server:
            assert server.address == connected.address
            second = await asyncio.gather(*[connected.evaluate(p, t, CIoU()) for p, t in given])
    for one, other in zip(first, second, strict=True):
        assert_same(one, other)


@pytest.mark.parametrize(
    "options",
    [{"crowd": [True]}, {"running_mean": 0.5}, {"predictions": A * (CALL_PAIRS + 1), "targets": B * (CALL_PAIRS + 1)}],
    ids=["crowds", "a running mean", "many pairs"],
)
async def test_other_calls_go_their_own_way(server: ServerProcess, options: Any) -> None:
    call = {"predictions": A, "targets": B, "loss": CIoU()} | options
    async with boxloss.AsyncClient(server.address) as connected:
        await connected.info()
        assert messages(await asyncio.gather(*[connected.evaluate(**call) for _ in range(8)])) == 8


async def test_each_call_ends_at_its_own_deadline(server: ServerProcess) -> None:
    async with boxloss.AsyncClient(server.address) as connected:
        await connected.info()
        with frozen(server):
            patient = await start(connected, [connected.evaluate(A, B, CIoU()) for _ in range(8)])
            hasty = await start(connected, [connected.evaluate(A, B, CIoU(), timeout=0.1) for _ in range(8)], 0.1)
            for call in hasty:
                with pytest.raises(boxloss.DeadlineExceededError, match="did not answer Evaluate in time"):
                    await call
            # What was sent for them ends, too, and leaves its place.
            async with asyncio.timeout(30):
                while lane_of(connected, 0.1)._places < PLACES:  # noqa: ASYNC110 - tasks end in turns of the loop.
                    await asyncio.sleep(0)
            assert not any(call.done() for call in patient)
        assert messages(await asyncio.gather(*patient)) <= PLACES + 1


def test_each_call_of_a_thread_ends_at_its_own_deadline(server: ServerProcess) -> None:
    with boxloss.Client(server.address) as client, ThreadPoolExecutor(16) as threads:
        client.info()
        with frozen(server):
            patient = [threads.submit(client.evaluate, A, B, CIoU()) for _ in range(8)]
            until(lambda: waiting(client) == 8 - PLACES)
            hasty = [threads.submit(client.evaluate, A, B, CIoU(), timeout=0.1) for _ in range(8)]
            for call in hasty:
                with pytest.raises(boxloss.DeadlineExceededError, match="did not answer Evaluate in time"):
                    call.result()
            assert not any(call.done() for call in patient)
        assert lane_of(client, 0.1)._places == PLACES
        assert messages([call.result() for call in patient]) <= 2 * PLACES


async def test_a_cancelled_call_harms_no_other(server: ServerProcess) -> None:
    async with boxloss.AsyncClient(server.address) as connected:
        await connected.info()
        with frozen(server):
            on_its_way, other, waits, *others = await start(
                connected, [connected.evaluate(A, B, CIoU()) for _ in range(8)]
            )
            waits.cancel()
            await asyncio.wait([waits])
            assert waiting(connected) == 5
            on_its_way.cancel()
            await asyncio.wait([on_its_way])
            assert waiting(connected) == 0  # In its place, they are on their way now.
            others.pop().cancel()
        for call in (other, *others):
            assert (await call).loss == pytest.approx([CIOU_OF_A_AND_B])
        assert waits.cancelled()
        assert on_its_way.cancelled()


async def test_a_message_that_nobody_waits_for_is_cancelled(server: ServerProcess) -> None:
    async with boxloss.AsyncClient(server.address) as connected:
        await connected.info()
        with frozen(server):
            calls = await start(connected, [connected.evaluate(A, B, CIoU()) for _ in range(8)])
            calls[0].cancel()
            await asyncio.wait(calls[:1])
            (sending,) = connected._coalescer._sendings
            for call in calls[2:]:
                call.cancel()
            await asyncio.wait([sending], timeout=10)
            assert sending.cancelled()
            # Its place is free.
            again = asyncio.create_task(connected.evaluate(A, B, CIoU()))
            await asyncio.sleep(0)
            assert waiting(connected) == 0
        assert (await calls[1]).loss == (await again).loss == pytest.approx([CIOU_OF_A_AND_B])


def test_an_interrupted_thread_leaves_its_place_to_others(server: ServerProcess) -> None:
    with boxloss.Client(server.address) as client, ThreadPoolExecutor(8) as threads:
        client.info()
        calls: list[Future[LossResult]] = []

        def interrupt() -> None:
            """Presses Ctrl-C when the main thread has a place and others wait."""
            until(lambda: lane_of(client)._places < PLACES)
            calls.extend(threads.submit(client.evaluate, A, B, CIoU()) for _ in range(6))
            until(lambda: waiting(client) == 7 - PLACES)
            os.kill(os.getpid(), signal.SIGINT)

        with frozen(server):
            presser = threads.submit(interrupt)
            with pytest.raises(KeyboardInterrupt):
                client.evaluate(A, B, CIoU())
            presser.result()
        for call in calls:
            assert call.result(timeout=10).loss == pytest.approx([CIOU_OF_A_AND_B])


async def test_a_closed_client_fails_every_call(server: ServerProcess) -> None:
    connected = boxloss.AsyncClient(server.address)
    await connected.info()
    with frozen(server):
        calls = await start(connected, [connected.evaluate(A, B, CIoU()) for _ in range(8)])
        await connected.close()
        for call in calls:
            with pytest.raises(boxloss.BoxlossError, match="this client is closed"):
                await call


def test_a_closed_client_fails_every_call_of_a_thread(server: ServerProcess) -> None:
    client = boxloss.Client(server.address)
    client.info()
    with ThreadPoolExecutor(8) as threads, frozen(server):
        calls = [threads.submit(client.evaluate, A, B, CIoU()) for _ in range(8)]
        until(lambda: waiting(client) == 8 - PLACES)
        client.close()
        for call in calls:
            with pytest.raises(boxloss.BoxlossError, match="this client is closed"):
                call.result()


async def test_a_killed_server_is_named_to_every_caller() -> None:
    server = ServerProcess()
    async with boxloss.AsyncClient(server.address, timeout=1) as connected:
        await connected.info()
        server.kill()
        calls = await start(connected, [connected.evaluate(A, B, CIoU()) for _ in range(16)])
        for call in calls:
            with pytest.raises(boxloss.ServerUnavailableError, match="no boxloss server answers"):
                await call


def test_a_killed_server_is_named_to_every_calling_thread() -> None:
    server = ServerProcess()
    with boxloss.Client(server.address, timeout=1) as client, ThreadPoolExecutor(16) as threads:
        client.info()
        server.kill()
        for call in [threads.submit(client.evaluate, A, B, CIoU()) for _ in range(16)]:
            with pytest.raises(boxloss.ServerUnavailableError, match="no boxloss server answers"):
                call.result()
