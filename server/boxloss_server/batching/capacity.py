"""Admission: how many pairs may be in the server at once."""

from __future__ import annotations

import asyncio
from collections import deque


class Capacity:
    """Counts the pairs and requests that are admitted and whose answers are not yet written.

    There is room until so many pairs are in, whatever the next request has: a large one finds room as easily as a small
    one. Patient requests get what becomes free in the order in which they came, until half of the room is theirs; so
    neither they nor the others can keep the rest out.

    Args:
        limit: admit no more once so many pairs are in.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._patient_pairs = 0
        self._line: deque[tuple[asyncio.Future[None], int]] = deque()
        """The patient requests that wait, and their pairs."""
        self.pairs = 0
        self.requests = 0

    @property
    def full(self) -> bool:
        """Whether there is no room."""
        return self.pairs >= self.limit

    def admit(self, pairs: int) -> bool:
        """Takes room for a request; False where there is none."""
        if self.full:
            return False
        self.pairs += pairs
        self.requests += 1
        return True

    async def wait(self, pairs: int) -> None:
        """Takes room for a patient request as soon as there is some."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line.append((turn, pairs))
        self._let_in()
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # It was let in at the same moment.
                self.release(pairs, patient=True)
            raise

    def release(self, pairs: int, patient: bool) -> None:
        """Gives the room of a request back; a patient one got it from `wait`."""
        self.pairs -= pairs
        self.requests -= 1
        if patient:
            self._patient_pairs -= pairs
        self._let_in()

    def _let_in(self) -> None:
        while self._line and self._patient_pairs < self.limit / 2:
            turn, pairs = self._line[0]
            if not turn.cancelled():
                if not self.admit(pairs):
                    return
                self._patient_pairs += pairs
                turn.set_result(None)
            self._line.popleft()
