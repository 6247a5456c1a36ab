"""The blocking client."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import grpc
from numpy.typing import ArrayLike
from tenacity import Retrying

from boxloss.audit.dataset import Audit
from boxloss.audit.image import Image
from boxloss.audit.rules import ImageAudit, Rules
from boxloss.audit.summary import Summary
from boxloss.calls import arguments
from boxloss.calls.audit_exchange import AuditExchange
from boxloss.calls.base import Connection
from boxloss.calls.catalogue import server_info
from boxloss.calls.coalescer import Coalescer, ThreadCall
from boxloss.calls.coalescing import Answer, Lane, Message, Verdict
from boxloss.calls.exchange import Batch, EvaluationExchange, MatrixExchange, Options, Question
from boxloss.calls.results import LossInfo, LossResult, ServerInfo
from boxloss.calls.stream_exchange import EvaluationStreamExchange
from boxloss.calls.streams import Stream
from boxloss.connection.channel import Address
from boxloss.connection.credentials import Tls
from boxloss.connection.retry import policy
from boxloss.connection.stub import read_answer
from boxloss.contract.arrays import Array, Boxes
from boxloss.contract.words import BoxFormat, Invalid, Metric, Reduction
from boxloss.errors import NO_NAMES, DeadlineExceededError, Names, RequestTooLargeError
from boxloss.losses import Loss

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
        super().__init__(grpc, address, timeout=timeout, metrics=metrics, tracing=tracing, tls=tls, token=token)
        self._coalescer = Coalescer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection; calls under way fail."""
        self._transport.closed = True
        for channel in self._transport.channels:
            channel.close()

    def info(self, *, timeout: float | None = None) -> ServerInfo:
        """Asks the server what it offers: version, device, limits, losses and metrics."""
        with self._transport.watched("ListLosses"):
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
            targets: one for each prediction, of the same shape.
            loss: what to compute, for example `boxloss.CIoU()`.
            gradients: whether to return the gradient with respect to the predictions.
            target_gradients: whether to return the gradient with respect to the targets.
            box_format: "xyxy" (left, top, right, bottom), "xywh" (left, top, width, height) or "cxcywh" (center,
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
        question = Question(predictions, targets, [arguments.loss(loss)], options, reduction, weights, crowd)
        with self._transport.watched("Evaluate"):
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
        with self._transport.watched("Evaluate"):
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
        arguments.items(batches, "batches")
        deadline = self._limit(timeout)
        exchange = EvaluationStreamExchange(loss, options, reduction, self._offer(None))

        def narrow() -> bool:
            if not self._narrows(exchange.server):
                return False
            exchange.cut(self._offer(None))
            return True

        stream = Stream(self._transport, "EvaluateStream", exchange, self.timeout, deadline, narrow)
        yield from stream.results(batches)

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

        with self._transport.watched("PairwiseIou"):
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
        arguments.items(images, "images")
        deadline = self._limit(timeout)
        return Audit(self._audited(images, AuditExchange(Rules() if rules is None else rules, worst), deadline))

    def _audited(
        self, images: Iterable[Image], exchange: AuditExchange, deadline: float | None
    ) -> Iterator[ImageAudit | Summary]:
        yield from Stream(self._transport, "Audit", exchange, self.timeout, deadline).results(images)
        yield exchange.summary()

    def _evaluate(self, question: Question, timeout: float | None) -> list[LossResult]:
        deadline = self._deadline(timeout)

        def ask(server: ServerInfo) -> list[LossResult]:
            if lane := self._lane(question, timeout, server):
                call = ThreadCall(question, deadline)
                call.caller = self._transport.caller()
                outcome = self._coalescer.ride(lane, call, self._send)
                if isinstance(outcome, Verdict):
                    raise self._transport.late()
                return outcome.results(call)
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

    def _send(self, lane: Lane[ThreadCall], calls: list[ThreadCall]) -> Answer:
        """Sends calls that ride together."""
        message = Message(lane, calls)
        transport = self._transport
        callers = [call.caller for call in calls] if transport.tracing else ()
        if transport.metrics:
            transport.metrics.coalesced(len(calls))
        try:
            response = self._call("Evaluate", message.request(), message.deadline, callers=callers)
            return Answer(lane.kind, response, message.pairs)
        except DeadlineExceededError as error:
            raise transport.late(error) from None

    def _ask(self, method: str, exchange: EvaluationExchange | MatrixExchange, deadline: float) -> list[Any]:
        return [self._call(method, request, deadline, names) for request, names in exchange.requests()]

    def _offer(self, deadline: float | None) -> ServerInfo:
        """What the server offers, asked once."""
        return self._server or self.info(timeout=None if deadline is None else max(deadline - time.monotonic(), 0))

    def _call(
        self,
        method: str,
        request: Any,
        deadline: float,
        names: Names = NO_NAMES,
        callers: Sequence[Any] = (),
    ) -> Any:
        transport = self._transport

        def attempt() -> Any:
            try:
                answer = transport.call(method, request, deadline, headers)
            except grpc.RpcError as error:
                transport.check_open()
                raise transport.translated(error, method, names) from None
            transport.trouble = None
            return read_answer(method, answer)

        with transport.sending(method, callers) as headers:
            retries = policy(deadline - time.monotonic(), transport.several)
            return Retrying(**retries, before_sleep=transport.retried(method))(attempt)
