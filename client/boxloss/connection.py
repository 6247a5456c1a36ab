"""What a blocking and an asyncio client have in common: whom they talk to, for how long, and how it can fail."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import grpc
from tenacity import RetryCallState

from boxloss.channel import Address, is_several, name_of
from boxloss.coalescing import CALL_PAIRS, LANES, Lane
from boxloss.errors import (
    BoxlossError,
    DeadlineExceededError,
    InputError,
    ServerBusyError,
    ServerUnavailableError,
)
from boxloss.exchange import NO_NAMES, Question
from boxloss.results import ServerInfo
from boxloss.status import error_of

if TYPE_CHECKING:
    from boxloss.metrics import ClientMetrics

_UNWATCHED: AbstractContextManager[Any] = nullcontext()
_LEAST_BYTES = 2**10
"""No server has a lower limit of a message."""


class Connection:
    """Base of the clients.

    Args:
        address: "host:port" or "unix:/path/of/socket"; of several servers, a list of "host:port", or "dns:///name:port".
        timeout: seconds that a call may take, unless it says otherwise.
        metrics: where calls are counted, if anywhere.
        tracing: whether messages carry the caller's trace, and have a span.

    Raises:
        BoxlossError: OpenTelemetry is not installed, which tracing needs.
    """

    def __init__(
        self,
        address: Address = "localhost:50051",
        *,
        timeout: float = 30.0,
        metrics: ClientMetrics | None = None,
        tracing: bool = False,
    ) -> None:
        self.address = name_of(address)
        self._several = is_several(address)
        self.timeout = timeout
        self._metrics = metrics
        self._tracing: Any = _tracing() if tracing else None
        self._server: ServerInfo | None = None
        self._closed = False
        self._lanes: Callable[..., Lane[Any]] = lru_cache(LANES)(Lane)
        self._trouble: grpc.RpcError | None = None
        """Why the last message was not answered, if it may be when it is sent again."""

    def _deadline(self, timeout: float | None) -> float:
        """When a call that starts now must end, as time.monotonic() tells it."""
        return time.monotonic() + (self.timeout if timeout is None else timeout)

    def _lane(self, question: Question, timeout: float | None, server: ServerInfo) -> Lane[Any] | None:
        """The lane of a small question; None where its answer would differ in company, or it needs none."""
        kind = question.kind
        if kind.options.running_mean is not None or question.crowd is not None or not 0 < question.pairs <= CALL_PAIRS:
            return None
        seconds = self.timeout if timeout is None else timeout
        lane = self._lanes(kind, seconds, server.message_bytes, server.request_pairs)
        return lane if question.pairs <= lane.room else None

    def _translated(self, error: grpc.RpcError, method: str, names: Mapping[str, str] = NO_NAMES) -> BoxlossError:
        """The boxloss error that a failed call stands for, with the caller's names for its fields."""
        translated = error_of(error, self.address, method)
        if isinstance(translated, (ServerUnavailableError, ServerBusyError)):
            self._trouble = error
        return translated.renamed(names) if isinstance(translated, InputError) else translated

    def _narrows(self, server: ServerInfo) -> bool:
        """Whether what is too large may be sent again in smaller parts.

        Another replica, or the same after a restart, may allow less than the server said that told its limits. Which
        of them refuses is not known, and so neither what it allows: what was believed is halved.
        """
        if self._server is server:  # Else another call has narrowed it meanwhile.
            narrower = dataclasses.replace(
                server,
                message_bytes=max(server.message_bytes // 2, _LEAST_BYTES),
                request_pairs=max(server.request_pairs // 2, 1),
            )
            if narrower == server:
                self._server = None  # It is not that; the next call asks anew.
                return False
            self._server = narrower
        return True

    def _late(self, error: DeadlineExceededError | None = None) -> BoxlossError:
        """What a call fails with when its time is over: what kept the server from answering, where that is known."""
        if self._trouble:
            return self._translated(self._trouble, "Evaluate")
        return error or DeadlineExceededError(
            f"{self.address} did not answer Evaluate in time; allow a longer timeout, or send less at once"
        )

    def _watched(self, method: str) -> AbstractContextManager[None]:
        """Counts and times a call that is made within."""
        return self._metrics.call(method) if self._metrics else _UNWATCHED

    def _sending(self, method: str, callers: Sequence[Any] = ()) -> AbstractContextManager[Any]:
        """Counts and traces a message that is sent and answered within; gives its metadata, if it needs any.

        Args:
            method: name of the RPC.
            callers: contexts of those who ask, as `_caller` gives them; of none, the current one.
        """
        if self._metrics:
            self._metrics.sent()
        return self._tracing.traced(method, callers) if self._tracing else _UNWATCHED

    def _caller(self) -> Any:
        """The context of the current caller's trace; None unless traced."""
        return self._tracing.current() if self._tracing else None

    def _retried(self, method: str) -> Callable[[RetryCallState], None] | None:
        """What hears of retries, as tenacity's `before_sleep`."""
        return partial(self._metrics.retried, method) if self._metrics else None

    def _check_open(self) -> None:
        """Raises where the client has been closed."""
        if self._closed:
            raise BoxlossError("this client is closed; create another")


def _tracing() -> Any:
    try:
        from boxloss import tracing
    except ImportError as error:
        raise BoxlossError(f"tracing needs opentelemetry-api ({error}): pip install 'boxloss[tracing]'") from error
    return tracing
