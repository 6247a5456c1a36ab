"""The supervisor: starts the processes, replaces those that die, and ends them in order."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from typing import Self

import structlog
from prometheus_client import CollectorRegistry

from boxloss_server.exposure import warn_of_exposure
from boxloss_server.logs import configure_logs
from boxloss_server.processes.endpoint import serve_metrics
from boxloss_server.processes.messages import BEAT, Job, Report
from boxloss_server.processes.port import reserve
from boxloss_server.processes.totals import Totals
from boxloss_server.settings import Settings

_SOON = 60.0
_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 60.0
_MARGIN = 30.0
"""Seconds beyond the grace after which a process that has not ended is killed."""
_BEATS = 10
"""Beats in the time after which a process hangs."""
_PATIENCE = 1.5
"""How much longer than itself its supervisor waits: a process that can had better say itself what hangs."""
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
                *(sys.executable, "-P", "-m", "boxloss_server.processes.child"),
                stdin=theirs.fileno(),
                start_new_session=True,
            )
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        writer.write(job.model_dump_json().encode() + b"\n")
        return cls(process, reader, writer)

    async def report(self) -> Report:
        """Waits until it serves; says how.

        Raises:
            ChildProcessError: it cannot, and why.
        """
        try:
            line = await self._reader.readline()
        except ConnectionResetError:  # It died before it read its job.
            line = b""
        if not line:
            raise ChildProcessError(f"a process ended with status {await self.ended()} before it could serve")
        report = Report.model_validate_json(line)
        if report.error:
            raise ChildProcessError(report.error)
        return report

    async def hangs(self, timeout: float) -> bool:
        """Returns True once it has not answered for so many seconds; False once it ends.

        It counts beats, not seconds: what is suspended with this process, as in a laptop that sleeps, does not hang.
        """
        silent = 0
        while silent < _BEATS and not self._stopped:
            if not silent:
                self._writer.write(BEAT)
            try:
                async with asyncio.timeout(timeout / _BEATS):
                    if not await self._reader.readline():
                        return False
            except TimeoutError:
                silent += 1
            except ConnectionResetError:
                return False
            else:
                silent = 0
                await asyncio.sleep(timeout / _BEATS)
        return not self._stopped

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
        self._totals = Totals(settings.processes)
        self._children: dict[int, Child] = {}
        self._stopping = asyncio.Event()

    async def run(self) -> int:
        """Serves until SIGTERM or SIGINT.

        Returns:
            The exit status: 0 if all processes ended in order.

        Raises:
            OSError: an address cannot be listened on, or a process cannot start.
        """
        for asked in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(asked, self._stop)
        configure_logs(self._settings.log_level, self._settings.log_format)
        warn_of_exposure(self._settings)
        host = self._settings.host
        with reserve(host, self._settings.port) as port:
            self._settings = self._settings.model_copy(update={"port": port})
            registry = CollectorRegistry(support_collectors_without_names=True)
            registry.register(self._totals)
            serve_metrics(registry, self._settings.metrics_host, self._settings.metrics_port)
            devices = await self._start_all()
            if not self._stopping.is_set():
                _log.info("serving", host=host, port=port, device=", ".join(sorted(devices)))
            statuses = await asyncio.gather(*map(self._keep, self._children))
        _log.info("stopped")
        return int(any(status not in _IN_ORDER for status in statuses))

    async def _start_all(self) -> set[str]:
        """Returns the devices of the processes once all serve."""
        for number in range(self._settings.processes):
            await self._start(number)
        reports = await asyncio.gather(*map(self._serves, self._children), return_exceptions=True)
        devices = set()
        for report in reports:
            if not isinstance(report, BaseException):
                devices.add(report.device)
            elif not self._stopping.is_set():  # Else it need not serve any more.
                self._end_children()
                await asyncio.gather(*(child.ended() for child in self._children.values()))
                raise report
        return devices

    async def _start(self, number: int) -> None:
        child = self._children[number] = await Child.start(Job(number=number, settings=self._settings))
        if self._stopping.is_set():
            self._end(child)

    async def _serves(self, number: int) -> Report:
        """Waits until a process serves."""
        report = await self._children[number].report()
        await asyncio.to_thread(self._totals.watch, number, report.metrics_port)
        return report

    async def _keep(self, number: int) -> int:
        """Replaces a process whenever it has ended, until asked to stop; returns the last one's exit status."""
        pauses = Pauses()
        started = time.monotonic()
        while True:
            hanging = asyncio.create_task(self._kill_if_it_hangs(number))
            status = await self._children[number].ended()
            hanging.cancel()
            if self._stopping.is_set():
                if status not in _IN_ORDER:
                    _log.error("a process did not end in order", process=number, status=status)
                return status
            pause = pauses.after(time.monotonic() - started)
            _log.error("a process ended and is replaced", process=number, status=status, pause_s=pause)
            await asyncio.to_thread(self._totals.retire, number)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause)
            if self._stopping.is_set():
                return 0
            started = time.monotonic()
            try:
                await self._start(number)
                await self._serves(number)
            except OSError as error:
                _log.error("a process cannot serve", process=number, error=str(error))

    async def _kill_if_it_hangs(self, number: int) -> None:
        timeout = _PATIENCE * self._settings.hang_timeout_s
        if timeout and await self._children[number].hangs(timeout):
            _log.error("a process hangs and is killed", process=number, timeout_s=timeout)
            self._children[number].kill()

    def _stop(self) -> None:
        if not self._stopping.is_set():
            self._stopping.set()
            self._end_children()
            _log.info("shutting down", grace_s=self._settings.shutdown_grace_s)  # Last: nobody may be reading any more.

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
        pause = self._next if lived < _SOON else 0.0
        self._next = min(max(2 * pause, _FIRST_PAUSE), _LONGEST_PAUSE)
        return pause


def threads_each(settings: Settings) -> int:
    """The threads of each process: unless the settings say, its share of the cores that this one may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return settings.threads or max(1, cores // settings.processes)
