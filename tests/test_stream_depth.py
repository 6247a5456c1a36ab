"""How much of a stream is on its way: in the SDK, and at the server, which computes a few messages ahead."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import numpy as np
import pytest

from boxloss import CIoU, InvalidInputError, ServerUnavailableError
from boxloss.calls.exchange import Options
from boxloss.calls.results import ServerInfo
from boxloss.calls.stream_exchange import EvaluationStreamExchange
from boxloss.errors import BoxlossError
from boxloss.v1.array_pb2 import DTYPE_FLOAT32, Array
from boxloss.v1.loss_service_pb2 import (
    REDUCTION_MEAN,
    EvaluateResponse,
    EvaluateStreamRequest,
    EvaluateStreamResponse,
    LossResult,
)
from boxloss_server.service.streams import Streams
from tests.clock import turns

SERVER_DEPTH = 4
SDK_DEPTH = 8


def boxes(pairs: int = 1) -> tuple[Any, Any]:
    return np.zeros((pairs, 4), "f4"), np.ones((pairs, 4), "f4")


def server_info(request_pairs: int) -> ServerInfo:
    return ServerInfo("1", "cpu", 2**20, request_pairs, (), ())


def response(pairs: int = 1, first: float = 0.0) -> EvaluateStreamResponse:
    numbers = Array(data=np.arange(first, first + pairs, dtype="<f4").tobytes())
    answer = EvaluateResponse(results=[LossResult(loss=numbers)], iou=numbers, dtype=DTYPE_FLOAT32)
    return EvaluateStreamResponse(response=answer)


# The SDK


@pytest.fixture
def exchange() -> EvaluationStreamExchange:
    return EvaluationStreamExchange(CIoU(), Options(), "none", server_info(10))


def test_so_many_messages_are_on_their_way_and_the_next_is_asked_for_when_one_is_answered(
    exchange: EvaluationStreamExchange,
) -> None:
    assert exchange.done
    for number in range(SDK_DEPTH):
        assert exchange.wanting
        assert len(exchange.ask(boxes())) == 1
        assert len(exchange.unanswered) == number + 1
    assert not exchange.wanting
    exchange.answer(response())
    assert exchange.wanting
    exchange.ended = True
    assert not exchange.wanting
    for number in range(SDK_DEPTH - 1):
        assert not exchange.done
        result = exchange.answer(response(first=number))
        assert result is not None
        assert result.loss == [number]
    assert exchange.done


@pytest.mark.parametrize(("pairs", "messages"), [(9, 1), (10, 1), (11, 2)])
def test_a_batch_is_split_at_the_limit_and_has_one_result(
    exchange: EvaluationStreamExchange, pairs: int, messages: int
) -> None:
    sent = exchange.ask(boxes(pairs))
    assert len(sent) == messages == len(exchange.unanswered)
    if messages == 2:
        assert exchange.answer(response(10)) is None
        result = exchange.answer(response(1, first=10))
    else:
        result = exchange.answer(response(pairs))
    assert result is not None
    np.testing.assert_array_equal(result.loss, np.arange(pairs))
    assert exchange.ask(boxes())  # Which has nothing of the last one's answers.
    assert exchange.answer(response(first=5)).loss == [5]  # type: ignore[union-attr]


def test_a_batch_has_its_weights_and_all_have_the_reduction() -> None:
    exchange = EvaluationStreamExchange(CIoU(), Options(), "mean", server_info(10))
    (sent,) = exchange.ask((*boxes(2), np.array([1, 3], "f4")))
    request = EvaluateStreamRequest.FromString(sent).request
    np.testing.assert_array_equal(np.frombuffer(request.weights.data, "<f4"), [1, 3])
    assert request.reduction == REDUCTION_MEAN


@pytest.mark.parametrize(
    ("batch", "complaint"),
    [(None, r"batches\[2\]"), ((boxes(2)[0], boxes(1)[1]), r"batches\[2\].targets: has 1 rows for 2 predictions")],
)
def test_a_batch_at_fault_ends_the_input_and_is_named(
    exchange: EvaluationStreamExchange, batch: Any, complaint: str
) -> None:
    exchange.ask(boxes())
    exchange.ask(boxes())
    assert exchange.ask(batch) == []
    assert exchange.ended
    assert isinstance(exchange.fault, InvalidInputError)
    with pytest.raises(InvalidInputError, match=complaint):
        raise exchange.fault
    assert not exchange.done  # What was asked before is answered first.


def test_what_is_not_answered_is_cut_for_narrower_limits(exchange: EvaluationStreamExchange) -> None:
    exchange.ask(boxes(4))
    exchange.ask(boxes(6))
    exchange.answer(response(4))
    exchange.ask(boxes(12))
    exchange.answer(response(6))
    assert exchange.answer(response(10)) is None  # A part of the last one's, which is asked anew.
    exchange.cut(server_info(5))
    assert exchange.server.request_pairs == 5
    asked = [EvaluateStreamRequest.FromString(message).request for message in exchange.unanswered]
    assert [len(request.predictions.data) // 16 for request in asked] == [5, 5, 2]
    assert exchange.answer(response(5)) is None
    assert exchange.answer(response(5, first=5)) is None
    np.testing.assert_array_equal(exchange.answer(response(2, first=10)).loss, np.arange(12))  # type: ignore[union-attr]


# The server


class Ending:
    """A call's context, of which streams want to hear the end."""

    def __init__(self) -> None:
        self.over: list[Callable[[Any], None]] = []

    def add_done_callback(self, then: Callable[[Any], None]) -> None:
        self.over.append(then)


class Messages:
    """The messages of a stream, endless or a few, and what has been read and given back of them."""

    def __init__(self, number: int | None = None) -> None:
        self.number = number
        self.read = 0
        self.kept: set[int] = set()
        self.begun: list[int] = []
        self.gates: dict[int, asyncio.Event] = {}
        self.context: Any = Ending()
        self.streams = Streams()

    async def messages(self) -> AsyncIterator[str]:
        while self.number is None or self.read < self.number:
            self.read += 1
            yield f"message {self.read - 1}"

    async def answer(self, number: int, message: str, until_written: Any) -> str:
        assert message == f"message {number}"
        self.begun.append(number)
        if gate := self.gates.get(number):
            await gate.wait()
        if number == 13:
            raise BoxlossError("bad luck")
        self.kept.add(number)
        until_written(lambda: self.kept.remove(number))
        return f"answer {number}"

    def answers(self) -> Any:
        return self.streams.answers(self.messages(), self.answer, self.context)


async def test_so_many_messages_are_computed_ahead_of_an_answer_that_is_not_read() -> None:
    stream = Messages()
    async with aclosing(stream.answers()) as answers:
        assert await anext(answers) == "answer 0"
        await turns(50)
        # One is being written, so many wait in line, and one has been read for which there is no place in it.
        assert stream.begun == list(range(1 + SERVER_DEPTH + 1))
        assert await anext(answers) == "answer 1"
        await turns(50)
        assert stream.begun == list(range(2 + SERVER_DEPTH + 1))


async def test_an_answer_keeps_its_room_until_it_is_written_and_none_when_the_call_is_over() -> None:
    stream = Messages()
    async with aclosing(stream.answers()) as answers:
        await anext(answers)
        await turns(50)
        assert stream.kept == set(range(6))
        await anext(answers)
        await turns(50)
        assert stream.kept == set(range(1, 7))
        stream.context.over[0](None)
        assert stream.kept == set()
    await turns(50)
    assert stream.kept == set()
    assert len(stream.begun) == 7
    assert asyncio.all_tasks() == {asyncio.current_task()}  # The reader has ended, too.


async def test_what_is_answered_although_the_call_is_over_keeps_no_room() -> None:
    stream = Messages(2)
    kept: set[int] = set()

    async def answer(number: int, message: str, until_written: Any) -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:  # It comes too late: there is an answer.
            kept.add(number)
            until_written(lambda: kept.remove(number))
        return message

    answering = asyncio.ensure_future(anext(stream.streams.answers(stream.messages(), answer, stream.context)))
    await turns(50)
    stream.context.over[0](None)
    await turns(50)
    assert kept == set()
    assert await answering == "message 0"


async def test_what_overtakes_an_earlier_message_keeps_no_room() -> None:
    stream = Messages(3)
    stream.gates[1] = asyncio.Event()
    answers = stream.answers()
    await anext(answers)
    await turns(50)
    assert stream.begun == [0, 1, 2]
    assert stream.kept == {0}  # The third has its answer, and has given its room back.
    stream.gates[1].set()
    assert [answer async for answer in answers] == ["answer 1", "answer 2"]
    assert stream.kept == set()


async def test_an_error_names_its_message_after_the_answers_before_it_and_ends_the_reading() -> None:
    stream = Messages()
    answers = stream.answers()
    assert [await anext(answers) for _ in range(13)] == [f"answer {number}" for number in range(13)]
    with pytest.raises(BoxlossError, match="bad luck") as failed:
        await anext(answers)
    assert failed.value.metadata["message"] == "13"
    await turns(50)
    assert stream.read <= 13 + SERVER_DEPTH + 2
    assert stream.kept == set()
    assert not stream.streams._readers


async def test_a_message_that_cannot_be_read_fails_the_stream_after_the_answers_to_those_before() -> None:
    async def broken() -> AsyncIterator[str]:
        yield "message 0"
        raise BoxlossError("not a message")

    stream = Messages()
    answers = stream.streams.answers(broken(), stream.answer, stream.context)
    assert await anext(answers) == "answer 0"
    with pytest.raises(BoxlossError, match="not a message"):
        await anext(answers)


async def test_a_server_that_drains_answers_what_it_has_read_and_ends_its_streams() -> None:
    async def idle() -> AsyncIterator[str]:
        yield "message 0"
        yield "message 1"
        await asyncio.Event().wait()

    stream = Messages()
    answers = stream.streams.answers(idle(), stream.answer, stream.context)
    assert await anext(answers) == "answer 0"
    await turns(50)
    stream.streams.drain()
    assert await anext(answers) == "answer 1"
    with pytest.raises(ServerUnavailableError, match="shutting down; send what is not answered to another"):
        await anext(answers)
    finished = Messages(1)
    assert [answer async for answer in finished.answers()] == ["answer 0"]
