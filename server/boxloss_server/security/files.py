"""What files say, read again when they change."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeAlias, TypeVar

import structlog

Value = TypeVar("Value")
_Stamp: TypeAlias = tuple[int, int, int] | None

_INTERVAL = 0.5
"""Seconds between two looks at the files."""

_log = structlog.get_logger()


class Files(Generic[Value]):
    """The value that some files have together.

    Args:
        paths: of the files.
        read: reads them.

    Raises:
        OSError, ValueError: as `read` does; they name flag and file.

    Attributes:
        value: what they said when they were last in order.
    """

    def __init__(self, paths: tuple[Path, ...], read: Callable[[], Value]) -> None:
        self._paths = paths
        self._read = read
        self._known = self._seen = self._stamps()
        self.value = read()

    async def follow(self) -> None:
        """Reads them again whenever they have changed, until cancelled. What is broken is logged once, and not taken.

        A change is read when it has been there for two looks: who writes it may not have finished before.
        """
        while True:
            await asyncio.sleep(_INTERVAL)
            await asyncio.to_thread(self._look)

    def _look(self) -> None:
        stamps = self._stamps()
        if stamps != self._known and stamps == self._seen:
            self._known = stamps
            paths = [str(path) for path in self._paths]
            try:
                self.value = self._read()
            except (OSError, ValueError) as error:
                _log.error("changed files are broken; what they said before holds", files=paths, error=str(error))
            else:
                _log.info("changed files are read", files=paths)
        self._seen = stamps

    def _stamps(self) -> tuple[_Stamp, ...]:
        return tuple(map(_stamp, self._paths))


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
    return status.st_mtime_ns, status.st_size, status.st_ino
