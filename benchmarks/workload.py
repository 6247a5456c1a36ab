"""What every contender is asked: CIoU with gradients of the same pairs of boxes, as its own protocol writes it."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from boxloss.contract.wire import loss_to_message
from boxloss.losses import CIoU
from boxloss.v1 import array_pb2, loss_service_pb2

Array: TypeAlias = "NDArray[np.float32]"

LOSS = CIoU()
STREAM_MESSAGES = 8
"""Messages of one stream: enough to keep the server busy, few enough to hold in memory."""


class Answer(NamedTuple):
    """What a contender says about the pairs."""

    loss: Array
    iou: Array
    gradient: Array


@dataclass(frozen=True)
class Workload:
    """Boxes of an image of 1000 pixels, and predictions about as far off as a detector's."""

    pairs: int

    @cached_property
    def boxes(self) -> Array:
        """Predictions and targets, shape (2, N, 4)."""
        random = np.random.default_rng(self.pairs)
        size = random.uniform(10, 200, (self.pairs, 2))
        corner = random.uniform(0, 800, (self.pairs, 2))
        targets = np.concatenate([corner, corner + size], axis=1)
        shift = np.clip(random.normal(0, 0.2, (self.pairs, 4)), -0.45, 0.45)  # No box may turn inside out.
        return np.stack([targets + shift * np.tile(size, 2), targets]).astype(np.float32)

    @cached_property
    def raw(self) -> bytes:
        """The request of a peer."""
        return self.boxes.tobytes()

    @cached_property
    def request(self) -> bytes:
        """The EvaluateRequest."""
        predictions, targets = (array_pb2.Array(data=boxes.tobytes()) for boxes in self.boxes)
        return loss_service_pb2.EvaluateRequest(
            predictions=predictions,
            targets=targets,
            losses=[loss_to_message(LOSS)],
            dtype=array_pb2.DTYPE_FLOAT32,
            prediction_gradients=True,
            iou=True,
        ).SerializeToString()

    @cached_property
    def stream_request(self) -> bytes:
        """The same as a message of a stream."""
        request = loss_service_pb2.EvaluateRequest.FromString(self.request)
        return loss_service_pb2.EvaluateStreamRequest(request=request).SerializeToString()

    def read_raw(self, data: bytes) -> Answer:
        """The answer of a peer."""
        numbers = np.frombuffer(data, np.float32)
        if len(numbers) != 6 * self.pairs:
            raise ValueError(f"{len(data)} bytes, not {24 * self.pairs}")
        loss, iou, gradient = np.split(numbers, [self.pairs, 2 * self.pairs])
        return Answer(loss, iou, gradient.reshape(-1, 4))

    def read_response(self, data: bytes) -> Answer:
        """The answer in an EvaluateResponse."""
        response = loss_service_pb2.EvaluateResponse.FromString(data)
        result = response.results[0]
        parts = result.loss.data, response.iou.data, result.prediction_gradient.data
        return self.read_raw(b"".join(parts))


def frame(message: bytes) -> bytes:
    """A message as gRPC sends it: not compressed, its length, itself."""
    return struct.pack(">BI", 0, len(message)) + message


def stream_answer(answer: bytes) -> bytes:
    """An EvaluateResponse as a message of a stream."""
    response = loss_service_pb2.EvaluateResponse.FromString(answer)
    return loss_service_pb2.EvaluateStreamResponse(response=response).SerializeToString()
