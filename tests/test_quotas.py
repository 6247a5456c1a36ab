"""Quotas: a client gets its share, whoever is greedy pays for it alone, and nobody is remembered for ever."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from boxloss import QuotaExceededError, ServerBusyError
from boxloss_server.batching import Quotas
from tests.test_batching import Room


class Rationed:
    """A room with quotas before its batcher."""

    def __init__(self, pairs_per_second: int = 0, waiting_pairs: int = 0, capacity: int = 10_000) -> None:
        self.room = Room(capacity)
        self.quotas = Quotas(self.room.batcher, pairs_per_second, waiting_pairs, self.room.ledger)

    async def submit(self, client: str, pairs: int = 1, patient: bool = False) -> Any:
        return await self.quotas.submit("ciou", client, pairs, client=client, patient=patient)


async def test_a_client_that_is_over_its_rate_is_turned_away_alone() -> None:
    rationed = Rationed(pairs_per_second=10)
    for _ in range(10):
        await rationed.submit("greedy")
    with pytest.raises(QuotaExceededError, match="used up its 10 pairs per second") as refused:
        await rationed.submit("greedy", pairs=5)
    assert 0 < refused.value.retry_after <= 0.5
    assert (await rationed.submit("modest", pairs=10)).result == "ciou:modest"
    assert rationed.room.ledger.rejections == ["quota"]


async def test_who_comes_again_when_told_is_taken() -> None:
    rationed = Rationed(pairs_per_second=100)
    started = time.monotonic()
    taken = 0
    while taken < 300:
        try:
            await rationed.submit("a", pairs=50)
        except QuotaExceededError as error:
            await asyncio.sleep(error.retry_after)
        else:
            taken += 50
    assert time.monotonic() - started >= 2  # The first 100 at once.


async def test_a_request_of_more_than_a_second_is_taken_and_paid_off() -> None:
    rationed = Rationed(pairs_per_second=10)
    await rationed.submit("a", pairs=1000)
    with pytest.raises(QuotaExceededError) as refused:
        await rationed.submit("a", pairs=1000)
    assert 98 < refused.value.retry_after <= 100


async def test_a_patient_request_waits_for_its_quota() -> None:
    rationed = Rationed(pairs_per_second=100)
    started = time.monotonic()
    await asyncio.gather(*(rationed.submit("a", pairs=50, patient=True) for _ in range(4)))
    assert time.monotonic() - started >= 1
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
    rationed.room.work.gate.clear()
    other = asyncio.create_task(rationed.submit("other", pairs=500))
    await rationed.room.until_waiting(500)
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


async def test_a_client_that_owes_is_not_forgotten() -> None:
    rationed = Rationed(pairs_per_second=10)
    await rationed.submit("debtor", pairs=1000)
    for number in range(10_000):
        rationed.quotas._account(f"client {number}")
    with pytest.raises(QuotaExceededError):
        await rationed.submit("debtor")


async def test_a_client_that_waits_is_not_forgotten() -> None:
    rationed = Rationed(waiting_pairs=300)
    rationed.room.work.gate.clear()
    waiting = asyncio.create_task(rationed.submit("waiting", pairs=300))
    await rationed.room.until_waiting(300)
    for number in range(10_000):
        rationed.quotas._account(f"client {number}")
    with pytest.raises(QuotaExceededError):
        await rationed.submit("waiting", pairs=200)
    rationed.room.work.gate.set()
    await waiting
