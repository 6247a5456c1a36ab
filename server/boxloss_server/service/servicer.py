"""The RPCs of LossService: decode, have it computed, encode."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message

from boxloss.contract.bulk import Part
from boxloss.contract.wire import describe, refuse_unknown_fields
from boxloss.errors import InvalidInputError, Violation
from boxloss.losses import CATALOGUE
from boxloss.v1 import loss_service_pb2
from boxloss_server import __version__
from boxloss_server.batching import Admission, Outcome, UntilWritten
from boxloss_server.security import Access, Context
from boxloss_server.service.bulk import Received, reader
from boxloss_server.service.calls import when_over
from boxloss_server.service.decode import Limits, decode_evaluation, decode_matrix, pairs_of
from boxloss_server.service.encode import encode_evaluation, encode_in_stream, encode_matrix
from boxloss_server.service.metrics import Metrics
from boxloss_server.service.streams import Streams

if TYPE_CHECKING:
    from boxloss_server.service.tracing import Tracing

_LARGE_REQUEST = 2**18
"""Bytes of arrays from which on a request is decoded in a thread: checking as many quadrilaterals takes 15 ms."""
_LARGE_ANSWER = 2**16
"""Pairs from which on an answer is written in a thread."""

_Request = TypeVar("_Request", bound=Message)
_Asked = TypeVar("_Asked")


class LossServicer:
    """Answers the RPCs, in messages that are written. Errors leave it as `BoxlossError`.

    Args:
        admission: where requests are submitted to be computed.
        limits: on a request.
        device: name of the device that computes.
        metrics: where what is asked for is counted, and how long answers take to write.
        access: tells the callers apart.
        streams: where open streams are kept.
        tracing: makes spans of messages and stages, if any.
    """

    def __init__(
        self,
        admission: Admission,
        limits: Limits,
        device: str,
        metrics: Metrics,
        access: Access,
        streams: Streams,
        tracing: Tracing | None = None,
    ) -> None:
        self._admission = admission
        self._limits = limits
        self._metrics = metrics
        self._access = access
        self._streams = streams
        self._tracing = tracing
        self._catalogue = _catalogue(limits, device)

    @property
    def handlers(self) -> dict[str, Any]:
        """The handlers of the service's methods, by name."""
        return {
            "Evaluate": grpc.unary_unary_rpc_method_handler(
                self._evaluate, reader(loss_service_pb2.EvaluateRequest), bytes
            ),
            "EvaluateStream": grpc.stream_stream_rpc_method_handler(
                self._evaluate_stream, reader(loss_service_pb2.EvaluateStreamRequest), bytes
            ),
            "PairwiseIou": grpc.unary_unary_rpc_method_handler(
                self._pairwise_iou, reader(loss_service_pb2.PairwiseIouRequest), bytes
            ),
            "ListLosses": grpc.unary_unary_rpc_method_handler(
                self._list_losses,
                reader(loss_service_pb2.ListLossesRequest),
                loss_service_pb2.ListLossesResponse.SerializeToString,
            ),
        }

    async def _evaluate(self, request: Received[loss_service_pb2.EvaluateRequest], context: Context) -> bytes:
        return await self._answer(request, deadline_of(context), self._access.client(context), until_written(context))

    async def _evaluate_stream(
        self, requests: AsyncIterator[Received[loss_service_pb2.EvaluateStreamRequest]], context: Context
    ) -> AsyncIterator[bytes]:
        deadline, client = deadline_of(context), self._access.client(context)
        answer = partial(self._answer_message, deadline=deadline, client=client)
        async for response in self._streams.answers(requests, answer, context):
            yield response

    async def _pairwise_iou(self, request: Received[loss_service_pb2.PairwiseIouRequest], context: Context) -> bytes:
        work, grid = await _decoded(decode_matrix, request, self._limits)
        self._metrics.asked(work.box_format)
        self._metrics.masked(len(grid.masked_rows) + len(grid.masked_columns))
        pairs, deadline, client = pairs_of(grid), deadline_of(context), self._access.client(context)
        outcome = await self._admission.submit(
            work, grid, pairs, deadline, client, until_written=until_written(context)
        )
        return await self._written(partial(encode_matrix, request.message, grid, outcome), pairs, outcome)

    async def _list_losses(
        self, request: Received[loss_service_pb2.ListLossesRequest], context: Context
    ) -> loss_service_pb2.ListLossesResponse:
        refuse_unknown_fields(request.message)
        return self._catalogue

    async def _answer_message(
        self,
        number: int,
        received: Received[loss_service_pb2.EvaluateStreamRequest],
        until_written: UntilWritten,
        deadline: float,
        client: str,
    ) -> bytes:
        with self._tracing.message(number) if self._tracing else nullcontext():
            refuse_unknown_fields(received.message)
            if not received.message.HasField("request"):
                raise InvalidInputError([Violation("request", "is not set; put an EvaluateRequest into each message")])
            request = Received(received.message.request, received.bulk)
            return await self._answer(request, deadline, client, until_written, patient=True, wrapped=encode_in_stream)

    async def _answer(
        self,
        request: Received[loss_service_pb2.EvaluateRequest],
        deadline: float,
        client: str,
        until_written: UntilWritten,
        patient: bool = False,
        wrapped: Callable[[list[Part]], list[Part]] = list,
    ) -> bytes:
        asked = await _decoded(decode_evaluation, request, self._limits)
        self._metrics.asked(asked.work.box_format, *[loss.name for loss in asked.work.losses])
        self._metrics.masked(len(asked.pairs.masked))
        size = len(asked.pairs.predictions) * len(asked.work.losses)
        outcome = await self._admission.submit(asked.work, asked.pairs, size, deadline, client, patient, until_written)
        return await self._written(lambda: wrapped(encode_evaluation(asked, outcome)), size, outcome)

    async def _written(self, encode: Callable[[], list[Part]], pairs: int, outcome: Outcome[Any]) -> bytes:
        """The answer that these parts make."""

        def write() -> bytes:
            return b"".join(encode())

        answer = write() if pairs < _LARGE_ANSWER else await asyncio.to_thread(write)
        now = time.monotonic()
        self._metrics.answered(now - outcome.ended)
        if self._tracing:
            self._tracing.stages(outcome, now)
        return answer


async def _decoded(
    decode: Callable[[Received[_Request], Limits], _Asked], received: Received[_Request], limits: Limits
) -> _Asked:
    """What a request asks. Others are served while a large one is looked through."""
    if sum(map(len, received.bulk.values())) < _LARGE_REQUEST:
        return decode(received, limits)
    return await asyncio.to_thread(decode, received, limits)


def until_written(context: Context) -> UntilWritten:
    """Keeps room until a call is over: a single answer is written then."""
    return partial(when_over, context)


def deadline_of(context: Context) -> float:
    """When the caller stops waiting, as time.monotonic() tells it."""
    remaining: float | None = context.time_remaining()
    return float("inf") if remaining is None else time.monotonic() + remaining


def _catalogue(limits: Limits, device: str) -> loss_service_pb2.ListLossesResponse:
    return loss_service_pb2.ListLossesResponse(
        losses=[describe(loss) for loss in CATALOGUE.values()],
        metrics=[number for number in loss_service_pb2.IouMetric.values() if number],
        limits=loss_service_pb2.Limits(message_bytes=limits.message_bytes, request_pairs=limits.request_pairs),
        server_version=__version__,
        device=device,
    )
