"""How the server is ended: by signals, and in the end by itself."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable
from functools import partial
from types import FrameType

LAST_STEPS = 1.0
"""Seconds after its grace at which a server exits, whatever computes."""

_SIGNALS = signal.SIGTERM, signal.SIGINT


def on_stop(
    stop: Callable[[], None], stop_at_once: Callable[[], None] | None = None, within: float | None = None
) -> None:
    """Calls `stop`, on the running event loop, at the first SIGTERM or SIGINT. From the main thread only.

    Args:
        stop: begins to end the process in order.
        stop_at_once: called at the next signal; by default that ends the process, even where the event loop hangs.
        within: seconds after the first signal at which the process exits, whatever it does.
    """
    loop = asyncio.get_running_loop()

    def first(number: int, frame: FrameType | None) -> None:
        for each in _SIGNALS:
            signal.signal(each, partial(second, stop_at_once) if stop_at_once else signal.SIG_DFL)
        if within is not None:
            exit_after(within)
        loop.call_soon_threadsafe(stop)

    def second(then: Callable[[], None], number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(then)

    for each in _SIGNALS:
        signal.signal(each, first)


def exit_after(seconds: float, status: int = 0) -> None:
    """Exits after so many seconds, if the process has not ended by then: at its end Python waits for its threads."""
    timer = threading.Timer(seconds, os._exit, (status,))
    timer.daemon = True
    timer.start()
