"""The methods of the service as the clients call them: with bytes, which they write and read themselves.

gRPC itself would take an answer that cannot be read for none at all, or wait for the end of its stream.
"""

from __future__ import annotations

from typing import Any

from google.protobuf.message import DecodeError

from boxloss.arrays import unexpected
from boxloss.v1 import loss_service_pb2

_SERVICE = loss_service_pb2.DESCRIPTOR.services_by_name["LossService"]
_ANSWERS: dict[str, Any] = {
    "Evaluate": loss_service_pb2.EvaluateResponse,
    "EvaluateStream": loss_service_pb2.EvaluateStreamResponse,
    "PairwiseIou": loss_service_pb2.PairwiseIouResponse,
    "ListLosses": loss_service_pb2.ListLossesResponse,
}


class Stub:
    """Methods by their names; each takes bytes and returns bytes, or a stream of them.

    Args:
        channel: of either stack.
    """

    def __init__(self, channel: Any) -> None:
        def path(name: str) -> str:
            return f"/{_SERVICE.full_name}/{name}"

        self.Evaluate = channel.unary_unary(path("Evaluate"))
        self.EvaluateStream = channel.stream_stream(path("EvaluateStream"))
        self.PairwiseIou = channel.unary_unary(path("PairwiseIou"))
        self.ListLosses = channel.unary_unary(path("ListLosses"))


def read_answer(method: str, data: bytes) -> Any:
    """Reads an answer of a method as its message.

    Raises:
        ServerError: it is none.
    """
    try:
        return _ANSWERS[method].FromString(data)
    except DecodeError:
        raise unexpected(f"bytes that are no {_ANSWERS[method].__name__}") from None
