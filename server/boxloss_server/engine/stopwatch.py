"""How long a device computes."""

from __future__ import annotations

import time
from typing import Protocol

import torch


class Stopwatch(Protocol):
    """Adds up the time within its `with` statements, for one batch."""

    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...

    @property
    def seconds(self) -> float:
        """The time so far. What was computed within must be over."""


def stopwatch(device: torch.device) -> Stopwatch:
    """A stopwatch for a batch on a device."""
    return _CudaStopwatch() if device.type == "cuda" else _Stopwatch()


class _Stopwatch:
    """For a device that has computed when the call returns."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._started = 0.0

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._started


class _CudaStopwatch:
    """For a GPU, which computes later than it is told to: it notes the times itself."""

    def __init__(self) -> None:
        self._events: list[torch.cuda.Event] = []

    def __enter__(self) -> None:
        self._note()

    def __exit__(self, *_: object) -> None:
        self._note()

    @property
    def seconds(self) -> float:
        starts, ends = self._events[::2], self._events[1::2]
        milliseconds: float = sum(start.elapsed_time(end) for start, end in zip(starts, ends, strict=True))
        return milliseconds / 1e3

    def _note(self) -> None:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        self._events.append(event)
