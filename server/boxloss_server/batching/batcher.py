"""The batcher: requests that ask for the same work are computed in one call."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

from boxloss.errors import DeadlineExceededError, ServerBusyError
from boxloss_server.batching.admission import Outcome
from boxloss_server.batching.backlog import Backlog
from boxloss_server.batching.capacity import Capacity
from boxloss_server.batching.halves import Compute, in_halves
from boxloss_server.batching.observer import Observer
from boxloss_server.batching.unread import Unread, UntilWritten

_PAUSE = 150e-6
"""Seconds. If the event loop has nothing to do for so long, no call waits to be handed over."""
_IDLE_TURN = 25e-6
"""Seconds. A turn of the event loop that takes less did nothing."""
_ALONE = 150e-6
"""Seconds. A caller that is alone needs longer to call again; if less has passed since an answer, there are others."""
_QUICK = 200e-6
"""Seconds. Where computing takes longer, a caller that seems alone waits for a turn of the loop: while others are
computed one by one, those behind them would seem alone for ever."""
_FEW = 4
"""Callers that are not worth waiting for: one's request is better computed while another's is on its way."""
_UNREAD_SHARE = 1 / 4
"""Of the capacity: what one client can hold by not reading its answers. Others have the rest."""
_UNREAD_RETRY_AFTER = 0.1
"""Seconds. When a client will have read is not known."""
_MARGIN = 2e-3
"""Seconds before a request's deadline at which it stops to wait for others."""


class _Entry(NamedTuple):
    """A request that waits."""

    work: Hashable
    request: Any
    pairs: int
    deadline: float
    client: Hashable
    arrived: float
    mark: Any
    outcome: asyncio.Future[Outcome[Any]]


class _Run(NamedTuple):
    """A batch that has been computed, or has failed."""

    results: Sequence[Any]
    compute_time: float
    ended: float


class _Batch:
    """Small requests that ask for the same work."""

    def __init__(self) -> None:
        self.entries: list[_Entry] = []
        self.pairs = 0


class _Round:
    """The small requests that gather at a time."""

    def __init__(self, opened: float, closes: float) -> None:
        self.batches: dict[Hashable, _Batch] = {}
        self.requests = 0
        self.closes = closes
        self.looked = opened
        """When the event loop was last looked at, and how many requests there were then."""
        self.counted = 0
        self.idle = 0.0
        """Seconds in which the loop had nothing to do since the last request came."""
        self.timer: asyncio.Handle | None = None
        self.look: asyncio.Handle | None = None


class Batcher:
    """Gathers requests into batches and computes them. Belongs to the event loop that it is made on.

    Small requests gather in rounds and are computed on the event loop itself, where a hand-over to a thread and back
    would cost more than it frees. A round lasts until as many requests have come as in the last ones, unless those were
    few, and the loop has a pause: many callers find each other. A lone caller waits for nobody.

    Large requests wait for a single worker thread, and share a batch with those that come until it is free.

    Args:
        compute: computes the same work for a list of requests; answers in their order, with a result or an error. A
            batch for which it raises is computed in halves.
        clock: tells the seconds for which the function alone has run, for the thread that asks.
        capacity: room for the requests that wait or are computed.
        window: longest time in seconds that a round lasts.
        batch_pairs: most pairs of a batch of large requests, unless a single one has more.
        small_pairs: requests of up to so many pairs are small, and so are their batches.
        observer: hears what happens.
    """

    def __init__(
        self,
        compute: Compute,
        clock: Callable[[], float],
        capacity: Capacity,
        window: float,
        batch_pairs: int,
        small_pairs: int,
        observer: Observer,
    ) -> None:
        self._compute = in_halves(compute, observer.failed)
        self._clock = clock
        self._capacity = capacity
        self._unread = Unread(int(capacity.limit * _UNREAD_SHARE))
        self._window = window
        self._batch_pairs = batch_pairs
        self._small_pairs = min(small_pairs, batch_pairs)
        self._observer = observer
        self._loop = asyncio.get_running_loop()
        self._round: _Round | None = None
        self._last_rounds = (1, 1)
        self._answered = 0.0
        self._last_seconds = float("inf")
        """What the last batch of small requests took to compute."""
        self._backlog: Backlog[_Entry] = Backlog()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="boxloss-engine")
        self._worker_busy = False
        self._arrivals: dict[asyncio.Future[Any], float] = {}
        """When the requests were admitted that are not yet answered, in this order."""
        self._pairs_per_second = 1e6

    @property
    def oldest(self) -> float:
        """Seconds since the admission of the request that has waited longest for its answer; 0 if none waits.

        Any thread may ask.
        """
        arrivals = list(self._arrivals.values())
        return time.monotonic() - arrivals[0] if arrivals else 0.0

    @property
    def full(self) -> bool:
        """Whether a request that is not patient would find no room."""
        return self._capacity.full

    def refuse(self) -> ServerBusyError:
        """What a request is told that finds no room; it counts as rejected."""
        self._observer.rejected("queue_full")
        return ServerBusyError(
            f"the queue is full: {self._capacity.pairs} pairs wait; retry later, or add servers",
            retry_after=min(max(self._capacity.pairs / self._pairs_per_second, 0.01), 1.0),
        )

    async def submit(
        self,
        work: Hashable,
        request: Any,
        pairs: int,
        deadline: float = float("inf"),
        client: Hashable = None,
        patient: bool = False,
        until_written: UntilWritten | None = None,
    ) -> Outcome[Any]:
        """Has a request computed together with others: see `Admission`."""
        room = max(pairs, 1)  # Requests without pairs must not come without bound.
        if patient:
            await self._room(room, client)
        elif self._unread.too_much(client):
            raise self._refuse_unread()
        elif not self._capacity.admit(room):
            raise self.refuse()
        arrived, mark = time.monotonic(), self._observer.admitted()
        entry = _Entry(work, request, pairs, deadline, client, arrived, mark, self._loop.create_future())
        self._arrivals[entry.outcome] = entry.arrived
        try:
            if pairs <= self._small_pairs:
                self._gather(entry)
            else:
                self._backlog.add(entry)
                self._start_worker("idle")
            outcome = await entry.outcome
        except BaseException:
            self._capacity.release(room, patient)
            raise
        finally:
            del self._arrivals[entry.outcome]
        if until_written is None or self._unread.too_much(client):
            self._capacity.release(room, patient)
            if until_written is None:
                return outcome
            written = partial(self._unread.remove, client, room)
        else:
            written = partial(self._written, client, room, patient)
        self._unread.add(client, room)
        until_written(written)
        return outcome

    def shut_down(self) -> None:
        """Lets go of the worker thread, which ends with what it computes. Call it when no request waits any more."""
        self._worker.shutdown(wait=False)

    def _written(self, client: Hashable, pairs: int, patient: bool) -> None:
        self._unread.remove(client, pairs)
        self._capacity.release(pairs, patient)

    def _refuse_unread(self) -> ServerBusyError:
        self._observer.rejected("queue_full")
        return ServerBusyError(
            f"this client has not read its answers of over {self._unread.share} pairs; read them, or send less at once",
            retry_after=_UNREAD_RETRY_AFTER,
        )

    async def _room(self, pairs: int, client: Hashable) -> None:
        """Waits for room."""
        try:
            if self._unread.too_much(client):
                await self._unread.wait(client)
            await self._capacity.wait(pairs)
        except asyncio.CancelledError:
            self._observer.rejected("cancelled")
            raise

    def _gather(self, entry: _Entry) -> None:
        """Puts a small request into the round."""
        gathering = self._round
        if gathering is None:
            alone = self._last_rounds == (1, 1) and entry.arrived - self._answered > _ALONE
            if alone and self._last_seconds < _QUICK:
                self._compute_batch([entry], "alone")
                self._answered = time.monotonic()
                return
            gathering = self._round = _Round(entry.arrived, entry.arrived + self._window)
            if alone:
                gathering.look = self._loop.call_soon(self._close, "alone")
            else:
                gathering.timer = self._loop.call_later(self._window, self._close, "window")
        batch = gathering.batches.get(entry.work)
        if batch is not None and batch.pairs + entry.pairs > self._small_pairs:
            self._compute_batch(gathering.batches.pop(entry.work).entries, "full")
            batch = None
        if batch is None:
            batch = gathering.batches[entry.work] = _Batch()
        batch.entries.append(entry)
        batch.pairs += entry.pairs
        gathering.requests += 1
        if gathering.timer and entry.deadline - _MARGIN < gathering.closes:
            gathering.closes = entry.deadline - _MARGIN
            gathering.timer.cancel()
            gathering.timer = self._loop.call_later(max(gathering.closes - entry.arrived, 0), self._close, "deadline")
        came = min(self._last_rounds)
        if gathering.look is None and (came < _FEW or gathering.requests >= came):
            gathering.look = self._loop.call_soon(self._look, gathering)

    def _look(self, gathering: _Round) -> None:
        """Looks for a pause, in every turn of the event loop: its timers are too coarse."""
        now = time.monotonic()
        elapsed = now - gathering.looked
        gathering.looked = now
        if gathering.requests > gathering.counted:
            gathering.counted = gathering.requests
            gathering.idle = 0.0
        elif elapsed < _IDLE_TURN:
            gathering.idle += elapsed
        if gathering.idle >= _PAUSE:
            self._close("pause")
        else:
            gathering.look = self._loop.call_soon(self._look, gathering)

    def _close(self, reason: str) -> None:
        """Ends the round and computes its batches."""
        gathering = self._round
        assert gathering
        self._round = None
        for handle in (gathering.timer, gathering.look):
            if handle:
                handle.cancel()
        self._last_rounds = (self._last_rounds[1], gathering.requests)
        for batch in gathering.batches.values():
            self._compute_batch(batch.entries, reason)
        self._answered = time.monotonic()

    def _compute_batch(self, entries: list[_Entry], reason: str) -> None:
        """Computes a batch of small requests here and now."""
        now = time.monotonic()
        if entries := self._wanted(entries, reason, now):
            run = self._run(entries)
            self._answer(entries, now, run)
            if not self._worker_busy:
                self._observer.busy(run.ended - now)
            self._last_seconds = time.monotonic() - now

    def _start_worker(self, reason: str) -> None:
        """Has the worker compute the next batch of large requests, if it is free."""
        while self._backlog and not self._worker_busy:
            now = time.monotonic()
            if entries := self._wanted(self._backlog.take(self._batch_pairs), reason, now):
                self._worker_busy = True
                computing = self._worker.submit(self._run, entries)
                asyncio.wrap_future(computing).add_done_callback(partial(self._worked, entries, now))

    def _worked(self, entries: list[_Entry], started: float, computed: asyncio.Future[_Run]) -> None:
        self._worker_busy = False
        self._start_worker("worker")  # First of all: the device must not wait for answers to be written.
        run = computed.result()
        self._answer(entries, started, run)
        self._observer.busy(run.ended - started)

    def _run(self, entries: list[_Entry]) -> _Run:
        """Computes a batch, in whichever thread."""
        before = self._clock()
        results = self._compute(entries[0].work, [entry.request for entry in entries])
        return _Run(results, self._clock() - before, time.monotonic())

    def _wanted(self, entries: list[_Entry], reason: str, now: float) -> list[_Entry]:
        """Those entries of a batch that starts which somebody still waits for."""
        wanted = [entry for entry in entries if self._is_wanted(entry, now)]
        if wanted:
            forming = now - min(entry.arrived for entry in wanted)
            self._observer.closed(reason, len(wanted), sum(entry.pairs for entry in wanted), forming)
            for entry in wanted:
                self._observer.queued(now - entry.arrived, entry.mark)
        return wanted

    def _is_wanted(self, entry: _Entry, now: float) -> bool:
        late, cancelled = entry.deadline <= now, entry.outcome.done()
        if late or cancelled:
            self._observer.rejected("deadline" if late else "cancelled")  # gRPC cancels late ones, too.
        if late and not cancelled:
            entry.outcome.set_exception(
                DeadlineExceededError("the deadline passed while the request waited; allow more time")
            )
        return not (late or cancelled)

    def _answer(self, entries: list[_Entry], started: float, run: _Run) -> None:
        """Hands every entry its result or error."""
        seconds = run.ended - started
        copy_time = max(seconds - run.compute_time, 0.0)  # A GPU has a clock of its own.
        pairs = sum(entry.pairs for entry in entries)
        self._pairs_per_second += 0.1 * (pairs / max(seconds, 1e-6) - self._pairs_per_second)
        mark = next((entry.mark for entry in entries if entry.mark), None)
        self._observer.computed(copy_time, run.compute_time, mark)
        for entry, result in zip(entries, run.results, strict=True):
            if entry.outcome.done():
                continue
            if isinstance(result, Exception):
                entry.outcome.set_exception(result)
            else:
                queue_time = started - entry.arrived
                entry.outcome.set_result(
                    Outcome(result, queue_time, copy_time, run.compute_time, run.ended, len(entries), pairs)
                )
