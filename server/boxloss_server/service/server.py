"""The server: puts the rooms together, starts them and shuts them down in order."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc.aio
import structlog
import torch
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from grpc_reflection.v1alpha.reflection_pb2_grpc import add_ServerReflectionServicer_to_server

from boxloss.v1 import audit_service_pb2, loss_service_pb2
from boxloss_server.batching import Batcher, Capacity, Quotas
from boxloss_server.engine import DeviceLostError, Engine, Kernels, find_device
from boxloss_server.security import Access, Certificates, Files, Tokens
from boxloss_server.service.audits import AuditServicer
from boxloss_server.service.calls import Calls
from boxloss_server.service.connections import channel_arguments
from boxloss_server.service.decode import Limits
from boxloss_server.service.health import SERVICE_NAME, Health
from boxloss_server.service.methods import Methods
from boxloss_server.service.metrics import Metrics, no_exemplar
from boxloss_server.service.servicer import LossServicer
from boxloss_server.service.streams import Streams
from boxloss_server.service.watchdog import Watchdog
from boxloss_server.settings import Settings
from boxloss_server.signals import LAST_STEPS, exit_after

if TYPE_CHECKING:
    from boxloss_server.service.tracing import Tracing

_SERVICE = loss_service_pb2.DESCRIPTOR.services_by_name["LossService"].full_name
_AUDIT_SERVICE = audit_service_pb2.DESCRIPTOR.services_by_name["AuditService"].full_name
_COMPUTING = f"/{_SERVICE}/Evaluate", f"/{_SERVICE}/PairwiseIou"
_SMALL_PAIRS = 4096
"""Requests of up to so many pairs are computed in less time than it takes to hand them to a thread."""
_BEFORE_CLOSING = 0.5
"""Of the grace, in which connections still take calls, so that none is closed before its answers are received."""
_LAST_WORDS = 0.25
"""Seconds in which calls that are not answered are told so, or gRPC ends."""

_log = structlog.get_logger()


class Server:
    """One server on one device.

    Args:
        settings: what to serve and where.
        address: address to listen on instead of the settings' host and port, for example "unix:/tmp/socket".
        shares_port: whether other servers that also share may listen on the same port.
        engine: makes what computes.

    Attributes:
        registry: its metrics.
        port: the port that it listens on, once started.
        device: what computes, once started.
    """

    def __init__(
        self,
        settings: Settings,
        address: str | None = None,
        shares_port: bool = False,
        engine: Callable[[torch.device, Kernels, Callable[[], None]], Engine] = Engine,
    ) -> None:
        self._settings = settings
        self._address = address or f"{settings.host}:{settings.port}"
        self._shares_port = shares_port
        self._make_engine = engine
        self._tracing = _tracing() if settings.tracing else None
        self._metrics = Metrics(self._tracing.exemplar if self._tracing else no_exemplar)
        self._health = Health()
        self._watchdog = Watchdog(settings.hang_timeout_s, self._health.end)
        self._calls = Calls(settings.keepalive_s or float("inf"), self._metrics.unread)
        self._device_lost = asyncio.Event()
        self._metrics.serves(lambda: self._health.serving, settings.processes)
        self.registry = self._metrics.registry
        self.port = 0
        self.device = ""

    async def start(self, asked_to_stop: asyncio.Event | None = None) -> bool:
        """Prepares the device, then listens and reports SERVING.

        Args:
            asked_to_stop: ends the compilation of kernels, which may take minutes.

        Returns:
            Whether it serves: False if it was asked to stop before.

        Raises:
            ValueError: the device does not exist here, a file of certificates or tokens is wrong, or others may write
                to the kernel cache.
            OSError: an address cannot be listened on, or a file cannot be read.
        """
        settings = self._settings
        self._read_files()
        self._metrics.follows(self._certificates, self._tokens)
        if settings.threads:
            torch.set_num_threads(settings.threads)
        device = find_device(settings.device)
        self._kernels = Kernels(
            device, settings.compile, settings.kernel_cache, settings.max_kernels, self._metrics.compiled
        )
        self._engine = self._make_engine(device, self._kernels, self._watchdog.beat)
        if not await self._prepare_kernels(asked_to_stop or asyncio.Event()):
            return False
        self._engine.warm_up()
        self.device = str(device)
        self._metrics.serves_on(self.device)
        self._loop = asyncio.get_running_loop()
        capacity = Capacity(settings.max_waiting_pairs)
        self._batcher = Batcher(
            self._compute,
            self._engine.watch.read,
            capacity,
            window=settings.batch_window_ms / 1000,
            batch_pairs=settings.max_batch_pairs,
            small_pairs=_SMALL_PAIRS,
            observer=self._metrics,
        )
        self._metrics.watch(capacity, self._batcher, device)
        limits = Limits(settings.max_message_bytes, settings.max_request_pairs)
        quotas = settings.client_pairs_per_second, settings.client_waiting_pairs
        admission = Quotas(self._batcher, *quotas, self._metrics) if any(quotas) else self._batcher
        access = Access(self._tokens, settings.tls_client_ca is not None, any(quotas))
        self._streams = Streams()
        losses = LossServicer(admission, limits, self.device, self._metrics, access, self._streams, self._tracing)
        audits = AuditServicer(admission, limits, self._metrics, access, self._streams)
        self._grpc = grpc.aio.server(options=channel_arguments(settings, self._shares_port))
        # Takes services as a server does.
        methods: Any = Methods(self._metrics, access, self._batcher, _COMPUTING, limits, self._calls, self._tracing)
        methods.add_registered_method_handlers(_SERVICE, losses.handlers)
        methods.add_registered_method_handlers(_AUDIT_SERVICE, audits.handlers)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, methods)
        reflected = reflection.aio.ReflectionServicer((_SERVICE, _AUDIT_SERVICE, SERVICE_NAME, reflection.SERVICE_NAME))
        add_ServerReflectionServicer_to_server(reflected, methods)  # type: ignore[no-untyped-call]
        self._grpc.add_generic_rpc_handlers((methods,))
        self.port = self._listen()
        await self._grpc.start()
        self._followers = [asyncio.create_task(files.follow()) for files in self._files]
        self._watching = asyncio.create_task(self._calls.watch())
        self._health.serve("", _SERVICE, _AUDIT_SERVICE)
        return True

    async def run(self, asked_to_stop: asyncio.Event) -> int:
        """Serves until asked to stop or until the device fails; then stops in order.

        Ends the process if it hangs, or still computes when the grace is over.

        Returns:
            The exit status: 0 if asked to stop, 1 if the device failed and a new process is needed.
        """
        with self._watchdog.watching():
            ends = [asyncio.create_task(event.wait()) for event in (asked_to_stop, self._device_lost)]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            for end in ends:
                end.cancel()
            exit_after(self._settings.shutdown_grace_s + LAST_STEPS, int(self._device_lost.is_set()))
            await self.stop()
        return int(self._device_lost.is_set())

    @staticmethod
    def settle() -> None:
        """Tells Python that what this process has loaded stays: looking through it for garbage would take a tenth of a
        second, now and then. Not for a process that does other things too.
        """
        gc.collect()
        gc.freeze()

    async def stop(self) -> None:
        """Reports NOT_SERVING, answers what was accepted, closes the connections, and ends.

        At the end of the grace, what is not answered is told that the server is UNAVAILABLE. A computation that is
        under way goes on in its thread, and nobody hears of it.
        """
        grace = self._settings.shutdown_grace_s
        over = asyncio.get_running_loop().time() + grace
        _log.info("shutting down", grace_s=self._settings.shutdown_grace_s)
        for follower in self._followers:
            follower.cancel()
        await self._health.end()
        self._streams.drain()
        await _done(self._calls.drain(), grace * _BEFORE_CLOSING)
        self._streams.drain()
        stopping = asyncio.create_task(self._grpc.stop(grace + _LAST_WORDS))
        if not await _done(self._calls.over(), over - asyncio.get_running_loop().time()):
            _log.warning("calls are not answered in time", grace_s=grace)
            self._calls.stop()
            await _done(self._calls.over(), _LAST_WORDS)
        if not await _done(asyncio.shield(stopping), _LAST_WORDS):
            await _done(self._grpc.stop(None), _LAST_WORDS)  # Ends calls whose clients do not read.
        self._watching.cancel()
        self._batcher.shut_down()
        self._kernels.close()
        if self._tracing:
            await asyncio.to_thread(self._tracing.close)
        _log.info("stopped")

    def _compute(self, work: Any, requests: Sequence[Any]) -> Sequence[Any]:
        """Has the engine compute a batch, in whichever thread."""
        try:
            return self._engine.run(work, requests)
        except DeviceLostError as error:
            if not self._device_lost.is_set():
                _log.error("the device failed", exc_info=error)
            self._loop.call_soon_threadsafe(self._device_lost.set)
            raise
        finally:
            self._watchdog.rest()

    async def _prepare_kernels(self, asked_to_stop: asyncio.Event) -> bool:
        """Returns False if asked to stop meanwhile."""
        stopping = asyncio.create_task(asked_to_stop.wait())
        preparing = asyncio.create_task(asyncio.to_thread(self._kernels.prepare))
        await asyncio.wait((stopping, preparing), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if asked_to_stop.is_set():
            await asyncio.to_thread(self._kernels.close)
        await preparing
        return not asked_to_stop.is_set()

    def _read_files(self) -> None:
        """Reads certificates and tokens."""
        settings = self._settings
        self._certificates: Certificates | None = None
        self._tokens: Files[Tokens] | None = None
        self._files: list[Files[Any]] = []
        if settings.tls_certificate and settings.tls_key:
            self._certificates = Certificates(settings.tls_certificate, settings.tls_key, settings.tls_client_ca)
            self._files.append(self._certificates.files)
        if settings.tokens_file:
            file = {"--tokens-file": settings.tokens_file}
            self._tokens = Files(file, partial(Tokens.read, settings.tokens_file), secret=file)
            self._files.append(self._tokens)

    def _listen(self) -> int:
        try:
            if self._certificates:
                return self._grpc.add_secure_port(self._address, self._certificates.credentials)
            return self._grpc.add_insecure_port(self._address)
        except RuntimeError:
            raise OSError(
                f"cannot listen on {self._address}: in use, or not an address here; choose another --port or --host"
            ) from None


async def _done(doing: Awaitable[None], seconds: float) -> bool:
    """Whether something is done within so many seconds."""
    try:
        async with asyncio.timeout(max(seconds, 0)):
            await doing
    except TimeoutError:
        return False
    return True


def _tracing() -> Tracing:
    # Its packages are an extra.
    from boxloss_server.service.tracing import Tracing

    return Tracing()
