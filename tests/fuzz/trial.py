"""A trial: calls that are made, judged and counted."""

from __future__ import annotations

import faulthandler
import math
import time
from collections import Counter
from typing import Any

from tests.fuzz.oracle import SECONDS, WELL_FORMED, Finding, judge, judge_well_formed
from tests.fuzz.strategies import Call
from tests.fuzz.target import Target

_EACH = 16
"""Calls of which one has well-formed company."""

GROWTH = 64 * 2**20
"""Bytes by which memory may grow after the first tenth of a long trial: what a fuzzer itself keeps, and fragments. A
leak of a request's size would be ten times as much."""


class Trial:
    """Calls to a target, which must leave it as it was.

    Args:
        target: what is called.
        inputs: how many calls there will be.
    """

    def __init__(self, target: Target, inputs: int) -> None:
        self._target = target
        self._inputs = inputs
        self._memory = 0
        self._watched = -math.inf
        self.endings: Counter[str] = Counter()
        """How the calls ended: methods with their status codes."""
        self.slowest = 0.0

    @property
    def made(self) -> int:
        """Calls made."""
        return self.endings.total()

    def make(self, *calls: Call) -> None:
        """Makes calls at the same time, now and then beside one that is well-formed.

        Raises:
            Finding: one of them did not end as it must, or has left something behind.
        """
        company = [WELL_FORMED] if self.made % _EACH < len(calls) else []
        self._keep_watch()
        outcomes = self._target.call(*calls, *company)
        for call, outcome in zip(calls, outcomes, strict=False):
            self.endings[f"{call[0].rpartition('/')[2]} {outcome.code.name}"] += 1
            self.slowest = max(self.slowest, outcome.seconds)
            judge(call, outcome)
        if company:
            judge_well_formed(outcomes[-1])
        self._look_after()

    def _keep_watch(self) -> None:
        """Has the process end with a traceback where a call blocks the event loop for ever."""
        now = time.monotonic()
        if now - self._watched > SECONDS:  # Not for each call: it takes a thread.
            self._watched = now
            faulthandler.dump_traceback_later(3 * SECONDS, exit=True)

    def end(self) -> dict[str, Any]:
        """What there is to tell; raises `Finding` where memory has grown."""
        faulthandler.cancel_dump_traceback_later()
        grown = self._target.memory() - self._memory if self._memory else 0
        if grown > GROWTH:
            raise Finding(f"memory grew by {grown / 2**20:.0f} MiB in the last nine tenths of {self.made} calls")
        return {"inputs": self.made, "endings": self.endings, "slowest": self.slowest, "grown": grown}

    def _look_after(self) -> None:
        """What a call has left behind."""
        if complaints := self._target.complaints[:]:
            self._target.complaints.clear()
            raise Finding("; ".join(complaints))
        capacity = self._target.capacity
        if capacity.pairs or capacity.requests:
            raise Finding(f"{capacity.pairs} pairs of {capacity.requests} requests are still counted as admitted")
        if not self._memory and self.made >= self._inputs / 10:
            self._memory = self._target.memory()
