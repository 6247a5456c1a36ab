"""The RPC of AuditService: images in, findings out, and a summary at the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import numpy as np

from boxloss.audit.image import Image
from boxloss.audit.rules import ImageAudit, Rules, audit_image
from boxloss.audit.summary import Tally
from boxloss.audit.wire import audit_to_message, image_from_message, rules_from_message, summary_to_message
from boxloss.errors import InputError, InvalidInputError, RequestTooLargeError, Violation
from boxloss.v1.audit_service_pb2 import AuditRequest, AuditResponse
from boxloss.wire import refuse_unknown_fields
from boxloss_server.batching import Batcher, Quotas
from boxloss_server.engine.overlaps import ImageBoxes, Overlap
from boxloss_server.security import Access, Context
from boxloss_server.service.decode import Limits
from boxloss_server.service.metrics import Metrics
from boxloss_server.service.servicer import deadline_of
from boxloss_server.service.streams import Streams


class AuditServicer:
    """Answers the RPC. Overlaps are computed in batches with those of other images; the rules run in a thread.

    Args:
        batcher: computes.
        limits: on an image.
        metrics: where findings are counted.
        access: tells the callers apart.
        streams: where open streams are kept.
    """

    def __init__(
        self, batcher: Batcher | Quotas, limits: Limits, metrics: Metrics, access: Access, streams: Streams
    ) -> None:
        self._batcher = batcher
        self._limits = limits
        self._metrics = metrics
        self._access = access
        self._streams = streams

    @property
    def handlers(self) -> dict[str, Any]:
        """The handlers of the service's methods, by name."""
        return {"Audit": grpc.stream_stream_rpc_method_handler(self._audit, AuditRequest.FromString, bytes)}

    async def _audit(self, requests: AsyncIterator[AuditRequest], context: Context) -> AsyncIterator[bytes]:
        audit = _Audit(self._batcher, self._limits, deadline_of(context), self._access.client(context))
        async for answer in self._streams.answers(requests, audit.answer):
            if answer:
                image, audited = answer
                audit.tally.add(image, audited)
                self._metrics.audited(audited)
                yield AuditResponse(image=audit_to_message(audited)).SerializeToString()
        yield AuditResponse(summary=summary_to_message(audit.tally.summary())).SerializeToString()


class _Audit:
    """One call.

    Attributes:
        tally: of the images that have been answered.
    """

    def __init__(self, batcher: Batcher | Quotas, limits: Limits, deadline: float, client: str) -> None:
        self._batcher = batcher
        self._limits = limits
        self._deadline = deadline
        self._client = client
        self._rules = Rules()
        self.tally = Tally()

    async def answer(self, number: int, request: AuditRequest) -> tuple[Image, ImageAudit] | None:
        """Audits the image of a message; the first message has the rules instead."""
        refuse_unknown_fields(request)
        content = request.WhichOneof("content")
        if number == 0:
            if content != "rules":
                raise InvalidInputError([Violation("rules", "are not in the first message; send them, then images")])
            try:
                self._rules, worst = rules_from_message(request.rules)
            except InputError as error:
                raise error.within("rules") from None
            self.tally = Tally(worst)
            return None
        if content != "image":
            raise InvalidInputError([Violation("image", "is not set; every message but the first has one")])
        try:
            image = image_from_message(request.image)
        except InputError as error:
            raise error.within("image") from None
        boxes = _boxes_of(image)
        if boxes.pairs > self._limits.request_pairs:
            raise RequestTooLargeError(
                [
                    Violation(
                        "image",
                        f"makes {boxes.pairs} pairs of boxes, and the limit is {self._limits.request_pairs}; leave out "
                        "predictions with low scores, or raise the server's --max-request-pairs",
                    )
                ]
            )
        outcome = await self._batcher.submit(Overlap(), boxes, boxes.pairs, self._deadline, self._client, patient=True)
        return image, await asyncio.to_thread(audit_image, image, self._rules, outcome.result)


def _boxes_of(image: Image) -> ImageBoxes:
    predicted = np.empty((0, 4)) if image.predictions is None else image.predictions.boxes
    return ImageBoxes(predicted, image.labels.boxes, image.labels.crowd)
