"""Structured logs on standard error."""

from __future__ import annotations

import atexit
import contextlib
import io
import logging
import os
import select
import sys
import threading
from collections import deque
from typing import Any, TextIO, cast

import structlog

_KEPT = 1000
"""Texts that are kept while standard error takes none; more are lost."""
_WRITE_TIMEOUT = 0.1
"""Seconds that who writes waits for the text to be taken, unless another has waited in vain."""
_LAST_WRITE_TIMEOUT = 1.0
"""Seconds that the end of the process waits for what is kept."""

_log = structlog.get_logger()


class StandardError(io.TextIOBase):
    """Standard error, to which writing never fails and never waits for long.

    The disk may be full, and a pipe's reader may have gone, or live and not read. What cannot be written is lost and
    counted; once something can be written again, the log says how much was lost. A thread of its own writes, so that
    nobody else stands still; while it gets on, who writes waits for it, and a process that ends has said everything.

    Args:
        descriptor: number of the open file.

    Attributes:
        lost: texts that could not be written.
    """

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(self, descriptor: int = 2) -> None:
        self.lost = 0
        self._descriptor = descriptor
        self._told = 0
        self._cut = False
        self._texts: deque[bytes] = deque()
        self._changed = threading.Condition()
        self._stands_still = False
        self._thread = threading.Thread(target=self._write_on, name="boxloss-log", daemon=True)
        self._thread.start()

    def write(self, text: str) -> int:
        with self._changed:
            if len(self._texts) < _KEPT:
                self._texts.append(text.encode(self.encoding, self.errors))
                self._changed.notify_all()
                if not self._stands_still and threading.current_thread() is not self._thread:
                    self._stands_still = not self._wait(_WRITE_TIMEOUT)
            else:
                self.lost += 1
        return len(text)

    def drain(self) -> None:
        """Waits for what is kept, for a second at most. For the end of the process."""
        with self._changed:
            self._wait(_LAST_WRITE_TIMEOUT)

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        try:
            return os.isatty(self._descriptor)
        except OSError:
            return False

    def fileno(self) -> int:
        return self._descriptor

    def _wait(self, seconds: float) -> bool:
        """Whether all has been written after so many seconds at most."""
        return self._changed.wait_for(lambda: not self._texts, seconds)

    def _write_on(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._texts)
                text = self._texts[0]
            written = self._written(text)
            with self._changed:
                self._texts.popleft()
                self._stands_still = self._stands_still and bool(self._texts)
                self.lost += not written
                self._changed.notify_all()
            if written and self.lost > self._told:
                self._told = self.lost
                _log.warning("lines of the log were lost: standard error could not be written", lines=self.lost)

    def _written(self, text: bytes) -> bool:
        """Writes a text; returns whether that went well. What was cut off before ends its line first."""
        rest = b"\n" + text if self._cut else text
        try:
            while rest:
                try:
                    rest = rest[os.write(self._descriptor, rest) :]
                    self._cut = False
                except BlockingIOError:  # Others that share it have it so.
                    select.select([], [self._descriptor], [])
        except (OSError, ValueError):
            self._cut = self._cut or len(rest) < len(text)
            return False
        return True


class _Lines:
    """Writes lines to what is sys.stderr at the time, which in another program may be anything, or nothing."""

    def write(self, line: str) -> None:
        with contextlib.suppress(Exception):
            sys.stderr.write(f"{line}\n")
            sys.stderr.flush()

    debug = info = warning = error = critical = write


def take_standard_error() -> None:
    """Has all that Python writes to standard error, in this process, neither fail nor wait. For the start of a process.

    gRPC's own code in C writes past it: its lines can still wait.
    """
    with contextlib.suppress(OSError):
        # Where standard error is closed, a socket would take its number, and the log would go there.
        while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
            os.set_inheritable(descriptor, True)
        os.close(descriptor)
    stream = StandardError()
    sys.stderr = cast(TextIO, stream)
    atexit.register(stream.drain)


def configure_logs(level: str, form: str, **marks: Any) -> None:
    """Has structlog write lines of at least `level` ("info") as `form`: "console", "json", or "auto" for the first on
    a terminal and the second elsewhere. All lines have the marks; each is written in one piece, so that those of
    several processes do not mix. To log never raises.
    """

    def mark(_logger: Any, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        return {**event, **marks}

    console = form == "console" or (form == "auto" and sys.stderr is not None and sys.stderr.isatty())
    structlog.configure(
        processors=[
            mark,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *([] if console else [structlog.processors.format_exc_info]),
            # Not the default formatter of exceptions, which prints variables: they hold the callers' data.
            structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
            if console
            else structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=lambda *_: _Lines(),
    )
