"""Calls whose answers are not read: which are ended, and when."""

from __future__ import annotations

import asyncio
from typing import Any

from boxloss_server.service.calls import Calls

PATIENCE = 10.0
RATE = 512 * 1024
"""Bytes per second that no client is asked to exceed."""


class _Context:
    """Of a call over a connection."""

    def __init__(self, connection: str) -> None:
        self._connection = connection

    def peer(self) -> str:
        return self._connection


class _Unread:
    """Calls whose answers nobody reads."""

    def __init__(self) -> None:
        self.ended = 0
        self.calls = Calls(PATIENCE, self._end)

    def _end(self) -> None:
        self.ended += 1

    async def call(self, size: int, connection: str = "a", read: bool = False) -> tuple[asyncio.Task[None], float]:
        """A call's task, and when its answer was given to gRPC, which is read or not."""
        sent: asyncio.Future[float] = asyncio.get_running_loop().create_future()

        async def handle() -> None:
            self.calls.come()
            context: Any = _Context(connection)
            call = self.calls.begin(context)
            call.sends(bytes(size))
            assert call.sent is not None
            sent.set_result(call.sent)
            if read:
                call.has_sent()
            await asyncio.Event().wait()

        task = asyncio.create_task(handle())
        return task, await sent

    async def come_and_go(self) -> None:
        """A call that is answered."""

        async def handle() -> None:
            self.calls.come()

        await asyncio.create_task(handle())

    async def look(self, now: float) -> int:
        """How many calls have been ended once one has looked."""
        self.calls.look(now)
        for _ in range(3):  # Its task ends, and is forgotten.
            await asyncio.sleep(0)
        return self.ended


async def test_a_call_is_ended_when_patience_is_over_and_its_answer_could_have_been_read() -> None:
    unread = _Unread()
    task, sent = await unread.call(2 * RATE)
    await unread.come_and_go()
    assert await unread.look(sent + PATIENCE + 2 - 0.001) == 0
    assert await unread.look(sent + PATIENCE + 2 + 0.001) == 1
    assert task.cancelled()


async def test_who_has_more_to_read_over_one_connection_has_longer() -> None:
    unread = _Unread()
    first, sent = await unread.call(2 * RATE)
    second, _ = await unread.call(3 * RATE)
    other, _ = await unread.call(RATE, "b")
    await unread.come_and_go()
    assert await unread.look(sent + PATIENCE + 4.5) == 1
    assert other.cancelled()
    assert await unread.look(sent + PATIENCE + 5.5) == 3
    assert first.cancelled()
    assert second.cancelled()


async def test_the_call_that_came_last_goes_on_until_another_comes() -> None:
    """Until then, gRPC could not tell its client that it is ended."""
    unread = _Unread()
    task, sent = await unread.call(RATE)
    assert await unread.look(sent + 10 * PATIENCE) == 0
    await unread.come_and_go()
    assert await unread.look(sent + 10 * PATIENCE) == 1
    assert task.cancelled()


async def test_what_is_read_in_time_is_not_ended() -> None:
    unread = _Unread()
    task, sent = await unread.call(RATE, read=True)
    await unread.come_and_go()
    assert await unread.look(sent + 10 * PATIENCE) == 0
    task.cancel()
