"""The batcher: who shares a batch, admission, deadlines, cancellation and failures. No gRPC, no torch, no real time."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from boxloss import DeadlineExceededError, ServerBusyError, ServerUnavailableError
from boxloss_server.batching import Batcher, Capacity
from boxloss_server.batching.unread import Unread
from tests.clock import TURN, FakeClock, turns

pytestmark = pytest.mark.usefixtures("clock")

LARGE = 100
MARGIN = 2e-3
"""Seconds before a deadline at which nobody is waited for any more."""


class Work:
    """Computes batches and remembers them; fails for the requests "poison" and "lost".

    Args:
        clock: goes on by `seconds` while a batch is computed, half of them in the function itself.
    """

    def __init__(self, clock: FakeClock | None = None, seconds: float = 0.0) -> None:
        self.batches: list[tuple[Any, list[Any]]] = []
        self.gate = threading.Event()
        """Holds the worker thread up, but not what is computed on the event loop."""
        self.gate.set()
        self.clock = clock
        self.seconds = seconds
        self.function_seconds = 0.0

    def __call__(self, work: Any, requests: Sequence[Any]) -> list[Any]:
        if threading.current_thread() is not threading.main_thread():
            self.gate.wait(timeout=30)
        self.batches.append((work, list(requests)))
        if self.clock:
            self.clock.now += self.seconds
            self.function_seconds += self.seconds / 2
        if "poison" in requests:
            raise RuntimeError("poisoned")
        if "lost" in requests:
            raise ServerUnavailableError("the device failed")
        return [ValueError("bad request") if request == "bad" else f"{work}:{request}" for request in requests]


class Ledger:
    """Remembers what the batcher tells."""

    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.closings: list[tuple[str, int, int, float]] = []
        self.rejections: list[str] = []
        self.admissions = 0
        self.queued_marks: list[int] = []
        self.queue_times: list[float] = []
        self.computations: list[tuple[float, float, int]] = []
        self.busy_times: list[float] = []
        self.failures: list[str] = []

    def admitted(self) -> int:
        self.admissions += 1
        return self.admissions

    def queued(self, seconds: float, mark: int) -> None:
        assert seconds >= 0
        self.queued_marks.append(mark)
        self.queue_times.append(seconds)

    def closed(self, reason: str, requests: int, pairs: int, forming: float) -> None:
        assert forming >= 0
        self.reasons.append(reason)
        self.closings.append((reason, requests, pairs, forming))

    def computed(self, copy: float, compute: float, mark: int) -> None:
        assert min(copy, compute) >= 0
        assert mark in self.queued_marks
        self.computations.append((copy, compute, mark))

    def busy(self, seconds: float) -> None:
        assert seconds >= 0
        self.busy_times.append(seconds)

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

    def __init__(
        self, capacity: int = 10_000, batch_pairs: int = 1000, window: float = 0.05, work: Work | None = None
    ) -> None:
        self.work = work or Work()
        self.ledger = Ledger()
        self.capacity = Capacity(capacity)
        self.batcher = Batcher(
            self.work,
            lambda: self.work.function_seconds,
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


async def test_a_request_past_its_deadline_is_never_computed(clock: FakeClock) -> None:
    room = Room()
    late, kept = room.submit("late", deadline=clock.now), room.submit("kept")
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


# Answers that are not read


class Answer:
    """Keeps the room of an answer until it is written."""

    def __init__(self) -> None:
        self._give_back: list[Callable[[], None]] = []

    def keep(self, give_back: Callable[[], None]) -> None:
        self._give_back.append(give_back)

    def written(self) -> None:
        for give_back in self._give_back:
            give_back()


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


async def test_each_batch_tells_its_own_times(clock: FakeClock) -> None:
    room = Room(work=Work(clock, seconds=4))
    for _ in range(2):
        outcome = await room.submit("a")
        assert (outcome.copy_time, outcome.compute_time) == (2, 2)


async def test_who_is_turned_away_is_told_how_long_the_queue_takes(clock: FakeClock) -> None:
    room = Room(capacity=10, work=Work(clock, seconds=0.5))
    for _ in range(200):
        await room.submit("a", pairs=10)
    room.capacity.admit(10)
    with pytest.raises(ServerBusyError) as refused:
        await room.submit("b")
    assert refused.value.retry_after == pytest.approx(0.5, rel=1e-3)


async def test_at_its_deadline_a_request_is_late(clock: FakeClock) -> None:
    room = Room()
    await room.submit("a")
    await asyncio.sleep(1)  # Who comes next is alone, and computed at once.
    with pytest.raises(DeadlineExceededError, match=r"^the deadline passed while the request waited; allow more time$"):
        await room.batcher.submit("ciou", "b", 1, deadline=clock.now)
    await asyncio.sleep(1)
    await room.batcher.submit("ciou", "b", 1, deadline=clock.now + TURN)
