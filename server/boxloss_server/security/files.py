"""What files say, read again when they change."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Generic, TypeAlias, TypeVar

import structlog

from boxloss_server.security.permissions import check_permissions, weaknesses

Value = TypeVar("Value")
_Stamp: TypeAlias = tuple[int, ...] | None

_INTERVAL = 0.5
"""Seconds between two looks at the files."""

_log = structlog.get_logger()


class Files(Generic[Value]):
    """The value that some files have together.

    Args:
        paths: of the files, by the flags that name them.
        read: reads them.
        secret: flags of those that other users should not be able to read.

    Raises:
        OSError, ValueError: as `read` does, or every user may write to a file; the message names flag and file.

    Attributes:
        value: what they said when they were last in order.
        reloaded: when that was read, in seconds of Unix time.
        failures: how often changed files could not be read. They are tried again at every look, twice a second.
    """

    def __init__(self, paths: Mapping[str, Path], read: Callable[[], Value], secret: Collection[str] = ()) -> None:
        self._paths = paths
        self._read = read
        self._secret = secret
        self._known = self._seen = self._stamps()
        self._complaint: object = None
        self.failures = 0
        self._take()

    async def follow(self) -> None:
        """Reads them again whenever they have changed, until cancelled. What is broken is logged once, and not taken.

        A change is read when it has been there for two looks: who writes it may not have finished before.
        """
        while True:
            await asyncio.sleep(_INTERVAL)
            try:
                await asyncio.to_thread(self._look)
            except Exception as error:  # Should this end, nobody's access could be taken away any more.
                self._complain(error, None)

    def _look(self) -> None:
        stamps = self._stamps()
        if stamps != self._known and stamps == self._seen:
            try:
                self._take()
            except Exception as error:
                self._complain(error, stamps)
            else:
                self._known, self._complaint = stamps, None
                _log.info("changed files are read", files=self._names())
        self._seen = stamps

    def _take(self) -> None:
        """Reads them, and warns of what other users may do to them."""
        for flag, path in self._paths.items():
            check_permissions(flag, path)
        self.value = self._read()
        self.reloaded = time.time()
        for flag, path in self._paths.items():
            for weakness in weaknesses(path, flag in self._secret):
                _log.warning("a file is open to other users", flag=flag, file=str(path), fault=weakness)

    def _complain(self, error: Exception, stamps: tuple[_Stamp, ...] | None) -> None:
        self.failures += 1
        complaint = stamps, str(error)
        if complaint != self._complaint:
            self._complaint = complaint
            _log.error(
                "changed files are broken; what they said before holds",
                files=self._names(),
                error=str(error),
                exc_info=not isinstance(error, (OSError, ValueError)),
            )

    def _names(self) -> list[str]:
        return [str(path) for path in self._paths.values()]

    def _stamps(self) -> tuple[_Stamp, ...]:
        return tuple(map(_stamp, self._paths.values()))


def contents(flag: str, path: Path) -> bytes:
    """What is in the file that a flag names.

    Raises:
        OSError: it cannot be read; the message names both.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise OSError(f"{flag} {path}: {error.strerror}") from None


def _stamp(path: Path) -> _Stamp:
    """What changes when a file does; None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    # Programs that copy files set their time of modification back, but none can do so with that of change.
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino
