"""Processes forked from one that has imported what servers import: that takes nine tenths of a server's start."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from typing import TextIO

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["boxloss_server.service", "boxloss_server.settings"])


class Fork:
    """A module that runs as `python -m` would run it; otherwise like subprocess.Popen.

    Args:
        arguments: the module, and its command line.
        variables: its environment.

    Attributes:
        stderr: what it writes there; bytes that are no text are replaced.
    """

    def __init__(self, arguments: Sequence[str], variables: Mapping[str, str]) -> None:
        reader, writer = _FORKS.Pipe(duplex=False)
        with reader, writer:
            self._process = _FORKS.Process(target=_run, args=(arguments, variables, os.getcwd(), writer))
            self._process.start()
            self.stderr: TextIO = os.fdopen(os.dup(reader.fileno()), errors="replace")
        assert self._process.pid
        self.pid: int = self._process.pid
        self._waiting = threading.Lock()

    @property
    def returncode(self) -> int | None:
        """Its exit status once that was waited for: negative if a signal has ended it."""
        status: int | None = self._process._popen.returncode  # type: ignore[attr-defined]
        return status

    def wait(self, timeout: float | None = None) -> int:
        """Waits for its end; returns its exit status.

        Raises:
            subprocess.TimeoutExpired: it has not ended.
        """
        with self._waiting:
            self._process.join(timeout)
            status = self._process.exitcode
        if status is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout or 0.0)
        return status

    def send_signal(self, number: int) -> None:
        """Sends a signal, if it has not ended."""
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """Sends SIGTERM, if it has not ended."""
        self.send_signal(signal.SIGTERM)


def _run(arguments: Sequence[str], variables: Mapping[str, str], folder: str, errors: Connection) -> None:
    with errors:
        os.dup2(errors.fileno(), sys.stderr.fileno())
    os.chdir(folder)
    if "LD_PRELOAD" in variables or any(flag.startswith("--processes") for flag in arguments):
        # Libraries are loaded where a program starts, and a supervisor imports little.
        os.execve(sys.executable, [sys.executable, "-m", *arguments], dict(variables))
    os.environ.clear()
    os.environ.update(variables)
    sys.argv = list(arguments)
    runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
