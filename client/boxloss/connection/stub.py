"""The methods of the services as the clients call them: with bytes, which they write and read themselves.

gRPC itself would take an answer that cannot be read for none at all, or wait for the end of its stream.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from google.protobuf.message import DecodeError

from boxloss.connection.credentials import Metadata
from boxloss.contract.arrays import unexpected
from boxloss.v1 import audit_service_pb2, loss_service_pb2

_LOSSES = loss_service_pb2.DESCRIPTOR.services_by_name["LossService"].full_name
_AUDITS = audit_service_pb2.DESCRIPTOR.services_by_name["AuditService"].full_name
_ANSWERS: dict[str, Any] = {
    "Evaluate": loss_service_pb2.EvaluateResponse,
    "EvaluateStream": loss_service_pb2.EvaluateStreamResponse,
    "PairwiseIou": loss_service_pb2.PairwiseIouResponse,
    "ListLosses": loss_service_pb2.ListLossesResponse,
    "Audit": audit_service_pb2.AuditResponse,
}


class Stub:
    """Methods by their names; each takes bytes and returns bytes, or a stream of them.

    Args:
        channel: of either stack; gRPC closes it when neither the stub nor a call of it is left.
        metadata: what to send with every call.
    """

    def __init__(self, channel: Any, metadata: Metadata | None = None) -> None:
        def method(kind: Callable[..., Any], name: str, service: str = _LOSSES) -> Any:
            call = kind(f"/{service}/{name}")
            if kind == channel.stream_stream:
                call = partial(_keeping, channel, call)
            return partial(_with_metadata, call, metadata) if metadata else call

        self.Evaluate = method(channel.unary_unary, "Evaluate")
        self.EvaluateStream = method(channel.stream_stream, "EvaluateStream")
        self.PairwiseIou = method(channel.unary_unary, "PairwiseIou")
        self.ListLosses = method(channel.unary_unary, "ListLosses")
        self.Audit = method(channel.stream_stream, "Audit", _AUDITS)


def read_answer(method: str, data: bytes) -> Any:
    """Reads an answer of a method as its message.

    Raises:
        ServerError: it is none.
    """
    try:
        return _ANSWERS[method].FromString(data)
    except DecodeError:
        raise unexpected(f"bytes that are no {_ANSWERS[method].__name__}") from None


def _keeping(channel: Any, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Makes a call that keeps its channel until it ends, so that others can end it with the channel."""
    started = call(*arguments, **options)
    started.add_done_callback(lambda _, kept=channel: None)
    return started


def _with_metadata(
    call: Callable[..., Any], own: Metadata, request: Any, *, timeout: float | None, metadata: Metadata | None
) -> Any:
    """Makes a call with the metadata of all calls, and with its own if it has any."""
    return call(request, timeout=timeout, metadata=(*own, *(metadata or ())))
