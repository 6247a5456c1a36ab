"""The queue: who finds room, who waits for it, and what the others are told. No gRPC, no torch, no real time."""

from __future__ import annotations

import asyncio

import pytest

from boxloss import ServerBusyError
from boxloss_server.batching import Capacity
from tests.clock import FakeClock
from tests.room import Room, Work

pytestmark = pytest.mark.usefixtures("clock")


async def test_a_full_queue_turns_away_and_says_when_to_return() -> None:
    room = Room(capacity=10)
    accepted = room.submit("accepted", pairs=10)
    await room.until_waiting(10)
    with pytest.raises(ServerBusyError, match="queue is full: 10 pairs") as refused:
        await room.submit("refused", pairs=3)
    assert 0 < refused.value.retry_after <= 1
    assert (await accepted).result == "ciou:accepted"
    assert room.ledger.rejections == ["queue_full"]
    assert (room.capacity.requests, room.capacity.pairs) == (0, 0)


@pytest.mark.parametrize(
    ("waiting", "delay"), [(9_999, 0.01), (10_000, 0.01), (10_001, 0.010001), (999_999, 0.999999), (1_000_001, 1.0)]
)
async def test_who_finds_no_room_is_told_to_return_when_what_waits_is_computed(waiting: int, delay: float) -> None:
    """At a million pairs per second, as long as nothing has been computed, within a hundredth of a second and one."""
    room = Room(capacity=waiting)
    assert room.capacity.admit(waiting)
    assert room.batcher.full
    assert room.batcher.refuse().retry_after == delay


async def test_the_delay_until_there_is_room_follows_the_speed_of_the_last_batches(clock: FakeClock) -> None:
    room = Room(capacity=100_000, work=Work(clock, seconds=1.0))
    for _ in range(2):  # Fifty pairs in a second: each batch counts a tenth.
        await room.submit("a", 50)
    speed = 1e6 * 0.9 * 0.9 + 50 * 0.1 * 0.9 + 50 * 0.1
    assert not room.batcher.full
    assert room.capacity.admit(100_000)
    assert room.batcher.refuse().retry_after == pytest.approx(100_000 / speed)
    assert room.ledger.rejections == ["queue_full"]


async def test_who_is_turned_away_is_told_how_long_the_queue_takes(clock: FakeClock) -> None:
    room = Room(capacity=10, work=Work(clock, seconds=0.5))
    for _ in range(200):
        await room.submit("a", pairs=10)
    room.capacity.admit(10)
    with pytest.raises(ServerBusyError) as refused:
        await room.submit("b")
    assert refused.value.retry_after == pytest.approx(0.5, rel=1e-3)


def test_a_large_request_finds_room_as_easily_as_a_small_one() -> None:
    capacity = Capacity(10)
    assert capacity.admit(9)
    assert capacity.admit(10)
    assert not capacity.admit(1)
    capacity.release(10, patient=False)
    assert capacity.admit(1)
    assert (capacity.requests, capacity.pairs) == (2, 10)


async def test_all_who_fit_are_let_in_when_room_becomes_free() -> None:
    capacity = Capacity(10)
    assert capacity.admit(10)
    patient = [asyncio.create_task(capacity.wait(1)) for _ in range(8)]
    await asyncio.sleep(0)
    capacity.release(10, patient=False)
    await asyncio.gather(*patient[:5])
    assert (capacity.requests, capacity.pairs) == (5, 5)  # Half of the room; the rest is for those who cannot wait.
    assert capacity.admit(5)
    for _ in range(5):
        capacity.release(1, patient=True)
    await asyncio.gather(*patient)
    assert (capacity.requests, capacity.pairs) == (4, 8)


async def test_neither_patient_nor_hasty_requests_keep_the_others_out() -> None:
    capacity = Capacity(10)
    answered = {"patient": 0, "hasty": 0}

    async def ask_patiently() -> None:
        while answered["patient"] < 100:
            await capacity.wait(1)
            await asyncio.sleep(0)
            answered["patient"] += 1
            capacity.release(1, patient=True)

    async def ask_hastily() -> None:
        while answered["patient"] < 100:
            admitted = capacity.admit(1)
            await asyncio.sleep(0)
            if admitted:
                answered["hasty"] += 1
                capacity.release(1, patient=False)

    async with asyncio.timeout(10):
        await asyncio.gather(*(ask_patiently() for _ in range(30)), *(ask_hastily() for _ in range(30)))
    assert min(answered.values()) > sum(answered.values()) / 4


async def test_a_patient_request_that_gives_up_as_it_is_let_in_gives_its_room_back() -> None:
    capacity = Capacity(10)
    assert capacity.admit(10)
    waiting = asyncio.create_task(capacity.wait(6))
    await asyncio.sleep(0)
    capacity.release(10, patient=False)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert (capacity.requests, capacity.pairs) == (0, 0)
    await capacity.wait(1)


async def test_patient_requests_wait_for_room_in_their_order() -> None:
    room = Room(capacity=10)
    tasks = [room.submit(name, pairs=6, patient=True) for name in "abcd"]
    assert [outcome.result for outcome in await asyncio.gather(*tasks)] == [f"ciou:{name}" for name in "abcd"]
    assert [requests for _, requests in room.work.batches] == [["a"], ["b"], ["c"], ["d"]]


async def test_a_patient_request_that_gives_up_lets_the_next_one_in() -> None:
    room = Room(capacity=10)
    first, second, third = (room.submit(name, pairs=6, patient=True) for name in "abc")
    await room.until_waiting(6)
    second.cancel()
    assert (await first).result == "ciou:a"
    assert (await third).result == "ciou:c"
