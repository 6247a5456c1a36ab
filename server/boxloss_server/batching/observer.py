"""What the batcher tells of its work, for metrics."""

from __future__ import annotations

from typing import Any, Protocol


class Observer(Protocol):
    """Hears what happens in a batcher. Times are seconds."""

    def admitted(self) -> Any:
        """Called for each request that is admitted, by who asks; it may mark it."""

    def queued(self, seconds: float, mark: Any) -> None:
        """Called for each request when its batch starts."""

    def closed(self, reason: str, requests: int, pairs: int, forming: float) -> None:
        """Called for each batch that starts, `forming` seconds after its first request came.

        Reasons, of small requests: "alone" (callers come one by one), "pause" (no more came), "window" (the longest
        time was over), "deadline" (the nearest was near) and "full"; of large ones: "idle" (the worker was free) and
        "worker" (it became free).
        """

    def computed(self, copy: float, compute: float, mark: Any) -> None:
        """Called for each batch when it is over, with what its function took, what all else took, and a mark of one of
        its requests, if any has one.
        """

    def busy(self, seconds: float) -> None:
        """Called with time in which the device worked. Where batches overlap, it is told once."""

    def failed(self, outcome: str) -> None:
        """Called for each computation that fails, also from another thread: of a batch, which is then "split", or of a
        "request" alone.
        """

    def rejected(self, reason: str) -> None:
        """Called for each request that is not computed: "queue_full", "deadline", "cancelled" or "quota"."""
