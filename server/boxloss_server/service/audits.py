"""The RPC of AuditService: images in, findings out, and a summary at the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple, TypeVar

import grpc
import grpc.aio
import numpy as np

from boxloss.audit.image import Image
from boxloss.audit.overlaps import Overlaps
from boxloss.audit.rules import ImageAudit, Rules, audit_image
from boxloss.audit.summary import Tally
from boxloss.audit.wire import audit_to_message, image_from_message, rules_from_message, summary_to_message
from boxloss.contract.wire import refuse_unknown_fields
from boxloss.errors import InputError, InvalidInputError, RequestTooLargeError, Violation
from boxloss.v1.array_pb2 import Array
from boxloss.v1.audit_service_pb2 import AuditImage, AuditRequest, AuditResponse
from boxloss_server.batching import Admission, UntilWritten
from boxloss_server.engine.overlaps import ImageBoxes, Overlap
from boxloss_server.security import Access, Context
from boxloss_server.service.bulk import reader
from boxloss_server.service.decode import Limits
from boxloss_server.service.metrics import Metrics
from boxloss_server.service.servicer import deadline_of
from boxloss_server.service.streams import Streams

BOX_PAIRS = 32
"""Pairs that each box counts beside those that it makes: the rules take longer for it than an overlap takes."""
_LARGE_IMAGE = 2**15
"""Pairs from which on an image is read in a thread."""

_reader = reader(AuditRequest)
_Done = TypeVar("_Done")


class AuditServicer:
    """Answers the RPC. Overlaps are computed in batches with those of other images; the rules run in a thread.

    Args:
        admission: where requests are submitted to be computed.
        limits: on an image.
        metrics: where findings are counted.
        access: tells the callers apart.
        streams: where open streams are kept.
    """

    def __init__(
        self, admission: Admission, limits: Limits, metrics: Metrics, access: Access, streams: Streams
    ) -> None:
        self._admission = admission
        self._limits = limits
        self._metrics = metrics
        self._access = access
        self._streams = streams

    @property
    def handlers(self) -> dict[str, Any]:
        """The handlers of the service's methods, by name."""
        return {"Audit": grpc.stream_stream_rpc_method_handler(self._audit, _read, bytes)}

    async def _audit(self, requests: AsyncIterator[AuditRequest], context: Context) -> AsyncIterator[bytes]:
        audit = _Audit(self._admission, self._limits, self._metrics, deadline_of(context), self._access.client(context))
        async for answer in self._streams.answers(requests, audit.answer, context):
            if answer:
                await audit.add(answer)
                yield answer.written
        yield await asyncio.to_thread(audit.summary)


class Answer(NamedTuple):
    """An image, what was found in it, the message that tells it, and how many pairs the image counts."""

    image: Image
    audited: ImageAudit
    written: bytes
    pairs: int


class _Audit:
    """One call."""

    def __init__(self, admission: Admission, limits: Limits, metrics: Metrics, deadline: float, client: str) -> None:
        self._admission = admission
        self._limits = limits
        self._metrics = metrics
        self._deadline = deadline
        self._client = client
        self._rules = Rules()
        self._tally = Tally()

    async def answer(self, number: int, request: AuditRequest, until_written: UntilWritten) -> Answer | None:
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
            self._tally = Tally(worst)
            return None
        if content != "image":
            raise InvalidInputError([Violation("image", "is not set; every message but the first has one")])
        pairs = self._pairs(request.image)
        image = await self._aside(pairs, self._image, request.image)
        boxes = _boxes_of(image)
        outcome = await self._admission.submit(
            Overlap(), boxes, pairs, self._deadline, self._client, patient=True, until_written=until_written
        )
        audited, written = await asyncio.to_thread(self._findings, image, outcome.result)
        return Answer(image, audited, written, pairs)

    async def add(self, answer: Answer) -> None:
        """Adds an image to the tally."""
        await self._aside(answer.pairs, self._count, answer)

    def summary(self) -> bytes:
        """The message that tells of all images."""
        return AuditResponse(summary=summary_to_message(self._tally.summary())).SerializeToString()

    async def _aside(self, pairs: int, do: Callable[..., _Done], *arguments: Any) -> _Done:
        """Does what takes as long as so many pairs take: others are served meanwhile, if they are many."""
        return do(*arguments) if pairs < _LARGE_IMAGE else await asyncio.to_thread(do, *arguments)

    def _count(self, answer: Answer) -> None:
        self._tally.add(answer.image, answer.audited)
        self._metrics.audited(answer.audited)

    def _pairs(self, message: AuditImage) -> int:
        """How many pairs an image counts."""
        predictions, labels = (_boxes_in(part.boxes) for part in (message.predictions, message.labels))
        boxes = predictions + labels
        pairs = boxes * (labels + BOX_PAIRS)
        if pairs > self._limits.request_pairs:
            fault = (
                f"makes {pairs} pairs of boxes, {BOX_PAIRS} for each box among them, and the limit is "
                f"{self._limits.request_pairs}; leave out predictions with low scores, or raise the server's "
                "--max-request-pairs"
            )
            raise RequestTooLargeError([Violation("image", fault)])
        # Each finding repeats the image's id, and names of classes in its fields and its sentence.
        text = len(message.id.text) + 4 * max(map(len, message.class_names), default=0)
        if boxes * text > self._limits.message_bytes:
            fault = f"and the image's id are too long for findings about {boxes} boxes; send shorter ones"
            raise RequestTooLargeError([Violation("image.class_names", fault)])
        return pairs

    def _image(self, message: AuditImage) -> Image:
        try:
            return image_from_message(message)
        except InputError as error:
            raise error.within("image") from None

    def _findings(self, image: Image, overlaps: Overlaps) -> tuple[ImageAudit, bytes]:
        """What is found in an image, and the message that tells it."""
        audited = audit_image(image, self._rules, overlaps)
        return audited, AuditResponse(image=audit_to_message(audited)).SerializeToString()


def _boxes_in(boxes: Array) -> int:
    return (len(boxes.values) or len(boxes.data) // 8) // 4


def _read(data: bytes) -> AuditRequest:
    return _reader(data).message


def _boxes_of(image: Image) -> ImageBoxes:
    predicted = np.empty((0, 4)) if image.predictions is None else image.predictions.boxes
    return ImageBoxes(predicted, image.labels.boxes, image.labels.crowd)
