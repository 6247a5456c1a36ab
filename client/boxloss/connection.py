"""What a blocking and an asyncio client have in common: whom they talk to, for how long, and how it can fail."""

from __future__ import annotations

import time
from collections.abc import Mapping

import grpc

from boxloss.errors import BoxlossError, InputError, RequestTooLargeError
from boxloss.exchange import NO_NAMES
from boxloss.results import ServerInfo
from boxloss.status import error_of


class Connection:
    """Base of the clients.

    Args:
        address: "host:port", or "unix:/path/of/socket".
        timeout: seconds that a call may take, unless it says otherwise.
    """

    def __init__(self, address: str = "localhost:50051", *, timeout: float = 30.0) -> None:
        self.address = address
        self.timeout = timeout
        self._server: ServerInfo | None = None
        self._closed = False

    def _deadline(self, timeout: float | None) -> float:
        """When a call that starts now must end, as time.monotonic() tells it."""
        return time.monotonic() + (self.timeout if timeout is None else timeout)

    def _translated(self, error: grpc.RpcError, method: str, names: Mapping[str, str] = NO_NAMES) -> BoxlossError:
        """The boxloss error that a failed call stands for, with the caller's names for its fields."""
        translated = error_of(error, self.address, method)
        if isinstance(translated, RequestTooLargeError):
            self._server = None  # Its limits are not what they were; the next call asks again.
        return translated.renamed(names) if isinstance(translated, InputError) else translated

    def _check_open(self) -> None:
        """Raises where the client has been closed."""
        if self._closed:
            raise BoxlossError("this client is closed; create another")
