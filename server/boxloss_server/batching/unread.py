"""The answers that are computed and not yet written, by client."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Hashable
from typing import TypeAlias

GiveBack: TypeAlias = Callable[[], None]
UntilWritten: TypeAlias = Callable[[GiveBack], None]
"""Takes what gives room back, and calls it once the answer is written, or never will be."""


class Unread:
    """Counts the pairs of each client's answers that are not yet written.

    Args:
        share: more pairs of unread answers than that, and a client must read before it asks for more.
    """

    def __init__(self, share: int) -> None:
        self.share = max(share, 1)
        self._pairs: dict[Hashable, int] = {}
        self._line: dict[Hashable, deque[asyncio.Future[None]]] = {}
        """Patient requests that wait until their client has read."""

    def too_much(self, client: Hashable) -> bool:
        """Whether a client has more than its share."""
        return self._pairs.get(client, 0) > self.share

    async def wait(self, client: Hashable) -> None:
        """Waits until a client has no more than its share."""
        while self.too_much(client):
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            line = self._line.setdefault(client, deque())
            line.append(turn)
            try:
                await turn
            finally:
                if turn in line:
                    line.remove(turn)
                if not line and self._line.get(client) is line:
                    del self._line[client]

    def add(self, client: Hashable, pairs: int) -> None:
        """Counts an answer."""
        self._pairs[client] = self._pairs.get(client, 0) + pairs

    def remove(self, client: Hashable, pairs: int) -> None:
        """Counts it no more."""
        left = self._pairs[client] - pairs
        if left:
            self._pairs[client] = left
        else:
            del self._pairs[client]
        if client in self._line and not self.too_much(client):
            for turn in self._line[client]:
                if not turn.done():
                    turn.set_result(None)
