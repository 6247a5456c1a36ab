"""A batcher with its surroundings, for tests of what waits: no gRPC, no torch, no real time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Any

from boxloss import ServerUnavailableError
from boxloss_server.batching import Batcher, Capacity
from tests.clock import FakeClock

LARGE = 100


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


class Answer:
    """Keeps the room of an answer until it is written."""

    def __init__(self) -> None:
        self._give_back: list[Callable[[], None]] = []

    def keep(self, give_back: Callable[[], None]) -> None:
        self._give_back.append(give_back)

    def written(self) -> None:
        for give_back in self._give_back:
            give_back()
