"""What a blocking and an asyncio client have in common: whom they talk to, for how long, and what may be asked."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NoReturn

from boxloss.calls import arguments
from boxloss.calls.coalescing import CALL_PAIRS, LANES, Lane
from boxloss.calls.exchange import Question
from boxloss.calls.results import ServerInfo
from boxloss.connection.channel import Address
from boxloss.connection.credentials import Tls
from boxloss.connection.transport import Transport

if TYPE_CHECKING:
    from boxloss.metrics import ClientMetrics

_LEAST_BYTES = 2**10
"""No server has a lower limit of a message."""


def new_lanes() -> Callable[..., Lane[Any]]:
    """Makes lanes, and remembers them by what they are for."""
    return lru_cache(LANES)(Lane)


class Connection:
    """Base of the clients.

    Args:
        stack: the module `grpc` or `grpc.aio`.
        address: "host:port" or "unix:/path/of/socket"; of several servers, a list of "host:port", or "dns:///name:port".
        timeout: seconds that a call may take, unless it says otherwise.
        metrics: where calls are counted, if anywhere.
        tracing: whether messages carry the caller's trace, and have a span.
        tls: TLS settings; without them the connection is plain.
        token: what is sent with every call, if anything.

    Raises:
        BoxlossError: OpenTelemetry is not installed, which tracing needs.
        OSError: a file of `tls` cannot be read.
        ValueError: one is wrong, or the token would travel without TLS.
    """

    def __init__(
        self,
        stack: Any,
        address: Address,
        *,
        timeout: float,
        metrics: ClientMetrics | None,
        tracing: bool,
        tls: Tls | None,
        token: str | None,
    ) -> None:
        arguments.address(address)
        if tls is not None:
            arguments.instance(tls, Tls, "tls", "give a boxloss.Tls")
        if metrics is not None and not hasattr(metrics, "call"):
            arguments.refuse("metrics", f"is {metrics!r}; give a boxloss.metrics.ClientMetrics")
        tracing = arguments.switch(tracing, "tracing")
        self._transport = Transport(stack, address, metrics=metrics, tracing=tracing, tls=tls, token=token)
        self.address = self._transport.address
        self.timeout = arguments.seconds(timeout)
        self._server: ServerInfo | None = None
        self._lanes = new_lanes()

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{type(self).__name__} does not pickle, for it is a connection; create one in each process")

    def _deadline(self, timeout: float | None) -> float:
        """When a call that starts now must end, as time.monotonic() tells it."""
        return time.monotonic() + (self.timeout if timeout is None else arguments.seconds(timeout))

    @staticmethod
    def _limit(timeout: float | None) -> float | None:
        """When a stream that starts now must end; None for no limit."""
        return None if timeout is None else time.monotonic() + arguments.seconds(timeout)

    def _lane(self, question: Question, timeout: float | None, server: ServerInfo) -> Lane[Any] | None:
        """The lane of a small question; None where its answer would differ if sent with others, or it needs none."""
        kind = question.kind
        if kind.options.running_mean is not None or question.crowd is not None or not 0 < question.pairs <= CALL_PAIRS:
            return None
        seconds = self.timeout if timeout is None else timeout
        lane = self._lanes(kind, seconds, server.message_bytes, server.request_pairs)
        return lane if question.pairs <= lane.room else None

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
