"""The batcher: who shares a batch, admission, deadlines, cancellation and failures. No gRPC, no torch."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from boxloss import DeadlineExceededError, ServerBusyError, ServerUnavailableError
from boxloss_server.batching import Batcher, Capacity

LARGE = 100


class Work:
    """Computes batches and remembers them; can be held up, and fails for the requests "poison" and "lost"."""

    def __init__(self) -> None:
        self.batches: list[tuple[Any, list[Any]]] = []
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, work: Any, requests: Sequence[Any]) -> list[Any]:
        self.gate.wait(timeout=30)
        self.batches.append((work, list(requests)))
        if "poison" in requests:
            raise RuntimeError("poisoned")
        if "lost" in requests:
            raise ServerUnavailableError("the device failed")
        return [ValueError("bad request") if request == "bad" else f"{work}:{request}" for request in requests]


class Ledger:
    """Remembers what the batcher tells."""

    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.rejections: list[str] = []
        self.admissions = 0
        self.queued_marks: list[int] = []
        self.failures: list[str] = []

    def admitted(self) -> int:
        self.admissions += 1
        return self.admissions

    def queued(self, seconds: float, mark: int) -> None:
        assert seconds >= 0
        self.queued_marks.append(mark)

    def closed(self, reason: str, requests: int, pairs: int, forming: float) -> None:
        assert forming >= 0
        self.reasons.append(reason)

    def computed(self, copy: float, compute: float, mark: int) -> None:
        assert min(copy, compute) >= 0
        assert mark in self.queued_marks

    def busy(self, seconds: float) -> None:
        assert seconds >= 0

    def failed(self, outcome: str) -> None:
        self.failures.append(outcome)

    def rejected(self, reason: str) -> None:
        self.rejections.append(reason)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - turns of the loop are what a batch waits for.
            await asyncio.sleep(0)


class Room:
    """A batcher with its surroundings; requests of more than `LARGE` pairs go to the worker."""

    def __init__(self, capacity: int = 10_000, batch_pairs: int = 1000, window: float = 0.05) -> None:
        self.work = Work()
        self.ledger = Ledger()
        self.capacity = Capacity(capacity)
        self.batcher = Batcher(
            self.work,
            time.thread_time,
            self.capacity,
            window=window,
            batch_pairs=batch_pairs,
            small_pairs=LARGE,
            observer=self.ledger,
        )

    def submit(self, request: str, pairs: int = 1, work: str = "ciou", **options: Any) -> asyncio.Task[Any]:
        return asyncio.get_running_loop().create_task(self.batcher.submit(work, request, pairs, **options))

    async def until_waiting(self, pairs: int) -> None:
        await until(lambda: self.capacity.pairs == pairs)


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
    await room.until_waiting(LARGE + 1)
    threading.Timer(0.2, room.work.gate.set).start()
    small = await asyncio.gather(*(room.submit(name) for name in "ab"))
    await large
    assert [outcome.result for outcome in small] == ["ciou:a", "ciou:b"]


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


async def test_callers_that_come_together_wait_for_each_other() -> None:
    room = Room()
    for _ in range(2):  # Two rounds show how many callers there are.
        await asyncio.gather(*(room.submit(name) for name in "abcd"))
    early = [room.submit(name) for name in "abc"]
    await room.until_waiting(3)
    for _ in range(1000):  # Many more turns of the loop than a pause has.
        await asyncio.sleep(0)
    late = room.submit("d")
    await asyncio.gather(*early, late)
    assert room.work.batches[-1] == ("ciou", ["a", "b", "c", "d"])


async def test_callers_that_have_gone_are_waited_for_no_longer_than_the_window() -> None:
    room = Room()
    for _ in range(2):
        await asyncio.gather(*(room.submit(name) for name in "abcd"))
    for _ in range(2):
        await room.submit("lone")
    assert room.ledger.reasons == ["alone", "pause", "window", "pause"]


async def test_a_round_closes_early_for_the_nearest_deadline() -> None:
    room = Room(window=60)
    for _ in range(2):
        await asyncio.gather(*(room.submit(name) for name in "abcd"))
    patient, hurried = room.submit("patient"), room.submit("hurried", work="giou", deadline=time.monotonic() + 0.1)
    assert (await hurried).result == "giou:hurried"
    assert (await patient).result == "ciou:patient"
    assert room.ledger.reasons[-2:] == ["deadline", "deadline"]


async def test_an_error_among_the_results_is_that_requests_own() -> None:
    room = Room()
    good, bad = room.submit("good"), room.submit("bad")
    assert (await good).result == "ciou:good"
    with pytest.raises(ValueError, match="bad request"):
        await bad


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


async def test_a_cancelled_request_is_never_computed() -> None:
    room = Room()
    cancelled, kept = room.submit("cancelled"), room.submit("kept")
    await room.until_waiting(2)
    cancelled.cancel()
    assert (await kept).result == "ciou:kept"
    assert room.work.batches == [("ciou", ["kept"])]
    assert room.capacity.pairs == 0


async def test_a_request_past_its_deadline_is_never_computed() -> None:
    room = Room()
    late, kept = room.submit("late", deadline=time.monotonic()), room.submit("kept")
    with pytest.raises(DeadlineExceededError):
        await late
    assert (await kept).result == "ciou:kept"
    assert room.work.batches == [("ciou", ["kept"])]
    assert room.ledger.rejections == ["deadline"]


@pytest.mark.parametrize("pairs", [1, LARGE + 1], ids=["on the loop", "in the worker"])
async def test_a_request_that_fails_harms_no_neighbour(pairs: int) -> None:
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
