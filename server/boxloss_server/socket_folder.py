"""A folder for a Unix socket that only this user can reach, and that is gone however the process ends."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

_PREFIX = "boxloss-socket-"


class SocketFolder:
    """A new folder in the temporary folder, for one socket. Making it removes those that killed processes left.

    Attributes:
        socket: where to listen.
    """

    def __init__(self) -> None:
        _sweep()
        self._owner = os.getpid()
        self._socket: int | None = None
        while True:
            self._path = Path(tempfile.mkdtemp(prefix=_PREFIX))
            self._lock = _open(self._path)
            fcntl.flock(self._lock, fcntl.LOCK_EX)  # As long as the process lives: nobody takes it for left behind.
            if self._path.exists():
                break
            os.close(self._lock)  # Somebody did before it was locked.
        self.socket = self._path / "socket"

    def hide(self) -> Path:
        """Once something listens, removes the folder from the file system where this is Linux.

        Returns:
            The path that the socket has from then on, to this user's processes, until `close`.
        """
        if not os.path.exists("/proc/self/fd"):
            return self.socket
        self._socket = os.open(self.socket, os.O_PATH)
        shutil.rmtree(self._path)
        return Path(f"/proc/{self._owner}/fd/{self._socket}")

    def close(self) -> None:
        """Removes what there is, unless this process is a fork of the one that made it."""
        if self._socket is not None:
            os.close(self._socket)
        elif os.getpid() == self._owner:
            shutil.rmtree(self._path)
        os.close(self._lock)


def _open(folder: Path) -> int:
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)


def _sweep() -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError):  # In use, another user's, or gone.
            lock = _open(folder)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(lock).st_uid == os.geteuid():
                    shutil.rmtree(folder)
            finally:
                os.close(lock)
