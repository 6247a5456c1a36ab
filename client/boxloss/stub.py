"""The methods of the service as the clients call them: with messages that are written already."""

from __future__ import annotations

from typing import Any

from boxloss.v1 import loss_service_pb2

_SERVICE = loss_service_pb2.DESCRIPTOR.services_by_name["LossService"]


class Stub:
    """Methods by their names; each takes bytes and returns a message, or a stream of them.

    Args:
        channel: of either stack.
    """

    def __init__(self, channel: Any) -> None:
        def path(name: str) -> str:
            return f"/{_SERVICE.full_name}/{name}"

        self.Evaluate = channel.unary_unary(
            path("Evaluate"), response_deserializer=loss_service_pb2.EvaluateResponse.FromString
        )
        self.EvaluateStream = channel.stream_stream(
            path("EvaluateStream"), response_deserializer=loss_service_pb2.EvaluateStreamResponse.FromString
        )
        self.PairwiseIou = channel.unary_unary(
            path("PairwiseIou"), response_deserializer=loss_service_pb2.PairwiseIouResponse.FromString
        )
        self.ListLosses = channel.unary_unary(
            path("ListLosses"), response_deserializer=loss_service_pb2.ListLossesResponse.FromString
        )
