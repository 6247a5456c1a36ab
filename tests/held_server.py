"""A boxloss-server whose large requests wait as long as a test holds them: no request has to be slow."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from tempfile import NamedTemporaryFile
from typing import Any

from boxloss_server import __main__, service
from boxloss_server.engine import Engine
from tests.servers import ServerProcess

_FILE = "HELD_WHILE_LOCKED"


class HeldServer(ServerProcess):
    """The server, from a test's side.

    Args:
        flags: of its command line.
    """

    def __init__(self, *flags: str) -> None:
        self._file = NamedTemporaryFile()  # noqa: SIM115 - it lives as long as the server.
        super().__init__(*flags, module="tests.held_server", environment={_FILE: self._file.name})

    @contextmanager
    def held(self) -> Iterator[None]:
        """Has the worker thread wait before the next batch that it computes."""
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def wait(self) -> int:
        self._file.close()
        return super().wait()


class HeldEngine(Engine):
    """Waits in the worker thread, not on the event loop, which computes the small requests."""

    def run(self, work: Any, requests: Sequence[Any]) -> Sequence[Any]:
        if threading.current_thread() is not threading.main_thread():
            with open(os.environ[_FILE], "rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH)
        return super().run(work, requests)


if __name__ == "__main__":
    vars(service)["Server"] = partial(service.Server, engine=HeldEngine)
    __main__.main()
