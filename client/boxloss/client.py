"""The blocking client."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import grpc
from numpy.typing import ArrayLike
from tenacity import Retrying

from boxloss.arrays import Array, Boxes
from boxloss.audit.audit import Audit
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


class Client(Connection):
    """A connection to a boxloss server. Safe to share between threads; close it, or use it in a `with` statement.

    Small evaluations that threads ask for at the same time are sent together; each caller gets its own answer or error,
    in its own time. Every method retries while the server is unavailable or busy, until its timeout; every failure is a
    `BoxlossError`.

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
        self._channel = open_channel(grpc, address, tls, token)
        self._stub = Stub(self._channel, metadata(token))
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection; calls under way fail."""
        self._closed = True
        self._channel.close()

    def info(self, *, timeout: float | None = None) -> ServerInfo:
        """Asks the server what it offers: version, device, limits, losses and metrics."""
        with self._watched("ListLosses"):
            self._server = server_info(self._call("ListLosses", b"", self._deadline(timeout)))
        return self._server

    def losses(self, *, timeout: float | None = None) -> tuple[LossInfo, ...]:
        """Asks the server for every loss that it offers, with its parameters."""
        return self.info(timeout=timeout).losses

    def evaluate(
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
        """Evaluates a loss over pairs of boxes.

        Args:
            predictions: boxes of shape (N, 4), or (N, 5) or (N, 8) where the format says so: a numpy array, lists or a
                torch tensor. float32 is computed in float32, float64, integers and lists in float64, half precision
                in float32.
            targets: likewise.
            loss: what to compute, for example `boxloss.CIoU()`.
            gradients: whether to return the gradient with respect to the predictions.
            target_gradients: whether to return the gradient with respect to the targets.
            box_format: "xyxy" (left, top, right, bottom), "xywh" (left, top, width, height) or "cxcywh" (centre,
                width, height); of oriented boxes "cxcywha_degrees" or "cxcywha_radians" (the angle from the x axis
                towards the y axis) or "quad" (x and y of four corners). Of both boxes and of the gradients.
            weights: one finite number of 0 or more for each pair.
            reduction: "none", "mean" (over the pairs, not over the sum of the weights) or "sum".
            invalid: what to do with inverted or non-finite boxes: "reject" the call, or "mask" the pair: NaN loss,
                zero gradient, no part in a reduction, and False in the result's `valid`.
            similarity: whether to return the loss's similarity instead: 1 - loss, for losses that have one.
            image_size: width and height of the image, for losses that need it.
            running_mean: of 1 - IoU over past calls, for losses that need it; the result has the next one.
            crowd: which targets are crowds, one for each pair; by COCO's rule, the result's IoU of these is the
                intersection over the area of the prediction. Losses do not change.
            timeout: seconds that the call may take.

        Raises:
            InvalidInputError: the input is wrong; the message names the field.
            BoxlossError: another of its kinds.
        """
        options = Options(gradients, target_gradients, box_format, invalid, similarity, image_size, running_mean)
        question = Question(predictions, targets, [loss], options, reduction, weights, crowd)
        with self._watched("Evaluate"):
            return self._evaluate(question, timeout)[0]

    def compare(
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
        """Evaluates several losses over the same pairs; the server computes their geometry once.

        Takes and raises what `evaluate` does; returns one result for each loss, in their order.
        """
        options = Options(gradients, target_gradients, box_format, invalid, similarity, image_size, running_mean)
        question = Question(predictions, targets, losses, options, reduction, weights, crowd)
        with self._watched("Evaluate"):
            return self._evaluate(question, timeout)

    def evaluate_stream(
        self,
        batches: Iterable[Batch],
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
    ) -> Iterator[LossResult]:
        """Evaluates a loss over many batches through one call, several of them on their way at once.

        Reads up to eight batches ahead. A broken connection is opened again, and what was not answered sent again.

        Args:
            batches: tuples of predictions, targets and, where wanted, weights.
            loss: what to compute.
            timeout: seconds that the whole stream may take; no limit unless given.

        The other keywords are those of `evaluate`.

        Yields:
            One result for each batch, in their order.

        Raises:
            BoxlossError: after the results of all batches before the one at fault.
        """
        options = Options(gradients, target_gradients, box_format, invalid, similarity, image_size, running_mean)
        deadline = time.monotonic() + timeout if timeout is not None else None
        stream = StreamExchange(loss, options, reduction, self._offer(None))
        connection: _Stream | None = None
        fault: InvalidInputError | None = None

        def read() -> loss_service_pb2.EvaluateStreamResponse:
            nonlocal connection
            connection = connection or _Stream(self, "EvaluateStream", stream.unanswered, deadline)
            try:
                answer: loss_service_pb2.EvaluateStreamResponse = connection.read()
                return answer
            except BoxlossError as error:
                connection.close(error)
                connection = None
                if not (isinstance(error, RequestTooLargeError) and self._narrows(stream.server)):
                    raise
            stream.cut(self._offer(None))
            return read()

        source = iter(batches)
        retrying = partial(
            Retrying, **policy(self.timeout, self._several), before_sleep=self._retried("EvaluateStream")
        )
        with self._watched("EvaluateStream"):
            try:
                while True:
                    while not (fault or stream.full) and (batch := next(source, None)) is not None:
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
                    if result := stream.answer(retrying()(read)):
                        yield result
            finally:
                if connection:
                    connection.close()

    def pairwise_iou(
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
        """Computes an IoU metric between all boxes of two sets.

        Args:
            a: boxes of shape (N, 4).
            b: boxes of shape (M, 4).
            metric: "iou", "giou", "diou", "ciou" or "eiou", or a loss whose similarity is the metric, for example
                `boxloss.SIoU()`; each is 1 for identical boxes.
            box_format: as in `evaluate`.
            invalid: "reject" the call, or "mask" the rows and columns of invalid boxes with NaN.
            crowd: which boxes of `b` are crowds; by COCO's rule, their metric is the intersection over the area of the
                box of `a`. With the plain IoU only.
            image_size: width and height of the image, for metrics that need it.
            timeout: seconds that the call may take.

        Returns:
            A matrix of shape (N, M).

        Raises:
            BoxlossError: as `evaluate`.
        """
        deadline = self._deadline(timeout)

        def ask(server: ServerInfo) -> Array:
            exchange = MatrixExchange(a, b, metric, box_format, invalid, crowd, image_size, server)
            return exchange.matrix(self._ask("PairwiseIou", exchange, deadline))

        with self._watched("PairwiseIou"):
            return self._fitting(ask, deadline)

    def audit(
        self, images: Iterable[Image], rules: Rules | None = None, *, worst: int = 100, timeout: float | None = None
    ) -> Audit:
        """Holds labels against predictions on the server: which may be wrong, and how sure that is.

        Images are read a few ahead, and a broken connection is opened again.

        >>> found = client.audit(images)
        >>> for each in found:
        ...     print(each.image_id, [finding.message for finding in each.findings])
        >>> found.summary().findings

        Args:
            images: to audit; see `boxloss.audit`.
            rules: the default ones unless given.
            worst: how many of the worst images and findings the summary names.
            timeout: seconds that the whole audit may take; no limit unless given.

        Returns:
            Gives what was found in each image, in their order, and at the end a summary: the same as `boxloss.audit`
            finds in this process. Iterating raises `BoxlossError` as `evaluate_stream` does.
        """
        deadline = time.monotonic() + timeout if timeout is not None else None
        return Audit(self._audited(images, AuditExchange(rules or Rules(), worst), deadline))

    def _audited(
        self, images: Iterable[Image], exchange: AuditExchange, deadline: float | None
    ) -> Iterator[ImageAudit | Summary]:
        connection: _Stream | None = None

        def read() -> AuditResponse:
            nonlocal connection
            connection = connection or _Stream(self, "Audit", exchange.unanswered, deadline)
            try:
                answer: AuditResponse = connection.read()
            except BoxlossError as error:
                connection.close(error)
                connection = None
                raise
            return answer

        source = iter(images)
        retrying = partial(Retrying, **policy(self.timeout, self._several), before_sleep=self._retried("Audit"))
        with self._watched("Audit"):
            try:
                while True:
                    while not exchange.full and (image := next(source, None)) is not None:
                        message = exchange.ask(image)
                        if connection:
                            connection.write([message])
                    if exchange.done:
                        yield exchange.summary()
                        return
                    yield exchange.answer(retrying()(read))
            finally:
                if connection:
                    connection.close()

    def _evaluate(self, question: Question, timeout: float | None) -> list[LossResult]:
        deadline = self._deadline(timeout)

        def ask(server: ServerInfo) -> list[LossResult]:
            if lane := self._lane(question, timeout, server):
                call = _Call(question, deadline)
                return self._ride(lane, call).results(call)
            exchange = EvaluationExchange(question, server)
            return exchange.results(self._ask("Evaluate", exchange, deadline))

        return self._fitting(ask, deadline)

    def _fitting(self, ask: Callable[[ServerInfo], Answered], deadline: float) -> Answered:
        """Asks in messages that all replicas allow, whatever the one allows that was asked for its limits."""
        while True:
            server = self._offer(deadline)
            try:
                return ask(server)
            except RequestTooLargeError:
                if not self._narrows(server):
                    raise

    def _ride(self, lane: Lane[_Call], call: _Call) -> Answer:
        """The answer to the message that a call rides in."""
        call.caller = self._caller()
        with self._lock:
            leads = lane.enter(call)
        outcome = Word.LEAD if leads else self._wait(lane, call)
        if outcome is Word.LEAD:
            outcome = self._lead(lane, call)
        if outcome is Word.ALONE:
            outcome = self._send(lane, [call])
        if isinstance(outcome, Word):
            raise self._late()
        return outcome

    def _send(self, lane: Lane[_Call], calls: list[_Call]) -> Answer:
        message = Message(lane, calls)
        callers = [call.caller for call in calls] if self._tracing else ()
        if self._metrics:
            self._metrics.coalesced(len(calls))
        try:
            response = self._call("Evaluate", message.request(), message.deadline, callers=callers)
            return Answer(lane.kind, response, message.pairs)
        except DeadlineExceededError as error:
            raise self._late(error) from None

    def _lead(self, lane: Lane[_Call], call: _Call) -> Outcome:
        """Sends a call with those that wait, hands them the answer, and the place to one that came meanwhile."""
        calls = [call]
        outcome: Outcome = Word.ALONE
        try:
            with self._lock:
                calls = lane.gather(call)
            outcome = self._send(lane, calls)
        except BoxlossError as error:
            if len(calls) == 1:
                raise
            outcome = Word.after(error)
        finally:
            for other in calls[1:]:
                other.inbox.put(outcome)
            if len(calls) > 1:
                time.sleep(0)  # First those answered go on; they may call again at once, and can ride together.
            self._pass_on(lane)
        return outcome

    def _wait(self, lane: Lane[_Call], call: _Call) -> Outcome:
        """Waits until a call has ridden with another's, or is told what to do."""
        outcome: Outcome | None = None
        try:
            outcome = call.inbox.get(timeout=max(call.deadline - time.monotonic(), 0))
        except Empty:
            return Word.LATE
        finally:
            if outcome is None:
                self._withdraw(lane, call)
        return outcome

    def _withdraw(self, lane: Lane[_Call], call: _Call) -> None:
        """Takes back a call whose caller has gone."""
        with self._lock:
            waited = lane.withdraw(call)
        if not waited and not call.inbox.empty() and call.inbox.get() is Word.LEAD:
            self._pass_on(lane)

    def _pass_on(self, lane: Lane[_Call]) -> None:
        """Has another caller use the place that has become free."""
        with self._lock:
            if successor := lane.leave():
                successor.inbox.put(Word.LEAD)

    def _ask(self, method: str, exchange: EvaluationExchange | MatrixExchange, deadline: float) -> list[Any]:
        return [self._call(method, request, deadline, names) for request, names in exchange.requests()]

    def _offer(self, deadline: float | None) -> ServerInfo:
        """What the server offers, asked once."""
        return self._server or self.info(timeout=None if deadline is None else deadline - time.monotonic())

    def _call(
        self,
        method: str,
        request: Any,
        deadline: float,
        names: Mapping[str, str] = NO_NAMES,
        callers: Sequence[Any] = (),
    ) -> Any:
        def attempt() -> Any:
            self._check_open()
            try:
                timeout = max(deadline - time.monotonic(), 0)
                answer = getattr(self._stub, method)(request, timeout=timeout, metadata=headers)
            except grpc.RpcError as error:
                self._check_open()
                raise self._translated(error, method, names) from None
            self._trouble = None
            return read_answer(method, answer)

        with self._sending(method, callers) as headers:
            retries = policy(deadline - time.monotonic(), self._several)
            return Retrying(**retries, before_sleep=self._retried(method))(attempt)


class _Call(Call):
    """A call whose caller may have to wait."""

    def __init__(self, question: Question, deadline: float) -> None:
        super().__init__(question, deadline)
        self.inbox: SimpleQueue[Outcome] = SimpleQueue()


class _Stream:
    """One connection of a stream.

    Args:
        client: whose.
        method: name of the RPC.
        messages: to send first.
        deadline: of the whole stream, as time.monotonic() tells it.
    """

    def __init__(self, client: Client, method: str, messages: list[bytes], deadline: float | None) -> None:
        client._check_open()
        self._client = client
        self._method = method
        self._outbox: SimpleQueue[bytes | None] = SimpleQueue()
        self.write(messages)
        self._span = client._tracing.Span(method) if client._tracing else None
        headers = self._span.headers if self._span else None
        timeout = None if deadline is None else max(deadline - time.monotonic(), 0)
        self._call = getattr(client._stub, method)(iter(self._outbox.get, None), timeout=timeout, metadata=headers)

    def write(self, messages: list[bytes]) -> None:
        for message in messages:
            self._outbox.put(message)

    def read(self) -> Any:
        try:
            answer: bytes = next(self._call)
        except grpc.RpcError as error:
            raise self._client._translated(error, self._method) from None
        except StopIteration:
            raise ServerUnavailableError(f"{self._client.address} ended the stream before its last answer") from None
        self._client._trouble = None
        return read_answer(self._method, answer)

    def close(self, error: BoxlossError | None = None) -> None:
        if self._span:
            self._span.end(error)
        self._outbox.put(None)
        self._call.cancel()
