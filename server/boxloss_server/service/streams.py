"""The open streams: messages are answered in their order, a few at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from itertools import count
from typing import Any, TypeVar

from boxloss.errors import BoxlossError, ServerUnavailableError

_DEPTH = 4
"""Messages of one stream that are read and not yet answered."""

_Message = TypeVar("_Message")
_Answer = TypeVar("_Answer")


class Streams:
    """All streams of a server."""

    def __init__(self) -> None:
        self._readers: set[asyncio.Task[None]] = set()
        self._draining = False

    def drain(self) -> None:
        """Has open streams end after the answers to what they have already sent."""
        self._draining = True
        for reading in self._readers:
            reading.cancel()

    async def answers(
        self, messages: AsyncIterator[_Message], answer: Callable[[int, _Message], Coroutine[Any, Any, _Answer]]
    ) -> AsyncIterator[_Answer]:
        """Answers the messages of a stream.

        Args:
            messages: of the stream.
            answer: answers one message; it is given its number, from 0 on.

        Yields:
            The answers, in the order of the messages.

        Raises:
            BoxlossError: that of the first message that fails, after the answers to those before it; or the server
                drains. Its metadata names the message.
        """
        answers: asyncio.Queue[asyncio.Task[_Answer] | None] = asyncio.Queue(_DEPTH)

        async def read() -> None:
            numbers = count()
            try:
                async for message in messages:
                    task = asyncio.create_task(answer(next(numbers), message))
                    try:
                        await answers.put(task)
                    except asyncio.CancelledError:
                        task.cancel()
                        raise
            finally:
                await answers.put(None)

        reading = asyncio.create_task(read())
        self._readers.add(reading)
        answered = 0
        try:
            while task := await answers.get():
                try:
                    response = await task
                except BoxlossError as error:
                    error.metadata["message"] = str(answered)
                    raise
                yield response
                answered += 1
        except BaseException:
            reading.cancel()
            raise
        finally:
            self._readers.discard(reading)
            while not answers.empty():
                if task := answers.get_nowait():
                    task.cancel()
        if self._draining:
            raise ServerUnavailableError("the server is shutting down; send what is not answered to another, or later")
        await reading  # Where it has failed, the last message could not be read.
