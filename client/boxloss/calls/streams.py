"""Streams of the blocking client; `boxloss.calls.stream_exchange` says what they ask."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import suppress
from itertools import islice
from queue import SimpleQueue
from threading import Timer
from typing import Any, Generic

import grpc
from tenacity import Retrying

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
        narrow: Callable[[], bool] | None = None,
    ) -> None:
        self._transport = transport
        self._method = method
        self._exchange = exchange
        self._deadline = deadline
        self._narrow = narrow
        self._call: _StreamCall | None = None
        self._retrying = Retrying(**policy(timeout, transport.several), before_sleep=transport.retried(method))

    def results(self, items: Iterable[Item]) -> Generator[Result]:
        """Asks for all items, a few at a time.

        Raises:
            BoxlossError: after the results of all items before the one at fault.
        """
        exchange = self._exchange
        source = iter(items)
        with self._transport.watched(self._method):
            try:
                while True:
                    while exchange.wanting:
                        if (item := next(source, END)) is END:
                            exchange.ended = True
                        else:
                            self._send(exchange.ask(item))
                    if exchange.done:
                        break
                    if (result := exchange.answer(self._retrying(self._read))) is not None:
                        yield result
                if self._call:
                    self._call.finish()
                if exchange.fault:
                    raise exchange.fault
            finally:
                self._drop()

    def _send(self, messages: list[bytes]) -> None:
        if self._transport.metrics:
            self._transport.metrics.sent(len(messages))
        if self._call:
            self._call.write(messages)

    def _read(self) -> Any:
        """The next answer, by a new call where there is none."""
        if not self._call:
            self._call = _StreamCall(self._transport, self._method, self._exchange.unanswered, self._deadline)
        if self._exchange.ended:
            self._call.end()
        try:
            return self._call.read()
        except BoxlossError as error:
            self._drop(error)
            if not (isinstance(error, RequestTooLargeError) and self._narrow and self._narrow()):
                raise
        return self._read()

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
        self._outbox: SimpleQueue[bytes | None] = SimpleQueue()
        self._ended = False
        self.write(messages)
        self._span = transport.tracing.Span(method) if transport.tracing else None
        headers = self._span.headers if self._span else None
        self._call = transport.call(method, iter(self._outbox.get, None), deadline, headers)

    def write(self, messages: list[bytes]) -> None:
        for message in messages:
            self._outbox.put(message)

    def end(self) -> None:
        """Tells the server that no more messages come."""
        if not self._ended:
            self._ended = True
            self._outbox.put(None)

    def read(self) -> Any:
        try:
            answer: bytes = next(self._call)
        except grpc.RpcError as error:
            raise self._transport.translated(error, self._method) from None
        except StopIteration:
            raise ServerUnavailableError(f"{self._transport.address} ended the stream before its last answer") from None
        self._transport.trouble = None
        return read_answer(self._method, answer)

    def finish(self) -> None:
        """Waits for the status, which comes with the last answer: the server counts a call by how it ends."""
        self.end()
        hanging = Timer(PATIENCE, self._call.cancel)
        hanging.start()
        try:
            with suppress(grpc.RpcError):  # All is answered.
                for _ in islice(self._call, 2):  # The summary of an audit, at most, and the status.
                    pass
        finally:
            hanging.cancel()

    def close(self, error: BoxlossError | None = None) -> None:
        """Cancels what is left of it."""
        if self._span:
            self._span.end(error)
        self._call.cancel()
        self.end()
