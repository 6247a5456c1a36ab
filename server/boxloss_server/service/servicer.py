"""The RPCs of LossService: decode, have it computed, encode."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any, TypeAlias

import grpc.aio

from boxloss.errors import BoxlossError, InvalidInputError, ServerUnavailableError, Violation
from boxloss.losses import CATALOGUE
from boxloss.v1 import loss_service_pb2
from boxloss.v1.loss_service_pb2_grpc import LossServiceServicer
from boxloss.wire import describe, refuse_unknown_fields
from boxloss_server import __version__
from boxloss_server.batching import Batcher
from boxloss_server.service.decode import Limits, decode_evaluation, decode_matrix
from boxloss_server.service.encode import encode_evaluation, encode_matrix
from boxloss_server.service.metrics import Metrics

_STREAM_DEPTH = 4
"""Messages of one stream that are decoded and not yet answered."""

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class LossServicer(LossServiceServicer):
    """Answers the RPCs. Errors leave it as `BoxlossError`.

    Args:
        batcher: computes.
        limits: on a request.
        device: name of the device that computes.
        metrics: where the losses asked for are counted.
    """

    def __init__(self, batcher: Batcher, limits: Limits, device: str, metrics: Metrics) -> None:
        self._batcher = batcher
        self._limits = limits
        self._metrics = metrics
        self._catalogue = _catalogue(limits, device)
        self._readers: set[asyncio.Task[None]] = set()
        self._draining = False

    def drain(self) -> None:
        """Has open streams end after the answers to what they have already sent."""
        self._draining = True
        for reader in self._readers:
            reader.cancel()

    async def Evaluate(
        self, request: loss_service_pb2.EvaluateRequest, context: Context
    ) -> loss_service_pb2.EvaluateResponse:
        return await self._evaluate(request, _deadline(context), context.peer())

    async def EvaluateStream(
        self, requests: AsyncIterator[loss_service_pb2.EvaluateStreamRequest], context: Context
    ) -> AsyncIterator[loss_service_pb2.EvaluateStreamResponse]:
        deadline, client = _deadline(context), context.peer()
        answers: asyncio.Queue[asyncio.Task[loss_service_pb2.EvaluateResponse] | None] = asyncio.Queue(_STREAM_DEPTH)

        async def read() -> None:
            try:
                async for message in requests:
                    answer = asyncio.create_task(self._evaluate_message(message, deadline, client))
                    try:
                        await answers.put(answer)
                    except asyncio.CancelledError:
                        answer.cancel()
                        raise
            finally:
                await answers.put(None)

        reader = asyncio.create_task(read())
        self._readers.add(reader)
        answered = 0
        try:
            while answer := await answers.get():
                try:
                    response = await answer
                except BoxlossError as error:
                    error.metadata["message"] = str(answered)
                    raise
                yield loss_service_pb2.EvaluateStreamResponse(response=response)
                answered += 1
        except BaseException:
            reader.cancel()
            raise
        finally:
            self._readers.discard(reader)
            while not answers.empty():
                if answer := answers.get_nowait():
                    answer.cancel()
        if self._draining:
            raise ServerUnavailableError("the server is shutting down; send what is not answered to another, or later")
        await reader  # Where it has failed, the last message could not be read.

    async def PairwiseIou(
        self, request: loss_service_pb2.PairwiseIouRequest, context: Context
    ) -> loss_service_pb2.PairwiseIouResponse:
        work, grid = decode_matrix(request, self._limits)
        pairs = len(grid.rows) * len(grid.columns)
        outcome = await self._batcher.submit(work, grid, pairs, _deadline(context), context.peer())
        return encode_matrix(request, grid, outcome)

    async def ListLosses(
        self, request: loss_service_pb2.ListLossesRequest, context: Context
    ) -> loss_service_pb2.ListLossesResponse:
        refuse_unknown_fields(request)
        return self._catalogue

    async def _evaluate_message(
        self, message: loss_service_pb2.EvaluateStreamRequest, deadline: float, client: str
    ) -> loss_service_pb2.EvaluateResponse:
        refuse_unknown_fields(message)
        if not message.HasField("request"):
            raise InvalidInputError([Violation("request", "is not set; put an EvaluateRequest into each message")])
        return await self._evaluate(message.request, deadline, client, patient=True)

    async def _evaluate(
        self, request: loss_service_pb2.EvaluateRequest, deadline: float, client: str, patient: bool = False
    ) -> loss_service_pb2.EvaluateResponse:
        work, pairs = decode_evaluation(request, self._limits)
        for loss in work.losses:
            self._metrics.asked(loss.name)
        size = len(pairs.predictions) * len(work.losses)
        outcome = await self._batcher.submit(work, pairs, size, deadline, client, patient)
        return encode_evaluation(request, pairs, outcome)


def _deadline(context: Context) -> float:
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
