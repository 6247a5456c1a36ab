"""A server inside this process, for notebooks, tests and one-off commands."""

from __future__ import annotations

from boxloss.calls.client import Client
from boxloss.errors import BoxlossError


class EmbeddedClient(Client):
    """A client whose server runs in a thread of this process and ends when the client is closed."""

    def __init__(self, *, device: str = "auto", timeout: float = 30.0) -> None:
        try:
            from boxloss_server.embedded import EmbeddedServer
        except ImportError as error:
            raise BoxlossError(
                f"a server inside this process needs boxloss-server ({error}): pip install boxloss-server"
            ) from error
        self._embedded_server = EmbeddedServer(device)
        super().__init__(self._embedded_server.address, timeout=timeout)

    def close(self) -> None:
        """Closes the connection and ends the server."""
        super().close()
        self._embedded_server.stop()


def embedded(*, device: str = "auto", timeout: float = 30.0) -> EmbeddedClient:
    """Starts a server inside this process, on a Unix socket, and returns a client of it.

    Args:
        device: "auto" (a GPU where there is one), "cpu", "cuda" or "cuda:N".
        timeout: seconds that a call may take, unless it says otherwise.

    Raises:
        BoxlossError: boxloss-server is not installed.
        ValueError: the device does not exist here, a BOXLOSS_ variable is wrong, or others may write to the kernel
            cache.
    """
    return EmbeddedClient(device=device, timeout=timeout)
