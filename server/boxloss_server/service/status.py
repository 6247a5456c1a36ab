"""Errors as gRPC statuses with google.rpc details."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status as RpcStatus

from boxloss.errors import (
    DOMAIN,
    BoxlossError,
    InputError,
    InvalidInputError,
    RequestTooLargeError,
    ServerBusyError,
    UnsupportedError,
    Violation,
)

if TYPE_CHECKING:
    from boxloss_server.security import Context

_ROOM = 2048
"""Characters that a status has for violations. It tells them thrice, and gRPC's clients may drop a call whose trailers
are over 8 KiB."""


_CLOCK_SLACK = 0.05
"""Seconds. A caller's clock started before the server's did: at its deadline it cancels so much earlier at most."""


class Status(NamedTuple):
    """What a failed call answers."""

    code: grpc.StatusCode
    message: str
    trailers: tuple[tuple[str, str | bytes], ...]


def status_of(error: BoxlossError) -> Status:
    """The status that an error is answered with."""
    code = grpc.StatusCode[error.code]
    details = [_packed(ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata))]
    trailers: list[tuple[str, str | bytes]] = []
    if isinstance(error, InvalidInputError | RequestTooLargeError | UnsupportedError):
        error = _fitting(error)
        violations = [
            BadRequest.FieldViolation(field=violation.field, description=violation.description)
            for violation in error.violations
        ]
        details.append(_packed(BadRequest(field_violations=violations)))
    if isinstance(error, ServerBusyError):
        delay = Duration()
        delay.FromMilliseconds(round(error.retry_after * 1000))
        details.append(_packed(RetryInfo(retry_delay=delay)))
        trailers.append(("grpc-retry-pushback-ms", str(delay.ToMilliseconds())))
    status = RpcStatus(code=code.value[0], message=str(error), details=details)
    trailers.append(("grpc-status-details-bin", status.SerializeToString()))
    return Status(code, str(error), tuple(trailers))


def cancellation(context: Context) -> str:
    """The code of a call that was cancelled: by its caller, or by its deadline."""
    remaining = context.time_remaining()
    return "CANCELLED" if remaining is None or remaining > _CLOCK_SLACK else "DEADLINE_EXCEEDED"


def _fitting(error: InputError) -> InputError:
    """The error with as many of its violations as there is room for."""
    room, kept = _ROOM, []
    for violation in error.violations:
        room -= len(str(violation))
        if room < 0:
            break
        kept.append(violation)
    if room >= 0:
        return error
    if not kept:
        first = error.violations[0]
        kept.append(Violation(first.field[: _ROOM // 2], f"{first.description[: _ROOM // 2]}..."))
    if left := len(error.violations) - len(kept):
        kept.append(Violation("request", f"has {left} more faults; correct these first"))
    shorter = type(error)(kept)
    shorter.metadata = error.metadata
    return shorter


def _packed(detail: ErrorInfo | BadRequest | RetryInfo) -> Any:
    packed = Any()
    packed.Pack(detail)
    return packed
