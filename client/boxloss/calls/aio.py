"""The asyncio client: the same methods as the blocking one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import grpc
import grpc.aio
from numpy.typing import ArrayLike
from tenacity import AsyncRetrying

from boxloss.audit.dataset import AsyncAudit
from boxloss.audit.image import Image
from boxloss.audit.rules import ImageAudit, Rules
from boxloss.audit.summary import Summary
from boxloss.calls import arguments
from boxloss.calls.aio_coalescer import Coalescer, TaskCall
from boxloss.calls.aio_streams import Stream
from boxloss.calls.audit_exchange import AuditExchange
from boxloss.calls.base import Connection, new_lanes
from boxloss.calls.catalogue import server_info
from boxloss.calls.coalescing import Answer, Lane, Message, Verdict
from boxloss.calls.exchange import Batch, EvaluationExchange, MatrixExchange, Options, Question
from boxloss.calls.results import LossInfo, LossResult, ServerInfo
from boxloss.calls.stream_exchange import EvaluationStreamExchange
from boxloss.connection.channel import Address
from boxloss.connection.credentials import Tls
from boxloss.connection.retry import policy
from boxloss.connection.stub import read_answer
from boxloss.contract.arrays import Array, Boxes
from boxloss.contract.words import BoxFormat, Invalid, Metric, Reduction
from boxloss.errors import NO_NAMES, BoxlossError, DeadlineExceededError, Names, RequestTooLargeError
from boxloss.losses import Loss

if TYPE_CHECKING:
    from boxloss.metrics import ClientMetrics

Answered = TypeVar("Answered")


class AsyncClient(Connection):
    """A connection to a boxloss server for asyncio. Share it between the tasks of one event loop; close it, or use it
    in an `async with` statement. It may be made before the loop runs, and used in another one once its first is closed.

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
        super().__init__(grpc.aio, address, timeout=timeout, metrics=metrics, tracing=tracing, tls=tls, token=token)
        self._coalescer = Coalescer()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connection; calls under way fail."""
        self._enter_loop()
        self._transport.closed = True
        for channel in self._transport.channels:
            await channel.close()

    async def info(self, *, timeout: float | None = None) -> ServerInfo:
        """Asks the server what it offers: version, device, limits, losses and metrics."""
        self._enter_loop()
        with self._transport.watched("ListLosses"):
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
        question = Question(predictions, targets, [arguments.loss(loss)], options, reduction, weights, crowd)
        with self._transport.watched("Evaluate"):
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
        with self._transport.watched("Evaluate"):
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
        arguments.items(batches, "batches", asynchronous=True)
        self._enter_loop()
        deadline = self._limit(timeout)
        exchange = EvaluationStreamExchange(loss, options, reduction, await self._offer(None))

        async def narrow() -> bool:
            if not self._narrows(exchange.server):
                return False
            exchange.cut(await self._offer(None))
            return True

        stream = Stream(self._transport, "EvaluateStream", exchange, self.timeout, deadline, narrow)
        async with aclosing(stream.results(batches)) as results:
            async for result in results:
                yield result

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

        with self._transport.watched("PairwiseIou"):
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
        arguments.items(images, "images", asynchronous=True)
        deadline = self._limit(timeout)
        return AsyncAudit(self._audited(images, AuditExchange(Rules() if rules is None else rules, worst), deadline))

    async def _audited(
        self, images: Iterable[Image] | AsyncIterable[Image], exchange: AuditExchange, deadline: float | None
    ) -> AsyncIterator[ImageAudit | Summary]:
        self._enter_loop()
        stream = Stream(self._transport, "Audit", exchange, self.timeout, deadline)
        async with aclosing(stream.results(images)) as audited:
            async for each in audited:
                yield each
        yield exchange.summary()

    def _enter_loop(self) -> None:
        """Takes to the running event loop: the connection and the calls that wait belong to one.

        Raises:
            BoxlossError: the client belongs to another, which may still run.
        """
        loop = asyncio.get_running_loop()
        if self._loop is loop:
            return
        if self._loop:
            if not self._loop.is_closed():
                raise BoxlossError(
                    "this AsyncClient belongs to another event loop, which is not closed; create one in each event loop"
                )
            self._transport.disconnect()
            self._coalescer, self._lanes = Coalescer(), new_lanes()
        self._loop = loop

    async def _evaluate(self, question: Question, timeout: float | None) -> list[LossResult]:
        deadline = self._deadline(timeout)

        async def ask(server: ServerInfo) -> list[LossResult]:
            if lane := self._lane(question, timeout, server):
                call = TaskCall(question, deadline)
                call.caller = self._transport.caller()
                outcome = await self._coalescer.ride(lane, call, self._send)
                if isinstance(outcome, Verdict):
                    raise self._transport.late()
                return outcome.results(call)
            exchange = EvaluationExchange(question, server)
            return exchange.results(await self._ask("Evaluate", exchange, deadline))

        return await self._fitting(ask, deadline)

    async def _fitting(self, ask: Callable[[ServerInfo], Awaitable[Answered]], deadline: float) -> Answered:
        """Asks in messages that all replicas allow, whatever the one allows that was asked for its limits."""
        self._enter_loop()
        while True:
            server = await self._offer(deadline)
            try:
                return await ask(server)
            except RequestTooLargeError:
                if not self._narrows(server):
                    raise

    async def _send(self, lane: Lane[TaskCall], calls: list[TaskCall]) -> Answer:
        """Sends calls that ride together."""
        message = Message(lane, calls)
        transport = self._transport
        callers = [call.caller for call in calls] if transport.tracing else ()
        if transport.metrics:
            transport.metrics.coalesced(len(calls))
        try:
            response = await self._call("Evaluate", message.request(), message.deadline, callers=callers)
            return Answer(lane.kind, response, message.pairs)
        except DeadlineExceededError as error:
            raise transport.late(error) from None

    async def _ask(self, method: str, exchange: EvaluationExchange | MatrixExchange, deadline: float) -> list[Any]:
        return [await self._call(method, request, deadline, names) for request, names in exchange.requests()]

    async def _offer(self, deadline: float | None) -> ServerInfo:
        """What the server offers, asked once."""
        if self._server:
            return self._server
        return await self.info(timeout=None if deadline is None else max(deadline - time.monotonic(), 0))

    async def _call(
        self,
        method: str,
        request: Any,
        deadline: float,
        names: Names = NO_NAMES,
        callers: Sequence[Any] = (),
    ) -> Any:
        transport = self._transport

        async def attempt() -> Any:
            try:
                answer = await transport.call(method, request, deadline, headers)
            except asyncio.CancelledError:
                transport.check_cancelled(asyncio.current_task())
                raise
            except grpc.RpcError as error:
                raise transport.translated(error, method, names) from None
            transport.trouble = None
            return read_answer(method, answer)

        with transport.sending(method, callers) as headers:
            retries = policy(deadline - time.monotonic(), transport.several)
            return await AsyncRetrying(**retries, before_sleep=transport.retried(method))(attempt)
