"""What can go wrong, as one small tree that the SDK raises and the server answers with.

Each class stands for one gRPC status code and one machine-readable reason; the server turns an error into a status,
the SDK turns the status back into the same error.

    BoxlossError
     ├─ InputError
     │   ├─ InvalidInputError         a ValueError, too
     │   ├─ RequestTooLargeError      a ValueError, too
     │   └─ UnsupportedError
     ├─ ServerBusyError
     │   └─ QuotaExceededError
     ├─ OutOfMemoryError              a MemoryError, too
     ├─ UnauthenticatedError
     ├─ DeadlineExceededError         a TimeoutError, too
     ├─ ServerUnavailableError        a ConnectionError, too
     └─ ServerError
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self, TypeAlias

Names: TypeAlias = Mapping[str, str]
"""What to call the fields of a message that is a part of the input."""

NO_NAMES: Names = {}

DOMAIN = "boxloss"
"""The domain of every google.rpc.ErrorInfo that boxloss sends."""


@dataclass(frozen=True)
class Violation:
    """One thing that is wrong with an input: which field, and a sentence that says what would be right."""

    field: str
    description: str

    def __str__(self) -> str:
        return f"{self.field}: {self.description}"


class BoxlossError(Exception):
    """Base of every error that boxloss raises."""

    code: ClassVar[str] = "UNKNOWN"
    """Name of the gRPC status code."""
    reason: ClassVar[str] = "UNKNOWN"
    """Machine-readable reason, as in google.rpc.ErrorInfo."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.metadata: dict[str, str] = {}
        """Further facts, as in google.rpc.ErrorInfo."""


class InputError(BoxlossError):
    """Base of errors that name the fields at fault."""

    def __init__(self, violations: Sequence[Violation]) -> None:
        super().__init__("; ".join(map(str, violations)))
        self.violations = tuple(violations)

    def within(self, path: str) -> Self:
        """The same error seen from further out: each field's name is prefixed with the path to it."""
        return type(self)([Violation(f"{path}.{v.field}", v.description) for v in self.violations])

    def renamed(self, names: Names) -> Self:
        """The same error with other names for some fields."""
        return type(self)([Violation(names.get(v.field, v.field), v.description) for v in self.violations])


class InvalidInputError(InputError, ValueError):
    """A field is wrong; nothing was computed. Correct the fields named in `violations`."""

    code = "INVALID_ARGUMENT"
    reason = "INVALID_INPUT"


def fault(place: object, description: str) -> InvalidInputError:
    """The error that says what is wrong, and what would be right, at a place: a file, a line or an option."""
    return InvalidInputError([Violation(str(place), description)])


class RequestTooLargeError(InputError, ValueError):
    """The request is over a limit of the server. Send fewer pairs at once, or raise the limit."""

    code = "INVALID_ARGUMENT"
    reason = "REQUEST_TOO_LARGE"


class UnsupportedError(InputError):
    """The request uses something that this server does not know. Upgrade the server, or ask for what it lists."""

    code = "UNIMPLEMENTED"
    reason = "UNSUPPORTED"


class ServerBusyError(BoxlossError):
    """The server's queue is full. Retry after `retry_after` seconds, or add servers."""

    code = "RESOURCE_EXHAUSTED"
    reason = "QUEUE_FULL"

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class OutOfMemoryError(BoxlossError, MemoryError):
    """The server lacks the memory to compute this. Send less at once."""

    code = "RESOURCE_EXHAUSTED"
    reason = "OUT_OF_MEMORY"


class QuotaExceededError(ServerBusyError):
    """This client has used up its quota; others are served. Retry after `retry_after` seconds, or ask for more."""

    reason = "QUOTA_EXCEEDED"


class UnauthenticatedError(BoxlossError):
    """The server asks for a token, and the call had none that it knows. Give the client one that the server lists."""

    code = "UNAUTHENTICATED"
    reason = "UNAUTHENTICATED"


class DeadlineExceededError(BoxlossError, TimeoutError):
    """No answer came in time. Allow a longer timeout, or send less at once."""

    code = "DEADLINE_EXCEEDED"
    reason = "DEADLINE_EXCEEDED"


class ServerUnavailableError(BoxlossError, ConnectionError):
    """No server answers at the address. Start one, or correct the address or the TLS to it."""

    code = "UNAVAILABLE"
    reason = "UNAVAILABLE"


class ServerError(BoxlossError):
    """The server failed. Its log says why."""

    code = "INTERNAL"
    reason = "INTERNAL"
