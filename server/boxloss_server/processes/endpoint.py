"""The metrics endpoint, of a single process or of all."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import structlog
from prometheus_client import CollectorRegistry, make_wsgi_app

CONNECTIONS = 16
"""Most connections at once; each has a thread."""
TIMEOUT = 10.0
"""Seconds that a connection may take, its answer included: as many as Prometheus waits for a scrape."""
_ROOM_TIMEOUT = 1.0
"""Seconds that a new connection waits for the thread of the one that it replaces."""

_log = structlog.get_logger()


class Endpoint(ThreadingMixIn, WSGIServer):
    """An HTTP server whose clients cannot exhaust its threads: connections are few, and end in time.

    prometheus_client's own server has a thread for every connection, and no timeout. Here a connection beyond
    `CONNECTIONS` replaces the oldest whose request is not complete, or, if all are complete, the oldest of all.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, *arguments: Any) -> None:
        self._room = threading.BoundedSemaphore(CONNECTIONS)
        self._lock = threading.Lock()
        self._reading: dict[socket.socket, float] = {}
        """Connections whose request is not complete, with the times at which they came."""
        self._answering: dict[socket.socket, float] = {}
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._room.acquire(blocking=False):
            with self._lock:
                self._end(_oldest(self._reading) or _oldest(self._answering))
            if not self._room.acquire(timeout=_ROOM_TIMEOUT):
                request.close()
                return
        with self._lock:
            self._reading[request] = time.monotonic()
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._lock:
                self._reading.pop(request, None)
                self._answering.pop(request, None)
            self._room.release()

    def received(self, connection: socket.socket) -> bool:
        """Notes that a request is complete; returns False if its connection had to end meanwhile."""
        with self._lock:
            if connection not in self._reading:
                return False
            self._answering[connection] = self._reading.pop(connection)
            return True

    def service_actions(self) -> None:
        """Ends connections that have taken too long. The server's loop calls it twice a second."""
        late = time.monotonic() - TIMEOUT
        with self._lock:
            for connection, came in [*self._reading.items(), *self._answering.items()]:
                if came < late:
                    self._end(connection)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing when a connection breaks."""

    def _end(self, connection: socket.socket | None) -> None:
        """Ends a connection, and thereby the reading or writing of its thread."""
        if connection:
            self._reading.pop(connection, None)
            self._answering.pop(connection, None)
            with contextlib.suppress(OSError):  # Its client, or its thread, may have closed it.
                connection.shutdown(socket.SHUT_RDWR)


def _oldest(connections: dict[socket.socket, float]) -> socket.socket | None:
    return min(connections, key=connections.__getitem__, default=None)


class _Handler(WSGIRequestHandler):
    """Answers one request, without a line in the log."""

    server: Endpoint

    def parse_request(self) -> bool:
        return super().parse_request() and self.server.received(self.connection)

    def log_message(self, *arguments: Any) -> None:
        pass


def listen(registry: CollectorRegistry, host: str, port: int) -> int:
    """Serves the metrics of a registry from threads of their own until the process ends; returns the port.

    Port 0 takes a free one.

    Raises:
        OSError: the address cannot be listened on.
    """

    class Server(Endpoint):
        address_family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]

    server = make_server(host, port, make_wsgi_app(registry), Server, _Handler)
    threading.Thread(target=server.serve_forever, name="boxloss-metrics", daemon=True).start()
    return server.server_port


def serve_metrics(registry: CollectorRegistry, host: str, port: int) -> None:
    """Does as `listen`, and logs where the metrics are.

    Args:
        registry: of the metrics.
        host: a name or an address, IPv6 with brackets or without.
        port: 0 takes a free one.

    Raises:
        OSError: the address cannot be listened on.
    """
    host = host.strip("[]")
    try:
        port = listen(registry, host, port)
    except OSError as error:
        raise OSError(
            f"cannot serve metrics on {host}:{port}: {error.strerror}; choose another --metrics-port"
        ) from None
    _log.info("serving metrics", url=f"http://{f'[{host}]' if ':' in host else host}:{port}/metrics")
