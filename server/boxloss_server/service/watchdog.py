"""The watchdog: ends a process that hangs, so that its supervisor replaces it."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import traceback
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import structlog

STATUS = os.EX_SOFTWARE
"""Exit status of a process that hung."""

_LOOKS = 10
"""Looks without progress after which something hangs."""
_LOOP = 0
"""Stands for the event loop where others are named by their threads."""
_LAST_WORDS = 2.0
"""Seconds to say what hangs: the log, or the event loop, may be the very thing."""

_log = structlog.get_logger()


class Watchdog:
    """Watches the event loop and what computes, from a thread of its own: the loop itself may hang.

    It counts its looks, not seconds: what is suspended with the whole process, as in a laptop that sleeps, does not
    hang. A thread that keeps Python's lock stops the watchdog as well; a supervisor in another process notices that.

    Args:
        timeout: seconds without progress after which something hangs; with 0, nothing ever does.
        unhealthy: has the server report NOT_SERVING; runs on the event loop, if that still turns.
    """

    def __init__(self, timeout: float, unhealthy: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._pause = timeout / _LOOKS
        self._unhealthy = unhealthy
        self._steps = count()
        self._busy: dict[int, int] = {}
        """The step at which each thread that computes is, and the event loop if it is asked to turn."""
        self._looks: dict[tuple[int, int], int] = {}
        """How often each of these has been seen at the same step."""
        self._ended = threading.Event()

    def beat(self) -> None:
        """Notes that the calling thread computes, and has come a step further."""
        self._busy[threading.get_ident()] = next(self._steps)

    def rest(self) -> None:
        """Notes that the calling thread computes no more."""
        self._busy.pop(threading.get_ident(), None)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watches meanwhile, and ends the process with `STATUS` if something hangs. For the event loop's thread."""
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._busy.clear()  # What was computed before, to warm up, may have taken its time.
        thread = threading.Thread(target=self._watch, name="boxloss-watchdog", daemon=True)
        if self._pause:
            thread.start()
        try:
            yield
        finally:
            self._ended.set()
            if self._pause:
                thread.join()

    def look(self) -> int | None:
        """Looks once; returns the thread that hangs, if one does."""
        if _LOOP not in self._busy:
            self._busy[_LOOP] = next(self._steps)
            self._loop.call_soon_threadsafe(self._busy.pop, _LOOP)
        self._looks = {seen: self._looks.get(seen, 0) + 1 for seen in self._busy.copy().items()}
        for (thread, _), looks in self._looks.items():
            if looks > _LOOKS:
                return thread or self._loop_thread
        return None

    def _watch(self) -> None:
        while not self._ended.wait(self._pause):
            if (thread := self.look()) is not None:
                speaker = threading.Thread(target=self._say, args=(thread,), daemon=True)
                speaker.start()
                speaker.join(_LAST_WORDS)
                os._exit(STATUS)

    def _say(self, thread: int) -> None:
        names = {each.ident: each.name for each in threading.enumerate()}
        stack = "".join(traceback.format_stack(sys._current_frames().get(thread)))
        _log.error("the server hangs and ends", thread=names.get(thread), timeout_s=_LOOKS * self._pause, stack=stack)
        asyncio.run_coroutine_threadsafe(self._unhealthy(), self._loop).result()
