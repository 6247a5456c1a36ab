"""The calls under way: what of each is not yet read by its client, and for how long."""

from __future__ import annotations

import asyncio
import gc
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import structlog

from boxloss_server.security import Context
from boxloss_server.service.delivery import Delivery

_LOOK_INTERVAL = 0.25
"""Seconds between two looks at how long answers have been unread, at most."""
_OVER_INTERVAL = 0.02
_COLLECTIONS = (0.01, 0.1, 1.0)
"""Seconds after which garbage is collected once calls are abandoned, which are parts of cycles. The first collection
has their generators end, the next frees what those held, and the last is for a busy loop that ends them late.
"""
_SLOWEST = 512 * 1024
"""Bytes per second, about 4 Mbit/s. Who reads its answers no slower is never cut off."""

_log = structlog.get_logger()


class Call:
    """A call under way, in the task that gRPC has made for it.

    Attributes:
        stopped: whether the server, which ends, has cancelled it.
    """

    __slots__ = ("context", "sent", "size", "stopped", "task")

    def __init__(self, task: asyncio.Task[Any]) -> None:
        self.task = task
        self.context: Context | None = None
        """Once its first message is received."""
        self.stopped = False
        self.size = 0
        self.sent: float | None = None
        """When the answer, or a message of it, was given to gRPC that it has not yet written."""

    @property
    def peer(self) -> str:
        """Its connection."""
        assert self.context
        peer: str = self.context.peer()
        return peer

    def sends(self, message: bytes) -> bytes:
        """Notes that gRPC is given a message to write."""
        self.size = len(message)
        self.sent = time.monotonic()
        return message

    def has_sent(self) -> None:
        """Notes that gRPC has written it."""
        self.sent = None


class Calls:
    """All calls of a server.

    A client has `patience` and, besides, as long as its unread answers take at 512 KiB/s to read an answer; else that
    call is ended, and what it holds is free; the one that came last only when another comes, and of the first that the
    process received only what it holds here: its client is not told. Of a slow link one sees only that an answer is
    not yet written, not how much of it.

    Args:
        patience: seconds; infinite to wait for ever.
        unread: called for each call that is ended because its client does not read.

    Attributes:
        draining: whether the server stops: then what ends a call may end its connection.
    """

    def __init__(self, patience: float, unread: Callable[[], None]) -> None:
        self._patience = patience
        self._unread = unread
        self.draining = False
        self._delivery = Delivery()
        self._calls: dict[asyncio.Task[Any], Call] = {}
        self._last: Call | None = None
        """The one that came last, which gRPC cannot end before the next one comes."""
        self._latest = -float("inf")
        """When a call was over, the last time."""

    def come(self) -> None:
        """Notes a call, in its task, until that ends: then its answer is written, or never will be."""
        task = asyncio.current_task()
        assert task
        self._last = self._calls[task] = Call(task)
        task.add_done_callback(self._is_over)

    def begin(self, context: Context) -> Call:
        """The call of this task, now that its handler begins."""
        call = self._current()
        call.context = context
        return call

    async def before_end(self, context: Context) -> None:
        """To be called where the call of this task has only its status left to tell. While the server drains, returns
        when the client has received all else.
        """
        if self.draining:
            call = self.begin(context)
            call.sent = time.monotonic()
            await self._delivery.done(call.sent, call.peer)

    def stopped(self) -> bool:
        """Whether the call of this task was cancelled because the server ends."""
        return self._current().stopped

    async def drain(self) -> None:
        """Returns when the calls under way are over and their clients have received the answers. Others may come."""
        self.draining = True
        under_way = set(self._calls)
        while under_way & self._calls.keys():  # noqa: ASYNC110 - at the end of the server only.
            await asyncio.sleep(_OVER_INTERVAL)
        await self._delivery.done(self._latest)

    async def over(self) -> None:
        """Returns when no call is under way, once no more come."""
        while self._calls:  # noqa: ASYNC110 - at the end of the server only.
            await asyncio.sleep(_OVER_INTERVAL)

    def stop(self) -> None:
        """Cancels what is not yet answered, so that its handler can still say why."""
        for call in self._calls.values():
            if call.context and call.sent is None:
                call.stopped = True
                call.task.cancel()

    async def watch(self) -> None:
        """Ends the calls whose answers are not read, until cancelled."""
        if self._patience == float("inf"):
            return
        while True:
            await asyncio.sleep(min(self._patience / 4, _LOOK_INTERVAL))
            self.look(time.monotonic())

    def look(self, now: float) -> None:
        """Looks once."""
        waiting = [
            call
            for call in self._calls.values()
            if call.sent is not None and now - call.sent > self._patience and call is not self._last
        ]
        if not waiting:
            return
        sizes: Counter[str] = Counter()
        for call in self._calls.values():
            if call.sent is not None:
                sizes[call.peer] += call.size
        ended = [
            call
            for call in waiting
            if call.sent is not None and now - call.sent > self._patience + sizes[call.peer] / _SLOWEST
        ]
        for call in ended:
            self._unread()
            _log.info("answer not read", peer=call.peer, bytes=call.size, patience_s=self._patience)
        abandon([call.task for call in ended])

    def _is_over(self, task: asyncio.Task[Any]) -> None:
        self._latest = time.monotonic()
        del self._calls[task]

    def _current(self) -> Call:
        task = asyncio.current_task()
        assert task
        return self._calls[task]


def when_over(context: Context, then: Callable[[], object]) -> None:
    """Has something done when a call is over: its answer is written, or never will be.

    Surer than a "finally" in its handler: nothing finishes a generator whose call ends while gRPC writes.
    """

    def done(_context: Context) -> None:
        then()

    untyped: Any = context  # The published type of a callback is a class that does not exist.
    untyped.add_done_callback(done)


def abandon(handlers: Iterable[asyncio.Task[Any]]) -> None:
    """Ends calls whose messages cannot be written, with CANCELLED or a reset of their stream.

    grpc.aio offers no way to. It cancels a call when nothing refers to it any more: neither its task nor that which
    started it and waits for the client's end, and which is found by what it refers to. The server itself refers to the
    last call that came: that one would be ended when the next comes, and be silent until then. It also keeps, for good,
    a reference to the first.
    """
    ended = set(handlers)
    if not ended:
        return
    for task in asyncio.all_tasks():
        if task.get_name() == "rpc_task":
            for held in gc.get_referents(*gc.get_referents(task.get_coro())):
                if isinstance(held, asyncio.Task) and held in ended:
                    task.cancel()
                    break
    for task in ended:
        task.cancel()
    for delay in _COLLECTIONS:
        asyncio.get_running_loop().call_later(delay, gc.collect)
