"""Ctrl-C and SIGTERM at a better time."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def put_off() -> Iterator[None]:
    """Has Ctrl-C and SIGTERM wait for the end of a `with` statement in the main thread.

    Between the start of a process and the note of it, or while processes are ended, they would leave some behind.
    """
    came: list[int] = []
    handlers = {
        number: signal.signal(number, lambda number, frame: came.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])
