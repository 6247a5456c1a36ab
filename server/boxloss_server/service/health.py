"""The standard health service, which ends with the server."""

from __future__ import annotations

import asyncio
from typing import Any

from grpc_health.v1 import health, health_pb2

SERVICE_NAME = health.SERVICE_NAME

_HEARD = 0.1  # Seconds in which watchers hear that the server does not serve any more.


class Health(health.aio.HealthServicer):
    """Reports the services' status. Watchers do not hold up a shutdown: their calls end when `end` is called."""

    def __init__(self) -> None:
        super().__init__()
        self._watchers: set[asyncio.Task[Any]] = set()
        self._ended = False

    async def serve(self, *services: str) -> None:
        """Reports SERVING for the services."""
        for service in services:
            await self.set(service, health_pb2.HealthCheckResponse.SERVING)

    async def end(self) -> None:
        """Reports NOT_SERVING for all services, for good, and ends the watchers' calls."""
        await self.enter_graceful_shutdown()
        await asyncio.sleep(_HEARD if self._watchers else 0)
        self._ended = True
        for watcher in self._watchers:
            watcher.cancel()

    async def Watch(self, request: Any, context: Any) -> None:
        watcher = asyncio.current_task()
        assert watcher
        self._watchers.add(watcher)
        try:
            await super().Watch(request, context)
        except asyncio.CancelledError:
            if not self._ended:  # By the caller.
                raise
        finally:
            self._watchers.discard(watcher)
