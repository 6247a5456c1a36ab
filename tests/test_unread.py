"""Answers that are not read: what they keep of the queue. No gRPC, no torch, no real time."""

from __future__ import annotations

import asyncio

import pytest

from boxloss import ServerBusyError
from boxloss_server.batching.unread import Unread
from tests.clock import turns
from tests.room import Answer, Room

pytestmark = pytest.mark.usefixtures("clock")


async def test_a_request_keeps_its_room_until_its_answer_is_written() -> None:
    room, answer = Room(), Answer()
    await room.submit("a", pairs=7, until_written=answer.keep)
    assert (room.capacity.pairs, room.capacity.requests) == (7, 1)
    answer.written()
    assert (room.capacity.pairs, room.capacity.requests) == (0, 0)
    with pytest.raises(RuntimeError):
        await room.submit("poison", pairs=7, until_written=answer.keep)
    assert (room.capacity.pairs, room.capacity.requests) == (0, 0)


async def test_a_client_that_does_not_read_more_than_a_quarter_of_the_capacity_must_read_first() -> None:
    """Below and at its share it may ask for more; above, it alone is turned away, and its room is others' room."""
    room = Room(capacity=40)
    answers = [Answer() for _ in range(4)]
    for answer, pairs in zip(answers, (9, 1, 1), strict=False):
        await room.submit("a", pairs, client="deaf", until_written=answer.keep)
    assert room.capacity.pairs == 11
    with pytest.raises(ServerBusyError, match="has not read its answers of over 10 pairs") as refused:
        await room.submit("a", 1, client="deaf", until_written=answers[3].keep)
    assert refused.value.retry_after > 0
    assert room.ledger.rejections == ["queue_full"]
    assert (await room.submit("b", 29, client="other")).result == "ciou:b"
    answers[2].written()
    assert (await room.submit("a", 1, client="deaf", until_written=answers[3].keep)).result == "ciou:a"
    for answer in (answers[0], answers[1], answers[3]):
        answer.written()
    assert (room.capacity.pairs, room.capacity.requests) == (0, 0)


async def test_a_client_cannot_fill_the_room_by_asking_at_once_and_reading_nothing() -> None:
    room, answers = Room(capacity=40), [Answer() for _ in range(4)]
    await asyncio.gather(*(room.submit("a", 10, client="deaf", until_written=answer.keep) for answer in answers))
    assert room.capacity.pairs == 20  # Its share, and the one that went beyond.
    for answer in answers:
        answer.written()
    assert (room.capacity.pairs, room.capacity.requests) == (0, 0)


async def test_a_patient_request_waits_until_its_client_has_read() -> None:
    room, answer, last = Room(capacity=40), Answer(), Answer()
    await room.submit("a", 11, client="deaf", patient=True, until_written=answer.keep)
    waiting, given_up = (room.submit("b", 1, client="deaf", patient=True, until_written=last.keep) for _ in range(2))
    other = await room.submit("c", 1, client="other", patient=True)
    assert other.result == "ciou:c"
    assert not waiting.done()
    given_up.cancel()
    answer.written()
    assert (await waiting).result == "ciou:b"
    last.written()
    with pytest.raises(asyncio.CancelledError):
        await given_up
    assert room.ledger.rejections == ["cancelled"]
    assert (room.capacity.pairs, room.capacity.requests, room.capacity._patient_pairs) == (0, 0, 0)


async def test_who_waits_until_its_client_has_read_and_is_cancelled_leaves_no_trace() -> None:
    unread = Unread(share=10)
    unread.add("a", 11)
    patient, cancelled = (asyncio.create_task(unread.wait("a")) for _ in range(2))
    await turns(5)
    cancelled.cancel()
    await turns(5)
    assert cancelled.cancelled()
    assert not patient.done()
    unread.remove("a", 1)
    await patient
    assert unread._line == {}
    assert unread._pairs == {"a": 10}
