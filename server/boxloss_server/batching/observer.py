"""What the batcher tells of its work, for metrics."""

from __future__ import annotations

from typing import Protocol


class Observer(Protocol):
    """Hears what happens in a batcher. Times are seconds."""

    def queued(self, seconds: float) -> None:
        """Called for each request when its batch starts."""

    def closed(self, reason: str, requests: int, pairs: int) -> None:
        """Called for each batch that starts.

        Reasons, of small requests: "alone" (callers come one by one), "pause" (no more came), "window" (the longest
        time was over), "deadline" (the nearest was near) and "full"; of large ones: "idle" (the worker was free) and
        "worker" (it became free).
        """

    def computed(self, seconds: float) -> None:
        """Called for each batch when it has been computed."""

    def rejected(self, reason: str) -> None:
        """Called for each request that is turned away: "queue_full", "deadline" or "quota"."""
