"""A clock that stands still unless the event loop turns."""

from __future__ import annotations

import asyncio
from typing import Any

TURN = 10e-6
"""Seconds that a turn of the event loop takes."""


class FakeClock:
    """The time of an event loop, and of the modules whose `time` it replaces: no test waits, however busy the machine.

    A turn of the loop takes `TURN`. Where there is nothing to do but to wait for a timer, its time has come.
    """

    def __init__(self, loop: Any) -> None:
        self.now = 1000.0
        self._select = loop._selector.select
        loop._selector.select = self._turn
        loop.time = self.monotonic

    def monotonic(self) -> float:
        """Seconds, as time.monotonic() tells them."""
        return self.now

    def _turn(self, timeout: float | None) -> Any:
        events = self._select(timeout and 0)
        self.now += TURN if events or not timeout else timeout
        return events


async def turns(number: int) -> None:
    """Lets the event loop turn."""
    for _ in range(number):
        await asyncio.sleep(0)
