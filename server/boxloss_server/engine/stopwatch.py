"""How long a device computes."""

from __future__ import annotations

import threading
import time
from contextlib import suppress

import torch


class Stopwatch(threading.local):
    """A clock that runs while the device computes for the thread that asks: within `with` statements.

    A GPU computes later than it is told to: it notes the times itself.

    Args:
        device: what computes.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._notes: list[torch.cuda.Event] = []
        self._started = 0.0
        self._seconds = 0.0

    def __enter__(self) -> None:
        if self._on_gpu:
            self._note()
        self._started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        if self._on_gpu:
            self._note()
        else:
            self._seconds += time.perf_counter() - self._started

    def read(self) -> float:
        """The seconds so far. Waits until what was computed is there."""
        notes, self._notes = self._notes, []
        with suppress(RuntimeError):  # A device that has failed tells no times.
            for start, end in zip(notes[::2], notes[1::2], strict=True):
                end.synchronize()
                self._seconds += start.elapsed_time(end) / 1e3
        return self._seconds

    def _note(self) -> None:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        self._notes.append(event)
