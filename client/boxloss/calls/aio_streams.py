"""Streams of the asyncio client; `boxloss.calls.stream_exchange` says what they ask."""

from __future__ import annotations

import asyncio
from asyncio import Queue
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import suppress
from typing import Any, Generic

import grpc
from tenacity import AsyncRetrying

from boxloss.calls.stream_exchange import END, PATIENCE, Item, Result, StreamExchange
from boxloss.connection.retry import policy
from boxloss.connection.stub import read_answer
from boxloss.connection.transport import Transport
from boxloss.errors import BoxlossError, RequestTooLargeError, ServerUnavailableError


class Stream(Generic[Item, Result]):
    """A stream, over as many calls as it takes: one that breaks is followed by another.

    Args:
        transport: to the server.
        method: name of the RPC.
        exchange: what is asked.
        timeout: seconds for which an answer is asked for again and again.
        deadline: of the whole stream, as time.monotonic() tells it.
        narrow: has the exchange ask in smaller messages what is too large, and returns whether it does.
    """

    def __init__(
        self,
        transport: Transport,
        method: str,
        exchange: StreamExchange[Item, Any, Result],
        timeout: float,
        deadline: float | None,
        narrow: Callable[[], Awaitable[bool]] | None = None,
    ) -> None:
        self._transport = transport
        self._method = method
        self._exchange = exchange
        self._deadline = deadline
        self._narrow = narrow
        self._call: _StreamCall | None = None
        self._retrying = AsyncRetrying(**policy(timeout, transport.several), before_sleep=transport.retried(method))

    async def results(self, items: Iterable[Item] | AsyncIterable[Item]) -> AsyncGenerator[Result]:
        """Asks for all items, a few at a time.

        Raises:
            BoxlossError: after the results of all items before the one at fault.
        """
        exchange = self._exchange
        source = _iterator(items)
        with self._transport.watched(self._method):
            try:
                while True:
                    while exchange.wanting:
                        if (item := await anext(source, END)) is END:
                            exchange.ended = True
                        else:
                            self._send(exchange.ask(item))
                    if exchange.done:
                        break
                    if (result := exchange.answer(await self._retrying(self._read))) is not None:
                        yield result
                if self._call:
                    await self._call.finish()
                if exchange.fault:
                    raise exchange.fault
            finally:
                self._drop()

    def _send(self, messages: list[bytes]) -> None:
        if self._transport.metrics:
            self._transport.metrics.sent(len(messages))
        if self._call:
            self._call.write(messages)

    async def _read(self) -> Any:
        """The next answer, by a new call where there is none."""
        if not self._call:
            self._call = _StreamCall(self._transport, self._method, self._exchange.unanswered, self._deadline)
        if self._exchange.ended:
            self._call.end()
        try:
            return await self._call.read()
        except BoxlossError as error:
            self._drop(error)
            if not (isinstance(error, RequestTooLargeError) and self._narrow and await self._narrow()):
                raise
        return await self._read()

    def _drop(self, error: BoxlossError | None = None) -> None:
        if self._call:
            self._call.close(error)
            self._call = None


class _StreamCall:
    """One call.

    Args:
        transport: to the server.
        method: name of the RPC.
        messages: to send first.
        deadline: of the whole stream, as time.monotonic() tells it.
    """

    def __init__(self, transport: Transport, method: str, messages: list[bytes], deadline: float | None) -> None:
        transport.check_open()
        self._transport = transport
        self._method = method
        self._outbox: Queue[bytes | None] = Queue()
        self._ended = False
        self.write(messages)
        self._span = transport.tracing.Span(method) if transport.tracing else None
        headers = self._span.headers if self._span else None
        self._call = transport.call(method, self._messages(), deadline, headers)

    def write(self, messages: list[bytes]) -> None:
        for message in messages:
            self._outbox.put_nowait(message)

    def end(self) -> None:
        """Tells the server that no more messages come."""
        if not self._ended:
            self._ended = True
            self._outbox.put_nowait(None)

    async def read(self) -> Any:
        try:
            answer = await self._receive()
        except grpc.RpcError as error:
            raise self._transport.translated(error, self._method) from None
        if not isinstance(answer, bytes):  # End of the stream.
            raise ServerUnavailableError(f"{self._transport.address} ended the stream before its last answer")
        self._transport.trouble = None
        return read_answer(self._method, answer)

    async def finish(self) -> None:
        """Waits for the status, which comes with the last answer: the server counts a call by how it ends."""
        self.end()
        with suppress(grpc.RpcError, BoxlossError, TimeoutError):  # All is answered.
            async with asyncio.timeout(PATIENCE):
                for _ in range(2):  # The summary of an audit, at most, and the status.
                    await self._receive()

    def close(self, error: BoxlossError | None = None) -> None:
        """Cancels what is left of it."""
        if self._span:
            self._span.end(error)
        self._call.cancel()
        self.end()

    async def _receive(self) -> Any:
        """The next bytes, or what gRPC has for the end."""
        try:
            return await self._call.read()
        except asyncio.CancelledError:
            self._transport.check_cancelled(asyncio.current_task())
            raise

    async def _messages(self) -> AsyncIterator[bytes]:
        while (message := await self._outbox.get()) is not None:
            yield message


async def _iterator(items: Iterable[Item] | AsyncIterable[Item]) -> AsyncIterator[Item]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item
