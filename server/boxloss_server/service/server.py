"""The server: puts the rooms together, starts them and shuts them down in order."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import grpc.aio
import structlog
import torch
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from grpc_reflection.v1alpha.reflection_pb2_grpc import add_ServerReflectionServicer_to_server

from boxloss.v1 import loss_service_pb2
from boxloss_server.batching import Batcher, Capacity
from boxloss_server.engine import Engine, Kernels, find_device
from boxloss_server.service.decode import Limits
from boxloss_server.service.health import SERVICE_NAME, Health
from boxloss_server.service.methods import Methods
from boxloss_server.service.metrics import Metrics
from boxloss_server.service.servicer import LossServicer
from boxloss_server.settings import Settings

_SERVICE = loss_service_pb2.DESCRIPTOR.services_by_name["LossService"].full_name
_SMALL_PAIRS = 4096
"""Requests of up to so many pairs are computed in less time than it takes to hand them to a thread."""
_FOR_EVER = 2**31 - 1
"""Milliseconds that gRPC takes for no limit."""

_log = structlog.get_logger()


class Server:
    """One server on one device.

    Args:
        settings: what to serve and where.
        address: address to listen on instead of the settings' host and port, for example "unix:/tmp/socket".
        shares_port: whether other servers that also share may listen on the same port.

    Attributes:
        registry: its metrics.
        port: the port that it listens on, once started.
        device: what computes, once started.
    """

    def __init__(self, settings: Settings, address: str | None = None, shares_port: bool = False) -> None:
        self._settings = settings
        self._address = address or f"{settings.host}:{settings.port}"
        self._shares_port = shares_port
        self._metrics = Metrics()
        self._health = Health()
        self.registry = self._metrics.registry
        self.port = 0
        self.device = ""

    async def start(self) -> None:
        """Prepares the device, then listens and reports SERVING.

        Raises:
            ValueError: the device does not exist here.
            OSError: an address cannot be listened on.
        """
        settings = self._settings
        if settings.threads:
            torch.set_num_threads(settings.threads)
        device = find_device(settings.device)
        self._kernels = Kernels(
            device, settings.compile, settings.kernel_cache, settings.max_kernels, self._metrics.compiled
        )
        engine = Engine(device, self._kernels)
        engine.warm_up()
        self.device = str(device)
        self._metrics.serves_on(self.device)
        capacity = Capacity(settings.max_waiting_pairs)
        self._metrics.watch(capacity)
        self._batcher = Batcher(
            engine.run,
            capacity,
            window=settings.batch_window_ms / 1000,
            batch_pairs=settings.max_batch_pairs,
            small_pairs=_SMALL_PAIRS,
            observer=self._metrics,
        )
        limits = Limits(settings.max_message_bytes, settings.max_request_pairs)
        self._servicer = LossServicer(self._batcher, limits, self.device, self._metrics)
        self._grpc = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", settings.max_message_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.max_connection_age_ms", round(settings.max_connection_age_s * 1000) or _FOR_EVER),
                ("grpc.so_reuseport", int(self._shares_port)),  # Two servers must not share a port unnoticed.
            ],
        )
        methods: Any = Methods(self._metrics)  # Takes services as a server does.
        methods.add_registered_method_handlers(_SERVICE, self._servicer.handlers)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, methods)
        reflected = reflection.aio.ReflectionServicer((_SERVICE, SERVICE_NAME, reflection.SERVICE_NAME))
        add_ServerReflectionServicer_to_server(reflected, methods)  # type: ignore[no-untyped-call]
        self._grpc.add_generic_rpc_handlers((methods,))
        self.port = self._listen()
        await self._grpc.start()
        await self._health.serve("", _SERVICE)

    @staticmethod
    def settle() -> None:
        """Tells Python that what this process has loaded stays: looking through it for garbage would take a tenth of a
        second, now and then. Not for a process that does other things too.
        """
        gc.collect()
        gc.freeze()

    async def stop(self) -> None:
        """Reports NOT_SERVING, takes nothing new, answers what was accepted, and ends."""
        _log.info("shutting down", grace_s=self._settings.shutdown_grace_s)
        await self._health.end()
        self._servicer.drain()
        await self._grpc.stop(self._settings.shutdown_grace_s)
        await asyncio.get_running_loop().run_in_executor(None, self._batcher.shut_down)
        self._kernels.close()
        _log.info("stopped")

    def _listen(self) -> int:
        try:
            return self._grpc.add_insecure_port(self._address)
        except RuntimeError:
            raise OSError(
                f"cannot listen on {self._address}: in use, or not an address here; choose another --port or --host"
            ) from None
