"""The open streams: messages are answered in their order, a few at a time."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from itertools import count
from typing import Any, Generic, TypeVar

from boxloss.errors import BoxlossError, ServerUnavailableError
from boxloss_server.batching import GiveBack, UntilWritten
from boxloss_server.security import Context
from boxloss_server.service.calls import when_over

_DEPTH = 4
"""Messages of one stream that are read and not yet answered."""

_Message = TypeVar("_Message")
_Answer = TypeVar("_Answer")


class Streams:
    """All streams of a server."""

    def __init__(self) -> None:
        self._readers: set[asyncio.Task[None]] = set()

    def drain(self) -> None:
        """Has open streams end after the answers to what they have already sent."""
        for reading in self._readers:
            reading.cancel()

    async def answers(
        self,
        messages: AsyncIterator[_Message],
        answer: Callable[[int, _Message, UntilWritten], Coroutine[Any, Any, _Answer]],
        context: Context,
    ) -> AsyncIterator[_Answer]:
        """Answers the messages of a stream.

        Args:
            messages: of the stream.
            answer: answers one message; it is given its number, from 0 on, and what keeps its room.
            context: of the stream's call.

        Yields:
            The answers, in the order of the messages.

        Raises:
            BoxlossError: that of the first message that fails, after the answers to those before it; or the server
                drains. Its metadata names the message.
        """
        answers: asyncio.Queue[_Pending[_Answer] | None] = asyncio.Queue(_DEPTH)
        unread: deque[_Pending[_Answer]] = deque()

        async def read() -> None:
            numbers = count()
            try:
                async for message in messages:
                    pending = _Pending(tuple(unread))
                    pending.task = asyncio.create_task(answer(next(numbers), message, pending.keep))
                    unread.append(pending)
                    await answers.put(pending)
            finally:
                await answers.put(None)

        def over() -> None:
            while unread:
                unread.popleft().over()

        when_over(context, over)
        reading = asyncio.create_task(read())
        self._readers.add(reading)
        answered = 0
        try:
            while pending := await answers.get():
                try:
                    response = await pending.task
                except BoxlossError as error:
                    error.metadata["message"] = str(answered)
                    raise
                yield response
                if unread:  # Else the call is over.
                    unread.popleft().over()
                answered += 1
        except BaseException:
            reading.cancel()
            while not answers.empty():  # Else the reader would wait for ever for room to tell of its end.
                answers.get_nowait()
            raise
        finally:
            self._readers.discard(reading)
            over()
        await asyncio.wait([reading])
        if reading.cancelled():
            raise ServerUnavailableError("the server is shutting down; send what is not answered to another, or later")
        await reading  # Where it has failed, the last message could not be read.


class _Pending(Generic[_Answer]):
    """A message that is read, and whose answer is not yet written.

    Args:
        earlier: those before it in its stream.
    """

    task: asyncio.Task[_Answer]

    def __init__(self, earlier: tuple[_Pending[_Answer], ...]) -> None:
        self._earlier = earlier
        self._kept: list[GiveBack] = []
        self._over = False

    def keep(self, give_back: GiveBack) -> None:
        """Keeps room until the answer is written. What has overtaken an earlier message keeps none: that one may be
        waiting for it.
        """
        if self._over or not all(each.task.done() for each in self._earlier):
            give_back()
        else:
            self._kept.append(give_back)

    def over(self) -> None:
        """Gives the room back: the answer is written, or nobody waits for it."""
        self._over = True
        self._earlier = ()
        self.task.cancel()
        while self._kept:
            self._kept.pop()()
