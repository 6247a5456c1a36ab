"""The methods of the service as the clients call them: with messages that are written already."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from boxloss.credentials import Metadata
from boxloss.v1 import loss_service_pb2

_SERVICE = loss_service_pb2.DESCRIPTOR.services_by_name["LossService"]


class Stub:
    """Methods by their names; each takes bytes and returns a message, or a stream of them.

    Args:
        channel: of either stack.
        metadata: what to send with every call.
    """

    def __init__(self, channel: Any, metadata: Metadata | None = None) -> None:
        def method(kind: Callable[..., Any], name: str, response: Any) -> Any:
            call = kind(f"/{_SERVICE.full_name}/{name}", response_deserializer=response.FromString)
            return partial(_with_metadata, call, metadata) if metadata else call

        self.Evaluate = method(channel.unary_unary, "Evaluate", loss_service_pb2.EvaluateResponse)
        self.EvaluateStream = method(channel.stream_stream, "EvaluateStream", loss_service_pb2.EvaluateStreamResponse)
        self.PairwiseIou = method(channel.unary_unary, "PairwiseIou", loss_service_pb2.PairwiseIouResponse)
        self.ListLosses = method(channel.unary_unary, "ListLosses", loss_service_pb2.ListLossesResponse)


def _with_metadata(
    call: Callable[..., Any], own: Metadata, request: Any, *, timeout: float | None, metadata: Metadata | None
) -> Any:
    """Makes a call with the metadata of all calls, and with its own if it has any."""
    return call(request, timeout=timeout, metadata=(*own, *(metadata or ())))
