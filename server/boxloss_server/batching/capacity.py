"""Admission: how many pairs may be in the server at once."""

from __future__ import annotations

import asyncio
from collections import deque


class Capacity:
    """Counts the pairs and requests that are admitted and not yet answered.

    Args:
        limit: most pairs at once.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._turned_back: deque[asyncio.Future[None]] = deque()
        self.pairs = 0
        self.requests = 0

    def admit(self, pairs: int) -> bool:
        """Takes room for a request; False where there is none. An empty server admits any request."""
        if self.pairs + pairs > self.limit and self.pairs:
            return False
        self.pairs += pairs
        self.requests += 1
        return True

    async def wait(self, pairs: int) -> None:
        """Takes room for a request as soon as there is some."""
        while not self.admit(pairs):
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._turned_back.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                self._call_next()
                raise

    def release(self, pairs: int) -> None:
        """Gives the room of a request back."""
        self.pairs -= pairs
        self.requests -= 1
        self._call_next()

    def _call_next(self) -> None:
        while self._turned_back:
            turn = self._turned_back.popleft()
            if not turn.done():
                turn.set_result(None)
                return
