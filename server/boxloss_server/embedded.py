"""A server in a thread of this process, on a Unix socket that only its user can reach."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import structlog
from pydantic import ValidationError

from boxloss_server.logs import configure_logs
from boxloss_server.service import Server
from boxloss_server.settings import Settings, explain
from boxloss_server.socket_folder import SocketFolder

_OPEN: dict[str, Any] = {
    "tls_certificate": None,
    "tls_key": None,
    "tls_client_ca": None,
    "tokens_file": None,
    "client_pairs_per_second": 0,
    "client_waiting_pairs": 0,
}
"""Settings that the environment may have for another server: this one has one client, and none can listen in."""


class EmbeddedServer:
    """Serves from construction until `stop`.

    Args:
        device: as in the settings.

    Raises:
        ValueError: the device does not exist here, a BOXLOSS_ variable is wrong, or others may write to the kernel
            cache.

    Attributes:
        address: where this user's processes reach it.
    """

    def __init__(self, device: str = "auto") -> None:
        if not structlog.is_configured():
            configure_logs("warning", "console")
        try:
            settings = Settings(device=device, **_OPEN)
        except ValidationError as error:
            raise ValueError(f"the environment has wrong BOXLOSS_ settings: {explain(error)}") from None
        self._folder = SocketFolder()
        self._server = Server(settings, f"unix:{self._folder.socket}")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="boxloss-server", daemon=True)
        self._thread.start()
        try:
            asyncio.run_coroutine_threadsafe(self._server.start(), self._loop).result()
            self.address = f"unix:{self._folder.hide()}"
        except BaseException:
            self._end()
            raise

    def stop(self) -> None:
        """Answers what was accepted and ends. A second call does nothing."""
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(self._server.stop(), self._loop).result()
            self._end()

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._folder.close()
