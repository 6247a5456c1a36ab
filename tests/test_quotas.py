"""Quotas: a client gets its share, whoever is greedy pays for it alone, and nobody is remembered for ever."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from boxloss import DeadlineExceededError, QuotaExceededError, ServerBusyError
from boxloss_server.batching import Quotas
from tests.clock import TURN, FakeClock
from tests.room import Answer, Room

pytestmark = pytest.mark.usefixtures("clock")


class Rationed:
    """A room with quotas before its batcher."""

    def __init__(self, pairs_per_second: int = 0, waiting_pairs: int = 0, capacity: int = 10_000) -> None:
        self.room = Room(capacity)
        self.quotas = Quotas(self.room.batcher, pairs_per_second, waiting_pairs, self.room.ledger)

    async def submit(self, client: str, pairs: int = 1, patient: bool = False) -> Any:
        return await self.quotas.submit("ciou", client, pairs, client=client, patient=patient)

    async def occupy(self, client: str, pairs: int) -> asyncio.Task[Any]:
        """Has a client's request wait until the work's gate opens."""
        self.room.work.gate.clear()
        waiting = asyncio.create_task(self.submit(client, pairs))
        await self.room.until_waiting(pairs)
        return waiting


async def test_a_client_that_is_over_its_rate_is_turned_away_alone() -> None:
    rationed = Rationed(pairs_per_second=10)
    for _ in range(10):
        await rationed.submit("greedy")
    with pytest.raises(QuotaExceededError, match="used up its 10 pairs per second") as refused:
        await rationed.submit("greedy", pairs=5)
    assert 0 < refused.value.retry_after <= 0.5
    assert (await rationed.submit("modest", pairs=10)).result == "ciou:modest"
    assert rationed.room.ledger.rejections == ["quota"]


async def test_who_comes_again_when_told_is_taken(clock: FakeClock) -> None:
    rationed = Rationed(pairs_per_second=100)
    started = clock.now
    taken = 0
    while taken < 300:
        try:
            await rationed.submit("a", pairs=50)
        except QuotaExceededError as error:
            await asyncio.sleep(error.retry_after)
        else:
            taken += 50
    assert clock.now - started == pytest.approx(2, abs=100 * TURN)  # The first 100 at once.


async def test_a_request_of_more_than_a_second_is_taken_and_paid_off() -> None:
    rationed = Rationed(pairs_per_second=10)
    await rationed.submit("a", pairs=1000)
    with pytest.raises(QuotaExceededError) as refused:
        await rationed.submit("a", pairs=1000)
    assert 98 < refused.value.retry_after <= 100


async def test_a_patient_request_waits_for_its_quota(clock: FakeClock) -> None:
    rationed = Rationed(pairs_per_second=100)
    started = clock.now
    await asyncio.gather(*(rationed.submit("a", pairs=50, patient=True) for _ in range(4)))
    assert clock.now - started == pytest.approx(1, abs=100 * TURN)
    assert rationed.room.ledger.rejections == []


async def test_a_patient_request_that_is_cancelled_costs_nothing() -> None:
    rationed = Rationed(pairs_per_second=10)
    await rationed.submit("a", pairs=10)
    waiting = asyncio.create_task(rationed.submit("a", pairs=10_000, patient=True))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    with pytest.raises(QuotaExceededError) as refused:
        await rationed.submit("a")
    assert refused.value.retry_after <= 0.1


async def test_what_a_full_queue_turns_away_costs_nothing() -> None:
    rationed = Rationed(pairs_per_second=1000, capacity=500)
    other = await rationed.occupy("other", 500)
    for _ in range(10):
        with pytest.raises(ServerBusyError, match="the queue is full"):
            await rationed.submit("a", pairs=1000)
    rationed.room.work.gate.set()
    await other
    assert rationed.room.ledger.rejections == ["queue_full"] * 10
    await rationed.submit("a", pairs=1000)


async def test_a_client_may_have_so_much_waiting() -> None:
    rationed = Rationed(waiting_pairs=300)
    rationed.room.work.gate.clear()
    waiting = asyncio.create_task(rationed.submit("greedy", pairs=300))
    await rationed.room.until_waiting(300)
    with pytest.raises(QuotaExceededError, match="300 pairs of this client wait, of 300 that may") as refused:
        await rationed.submit("greedy", pairs=200)
    assert refused.value.retry_after > 0
    patient = asyncio.create_task(rationed.submit("greedy", pairs=200, patient=True))
    modest = asyncio.create_task(rationed.submit("modest", pairs=200))
    await rationed.room.until_waiting(500)
    rationed.room.work.gate.set()
    await asyncio.gather(waiting, modest, patient)
    assert rationed.room.ledger.rejections == ["quota"]
    assert rationed.room.capacity.pairs == 0


async def test_a_request_larger_than_may_wait_is_taken_alone() -> None:
    rationed = Rationed(waiting_pairs=10)
    await rationed.submit("a", pairs=500)
    await rationed.submit("a", pairs=500)


async def test_idle_clients_are_forgotten() -> None:
    rationed = Rationed(pairs_per_second=1_000_000)
    for number in range(10_000):
        await rationed.submit(f"client {number}")
    assert len(rationed.quotas._accounts) <= 2048


async def test_patient_requests_leave_room_for_others_however_they_end() -> None:
    rationed = Rationed(waiting_pairs=10)
    async with asyncio.timeout(10):
        for _ in range(3):
            with pytest.raises(DeadlineExceededError):
                await rationed.quotas.submit("ciou", "a", 10, deadline=0.0, client="a", patient=True)
        for _ in range(3):
            await rationed.submit("a", pairs=10, patient=True)


async def test_clients_that_were_turned_away_are_forgotten() -> None:
    rationed = Rationed(waiting_pairs=1, capacity=1)
    waiting = await rationed.occupy("waiting", 300)
    for number in range(1100):
        with pytest.raises(ServerBusyError):
            await rationed.submit(f"client {number}")
    with pytest.raises(QuotaExceededError):
        await rationed.submit("waiting")
    assert len(rationed.quotas._accounts) < 1024
    rationed.room.work.gate.set()
    await waiting
    assert rationed.quotas._account("waiting").idle


async def test_a_client_that_owes_is_not_forgotten() -> None:
    rationed = Rationed(pairs_per_second=10)
    await rationed.submit("debtor", pairs=1000)
    for number in range(10_000):
        rationed.quotas._account(f"client {number}")
    with pytest.raises(QuotaExceededError):
        await rationed.submit("debtor")


async def test_a_client_that_waits_is_not_forgotten() -> None:
    rationed = Rationed(waiting_pairs=300)
    waiting = await rationed.occupy("waiting", 300)
    for number in range(10_000):
        rationed.quotas._account(f"client {number}")
    with pytest.raises(QuotaExceededError):
        await rationed.submit("waiting", pairs=200)
    rationed.room.work.gate.set()
    await waiting


async def test_an_answer_counts_against_its_client_until_it_is_written() -> None:
    rationed, answer = Rationed(waiting_pairs=100), Answer()
    await rationed.quotas.submit("ciou", "a", 100, client="deaf", until_written=answer.keep)
    with pytest.raises(QuotaExceededError, match="100 pairs of this client wait, of 100 that may"):
        await rationed.submit("deaf")
    assert (await rationed.submit("modest", pairs=100)).result == "ciou:modest"
    answer.written()
    assert (await rationed.submit("deaf", pairs=100)).result == "ciou:deaf"
    assert rationed.room.capacity.pairs == 0
