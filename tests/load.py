"""Callers of every kind, who count what they ask and what they are answered."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

import pytest

import boxloss
from boxloss.connection.channel import Address

_PACE = 0.005
"""Seconds between the calls of a caller: the tests are about faults, not about speed."""

Batch = tuple[list[list[float]], list[list[float]]]


class Load:
    """Threads, tasks and streams that call until the `with` statement ends, and must all be answered.

    Args:
        address: whom they call.
        timeout: seconds that a call may take.

    Attributes:
        asked: calls, or batches of a stream, by kind of caller.
        answered: those with the right answer.
        done: set when the callers are to end.
    """

    def __init__(self, address: Address, timeout: float = 60.0) -> None:
        self.asked: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self._address = address
        self._timeout = timeout
        self._client = boxloss.Client(address, timeout=timeout)
        self._lock = threading.Lock()
        self.done = threading.Event()
        self._changed = threading.Condition(self._lock)
        self._pool = ThreadPoolExecutor()
        self._callers: list[Future[None]] = []

    def __enter__(self) -> Self:
        kinds = [*[self._thread] * 4, self._stream, lambda: asyncio.run(self._tasks())]
        self._callers = [self._pool.submit(self._run, kind) for kind in kinds]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.done.set()
        self._pool.shutdown()
        self._client.close()
        for caller in self._callers:
            caller.result()
        if error is None:
            assert self.asked == self.answered

    def go_on(self, answers: int = 20) -> None:
        """Waits until callers of every kind have got so many further answers."""
        with self._changed:
            before = self.answered.copy()
            assert self._changed.wait_for(
                lambda: self.done.is_set() or all(self.answered[kind] >= before[kind] + answers for kind in _KINDS), 60
            ), f"asked {self.asked}, answered {before}, then {self.answered}"
        assert not self.done.is_set(), "a caller failed"

    def _run(self, call: Callable[[], None]) -> None:
        """Has the failure of one caller end all."""
        try:
            call()
        except BaseException:
            with self._changed:
                self.done.set()
                self._changed.notify_all()
            raise

    def _ask(self, kind: str) -> Batch:
        """Boxes with an IoU that tells what was asked."""
        with self._lock:
            self.asked[kind] += 1
            return [[0, 0, 4, 4]], [[0, 0, 4, _side(self.asked[kind])]]

    def _check(self, kind: str, batch: Batch, result: boxloss.LossResult) -> None:
        assert result.iou == pytest.approx([4 / batch[1][0][3]])
        with self._changed:
            self.answered[kind] += 1
            self._changed.notify_all()

    def _thread(self) -> None:
        while not self.done.wait(_PACE):
            batch = self._ask("thread")
            self._check("thread", batch, self._client.evaluate(*batch, boxloss.CIoU()))

    def _stream(self) -> None:
        asked: deque[Batch] = deque()

        def batches() -> Iterator[Batch]:
            while not self.done.wait(_PACE):
                asked.append(self._ask("stream"))
                yield asked[-1]

        for result in self._client.evaluate_stream(batches(), boxloss.CIoU()):
            self._check("stream", asked.popleft(), result)

    async def _tasks(self) -> None:
        asked: deque[Batch] = deque()

        async def call(client: boxloss.AsyncClient) -> None:
            while not self.done.is_set():
                batch = self._ask("task")
                self._check("task", batch, await client.evaluate(*batch, boxloss.CIoU()))
                await asyncio.sleep(_PACE)

        async def batches() -> AsyncIterator[Batch]:
            while not self.done.is_set():
                asked.append(self._ask("asyncio stream"))
                yield asked[-1]
                await asyncio.sleep(_PACE)

        async with boxloss.AsyncClient(self._address, timeout=self._timeout) as client, asyncio.TaskGroup() as tasks:
            for _ in range(8):
                tasks.create_task(call(client))
            async for result in client.evaluate_stream(batches(), boxloss.CIoU()):
                self._check("asyncio stream", asked.popleft(), result)


_KINDS = ("thread", "stream", "task", "asyncio stream")


def _side(number: int) -> float:
    return 4.0 + number % 13
