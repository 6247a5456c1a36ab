"""What waits for the worker, fairly between clients."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import Generic, Protocol, TypeVar


class Waiting(Protocol):
    """An entry of a backlog."""

    @property
    def client(self) -> Hashable: ...
    @property
    def work(self) -> Hashable: ...
    @property
    def pairs(self) -> int: ...


Entry = TypeVar("Entry", bound=Waiting)


class Backlog(Generic[Entry]):
    """Entries in the order in which clients take turns: one that sends many does not hold up one that sends few."""

    def __init__(self) -> None:
        self._queues: dict[Hashable, deque[Entry]] = {}
        """The clients that wait; whose turn it is comes first."""

    def __bool__(self) -> bool:
        return bool(self._queues)

    def add(self, entry: Entry) -> None:
        """Adds an entry behind those of the same client."""
        self._queues.setdefault(entry.client, deque()).append(entry)

    def take(self, pairs: int) -> list[Entry]:
        """Takes the next entry, and with it others of the same work, a client at a time, up to so many pairs."""
        taken: list[Entry] = []
        found = True
        while found:
            found = False
            for client, queue in list(self._queues.items()):
                if taken and (queue[0].work != taken[0].work or queue[0].pairs > pairs):
                    continue
                found = True
                taken.append(queue.popleft())
                pairs -= taken[-1].pairs
                del self._queues[client]
                if queue:
                    self._queues[client] = queue
        return taken
