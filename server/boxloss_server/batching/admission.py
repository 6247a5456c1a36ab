"""What takes requests in, and what comes of them."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from boxloss_server.batching.unread import UntilWritten

Result = TypeVar("Result")


class Outcome(NamedTuple, Generic[Result]):
    """A request's result, and how it came about: it waited, then its batch was computed. Times are seconds."""

    result: Result
    queue_time: float
    copy_time: float
    """What the batch took besides its function."""
    compute_time: float
    """What the function took."""
    ended: float
    """When the batch was over, as time.monotonic() tells it."""
    batch_requests: int
    batch_pairs: int


class Admission(Protocol):
    """Where requests are submitted: to a batcher, or first to the quota of their client."""

    async def submit(
        self,
        work: Hashable,
        request: Any,
        pairs: int,
        deadline: float = float("inf"),
        client: Hashable = None,
        patient: bool = False,
        until_written: UntilWritten | None = None,
    ) -> Outcome[Any]:
        """Has a request computed together with others that ask for the same work.

        Args:
            work: what to compute; requests with equal work share a batch.
            request: what to compute it for.
            pairs: how much the request counts against the capacity and the batch.
            deadline: time, as time.monotonic() tells it, after which nobody waits for the answer.
            client: who asks; clients take turns.
            patient: whether to wait for room instead of failing when the queue is full or the quota used up.
            until_written: keeps the room until the answer is written; without it, the room is free once there is a
                result. A client that does not read keeps a quarter of the capacity at most, and asks for no more.

        Raises:
            ServerBusyError: there is no room; QuotaExceededError, if only this client has none left.
            DeadlineExceededError: the deadline passed before the batch started; nothing was computed.
        """
        ...
