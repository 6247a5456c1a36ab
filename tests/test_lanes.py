"""Which calls are sent together: lanes, and the coalescers of threads and tasks, over a transport held by the test."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from boxloss import BoxlossError, CIoU, InvalidInputError, ServerError, ServerUnavailableError
from boxloss.calls.aio_coalescer import Coalescer as TaskCoalescer
from boxloss.calls.aio_coalescer import TaskCall
from boxloss.calls.coalescer import Coalescer as ThreadCoalescer
from boxloss.calls.coalescer import ThreadCall
from boxloss.calls.coalescing import MESSAGE_PAIRS, PLACES, Answer, Call, Lane, Message, Verdict
from boxloss.calls.exchange import Options, Question
from boxloss.v1 import loss_service_pb2
from boxloss.v1.array_pb2 import DTYPE_FLOAT32, Array
from boxloss.v1.loss_service_pb2 import EvaluateRequest, EvaluateResponse, LossResult
from tests.clock import TURN, FakeClock

ROOM = 10
"""Pairs of a message."""
FAR = 1e9


def question(pairs: int = 1, **options: Any) -> Question:
    boxes = np.tile(np.array([0, 0, 4, 4], "<f4"), (pairs, 1))
    weights = options.pop("weights", None)
    reduction = options.pop("reduction", "none")
    return Question(boxes, boxes + 1, [CIoU()], Options(**options), reduction, weights)


def lane_of(asked: Question, request_pairs: int = ROOM) -> Lane[Any]:
    return Lane(asked.kind, 1.0, 2**20, request_pairs)


def call(pairs: int = 1, deadline: float = FAR) -> Call:
    return Call(question(pairs), deadline)


def full_lane() -> Lane[Call]:
    lane: Lane[Call] = lane_of(question())
    for _ in range(PLACES):
        assert lane.enter(call())
    return lane


# Lanes


def test_so_many_messages_are_on_their_way_and_other_calls_wait() -> None:
    lane = lane_of(question())
    assert [lane.enter(call()) for _ in range(4)] == [True, True, False, False]


def test_a_place_goes_to_the_call_that_came_last_and_those_that_came_first_ride_with_it() -> None:
    lane = full_lane()
    first, second, last = call(1), call(2), call(3)
    for each in (first, second, last):
        assert not lane.enter(each)
    assert lane.leave() is last
    assert lane.gather(last) == [last, first, second]
    # Nobody waits: the places become free one by one, and no more of them than there are.
    for _ in range(PLACES):
        assert lane.leave() is None
    assert [lane.enter(call()) for _ in range(PLACES + 1)] == [True] * PLACES + [False]


@pytest.mark.parametrize(("pairs", "rides"), [(ROOM - 1, True), (ROOM, True), (ROOM + 1, False)])
def test_as_many_ride_together_as_fit(pairs: int, rides: bool) -> None:
    lane = full_lane()
    first, second, third = call(3), call(2), call(2)
    lane.enter(first)
    lane.enter(second)
    lane.enter(third)
    leading = call(pairs - 5)
    assert lane.gather(leading) == ([leading, first, second] if rides else [leading, first])
    assert lane.withdraw(third)
    assert lane.withdraw(second) is not rides


def test_a_message_has_as_many_pairs_as_the_server_allows_and_no_more_than_are_worth_it() -> None:
    assert lane_of(question(), ROOM).room == ROOM
    assert lane_of(question(), MESSAGE_PAIRS + 1).room == MESSAGE_PAIRS
    template = question().kind.template("none").ByteSize()
    small: Lane[Call] = Lane(question().kind, 1.0, 2000, ROOM**6)
    assert 0 < small.room < (2000 - template) / 33 + 1  # Eight numbers and a mark.


def test_a_call_that_withdraws_waits_no_longer() -> None:
    lane = full_lane()
    first, second = call(), call()
    lane.enter(first)
    lane.enter(second)
    assert lane.withdraw(second)
    assert not lane.withdraw(second)
    assert lane.leave() is first


# Messages


def test_a_message_asks_about_all_pairs_until_the_latest_deadline() -> None:
    asked = [question(2, weights=[1.0, 2.0]), question(3, weights=[3.0, 4.0, 5.0])]
    lane = lane_of(asked[0])
    calls = [Call(each, deadline) for each, deadline in zip(asked, (8.0, 7.0), strict=True)]
    message = Message(lane, calls)
    assert (message.deadline, message.pairs, [each.start for each in calls]) == (8.0, 5, [0, 2])
    request = EvaluateRequest.FromString(message.request())
    corners = np.frombuffer(request.predictions.data, "<f4").reshape(5, 4)
    np.testing.assert_array_equal(corners, np.tile([0, 0, 4, 4], (5, 1)))
    np.testing.assert_array_equal(np.frombuffer(request.targets.data, "<f4").reshape(5, 4), corners + 1)
    np.testing.assert_array_equal(np.frombuffer(request.weights.data, "<f4"), [1, 2, 3, 4, 5])
    assert request.reduction == loss_service_pb2.REDUCTION_NONE
    assert request.dtype == DTYPE_FLOAT32
    assert not EvaluateRequest.FromString(Message(lane_of(question()), [call()]).request()).HasField("weights")


def numbers(count: int) -> Array:
    return Array(data=np.arange(count, dtype="<f4").tobytes())


def answer_to(calls: list[Any], kind: Any) -> Answer:
    """An answer whose losses are 0, 1, ..., and whose gradients are ten times as large."""
    pairs = sum(each.pairs for each in calls)
    losses = np.arange(pairs, dtype="<f4")
    slopes = Array(data=np.repeat(10 * losses, 4).tobytes())
    result = LossResult(loss=Array(data=losses.tobytes()))
    if kind.options.gradients:
        result.prediction_gradient.CopyFrom(slopes)
    if kind.options.target_gradients:
        result.target_gradient.CopyFrom(slopes)
    response = EvaluateResponse(results=[result], iou=Array(data=losses.tobytes()), dtype=DTYPE_FLOAT32)
    response.execution.batch_pair_count = pairs
    if kind.options.invalid == "mask":
        response.masked_rows.append(3)
    return Answer(kind, response, pairs)


@pytest.mark.parametrize(
    ("reduction", "loss", "gradient"),
    [("none", [2, 3, 4], [20, 30, 40]), ("sum", 2 + 4, [20, 30, 40]), ("mean", (2 + 4) / 2, [10, 15, 20])],
)
def test_a_call_takes_its_rows_of_the_answer(reduction: str, loss: Any, gradient: list[float]) -> None:
    """Its own: rows 2 to 4, the second of which is masked."""
    options = {"gradients": True, "target_gradients": True, "invalid": "mask", "reduction": reduction}
    asked = [question(2, **options), question(3, **options), question(2, **options)]
    lane = lane_of(asked[0])
    calls = [Call(each, FAR) for each in asked]
    assert Message(lane, calls).pairs == 7
    answer = answer_to(calls, lane.kind)
    (result,) = answer.results(calls[1])
    np.testing.assert_array_equal(result.loss, loss)
    assert result.loss.dtype == np.float32
    assert result.spec == CIoU()
    assert [execution.batch_pairs for execution in result.executions] == [7]
    for slopes in (result.gradient, result.target_gradient):
        assert slopes is not None
        np.testing.assert_array_equal(slopes, np.repeat(gradient, 4).reshape(3, 4))
        assert slopes.dtype == np.float32
    np.testing.assert_array_equal(result.iou, [2, 3, 4])
    np.testing.assert_array_equal(result.valid, [True, False, True])
    result.iou[:], result.valid[:] = 0, False
    (again,) = answer.results(calls[1])
    np.testing.assert_array_equal(again.iou, [2, 3, 4])
    assert again.valid.any()


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("wanted", ["gradients", "target_gradients"])
def test_an_answer_has_the_gradients_that_were_asked_for(wanted: str, reduction: str) -> None:
    options: dict[str, Any] = {wanted: True, "reduction": reduction}
    asked = question(**options)
    calls = [Call(asked, FAR)]
    (result,) = answer_to(calls, asked.kind).results(calls[0])
    assert (result.gradient is not None, result.target_gradient is not None) == (
        wanted == "gradients",
        wanted == "target_gradients",
    )


def test_a_sum_is_as_exact_as_it_can_be() -> None:
    asked = question(4, reduction="sum")
    losses = np.array([2**24, 1, 1, 1], "<f4")
    result = LossResult(loss=Array(data=losses.tobytes()))
    answer = Answer(asked.kind, EvaluateResponse(results=[result], iou=numbers(4), dtype=DTYPE_FLOAT32), 4)
    call = Call(asked, FAR)
    Message(lane_of(asked), [call])
    assert answer.results(call)[0].loss == np.float32(2**24 + 3)


@pytest.mark.parametrize(
    "response",
    [
        EvaluateResponse(results=[LossResult(loss=numbers(1))], iou=numbers(2), dtype=DTYPE_FLOAT32),
        EvaluateResponse(results=[LossResult(loss=numbers(2))], iou=numbers(3), dtype=DTYPE_FLOAT32),
        EvaluateResponse(results=[LossResult(loss=numbers(2))] * 2, iou=numbers(2), dtype=DTYPE_FLOAT32),
    ],
    ids=["a loss too few", "an IoU too many", "two losses"],
)
def test_an_answer_that_does_not_fit_is_none(response: EvaluateResponse) -> None:
    with pytest.raises(ServerError):
        Answer(question(2).kind, response, 2)


# Coalescers


class Way:
    """Sends messages nowhere; the test says how each of them ends."""

    def __init__(self) -> None:
        self.sent: list[tuple[list[Any], Future[Any]]] = []
        self.answered: list[Any] = []

    def send(self, lane: Lane[Any], calls: list[Any]) -> Any:
        assert isinstance(lane, Lane)
        self.sent.append((calls, Future()))
        return self.sent[-1][1].result(timeout=30)

    async def send_from_task(self, lane: Lane[Any], calls: list[Any]) -> Any:
        assert isinstance(lane, Lane)
        self.sent.append((calls, Future()))
        return await asyncio.wrap_future(self.sent[-1][1])

    def end(self, number: int, error: BaseException | None = None) -> Any:
        """Ends a message, with an error or an answer, which is returned."""
        _, ending = self.sent[number]
        answer: Any = object()
        if error:
            ending.set_exception(error)
        else:
            ending.set_result(answer)
        return answer


def until(condition: Any) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


class Threads:
    """Calls of threads, which come one after the other."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self.way = Way()
        self.lane = lane_of(question())
        self.coalescer = ThreadCoalescer()
        self._pool = pool

    def ride(self, deadline: float = FAR) -> tuple[ThreadCall, Future[Any]]:
        """Starts a call, and waits until it is sent, or waits."""
        sent, waiting = len(self.way.sent), len(self.lane._waiting)
        call = ThreadCall(question(), deadline if deadline == FAR else time.monotonic() + deadline)
        riding = self._pool.submit(self.coalescer.ride, self.lane, call, self.way.send)
        until(lambda: len(self.way.sent) > sent or len(self.lane._waiting) > waiting or riding.done())
        return call, riding


@pytest.fixture
def threads() -> Any:
    with ThreadPoolExecutor(12) as pool:
        yield Threads(pool)


def test_threads_that_wait_ride_with_the_one_that_came_last(threads: Threads) -> None:
    (first, one), (second, two) = threads.ride(), threads.ride()
    assert [calls for calls, _ in threads.way.sent] == [[first], [second]]
    waiting = [threads.ride() for _ in range(3)]
    assert threads.way.end(0) is one.result()
    until(lambda: len(threads.way.sent) == 3)
    third, fourth, last = (call for call, _ in waiting)
    assert threads.way.sent[2][0] == [last, third, fourth]
    answer = threads.way.end(2)
    assert [riding.result() for _, riding in waiting] == [answer] * 3
    assert threads.way.end(1) is two.result()
    until(lambda: threads.lane._places == PLACES)


@pytest.mark.parametrize(
    ("error", "verdict"), [(InvalidInputError([]), Verdict.ALONE), (ServerUnavailableError("away"), Verdict.LATE)]
)
def test_threads_whose_message_fails_go_again_alone_unless_its_deadline_has_passed(
    threads: Threads, error: BoxlossError, verdict: Verdict
) -> None:
    threads.ride(), threads.ride()
    together = [threads.ride() for _ in range(2)]
    threads.way.end(0)
    until(lambda: len(threads.way.sent) == 3)
    threads.way.end(2, error)
    if verdict is Verdict.LATE:
        assert [riding.result() for _, riding in together] == [Verdict.LATE] * 2
    else:
        until(lambda: len(threads.way.sent) == 5)
        assert {calls[0] for calls, _ in threads.way.sent[3:]} == {call for call, _ in together}
        assert all(len(calls) == 1 for calls, _ in threads.way.sent[3:])
        answers = [threads.way.end(3), threads.way.end(4)]
        assert {riding.result() for _, riding in together} == set(answers)
    threads.way.end(1)
    until(lambda: threads.lane._places == PLACES)


def test_a_thread_alone_meets_its_own_error_and_leaves_its_place(threads: Threads) -> None:
    _, riding = threads.ride()
    threads.way.end(0, ServerUnavailableError("away"))
    with pytest.raises(ServerUnavailableError):
        riding.result()
    assert threads.lane._places == PLACES


def test_a_thread_that_is_interrupted_has_those_that_ride_with_it_go_alone(threads: Threads) -> None:
    threads.ride(), threads.ride()
    (other, rides), (_, leads) = threads.ride(), threads.ride()
    threads.way.end(0)
    until(lambda: len(threads.way.sent) == 3)
    threads.way.end(2, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        leads.result()
    until(lambda: len(threads.way.sent) == 4)
    assert threads.way.sent[3][0] == [other]
    assert threads.way.end(3) is rides.result()
    threads.way.end(1)
    until(lambda: threads.lane._places == PLACES)


def test_a_thread_waits_until_its_deadline_and_takes_no_place_then(threads: Threads) -> None:
    threads.ride(), threads.ride()
    _, late = threads.ride(deadline=0.0)
    assert late.result() is Verdict.LATE
    assert not threads.lane._waiting
    threads.way.end(0), threads.way.end(1)
    until(lambda: threads.lane._places == PLACES)


def test_a_thread_whose_time_is_over_while_it_rides_with_another_leaves_no_place(threads: Threads) -> None:
    threads.ride(), threads.ride()
    _, rides = threads.ride(deadline=0.3)
    threads.ride()
    threads.way.end(0)
    until(lambda: len(threads.way.sent) == 3)
    assert rides.result() is Verdict.LATE
    threads.ride()
    assert len(threads.way.sent) == 3
    for number in (1, 2, 3):
        until(lambda number=number: len(threads.way.sent) > number)
        threads.way.end(number)
    until(lambda: threads.lane._places == PLACES)


def test_a_thread_that_is_given_a_place_as_its_time_is_over_passes_it_on(threads: Threads) -> None:
    """It has been taken from those that wait, and told to go; nobody looks."""
    _, one = threads.ride()
    threads.ride()
    gone = ThreadCall(question(), FAR)
    threads.lane.enter(gone)
    waits, riding = threads.ride()
    threads.lane._waiting.reverse()
    threads.way.end(0)
    one.result()
    until(lambda: not gone.inbox.empty())
    threads.coalescer._withdraw(threads.lane, gone)
    until(lambda: len(threads.way.sent) == 3)
    assert threads.way.sent[2][0] == [waits]
    assert threads.way.end(2) is riding.result()
    threads.way.end(1)
    until(lambda: threads.lane._places == PLACES)


class Tasks:
    """Calls of tasks."""

    def __init__(self) -> None:
        self.way = Way()
        self.lane = lane_of(question())
        self.coalescer = TaskCoalescer()

    def ride(self, deadline: float = FAR) -> tuple[TaskCall, asyncio.Task[Any]]:
        call = TaskCall(question(), deadline)
        return call, asyncio.create_task(self.coalescer.ride(self.lane, call, self.way.send_from_task))

    async def until(self, condition: Any) -> None:
        async with asyncio.timeout(30):
            while not condition():  # noqa: ASYNC110 - tasks go on in turns of the loop.
                await asyncio.sleep(0)


async def test_tasks_that_wait_ride_together() -> None:
    tasks = Tasks()
    calls = [tasks.ride() for _ in range(5)]
    await tasks.until(lambda: len(tasks.way.sent) == 2)
    assert [sent for sent, _ in tasks.way.sent] == [[calls[0][0]], [calls[1][0]]]
    assert tasks.way.end(0) is await calls[0][1]
    await tasks.until(lambda: len(tasks.way.sent) == 3)
    assert tasks.way.sent[2][0] == [calls[4][0], calls[2][0], calls[3][0]]
    answer = tasks.way.end(2)
    assert [await riding for _, riding in calls[2:]] == [answer] * 3
    assert tasks.way.end(1) is await calls[1][1]
    await tasks.until(lambda: tasks.lane._places == PLACES)
    assert not tasks.coalescer._sendings


@pytest.mark.parametrize(
    ("error", "verdict"), [(InvalidInputError([]), Verdict.ALONE), (ServerUnavailableError("away"), Verdict.LATE)]
)
async def test_tasks_whose_message_fails_go_again_alone_unless_its_deadline_has_passed(
    error: BoxlossError, verdict: Verdict
) -> None:
    tasks = Tasks()
    calls = [tasks.ride() for _ in range(4)]
    await tasks.until(lambda: len(tasks.way.sent) == 2)
    tasks.way.end(0)
    await tasks.until(lambda: len(tasks.way.sent) == 3)
    tasks.way.end(2, error)
    if verdict is Verdict.LATE:
        assert [await riding for _, riding in calls[2:]] == [Verdict.LATE] * 2
    else:
        await tasks.until(lambda: len(tasks.way.sent) == 5)
        assert all(len(sent) == 1 for sent, _ in tasks.way.sent[3:])
        answers = [tasks.way.end(3), tasks.way.end(4)]
        assert {await riding for _, riding in calls[2:]} == set(answers)
    tasks.way.end(1)
    await tasks.until(lambda: tasks.lane._places == PLACES)


async def test_a_task_alone_meets_its_own_error_and_leaves_its_place() -> None:
    tasks = Tasks()
    _, riding = tasks.ride()
    await tasks.until(lambda: len(tasks.way.sent) == 1)
    tasks.way.end(0, ServerUnavailableError("away"))
    with pytest.raises(ServerUnavailableError):
        await riding
    assert tasks.lane._places == PLACES


async def test_a_message_is_cancelled_when_the_last_task_that_waits_for_it_has_gone() -> None:
    tasks = Tasks()
    calls = [tasks.ride() for _ in range(4)]
    await tasks.until(lambda: len(tasks.way.sent) == 2)
    tasks.way.end(0)
    await tasks.until(lambda: len(tasks.way.sent) == 3)
    calls[2][1].cancel()
    await asyncio.wait([calls[2][1]])
    assert not tasks.way.sent[2][1].cancelled()
    calls[3][1].cancel()
    await tasks.until(lambda: tasks.way.sent[2][1].cancelled())
    tasks.way.end(1)
    await tasks.until(lambda: tasks.lane._places == PLACES)


async def test_a_task_that_is_cancelled_while_it_waits_is_not_sent() -> None:
    tasks = Tasks()
    calls = [tasks.ride() for _ in range(4)]
    await tasks.until(lambda: len(tasks.way.sent) == 2)
    calls[3][1].cancel()
    await asyncio.wait([calls[3][1]])
    tasks.way.end(0)
    await tasks.until(lambda: len(tasks.way.sent) == 3)
    assert tasks.way.sent[2][0] == [calls[2][0]]
    for number in (1, 2):
        tasks.way.end(number)
    await tasks.until(lambda: tasks.lane._places == PLACES)


def busy_tasks() -> Tasks:
    """All places are taken."""
    tasks = Tasks()
    for _ in range(PLACES):
        tasks.ride()
    return tasks


async def test_tasks_wait_until_their_deadlines_and_take_no_place_then(clock: FakeClock) -> None:
    tasks = busy_tasks()
    began = clock.now
    later, soon, none = (tasks.ride(deadline)[1] for deadline in (began + 2, began + 1, FAR))
    assert await soon is Verdict.LATE
    assert clock.now == pytest.approx(began + 1, abs=10 * TURN)
    assert not later.done()
    assert await later is Verdict.LATE
    assert clock.now == pytest.approx(began + 2, abs=10 * TURN)
    assert not none.done()
    assert len(tasks.lane._waiting) == 1
    tasks.way.end(0), tasks.way.end(1)
    await tasks.until(lambda: len(tasks.way.sent) == 3)
    assert tasks.way.end(2) is await none
    await tasks.until(lambda: tasks.lane._places == PLACES)


async def test_one_task_after_the_other_waits_until_its_deadline(clock: FakeClock) -> None:
    tasks = busy_tasks()
    for _ in range(2):
        assert await tasks.ride(clock.now + 1)[1] is Verdict.LATE
    for number in range(PLACES):
        tasks.way.end(number)
    await tasks.until(lambda: tasks.lane._places == PLACES)


async def test_a_message_of_tasks_is_followed_by_those_who_came_meanwhile() -> None:
    tasks = busy_tasks()
    rides = tasks.ride()[1]
    await tasks.until(lambda: len(tasks.lane._waiting) == 1)
    tasks.way.end(0)
    await tasks.until(lambda: len(tasks.way.sent) == 3)
    came = tasks.ride()[1]
    await tasks.until(lambda: len(tasks.lane._waiting) == 1)
    assert tasks.way.end(2) is await rides
    await tasks.until(lambda: len(tasks.way.sent) == 4)
    assert tasks.way.end(3) is await came
    tasks.way.end(1)
    await tasks.until(lambda: tasks.lane._places == PLACES)


async def test_tasks_whose_message_is_cancelled_go_alone() -> None:
    tasks = Tasks()
    calls = [tasks.ride() for _ in range(PLACES + 1)]
    await tasks.until(lambda: len(tasks.way.sent) == PLACES)
    tasks.way.end(0)
    await tasks.until(lambda: len(tasks.way.sent) == PLACES + 1)
    tasks.way.sent[PLACES][1].cancel()
    await tasks.until(lambda: len(tasks.way.sent) == PLACES + 2)
    assert tasks.way.end(PLACES + 1) is await calls[PLACES][1]
    tasks.way.end(1)
    await tasks.until(lambda: tasks.lane._places == PLACES)
