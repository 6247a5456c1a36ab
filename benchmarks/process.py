"""A process of a contender, with whatever it starts in turn."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from benchmarks.errors import BenchmarkError

ROOT = Path(__file__).parents[1]

_STOP_SECONDS = 20.0
"""Time to end in order, before it is killed."""


class Process:
    """Runs from construction until `stop`.

    Args:
        command: what to run, in the root of the repository.
        log: file for what it says.
        cores: what it may run on.
        environment: variables on top of this process's.
    """

    def __init__(self, command: Sequence[str], log: Path, cores: set[int], environment: Mapping[str, str]) -> None:
        self._log = log
        own_cores = os.sched_getaffinity(0)
        with log.open("wb") as output:
            os.sched_setaffinity(0, cores)  # It inherits them, and so do its threads.
            try:
                # A session of its own: Ctrl-C is for the harness, which then ends everything in order.
                self._process = subprocess.Popen(
                    command,
                    cwd=ROOT,
                    env={**os.environ, **environment},
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            finally:
                os.sched_setaffinity(0, own_cores)
        self._root = psutil.Process(self._process.pid)
        self._seen = {self._root}

    def check(self) -> None:
        """Raises BenchmarkError where it has ended."""
        if self._process.poll() is not None:
            last = self._log.read_text(errors="replace").strip().splitlines()[-5:]
            raise BenchmarkError(f"it ended with status {self._process.returncode}: " + " | ".join(last))

    def members(self) -> list[psutil.Process]:
        """The process and all that it has started, as far as they live."""
        with suppress(psutil.NoSuchProcess):
            self._seen.update(self._root.children(recursive=True))
        return [member for member in self._seen if _lives(member)]

    def cpu_seconds(self) -> float:
        """What all of it has computed so far."""
        return sum(_cpu_seconds(member) for member in self.members())

    def rss(self) -> int:
        """Memory of all of it, in bytes."""
        return sum(_rss(member) for member in self.members())

    def pause(self) -> None:
        """Stops all of it where it is."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Lets it go on."""
        self._signal(signal.SIGCONT)

    def terminate(self) -> None:
        """Asks it to end."""
        self.resume()
        if self._process.poll() is None:
            self._process.terminate()

    def stop(self) -> None:
        """Ends all of it. Some servers leave their workers behind."""
        self.terminate()
        members = self.members()
        if self._process.poll() is None:
            try:
                self._process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        for number in (signal.SIGTERM, signal.SIGKILL):
            members = [member for member in {*members, *self.members()} if _lives(member)]
            for member in members:
                _send(member, number)
            psutil.wait_procs(members, timeout=3)

    def _signal(self, number: signal.Signals) -> None:
        for member in self.members():
            _send(member, number)


def free_port() -> int:
    """A port that nothing listens on at this moment."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _send(process: psutil.Process, number: signal.Signals) -> None:
    with suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def _cpu_seconds(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)


def _rss(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0
