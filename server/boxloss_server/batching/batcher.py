"""The batcher: requests that ask for the same work wait together and are computed in one call."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar

from boxloss.errors import DeadlineExceededError, ServerBusyError
from boxloss_server.batching.capacity import Capacity
from boxloss_server.batching.observer import Observer

Result = TypeVar("Result")

_IDLE_TICK = 50e-6
"""Seconds. A turn of the event loop that takes less did nothing."""
_IDLE_TICKS = 40
"""So many idle turns, about 0.2 ms, are a pause: no call waits to be handed over."""


@dataclass(frozen=True)
class Outcome(Generic[Result]):
    """A request's result, and how it came about. Times are seconds."""

    result: Result
    queue_time: float
    compute_time: float
    batch_requests: int
    batch_pairs: int


@dataclass(frozen=True, eq=False)
class _Entry:
    """A request that waits."""

    request: Any
    pairs: int
    deadline: float
    arrived: float
    outcome: asyncio.Future[Outcome[Any]]


@dataclass(eq=False)
class _Batch:
    """The entries that wait for the same work."""

    work: Hashable
    entries: list[_Entry] = field(default_factory=list)
    pairs: int = 0
    opened: float = 0.0
    looked: float = 0.0
    """When the batch was last looked at, and how many entries it had then."""
    counted: int = 0
    idle_ticks: int = 0
    """Turns of the event loop since the last entry came in which the loop did nothing else."""
    timer: asyncio.Handle = field(init=False)


class Batcher:
    """Gathers requests into batches and computes them. Belongs to the event loop that it is made on.

    Small batches run on the event loop itself, where a hand-over to a thread and back would cost more than it frees;
    large ones run in a single worker thread, so that they do not keep small ones waiting.

    Args:
        compute: computes the same work for a list of requests; answers in their order.
        capacity: room for the requests that wait or are computed.
        window: longest time in seconds that a batch stays open while requests keep coming.
        batch_pairs: a batch closes when it has so many pairs.
        inline_pairs: batches of up to so many pairs run on the event loop.
        observer: hears what happens.
    """

    def __init__(
        self,
        compute: Callable[[Any, Sequence[Any]], Sequence[Any]],
        capacity: Capacity,
        window: float,
        batch_pairs: int,
        inline_pairs: int,
        observer: Observer,
    ) -> None:
        self._compute = compute
        self._capacity = capacity
        self._window = window
        self._batch_pairs = batch_pairs
        self._inline_pairs = inline_pairs
        self._observer = observer
        self._loop = asyncio.get_running_loop()
        self._open: dict[Hashable, _Batch] = {}
        self._overdue: deque[_Batch] = deque()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="boxloss-engine")
        self._worker_busy = False
        self._pairs_per_second = 1e6

    async def submit(
        self, work: Hashable, request: Any, pairs: int, deadline: float = float("inf"), patient: bool = False
    ) -> Outcome[Any]:
        """Has a request computed together with others that ask for the same work.

        Args:
            work: what to compute; requests with equal work share a batch.
            request: what to compute it for.
            pairs: how much the request counts against the capacity and the batch.
            deadline: time, as time.monotonic() tells it, after which nobody waits for the answer.
            patient: whether to wait for room instead of failing when the queue is full.

        Raises:
            ServerBusyError: there is no room.
            DeadlineExceededError: the deadline passed before the batch started; nothing was computed.
        """
        room = max(pairs, 1)  # Requests without pairs must not come without bound.
        if patient:
            await self._capacity.wait(room)
        elif not self._capacity.admit(room):
            self._observer.rejected("queue_full")
            raise ServerBusyError(
                f"the queue is full: {self._capacity.pairs} pairs wait; retry later, or add servers",
                retry_after=min(max(self._capacity.pairs / self._pairs_per_second, 0.01), 1.0),
            )
        try:
            self._observer.admitted(self._capacity.requests, self._capacity.pairs)
            return await self._enter(work, request, pairs, deadline)
        finally:
            self._capacity.release(room)
            self._observer.admitted(self._capacity.requests, self._capacity.pairs)

    def shut_down(self) -> None:
        """Lets go of the worker thread. Call it when no request waits any more."""
        self._worker.shutdown()

    def _enter(self, work: Hashable, request: Any, pairs: int, deadline: float) -> asyncio.Future[Outcome[Any]]:
        """Puts a request into the open batch for its work."""
        now = time.monotonic()
        batch = self._open.get(work)
        if batch is not None and batch.pairs + pairs > self._batch_pairs:
            self._close(batch, "full")
            batch = None
        if batch is None:
            batch = self._open[work] = _Batch(work, opened=now)
            batch.timer = self._loop.call_soon(self._look, batch)
        entry = _Entry(request, pairs, deadline, now, self._loop.create_future())
        batch.entries.append(entry)
        batch.pairs += pairs
        if batch.pairs >= self._batch_pairs:
            self._close(batch, "full")
        return entry.outcome

    def _look(self, batch: _Batch) -> None:
        """Called in every turn of the event loop while the batch gathers.

        Turns, not timers: event loops keep time in milliseconds, and gRPC hands over waiting calls one by one, a few
        turns apart.
        """
        now = time.monotonic()
        if len(batch.entries) > batch.counted:
            batch.counted = len(batch.entries)
            batch.idle_ticks = 0
        elif now - batch.looked < _IDLE_TICK:
            batch.idle_ticks += 1
        batch.looked = now
        if now - batch.opened >= self._window:
            self._close(batch, "window")
        elif batch.idle_ticks >= _IDLE_TICKS:
            self._close(batch, "pause")
        else:
            batch.timer = self._loop.call_soon(self._look, batch)

    def _close(self, batch: _Batch, reason: str) -> None:
        """Ends the batch's time of gathering. Where it has to wait for the worker, more may join until it is full."""
        batch.timer.cancel()
        if batch.pairs <= self._inline_pairs or not self._worker_busy:
            self._start(batch, reason)
            return
        if batch not in self._overdue:
            self._overdue.append(batch)
        if reason == "full":
            del self._open[batch.work]

    def _start(self, batch: _Batch, reason: str) -> None:
        """Computes the batch for those of its entries that still want it."""
        if self._open.get(batch.work) is batch:
            del self._open[batch.work]
        now = time.monotonic()
        entries = [entry for entry in batch.entries if self._is_wanted(entry, now)]
        pairs = sum(entry.pairs for entry in entries)
        if not entries:
            self._start_overdue()
            return
        self._observer.closed(reason, len(entries), pairs)
        for entry in entries:
            self._observer.queued(now - entry.arrived)
        compute = partial(self._compute, batch.work, [entry.request for entry in entries])
        if pairs <= self._inline_pairs:
            self._answer(entries, now, compute)
        else:
            self._worker_busy = True
            working = asyncio.wrap_future(self._worker.submit(compute))
            working.add_done_callback(partial(self._worked, entries, now))

    def _is_wanted(self, entry: _Entry, now: float) -> bool:
        if entry.outcome.done():
            return False
        if entry.deadline <= now:
            self._observer.rejected("deadline")
            entry.outcome.set_exception(
                DeadlineExceededError("the deadline passed while the request waited; allow more time")
            )
            return False
        return True

    def _worked(self, entries: list[_Entry], started: float, working: asyncio.Future[Sequence[Any]]) -> None:
        self._worker_busy = False
        self._answer(entries, started, working.result)
        self._start_overdue()

    def _start_overdue(self) -> None:
        if self._overdue and not self._worker_busy:
            self._start(self._overdue.popleft(), "worker")

    def _answer(self, entries: list[_Entry], started: float, compute: Callable[[], Sequence[Any]]) -> None:
        """Hands every entry its result, or all of them the error that the computation ends with."""
        try:
            results = compute()
        except Exception as error:
            for entry in entries:
                if not entry.outcome.done():
                    entry.outcome.set_exception(error)
            return
        seconds = time.monotonic() - started
        pairs = sum(entry.pairs for entry in entries)
        self._pairs_per_second += 0.1 * (pairs / max(seconds, 1e-6) - self._pairs_per_second)
        self._observer.computed(seconds)
        for entry, result in zip(entries, results, strict=True):
            if not entry.outcome.done():
                entry.outcome.set_result(Outcome(result, started - entry.arrived, seconds, len(entries), pairs))
