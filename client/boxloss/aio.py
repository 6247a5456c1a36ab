"""The asyncio client: the same methods as the blocking one."""

from __future__ import annotations

import asyncio
import math
import time
from asyncio import Future, Queue, Task, TimerHandle
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import grpc
import grpc.aio
from numpy.typing import ArrayLike
from tenacity import AsyncRetrying

from boxloss.arrays import Array, Boxes
from boxloss.audit.audit import AsyncAudit
from boxloss.audit.exchange import AuditExchange
from boxloss.audit.image import Image
from boxloss.audit.rules import ImageAudit, Rules
from boxloss.audit.summary import Summary
from boxloss.channel import Address
from boxloss.coalescing import Answer, Call, Lane, Message, Outcome, Word
from boxloss.connection import Connection
from boxloss.credentials import Tls, metadata, open_channel
from boxloss.errors import (
    BoxlossError,
    DeadlineExceededError,
    InvalidInputError,
    RequestTooLargeError,
    ServerUnavailableError,
)
from boxloss.exchange import (
    NO_NAMES,
    Batch,
    EvaluationExchange,
    MatrixExchange,
    Options,
    Question,
    StreamExchange,
)
from boxloss.losses import Loss
from boxloss.offer import server_info
from boxloss.results import LossInfo, LossResult, ServerInfo
from boxloss.retry import policy
from boxloss.stub import Stub, read_answer
from boxloss.v1 import loss_service_pb2
from boxloss.v1.audit_service_pb2 import AuditResponse
from boxloss.words import BoxFormat, Invalid, Metric, Reduction

if TYPE_CHECKING:
    from boxloss.metrics import ClientMetrics

Answered = TypeVar("Answered")
Item = TypeVar("Item")


class AsyncClient(Connection):
    """A connection to a boxloss server for asyncio. Share it between the tasks of one event loop; close it, or use it
    in an `async with` statement.

    The methods are those of `boxloss.Client`, which documents their arguments, results and errors; here they are
    awaited. Small evaluations that tasks ask for at the same time are sent together.

    Args:
        address: "host:port" or "unix:/path/of/socket"; of several servers, a list of "host:port", or "dns:///name:port".
        timeout: seconds that a call may take, unless it says otherwise.
        metrics: `boxloss.metrics.ClientMetrics` to count calls in.
        tracing: whether to send the caller's OpenTelemetry context along; needs the extra "tracing".
        tls: TLS, for a server that has it.
        token: for a server that asks for one. It is sent with every call, over TLS or to this computer only.

    Raises:
        OSError: a file of `tls` cannot be read.
        ValueError: one is wrong, or the token would travel without TLS.
    """

    def __init__(
        self,
        address: Address = "localhost:50051",
        *,
        timeout: float = 30.0,
        metrics: ClientMetrics | None = None,
        tracing: bool = False,
        tls: Tls | None = None,
        token: str | None = None,
    ) -> None:
        super().__init__(address, timeout=timeout, metrics=metrics, tracing=tracing)
        self._channel = open_channel(grpc.aio, address, tls, token)
        self._stub = Stub(self._channel, metadata(token))
        self._sendings: dict[Task[Answer], list[_Call]] = {}
        self._watch = _Watch()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connection; calls under way fail."""
        self._closed = True
        await self._channel.close()

    async def info(self, *, timeout: float | None = None) -> ServerInfo:
        """Asks the server what it offers: version, device, limits, losses and metrics."""
        with self._watched("ListLosses"):
            self._server = server_info(await self._call("ListLosses", b"", self._deadline(timeout)))
        return self._server

    async def losses(self, *, timeout: float | None = None) -> tuple[LossInfo, ...]:
        """Asks the server for every loss that it offers, with its parameters."""
        return (await self.info(timeout=timeout)).losses

    async def evaluate(
        self,
        predictions: Boxes,
        targets: Boxes,
        loss: Loss,
        *,
        gradients: bool = False,
        target_gradients: bool = False,
        box_format: BoxFormat = "xyxy",
        weights: ArrayLike | None = None,
        reduction: Reduction = "none",
        invalid: Invalid = "reject",
        similarity: bool = False,
        image_size: tuple[float, float] | None = None,
        running_mean: float | None = None,
        crowd: ArrayLike | None = None,
        timeout: float | None = None,
    ) -> LossResult:
        """Evaluates a loss over pairs of boxes."""
        options = Options(gradients, target_gradients, box_format, invalid, similarity, image_size, running_mean)
        question = Question(predictions, targets, [loss], options, reduction, weights, crowd)
        with self._watched("Evaluate"):
            return (await self._evaluate(question, timeout))[0]

    async def compare(
        self,
        predictions: Boxes,
        targets: Boxes,
        losses: Sequence[Loss],
        *,
        gradients: bool = False,
        target_gradients: bool = False,
        box_format: BoxFormat = "xyxy",
        weights: ArrayLike | None = None,
        reduction: Reduction = "none",
        invalid: Invalid = "reject",
        similarity: bool = False,
        image_size: tuple[float, float] | None = None,
        running_mean: float | None = None,
        crowd: ArrayLike | None = None,
        timeout: float | None = None,
    ) -> list[LossResult]:
        """Evaluates several losses over the same pairs."""
        options = Options(gradients, target_gradients, box_format, invalid, similarity, image_size, running_mean)
        question = Question(predictions, targets, losses, options, reduction, weights, crowd)
        with self._watched("Evaluate"):
            return await self._evaluate(question, timeout)

    async def evaluate_stream(
        self,
        batches: Iterable[Batch] | AsyncIterable[Batch],
        loss: Loss,
        *,
        gradients: bool = False,
        target_gradients: bool = False,
        box_format: BoxFormat = "xyxy",
        reduction: Reduction = "none",
        invalid: Invalid = "reject",
        similarity: bool = False,
        image_size: tuple[float, float] | None = None,
        running_mean: float | None = None,
        timeout: float | None = None,
    ) -> AsyncIterator[LossResult]:
        """Evaluates a loss over many batches, from an iterable or an asynchronous one, through one call."""
        options = Options(gradients, target_gradients, box_format, invalid, similarity, image_size, running_mean)
        deadline = time.monotonic() + timeout if timeout is not None else None
        stream = StreamExchange(loss, options, reduction, await self._offer(None))
        connection: _Stream | None = None
        fault: InvalidInputError | None = None

        async def read() -> loss_service_pb2.EvaluateStreamResponse:
            nonlocal connection
            connection = connection or _Stream(self, "EvaluateStream", stream.unanswered, deadline)
            try:
                answer: loss_service_pb2.EvaluateStreamResponse = await connection.read()
                return answer
            except BoxlossError as error:
                connection.close(error)
                connection = None
                if not (isinstance(error, RequestTooLargeError) and self._narrows(stream.server)):
                    raise
            stream.cut(await self._offer(None))
            return await read()

        source = _iterator(batches)
        retrying = partial(
            AsyncRetrying, **policy(self.timeout, self._several), before_sleep=self._retried("EvaluateStream")
        )
        with self._watched("EvaluateStream"):
            try:
                while True:
                    while not (fault or stream.full) and (batch := await anext(source, None)) is not None:
                        try:
                            messages = stream.ask(batch)
                        except InvalidInputError as error:
                            fault = error  # To be raised when the batches before it are answered.
                        else:
                            if self._metrics:
                                self._metrics.sent(len(messages))
                            if connection:
                                connection.write(messages)
                    if not stream.unanswered:
                        if fault:
                            raise fault
                        return
                    if result := stream.answer(await retrying()(read)):
                        yield result
            finally:
                if connection:
                    connection.close()

    async def pairwise_iou(
        self,
        a: Boxes,
        b: Boxes,
        *,
        metric: Metric | Loss = "iou",
        box_format: BoxFormat = "xyxy",
        invalid: Invalid = "reject",
        crowd: ArrayLike | None = None,
        image_size: tuple[float, float] | None = None,
        timeout: float | None = None,
    ) -> Array:
        """Computes an IoU metric between all boxes of two sets."""
        deadline = self._deadline(timeout)

        async def ask(server: ServerInfo) -> Array:
            exchange = MatrixExchange(a, b, metric, box_format, invalid, crowd, image_size, server)
            return exchange.matrix(await self._ask("PairwiseIou", exchange, deadline))

        with self._watched("PairwiseIou"):
            return await self._fitting(ask, deadline)

    def audit(
        self,
        images: Iterable[Image] | AsyncIterable[Image],
        rules: Rules | None = None,
        *,
        worst: int = 100,
        timeout: float | None = None,
    ) -> AsyncAudit:
        """Audits images' labels on the server."""
        deadline = time.monotonic() + timeout if timeout is not None else None
        return AsyncAudit(self._audited(images, AuditExchange(rules or Rules(), worst), deadline))

    async def _audited(
        self, images: Iterable[Image] | AsyncIterable[Image], exchange: AuditExchange, deadline: float | None
    ) -> AsyncIterator[ImageAudit | Summary]:
        connection: _Stream | None = None

        async def read() -> AuditResponse:
            nonlocal connection
            connection = connection or _Stream(self, "Audit", exchange.unanswered, deadline)
            try:
                answer: AuditResponse = await connection.read()
            except BoxlossError as error:
                connection.close(error)
                connection = None
                raise
            return answer

        source = _iterator(images)
        retrying = partial(AsyncRetrying, **policy(self.timeout, self._several), before_sleep=self._retried("Audit"))
        with self._watched("Audit"):
            try:
                while True:
                    while not exchange.full and (image := await anext(source, None)) is not None:
                        message = exchange.ask(image)
                        if connection:
                            connection.write([message])
                    if exchange.done:
                        yield exchange.summary()
                        return
                    yield exchange.answer(await retrying()(read))
            finally:
                if connection:
                    connection.close()

    async def _evaluate(self, question: Question, timeout: float | None) -> list[LossResult]:
        deadline = self._deadline(timeout)

        async def ask(server: ServerInfo) -> list[LossResult]:
            if lane := self._lane(question, timeout, server):
                call = _Call(question, deadline)
                return (await self._ride(lane, call)).results(call)
            exchange = EvaluationExchange(question, server)
            return exchange.results(await self._ask("Evaluate", exchange, deadline))

        return await self._fitting(ask, deadline)

    async def _fitting(self, ask: Callable[[ServerInfo], Awaitable[Answered]], deadline: float) -> Answered:
        """Asks in messages that all replicas allow, whatever the one allows that was asked for its limits."""
        while True:
            server = await self._offer(deadline)
            try:
                return await ask(server)
            except RequestTooLargeError:
                if not self._narrows(server):
                    raise

    async def _ride(self, lane: Lane[_Call], call: _Call) -> Answer:
        """The answer to the message that a call rides in."""
        call.caller = self._caller()
        if lane.enter(call):
            try:
                return await self._send(lane, [call])
            finally:
                self._depart(lane)
        outcome = await self._wait(lane, call)
        if outcome is Word.ALONE:
            outcome = await self._send(lane, [call])
        if isinstance(outcome, Word):
            raise self._late()
        return outcome

    async def _send(self, lane: Lane[_Call], calls: list[_Call]) -> Answer:
        message = Message(lane, calls)
        callers = [call.caller for call in calls] if self._tracing else ()
        if self._metrics:
            self._metrics.coalesced(len(calls))
        try:
            response = await self._call("Evaluate", message.request(), message.deadline, callers=callers)
            return Answer(lane.kind, response, message.pairs)
        except DeadlineExceededError as error:
            raise self._late(error) from None

    async def _wait(self, lane: Lane[_Call], call: _Call) -> Outcome:
        """Waits until a call has ridden with others."""
        outcome: Outcome = Word.LATE
        self._watch.add(call)
        try:
            outcome = await call.outcome
        finally:
            self._watch.remove(call)
            if outcome is Word.LATE:  # Or its caller has been cancelled.
                self._withdraw(lane, call)
        return outcome

    def _depart(self, lane: Lane[_Call]) -> None:
        """Sends those that wait from a place that has become free."""
        while first := lane.leave():
            calls = [call for call in lane.gather(first) if not call.outcome.done()]
            if calls:
                sending = asyncio.create_task(self._send(lane, calls))
                self._sendings[sending] = calls
                sending.add_done_callback(partial(self._arrive, lane))
                return

    def _arrive(self, lane: Lane[_Call], sending: Task[Answer]) -> None:
        """Hands the answer to those who wait for it."""
        outcome: Outcome = Word.ALONE
        if not sending.cancelled():
            error = sending.exception()
            outcome = Word.after(error) if error else sending.result()
        for call in self._sendings.pop(sending):
            call.end(outcome)
        # First those answered go on; they may call again at once, and can ride together.
        sending.get_loop().call_soon(self._depart, lane)

    def _withdraw(self, lane: Lane[_Call], call: _Call) -> None:
        """Takes back a call whose caller has gone; a message for which nobody waits any more is cancelled."""
        if not lane.withdraw(call):
            for sending, calls in self._sendings.items():
                if call in calls and all(each.outcome.done() for each in calls):
                    sending.cancel()

    async def _ask(self, method: str, exchange: EvaluationExchange | MatrixExchange, deadline: float) -> list[Any]:
        return [await self._call(method, request, deadline, names) for request, names in exchange.requests()]

    async def _offer(self, deadline: float | None) -> ServerInfo:
        """What the server offers, asked once."""
        return self._server or await self.info(timeout=None if deadline is None else deadline - time.monotonic())

    async def _call(
        self,
        method: str,
        request: Any,
        deadline: float,
        names: Mapping[str, str] = NO_NAMES,
        callers: Sequence[Any] = (),
    ) -> Any:
        async def attempt() -> Any:
            self._check_open()
            try:
                timeout = max(deadline - time.monotonic(), 0)
                answer = await getattr(self._stub, method)(request, timeout=timeout, metadata=headers)
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if not (task and task.cancelling()):  # Not the caller's own wish: closing the channel does so too.
                    self._check_open()
                raise
            except grpc.RpcError as error:
                raise self._translated(error, method, names) from None
            self._trouble = None
            return read_answer(method, answer)

        with self._sending(method, callers) as headers:
            retries = policy(deadline - time.monotonic(), self._several)
            return await AsyncRetrying(**retries, before_sleep=self._retried(method))(attempt)


class _Call(Call):
    """A call whose caller may have to wait."""

    def __init__(self, question: Question, deadline: float) -> None:
        super().__init__(question, deadline)
        self.outcome: Future[Outcome] = asyncio.get_running_loop().create_future()

    def end(self, outcome: Outcome) -> None:
        """Has the caller go on, if it still waits."""
        if not self.outcome.done():
            self.outcome.set_result(outcome)


class _Watch:
    """Ends the calls whose time is over. One timer does for all: one for each would be a tenth of what a call costs."""

    def __init__(self) -> None:
        self._calls: set[_Call] = set()
        self._timer: TimerHandle | None = None
        self._next = math.inf
        """When the timer goes off."""

    def add(self, call: _Call) -> None:
        self._calls.add(call)
        if call.deadline < self._next:
            self._set(call.deadline)

    def remove(self, call: _Call) -> None:
        self._calls.remove(call)

    def _set(self, deadline: float) -> None:
        if self._timer:
            self._timer.cancel()
        self._next = deadline
        self._timer = asyncio.get_running_loop().call_later(deadline - time.monotonic(), self._look)

    def _look(self) -> None:
        self._next = math.inf
        now = time.monotonic()
        for call in self._calls:
            if call.deadline <= now:
                call.end(Word.LATE)
        deadlines = [call.deadline for call in self._calls if call.deadline > now]
        if deadlines:
            self._set(min(deadlines))


class _Stream:
    """One connection of a stream.

    Args:
        client: whose.
        method: name of the RPC.
        messages: to send first.
        deadline: of the whole stream, as time.monotonic() tells it.
    """

    def __init__(self, client: AsyncClient, method: str, messages: list[bytes], deadline: float | None) -> None:
        client._check_open()
        self._client = client
        self._method = method
        self._outbox: Queue[bytes | None] = Queue()
        self.write(messages)
        self._span = client._tracing.Span(method) if client._tracing else None
        headers = self._span.headers if self._span else None
        timeout = None if deadline is None else max(deadline - time.monotonic(), 0)
        self._call = getattr(client._stub, method)(self._messages(), timeout=timeout, metadata=headers)

    def write(self, messages: list[bytes]) -> None:
        for message in messages:
            self._outbox.put_nowait(message)

    async def read(self) -> Any:
        try:
            answer = await self._call.read()
        except grpc.RpcError as error:
            raise self._client._translated(error, self._method) from None
        if not isinstance(answer, bytes):  # End of the stream.
            raise ServerUnavailableError(f"{self._client.address} ended the stream before its last answer")
        self._client._trouble = None
        return read_answer(self._method, answer)

    def close(self, error: BoxlossError | None = None) -> None:
        if self._span:
            self._span.end(error)
        self._outbox.put_nowait(None)
        self._call.cancel()

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
