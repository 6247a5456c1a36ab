"""The metrics endpoint, of a single process or of all."""

from __future__ import annotations

import structlog
from prometheus_client import CollectorRegistry, start_http_server

_log = structlog.get_logger()


def serve_metrics(registry: CollectorRegistry, host: str, port: int) -> None:
    """Serves the metrics of a registry from a thread of their own until the process ends; 0 takes a free port.

    Raises:
        OSError: the address cannot be listened on.
    """
    try:
        http, _ = start_http_server(port, host, registry)
    except OSError as error:
        raise OSError(
            f"cannot serve metrics on {host}:{port}: {error.strerror}; choose another --metrics-port"
        ) from None
    _log.info("serving metrics", url=f"http://{host}:{http.server_port}/metrics")
