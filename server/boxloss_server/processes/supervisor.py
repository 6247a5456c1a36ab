"""The supervisor: starts the processes, replaces those that die, and ends them in order."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from typing import Self

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector

from boxloss_server.exposure import warn_of_exposure
from boxloss_server.isolation import isolated
from boxloss_server.logs import configure_logs
from boxloss_server.processes.endpoint import serve_metrics
from boxloss_server.processes.messages import BEAT, Job, Report
from boxloss_server.processes.port import reserve
from boxloss_server.processes.totals import Totals
from boxloss_server.settings import Settings
from boxloss_server.signals import on_stop

_SHORT_LIFE = 60.0
"""Seconds. A process that lived less has died soon: the next pause is longer."""
_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 60.0
_MARGIN = 5.0
"""Seconds beyond the grace after which a process that has not ended is killed; it exits by itself a second after it."""
_BEATS = 10
"""Beats in the time after which a process hangs."""
_HANG_FACTOR = 1.5
"""How much longer than itself its supervisor waits: a process that can had better say itself what hangs."""
_START_HANG_FACTOR = 4.0
"""How much longer it waits for a process that starts: from a cold disk, importing torch takes minutes."""
_SHORTEST_START = 30.0
"""Seconds that a starting process may always be silent: on a busy machine, importing torch takes many."""
_IN_ORDER = (0, -signal.SIGTERM)
"""Exit statuses after being asked to stop; the second if that came before it could listen to signals."""

_log = structlog.get_logger()


class Child:
    """A process that serves, as the supervisor sees it."""

    def __init__(
        self, process: asyncio.subprocess.Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self._stopped = False

    @classmethod
    async def start(cls, job: Job) -> Self:
        """Starts a process. It has a session of its own: Ctrl-C in a terminal is for the supervisor to pass on."""
        ours, theirs = socket.socketpair()
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *isolated("boxloss_server.processes.child"),
                stdin=theirs.fileno(),
                start_new_session=True,
            )
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        writer.write(job.model_dump_json().encode() + b"\n")
        return cls(process, reader, writer)

    async def report(self, timeout: float) -> Report:
        """Waits until it serves; says how.

        It may take as long as it likes while it gives signs of life, for example to compile kernels.

        Args:
            timeout: seconds that it may be silent; 0 for any number.

        Raises:
            TimeoutError: it has been silent for longer.
            ChildProcessError: it cannot serve, and why.
        """
        line = await self._listen(timeout)
        if not line:
            raise ChildProcessError(f"a process ended with status {await self.ended()} before it could serve")
        report = Report.model_validate_json(line)
        if report.error:
            raise ChildProcessError(report.error)
        return report

    async def hangs(self, timeout: float) -> bool:
        """Returns True once it has been silent for so many seconds; False once it ends. With 0, it may be silent."""
        try:
            await self._listen(timeout)
        except TimeoutError:
            return True
        return False

    async def _listen(self, timeout: float) -> bytes:
        """Returns the next line that is not a beat, or nothing once it ends. Asks for beats meanwhile.

        It counts beats, not seconds: what is suspended with this process, as in a laptop that sleeps, does not hang.

        Raises:
            TimeoutError: it has been silent for so many seconds, and was not asked to stop.
        """
        asked, silent = False, 0
        while silent < _BEATS:
            try:
                async with asyncio.timeout(timeout / _BEATS or None):
                    line = await self._reader.readline()
            except TimeoutError:
                silent += 1
                if self._stopped:
                    silent = 0
                elif not asked:
                    self._writer.write(BEAT)
                    asked = True
            except (BrokenPipeError, ConnectionResetError):  # It died before it was sent or had read all.
                return b""
            else:
                if line != BEAT:
                    return line
                asked, silent = False, 0
        raise TimeoutError(f"a process has been silent for {timeout:g} s")

    def stop(self) -> None:
        """Asks it to end in order, by closing the link to it: unlike a signal, that cannot come too early."""
        self._stopped = True
        self._writer.write_eof()

    def kill(self) -> None:
        """Ends it at once, if it still runs."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def ended(self) -> int:
        """Waits for its end; returns its exit status."""
        status = await self._process.wait()
        self._writer.close()
        return status


class Supervisor:
    """Serves with several processes.

    Args:
        settings: of all together.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings.model_copy(update={"threads": threads_each(settings)})
        self._registry = CollectorRegistry()
        """Metrics of the supervisor's own."""
        ProcessCollector(registry=self._registry)
        Gauge("boxloss_processes_wanted", "Processes that should serve.", registry=self._registry).set(
            settings.processes
        )
        Gauge("boxloss_processes_serving", "Processes that serve.", registry=self._registry)  # None of these.
        restarts = Counter("boxloss_process_restarts", "Processes replaced.", ["reason"], registry=self._registry)
        self._restarts = {reason: restarts.labels(reason) for reason in ("start", "exited", "hung")}
        self._totals = Totals(settings.processes, self._registry)
        self._children: dict[int, Child] = {}
        self._stopping = asyncio.Event()

    async def run(self) -> int:
        """Serves until SIGTERM or SIGINT; a second one kills the processes.

        Returns:
            The exit status: 0 if all processes ended in order.

        Raises:
            OSError: an address cannot be listened on, or a process cannot start.
        """
        on_stop(self._stop, self._kill)
        configure_logs(self._settings.log_level, self._settings.log_format)
        warn_of_exposure(self._settings)
        host = self._settings.host
        with reserve(host, self._settings.port) as port:
            self._settings = self._settings.model_copy(update={"port": port})
            registry = CollectorRegistry(support_collectors_without_names=True)
            registry.register(self._totals)
            serve_metrics(registry, self._settings.metrics_host, self._settings.metrics_port)
            first = [asyncio.get_running_loop().create_future() for _ in range(self._settings.processes)]
            keepers = [asyncio.create_task(self._serve(*each)) for each in enumerate(first)]
            await asyncio.wait(first, return_when=asyncio.FIRST_EXCEPTION)
            if not self._stopping.is_set():
                devices = {report.result().device for report in first if not report.cancelled()}
                _log.info("serving", host=host, port=port, device=", ".join(sorted(devices)))
            statuses = await asyncio.gather(*keepers)
            for report in first:
                if not report.cancelled():
                    report.result()  # Raises the error of one that cannot serve.
        _log.info("stopped")
        return int(any(status not in _IN_ORDER for status in statuses))

    async def _serve(self, number: int, first: asyncio.Future[Report]) -> int:
        """Does as `_keep`, after which nobody waits for a first report any more."""
        try:
            return await self._keep(number, first)
        finally:
            first.cancel()

    async def _start(self, number: int) -> None:
        child = self._children[number] = await Child.start(Job(number=number, settings=self._settings))
        if self._stopping.is_set():
            self._end(child)

    async def _serves(self, number: int) -> Report:
        """Waits until a process serves. Kills it if it hangs meanwhile."""
        timeout = self._settings.hang_timeout_s and max(
            _START_HANG_FACTOR * self._settings.hang_timeout_s, _SHORTEST_START
        )
        child = self._children[number]
        try:
            report = await child.report(timeout)
        except TimeoutError:
            child.kill()
            raise
        await asyncio.to_thread(self._totals.watch, number, report.metrics_port)
        return report

    async def _keep(self, number: int, first: asyncio.Future[Report]) -> int:
        """Starts a process, and the next whenever it has ended, until asked to stop.

        Args:
            number: of the process.
            first: gets the report of the first that serves, or the error of one that says why none can.

        Returns:
            The exit status of the last one.
        """
        pauses = Pauses()
        while True:
            served = None
            try:
                await self._start(number)
                report = await self._serves(number)
            except TimeoutError as error:
                _log.error("a process hangs while it starts and is killed", process=number, error=str(error))
            except OSError as error:
                if first.done():
                    _log.error("a process cannot serve", process=number, error=str(error))
                elif not self._stopping.is_set():
                    first.set_exception(error)
                    self._stopping.set()
                    self._end_children()
            else:
                served = time.monotonic()
                if not first.done():
                    first.set_result(report)
            if number not in self._children:  # The system starts no more.
                return 1
            hanging = asyncio.create_task(self._kill_if_it_hangs(number))
            status = await self._children[number].ended()
            hanging.cancel()
            if self._stopping.is_set():
                if served and status not in _IN_ORDER:
                    _log.error("a process did not end in order", process=number, status=status)
                return status
            hung = status == os.EX_SOFTWARE or (hanging.done() and hanging.result())
            reason = "start" if not served else "hung" if hung else "exited"
            self._restarts[reason].inc()
            pause = pauses.after(time.monotonic() - served if served else 0.0)
            _log.error("a process ended and is replaced", process=number, status=status, reason=reason, pause_s=pause)
            await asyncio.to_thread(self._totals.retire, number)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause)
            if self._stopping.is_set():
                return 0

    async def _kill_if_it_hangs(self, number: int) -> bool:
        timeout = _HANG_FACTOR * self._settings.hang_timeout_s
        hangs = await self._children[number].hangs(timeout)
        if hangs:
            _log.error("a process hangs and is killed", process=number, timeout_s=timeout)
            self._children[number].kill()
        return hangs

    def _stop(self) -> None:
        if not self._stopping.is_set():
            self._stopping.set()
            self._end_children()
            _log.info("shutting down", grace_s=self._settings.shutdown_grace_s)  # Last: nobody may be reading any more.

    def _kill(self) -> None:
        for child in self._children.values():
            child.kill()

    def _end_children(self) -> None:
        for child in self._children.values():
            self._end(child)

    def _end(self, child: Child) -> None:
        child.stop()
        asyncio.get_running_loop().call_later(self._settings.shutdown_grace_s + _MARGIN, child.kill)


class Pauses:
    """The pauses before a process is replaced: the first time none, and ever longer ones if it dies again soon."""

    def __init__(self) -> None:
        self._next = 0.0

    def after(self, lived: float) -> float:
        """The seconds to wait after a process that lived so many seconds."""
        pause = self._next if lived < _SHORT_LIFE else 0.0
        self._next = min(max(2 * pause, _FIRST_PAUSE), _LONGEST_PAUSE)
        return pause


def threads_each(settings: Settings) -> int:
    """The threads of each process: unless the settings say, its share of the cores that this one may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return settings.threads or max(1, cores // settings.processes)
