"""The batcher: who shares a batch, deadlines, cancellation and failures. No gRPC, no torch, no real time."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from boxloss import DeadlineExceededError, ServerUnavailableError
from tests.clock import TURN, FakeClock, turns
from tests.room import LARGE, Room, Work, until

pytestmark = pytest.mark.usefixtures("clock")

MARGIN = 2e-3
"""Seconds before a deadline at which nobody is waited for any more."""


async def test_requests_for_the_same_work_share_a_batch() -> None:
    room = Room()
    outcomes = await asyncio.gather(*(room.submit(name) for name in "abc"), room.submit("d", work="giou"))
    assert [outcome.result for outcome in outcomes] == ["ciou:a", "ciou:b", "ciou:c", "giou:d"]
    assert sorted(room.work.batches) == [("ciou", ["a", "b", "c"]), ("giou", ["d"])]
    assert [outcome.batch_requests for outcome in outcomes] == [3, 3, 3, 1]


async def test_a_lone_request_does_not_wait_for_the_window() -> None:
    room = Room()
    await room.submit("a")
    assert room.ledger.reasons == ["alone"]


async def test_a_caller_that_calls_again_and_is_alone_waits_for_nobody(clock: FakeClock) -> None:
    room = Room()
    for name in "ab":
        await room.submit(name)
        await asyncio.sleep(1)
    assert room.ledger.reasons == ["alone", "alone"]


async def test_a_batch_closes_when_it_is_full() -> None:
    room = Room(batch_pairs=10)
    outcomes = await asyncio.gather(*(room.submit(name, pairs=4) for name in "abcde"))
    assert [requests for _, requests in room.work.batches] == [["a", "b"], ["c", "d"], ["e"]]
    assert room.ledger.reasons[:2] == ["full", "full"]
    assert [outcome.batch_pairs for outcome in outcomes] == [8, 8, 8, 8, 4]


async def test_a_request_larger_than_a_batch_is_a_batch_of_its_own() -> None:
    room = Room(batch_pairs=10)
    small, large = await asyncio.gather(room.submit("small"), room.submit("large", pairs=50))
    assert (small.batch_requests, large.batch_requests) == (1, 1)


async def test_a_large_batch_does_not_keep_small_ones_waiting() -> None:
    room = Room()
    room.work.gate.clear()
    large = room.submit("large", pairs=LARGE + 1)
    await until(lambda: room.ledger.reasons == ["idle"])
    small = [room.submit(name, pairs=LARGE) for name in "ab"]
    await until(lambda: all(call.done() for call in small))
    assert not large.done()
    assert [(await call).result for call in small] == ["ciou:a", "ciou:b"]
    room.work.gate.set()
    assert (await large).result == "ciou:large"


@pytest.mark.parametrize(("pairs", "reason"), [(LARGE - 1, "alone"), (LARGE, "alone"), (LARGE + 1, "idle")])
async def test_a_request_is_small_up_to_the_limit(pairs: int, reason: str) -> None:
    room = Room()
    await room.submit("a", pairs)
    assert room.ledger.reasons == [reason]


@pytest.mark.parametrize(("pairs", "batches"), [(LARGE - 1, 1), (LARGE, 1), (LARGE + 1, 2)])
async def test_a_batch_of_small_requests_is_small_too(pairs: int, batches: int) -> None:
    room = Room()
    await asyncio.gather(room.submit("a", 60), room.submit("b", pairs - 60))
    assert len(room.work.batches) == batches


@pytest.mark.parametrize(("limit", "batches"), [(4 * LARGE - 1, 2), (4 * LARGE, 1), (4 * LARGE + 1, 1)])
async def test_a_batch_of_large_requests_fills_up_to_its_limit(limit: int, batches: int) -> None:
    room = Room(batch_pairs=limit)
    room.work.gate.clear()
    first = room.submit("first", LARGE + 1)
    await until(lambda: room.ledger.reasons == ["idle"])
    others = [room.submit(name, 2 * LARGE) for name in "ab"]
    await until(lambda: room.capacity.requests == 3)
    room.work.gate.set()
    await asyncio.gather(first, *others)
    assert len(room.work.batches) == 1 + batches


async def test_large_batches_grow_while_the_worker_is_busy() -> None:
    room = Room()
    room.work.gate.clear()
    first = room.submit("first", pairs=LARGE + 1)
    await until(lambda: bool(room.ledger.reasons))
    later = [room.submit(name, pairs=LARGE + 1) for name in "abc"]
    await room.until_waiting(4 * (LARGE + 1))
    room.work.gate.set()
    await asyncio.gather(first, *later)
    assert [requests for _, requests in room.work.batches] == [["first"], ["a", "b", "c"]]
    assert room.ledger.reasons == ["idle", "worker"]
    assert len(room.ledger.busy_times) == 2
    assert max(room.ledger.busy_times) < 60


async def test_clients_with_large_requests_take_turns() -> None:
    room = Room(batch_pairs=2 * LARGE)
    room.work.gate.clear()
    first = room.submit("first", pairs=LARGE + 1)
    await until(lambda: bool(room.ledger.reasons))
    many = [room.submit(f"many{number}", pairs=LARGE + 1, client="many") for number in range(3)]
    await room.until_waiting(4 * (LARGE + 1))
    few = room.submit("few", pairs=LARGE + 1, client="few")
    await room.until_waiting(5 * (LARGE + 1))
    room.work.gate.set()
    await asyncio.gather(first, *many, few)
    assert [requests for _, requests in room.work.batches] == [["first"], ["many0"], ["few"], ["many1"], ["many2"]]


async def test_a_large_batch_passes_over_those_who_ask_for_other_work() -> None:
    room = Room()
    room.work.gate.clear()
    first = room.submit("first", pairs=LARGE + 1)
    await until(lambda: bool(room.ledger.reasons))
    asked = {"a": "ciou", "b": "giou", "c": "ciou"}
    later = [room.submit(name, LARGE + 1, work, client=name) for name, work in asked.items()]
    await room.until_waiting(4 * (LARGE + 1))
    room.work.gate.set()
    await asyncio.gather(first, *later)
    assert room.work.batches[1:] == [("ciou", ["a", "c"]), ("giou", ["b"])]


async def test_callers_that_come_together_wait_for_each_other() -> None:
    room = Room()
    for _ in range(2):  # Two rounds show how many callers there are.
        await asyncio.gather(*(room.submit(name) for name in "abcd"))
    early = [room.submit(name) for name in "abc"]
    await room.until_waiting(3)
    await turns(1000)  # Many more than a pause has.
    late = room.submit("d")
    await asyncio.gather(*early, late)
    assert room.work.batches[-1] == ("ciou", ["a", "b", "c", "d"])
    assert room.ledger.reasons[-1] == "pause"  # All are there: it is not the window's end.


async def test_a_round_lasts_while_callers_keep_coming(clock: FakeClock) -> None:
    room = Room(window=60)
    for _ in range(2):
        await asyncio.gather(room.submit("a"), room.submit("b"))
    calls = []
    for name in "cdefg":
        calls.append(room.submit(name))
        await turns(10)  # Fewer than a pause has.
    await asyncio.gather(*calls)
    assert room.work.batches[-1] == ("ciou", list("cdefg"))
    assert room.ledger.reasons[-1] == "pause"


async def test_callers_that_have_gone_are_waited_for_no_longer_than_the_window() -> None:
    room = Room()
    for _ in range(2):
        await asyncio.gather(*(room.submit(name) for name in "abcd"))
    for _ in range(2):
        await room.submit("lone")
    assert room.ledger.reasons == ["alone", "pause", "window", "pause"]


async def test_a_round_closes_early_for_the_nearest_deadline(clock: FakeClock) -> None:
    room = Room(window=60)
    for _ in range(2):
        await asyncio.gather(*(room.submit(name) for name in "abcd"))
    deadline = clock.now + 0.1
    patient = room.submit("patient", deadline=deadline + 1)
    hurried, other = room.submit("hurried", work="giou", deadline=deadline), room.submit("other", deadline=deadline + 2)
    outcome = await hurried
    assert outcome.result == "giou:hurried"
    assert outcome.ended == pytest.approx(deadline - MARGIN, abs=2 * TURN)
    assert (await patient).result == "ciou:patient"
    assert (await other).result == "ciou:other"
    assert room.ledger.reasons[-2:] == ["deadline", "deadline"]


@pytest.mark.parametrize(("after", "reason"), [(-TURN, "deadline"), (TURN, "window")])
async def test_a_deadline_closes_no_round_that_closes_before(clock: FakeClock, after: float, reason: str) -> None:
    room = Room(window=60)
    for _ in range(2):
        await asyncio.gather(*(room.submit(name) for name in "abcd"))
    opens = clock.now + TURN
    await room.submit("a", deadline=opens + 60 + MARGIN + after)
    assert room.ledger.reasons[-1] == reason
    assert clock.now == pytest.approx(opens + 60 + min(after, 0), abs=3 * TURN)


# What is told of time


async def test_an_outcome_tells_how_long_it_waited_and_what_its_batch_took(clock: FakeClock) -> None:
    room = Room(work=Work(clock, seconds=4.0))
    started = clock.now
    first, second = await asyncio.gather(room.submit("a", 30), room.submit("b", 20))
    wait: Any = pytest.approx(0, abs=3 * TURN)
    for outcome in (first, second):
        assert (outcome.copy_time, outcome.compute_time, outcome.batch_requests, outcome.batch_pairs) == (2, 2, 2, 50)
        assert outcome.queue_time == wait
        assert outcome.ended == pytest.approx(started + 4, abs=3 * TURN)
    assert room.ledger.closings == [("alone", 2, 50, wait)]
    assert room.ledger.queue_times == [wait, wait]
    assert room.ledger.computations == [(2, 2, 1)]
    assert room.ledger.busy_times == [4]


async def test_each_batch_tells_its_own_times(clock: FakeClock) -> None:
    room = Room(work=Work(clock, seconds=4))
    for _ in range(2):
        outcome = await room.submit("a")
        assert (outcome.copy_time, outcome.compute_time) == (2, 2)


async def test_the_oldest_request_is_the_first_admitted_of_those_that_wait(clock: FakeClock) -> None:
    room = Room()
    assert room.batcher.oldest == 0
    room.work.gate.clear()
    first = room.submit("first", LARGE + 1)
    await turns(2)
    admitted = clock.now
    clock.now += 10
    second = room.submit("second", LARGE + 1)
    await turns(2)
    assert (await room.submit("small")).result == "ciou:small"  # Younger, and answered before.
    clock.now += 5
    assert room.batcher.oldest == pytest.approx(clock.now - admitted, abs=3 * TURN)
    first.cancel()
    await turns(2)
    assert room.batcher.oldest == pytest.approx(5, abs=20 * TURN)
    room.work.gate.set()
    await second
    assert room.batcher.oldest == 0


async def test_a_batch_forms_since_the_first_of_its_requests_came(clock: FakeClock) -> None:
    """Which need not be the first whose client has its turn; one that is cancelled does not count."""
    room = Room(batch_pairs=2 * (LARGE + 1))
    room.work.gate.clear()
    calls = []
    for name, client in (("a", "many"), ("b", "few"), ("cancelled", "many"), ("d", "many"), ("e", "few")):
        calls.append(room.submit(name, LARGE + 1, client=client))
        await turns(2)
        clock.now += 1
    calls[2].cancel()
    await turns(2)
    assert room.ledger.reasons == ["idle"]
    room.work.gate.set()
    await asyncio.gather(*calls, return_exceptions=True)
    assert [requests for _, requests in room.work.batches] == [["a"], ["b"], ["e", "d"]]
    forming = [each[-1] for each in room.ledger.closings]
    assert forming == pytest.approx([0, 4, 2], abs=30 * TURN)
    assert room.ledger.queue_times == pytest.approx([0, 4, 1, 2], abs=30 * TURN)


async def test_an_error_among_the_results_is_that_requests_own() -> None:
    room = Room()
    good, bad = room.submit("good"), room.submit("bad")
    assert (await good).result == "ciou:good"
    with pytest.raises(ValueError, match="bad request"):
        await bad


async def test_a_cancelled_request_is_never_computed() -> None:
    room = Room()
    cancelled, kept = room.submit("cancelled"), room.submit("kept")
    await room.until_waiting(2)
    cancelled.cancel()
    assert (await kept).result == "ciou:kept"
    assert room.work.batches == [("ciou", ["kept"])]
    assert room.capacity.pairs == 0


async def test_a_request_past_its_deadline_is_never_computed(clock: FakeClock) -> None:
    room = Room()
    late, kept = room.submit("late", deadline=clock.now), room.submit("kept")
    with pytest.raises(DeadlineExceededError):
        await late
    assert (await kept).result == "ciou:kept"
    assert room.work.batches == [("ciou", ["kept"])]
    assert room.ledger.rejections == ["deadline"]


async def test_at_its_deadline_a_request_is_late(clock: FakeClock) -> None:
    room = Room()
    await room.submit("a")
    await asyncio.sleep(1)  # Who comes next is alone, and computed at once.
    with pytest.raises(DeadlineExceededError, match=r"^the deadline passed while the request waited; allow more time$"):
        await room.batcher.submit("ciou", "b", 1, deadline=clock.now)
    await asyncio.sleep(1)
    await room.batcher.submit("ciou", "b", 1, deadline=clock.now + TURN)


@pytest.mark.parametrize("pairs", [1, LARGE + 1], ids=["on the loop", "in the worker"])
async def test_a_request_that_fails_harms_no_neighbor(pairs: int) -> None:
    room = Room(batch_pairs=1000 * pairs)
    room.work.gate.clear()
    first = room.submit("first", LARGE + 1)  # Holds the worker, so that the others share a batch there.
    await until(lambda: room.ledger.reasons == ["idle"])
    names = [f"{i}" for i in range(64)]
    names[5] = names[40] = "poison"
    calls = [room.submit(name, pairs) for name in names]
    await until(lambda: room.capacity.requests == 65)
    room.work.gate.set()
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert (await first).result == "ciou:first"
    for name, outcome in zip(names, outcomes, strict=True):
        if name == "poison":
            assert str(outcome) == "poisoned"
        else:
            assert not isinstance(outcome, BaseException)
            assert outcome.result == f"ciou:{name}"
    computed = [len(requests) for _, requests in room.work.batches]
    assert max(computed) == 64
    assert all(sum(name in requests for _, requests in room.work.batches) <= 7 for name in names if name != "poison")
    assert Counter(room.ledger.failures) == {"request": 2, "split": 11}  # Of 64, twice 32, ... twice 2.
    assert room.capacity.pairs == 0


async def test_what_no_half_can_be_computed_with_is_not_split() -> None:
    room = Room()
    outcomes = await asyncio.gather(*(room.submit(name) for name in ("a", "lost", "b")), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [ServerUnavailableError] * 3
    assert len(room.work.batches) == 1
    assert (await room.submit("c")).result == "ciou:c"


async def test_a_batch_that_fails_in_the_worker_does_not_end_the_worker() -> None:
    room = Room()
    with pytest.raises(RuntimeError, match="poisoned"):
        await room.submit("poison", LARGE + 1)
    assert (await room.submit("b", LARGE + 1)).result == "ciou:b"
    assert room.capacity.pairs == 0
