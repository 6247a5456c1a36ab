"""The way to a server, or to several: what all calls over it have in common, and how they can fail."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import grpc
from tenacity import RetryCallState

from boxloss.connection.channel import Address, is_several, name_of
from boxloss.connection.credentials import Certificates, Tls, metadata, target_and_options
from boxloss.connection.handshake import Handshake
from boxloss.connection.status import error_of
from boxloss.connection.stub import Stub
from boxloss.errors import (
    NO_NAMES,
    BoxlossError,
    DeadlineExceededError,
    InputError,
    Names,
    ServerBusyError,
    ServerUnavailableError,
)

if TYPE_CHECKING:
    from asyncio import Task

    from boxloss.metrics import ClientMetrics

_UNWATCHED: AbstractContextManager[Any] = nullcontext()


class Transport:
    """A channel of either stack, whose calls are counted and traced. It makes none itself.

    Args:
        stack: the module `grpc` or `grpc.aio`.
        address: "host:port" or "unix:/path/of/socket"; of several servers, a list of "host:port", or "dns:///name:port".
        metrics: where calls are counted, if anywhere.
        tracing: whether messages carry the caller's trace, and have a span.
        tls: TLS settings; without them the connection is plain.
        token: what is sent with every call, if anything.

    Attributes:
        address: as errors write it.
        several: whether there may be other servers than the one that has failed.
        closed: whether no more calls may be made.
        trouble: why the last message was not answered, if it may be when it is sent again.

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
        metrics: ClientMetrics | None,
        tracing: bool,
        tls: Tls | None,
        token: str | None,
    ) -> None:
        self.address = name_of(address)
        self.several = is_several(address)
        self.metrics = metrics
        self.tracing: Any = _tracing() if tracing else None
        self.closed = False
        self.trouble: grpc.RpcError | None = None
        self._certificates = Certificates(tls) if tls else None
        self._handshake = Handshake(address, tls)
        self._stack = stack
        self._metadata = metadata(token)
        self._target, self._options = target_and_options(address, tls is not None, token)
        self._channels: WeakSet[Any] = WeakSet()
        self._stub: Stub | None = None
        if stack is grpc:  # A channel for asyncio belongs to the event loop that runs when it is opened.
            self._connect()

    @property
    def stub(self) -> Stub:
        """The methods of the services, over a channel with the certificates that the files have now."""
        if self._stub is None or (self._certificates and self._certificates.renewed()):
            return self._connect()
        return self._stub

    @property
    def channels(self) -> list[Any]:
        """The channel, and those before it that still have calls under way."""
        return list(self._channels)

    def disconnect(self) -> None:
        """Leaves its channels to gRPC, which closes what nobody refers to any more; the next call opens another."""
        self._stub = None
        self._channels.clear()

    def _connect(self) -> Stub:
        """Opens a channel. One before it ends with its last call: gRPC closes what nobody refers to any more."""
        if self._certificates:
            channel = self._stack.secure_channel(self._target, self._certificates.credentials, self._options)
        else:
            channel = self._stack.insecure_channel(self._target, self._options)
        self._channels.add(channel)
        self._stub = Stub(channel, self._metadata)
        return self._stub

    def call(self, method: str, request: Any, deadline: float | None, headers: Any) -> Any:
        """Makes a call.

        Args:
            method: name of the RPC.
            request: to send, or an iterator of them.
            deadline: as time.monotonic() tells it.
            headers: to send.

        Raises:
            BoxlossError: the client is closed.
        """
        self.check_open()
        timeout = None if deadline is None else max(deadline - time.monotonic(), 0)
        try:
            return getattr(self.stub, method)(request, timeout=timeout, metadata=headers)
        except ValueError:  # Another thread has closed it just now.
            self.check_open()
            raise

    def check_open(self) -> None:
        """Raises where the client has been closed."""
        if self.closed:
            raise BoxlossError("this client is closed; create another")

    def check_cancelled(self, task: Task[Any] | None) -> None:
        """Raises where a call was cancelled because the client has been closed, and not because its task has."""
        if not (task and task.cancelling()):
            self.check_open()

    def translated(self, error: grpc.RpcError, method: str, names: Names = NO_NAMES) -> BoxlossError:
        """The boxloss error that a failed call stands for, with the caller's names for its fields."""
        translated = error_of(error, self.address, method, self._tls_trouble(error))
        if isinstance(translated, DeadlineExceededError) and self.trouble and self._tls_trouble(self.trouble):
            return self.translated(self.trouble, method, names)  # It is what all the time went by with.
        if isinstance(translated, (ServerUnavailableError, ServerBusyError)):
            self.trouble = error
        return translated.renamed(names) if isinstance(translated, InputError) else translated

    def late(self, error: DeadlineExceededError | None = None) -> BoxlossError:
        """What a call fails with when its time is over: what kept the server from answering, where that is known."""
        if self.trouble:
            return self.translated(self.trouble, "Evaluate")
        return error or DeadlineExceededError(
            f"{self.address} did not answer Evaluate in time; allow a longer timeout, or send less at once"
        )

    def _tls_trouble(self, error: Any) -> str | None:
        """Why TLS keeps the server out of reach, where it does."""
        if error.code() is not grpc.StatusCode.UNAVAILABLE:
            return None
        cause = self._handshake.cause(error.details() or "")
        if cause and self._certificates and self._certificates.fault:
            return f"{cause}. The client's files have changed, and are not used: {self._certificates.fault}"
        return cause

    def watched(self, method: str) -> AbstractContextManager[None]:
        """Counts and times a call that is made within."""
        return self.metrics.call(method) if self.metrics else _UNWATCHED

    def sending(self, method: str, callers: Sequence[Any] = ()) -> AbstractContextManager[Any]:
        """Counts and traces a message that is sent and answered within; gives its metadata, if it needs any.

        Args:
            method: name of the RPC.
            callers: contexts of those who ask, as `caller` gives them; of none, the current one.
        """
        if self.metrics:
            self.metrics.sent()
        return self.tracing.traced(method, callers) if self.tracing else _UNWATCHED

    def caller(self) -> Any:
        """The context of the current caller's trace; None unless traced."""
        return self.tracing.current() if self.tracing else None

    def retried(self, method: str) -> Callable[[RetryCallState], None] | None:
        """What hears of retries, as tenacity's `before_sleep`."""
        return partial(self.metrics.retried, method) if self.metrics else None


def _tracing() -> Any:
    try:
        from boxloss.connection import tracing
    except ImportError as error:
        raise BoxlossError(f"tracing needs opentelemetry-api ({error}): pip install 'boxloss[tracing]'") from error
    return tracing
