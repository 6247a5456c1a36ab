"""The standard health service, which no watcher can hold up."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckResponse

from boxloss.errors import QuotaExceededError, ServerBusyError
from boxloss_server.security import Context
from boxloss_server.service.calls import abandon, when_over

SERVICE_NAME = health.SERVICE_NAME
MAX_REQUEST_BYTES = 1024
"""A request has nothing but the name of a service."""
MAX_CONNECTION_WATCHERS = 64
"""Watches of one connection. gRPC's clients have one for each service that they call."""
MAX_WATCHERS = 8192

_HEARD = 0.2
"""Seconds in which watchers hear that the server does not serve any more, and their calls end."""
_RETRY_AFTER = 1.0


class Health(health_pb2_grpc.HealthServicer):
    """Reports the services' status.

    A watcher waits for the next change in its own task, and writes there: one that does not read holds up neither the
    others nor a change. It hears the latest status, not each one in between.

    Attributes:
        serving: whether that is SERVING.
    """

    def __init__(self) -> None:
        self.serving = False
        self._statuses: dict[str, int] = {}
        self._changed = asyncio.Event()
        """Set at the next change, which puts a new one here."""
        self._watchers: dict[asyncio.Task[Any], str] = {}
        """Their connections, by task."""
        self._connections: Counter[str] = Counter()
        self._ended = False

    def serve(self, *services: str) -> None:
        """Reports SERVING for the services."""
        if not self._ended:
            self._set(dict.fromkeys(services, HealthCheckResponse.SERVING))
            self.serving = True

    async def end(self) -> None:
        """Reports NOT_SERVING for all services, for good, and ends the watchers' calls, whatever they do."""
        self._ended = True
        self.serving = False
        self._set(dict.fromkeys(self._statuses, HealthCheckResponse.NOT_SERVING))
        if self._watchers:
            _, deaf = await asyncio.wait(self._watchers, timeout=_HEARD)
            abandon(deaf)

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Context) -> HealthCheckResponse:
        status = self._statuses.get(request.service)
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "the server has no service of this name")
        return HealthCheckResponse(status=status)

    async def List(self, request: Any, context: Context) -> Any:
        statuses = {name: HealthCheckResponse(status=status) for name, status in self._statuses.items()}
        response: Any = vars(health_pb2)["HealthListResponse"]  # Not among the published types.
        return response(statuses=statuses)

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Context) -> None:
        watcher, connection = asyncio.current_task(), context.peer()
        assert watcher
        if self._connections[connection] >= MAX_CONNECTION_WATCHERS:
            raise QuotaExceededError(
                f"this connection watches {MAX_CONNECTION_WATCHERS} times, and may not more; end some", _RETRY_AFTER
            )
        if len(self._watchers) >= MAX_WATCHERS:
            raise ServerBusyError(f"{MAX_WATCHERS} calls watch, and no more may; use Check, or retry", _RETRY_AFTER)
        self._watchers[watcher] = connection
        self._connections[connection] += 1
        when_over(context, lambda: self._leave(watcher))
        service = request.service
        told = None
        while True:
            changed = self._changed
            status = self._statuses.get(service, HealthCheckResponse.SERVICE_UNKNOWN)
            if status != told:
                await context.write(HealthCheckResponse(status=status))
                told = status
            if changed is not self._changed:
                continue
            if self._ended:
                return
            await changed.wait()

    def _leave(self, watcher: asyncio.Task[Any]) -> None:
        connection = self._watchers.pop(watcher)
        self._connections[connection] -= 1
        if not self._connections[connection]:
            del self._connections[connection]

    def _set(self, statuses: dict[str, int]) -> None:
        self._statuses |= statuses
        self._changed.set()
        self._changed = asyncio.Event()
