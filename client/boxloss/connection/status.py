"""gRPC errors as boxloss errors."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from boxloss.errors import (
    DOMAIN,
    BoxlossError,
    DeadlineExceededError,
    InvalidInputError,
    OutOfMemoryError,
    QuotaExceededError,
    RequestTooLargeError,
    ServerBusyError,
    ServerError,
    ServerUnavailableError,
    UnauthenticatedError,
    UnsupportedError,
    Violation,
)

_BY_REASON = {error.reason: error for error in (InvalidInputError, RequestTooLargeError, UnsupportedError)}

_BROKEN = "Internal error from Core", "RST_STREAM"
"""What the details of an INTERNAL status have where none was sent: grpc.aio's word for a connection that breaks while a
message is written, and what a proxy does to a call whose server has gone.
"""
_DROPPED = "CANCELLED"
"""What gRPC calls it when a server drops a call that it has not read: a thousand others wait, or it shuts down."""
_DROPPED_RETRY_AFTER = 0.1


def error_of(error: Any, address: str, method: str, tls_trouble: str | None = None) -> BoxlossError:
    """The boxloss error that a failed call stands for.

    Args:
        error: a grpc.RpcError of either stack.
        address: whom the call was made to.
        method: name of the RPC.
        tls_trouble: why TLS keeps the server out of reach, where it does.
    """
    message = error.details() or "no details"
    info, violations, retry_after = _details(error)
    if info.reason in _BY_REASON and violations:
        return _BY_REASON[info.reason](violations)
    match error.code():
        case grpc.StatusCode.UNAUTHENTICATED:
            return UnauthenticatedError(
                f"{address} refuses {method} ({message}); give the client a token= that it knows"
            )
        case grpc.StatusCode.RESOURCE_EXHAUSTED if retry_after is not None:
            if info.reason == QuotaExceededError.reason:
                return QuotaExceededError(message, retry_after)
            return ServerBusyError(message, retry_after)
        case grpc.StatusCode.RESOURCE_EXHAUSTED if info.reason == OutOfMemoryError.reason:
            return OutOfMemoryError(message)
        case grpc.StatusCode.RESOURCE_EXHAUSTED:  # gRPC itself refuses a message.
            return RequestTooLargeError(
                [Violation(method, f"{message}; send less at once, or raise the server's --max-message-bytes")]
            )
        case grpc.StatusCode.INVALID_ARGUMENT:
            return InvalidInputError([Violation(method, message)])
        case grpc.StatusCode.UNIMPLEMENTED:
            return UnsupportedError([Violation(method, f"is not offered by the server at {address}; upgrade it")])
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return DeadlineExceededError(
                f"{address} did not answer {method} in time ({message}); allow a longer timeout, or send less at once"
            )
        case grpc.StatusCode.INTERNAL if any(sign in message for sign in _BROKEN):
            return ServerUnavailableError(f"the connection to {address} broke; is the server still there?")
        case grpc.StatusCode.CANCELLED if error.details() == _DROPPED:
            return ServerBusyError(
                f"{address} has dropped the call before reading it: too many wait, or it shuts down",
                _DROPPED_RETRY_AFTER,
            )
        case grpc.StatusCode.CANCELLED:  # By the server, or a proxy before it.
            return ServerUnavailableError(f"the server at {address} is shutting down; is there another?")
        case grpc.StatusCode.UNAVAILABLE if tls_trouble:
            return ServerUnavailableError(f"no connection to {address}: {tls_trouble} ({message})")
        case grpc.StatusCode.UNAVAILABLE:
            return ServerUnavailableError(
                f"no boxloss server answers at {address} ({message}); start one with boxloss-server, "
                "or correct the address or the TLS to it"
            )
        case code:
            return ServerError(f"{address} failed to answer {method} ({code.name}: {message})")


def _details(error: Any) -> tuple[error_details_pb2.ErrorInfo, list[Violation], float | None]:
    """Reason, violations and delay before a retry, as far as the server sent them."""
    info = error_details_pb2.ErrorInfo()
    violations: list[Violation] = []
    retry_after = None
    with suppress(DecodeError):  # Then the code and the message must do.
        for detail in _sent(error):
            request, retry = error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
            if detail.Is(info.DESCRIPTOR):
                detail.Unpack(info)
            elif detail.Unpack(request):
                violations += [Violation(fault.field, fault.description) for fault in request.field_violations]
            elif detail.Unpack(retry):
                retry_after = max(retry.retry_delay.ToNanoseconds() / 1e9, 0.0)
    if info.domain != DOMAIN:
        info.Clear()
    return info, violations, retry_after


def _sent(error: Any) -> list[Any]:
    """The details that the server sent."""
    return [
        detail
        for key, value in error.trailing_metadata() or ()
        if key == "grpc-status-details-bin"
        for detail in status_pb2.Status.FromString(value).details
    ]
