"""Small calls of tasks, sent together; `boxloss.calls.coalescing` says which."""

from __future__ import annotations

import asyncio
import math
import time
from asyncio import Future, Task, TimerHandle
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeAlias

from boxloss.calls.coalescing import Answer, Call, Lane, Outcome, Verdict
from boxloss.calls.exchange import Question


class TaskCall(Call):
    """A call whose task may have to wait."""

    def __init__(self, question: Question, deadline: float) -> None:
        super().__init__(question, deadline)
        self.outcome: Future[Outcome] = asyncio.get_running_loop().create_future()

    def end(self, outcome: Outcome) -> None:
        """Has the caller go on, if it still waits."""
        if not self.outcome.done():
            self.outcome.set_result(outcome)


Send: TypeAlias = Callable[[Lane[TaskCall], list[TaskCall]], Coroutine[Any, Any, Answer]]
"""Sends calls in one message and waits for the answer."""


class Coalescer:
    """Has tasks wait for each other: the calls of those that wait go, in a task of their own, when a place is free."""

    def __init__(self) -> None:
        self._sendings: dict[Task[Answer], list[TaskCall]] = {}
        self._watch = _Watch()

    async def ride(self, lane: Lane[TaskCall], call: TaskCall, send: Send) -> Outcome:
        """The answer to the message that a call rides in; a word where its time is over.

        Raises:
            BoxlossError: what `send` fails with, where the call rides alone.
        """
        if lane.enter(call):
            try:
                return await send(lane, [call])
            finally:
                self._depart(lane, send)
        outcome = await self._wait(lane, call)
        if outcome is Verdict.ALONE:
            outcome = await send(lane, [call])
        return outcome

    async def _wait(self, lane: Lane[TaskCall], call: TaskCall) -> Outcome:
        """Waits until a call has ridden with others."""
        outcome: Outcome = Verdict.LATE
        self._watch.add(call)
        try:
            outcome = await call.outcome
        finally:
            self._watch.remove(call)
            if outcome is Verdict.LATE:  # Or its caller has been cancelled.
                self._withdraw(lane, call)
        return outcome

    def _depart(self, lane: Lane[TaskCall], send: Send) -> None:
        """Sends those that wait from a place that has become free."""
        while first := lane.leave():
            calls = [call for call in lane.gather(first) if not call.outcome.done()]
            if calls:
                sending = asyncio.create_task(send(lane, calls))
                self._sendings[sending] = calls
                sending.add_done_callback(partial(self._arrive, lane, send))
                return

    def _arrive(self, lane: Lane[TaskCall], send: Send, sending: Task[Answer]) -> None:
        """Hands the answer to those who wait for it."""
        outcome: Outcome = Verdict.ALONE
        if not sending.cancelled():
            error = sending.exception()
            outcome = Verdict.after(error) if error else sending.result()
        for call in self._sendings.pop(sending):
            call.end(outcome)
        # First those answered go on; they may call again at once, and can ride together.
        sending.get_loop().call_soon(self._depart, lane, send)

    def _withdraw(self, lane: Lane[TaskCall], call: TaskCall) -> None:
        """Takes back a call whose caller has gone; a message for which nobody waits any more is cancelled."""
        if not lane.withdraw(call):
            for sending, calls in self._sendings.items():
                if call in calls and all(each.outcome.done() for each in calls):
                    sending.cancel()


class _Watch:
    """Ends the calls whose time is over. One timer does for all: one for each would be a tenth of what a call costs."""

    def __init__(self) -> None:
        self._calls: set[TaskCall] = set()
        self._timer: TimerHandle | None = None
        self._next = math.inf
        """When the timer goes off."""

    def add(self, call: TaskCall) -> None:
        self._calls.add(call)
        if call.deadline < self._next:
            self._set(call.deadline)

    def remove(self, call: TaskCall) -> None:
        self._calls.remove(call)

    def _set(self, deadline: float) -> None:
        if self._timer:
            self._timer.cancel()
        self._next = deadline
        self._timer = asyncio.get_running_loop().call_later(deadline - time.monotonic(), self._look)

    def _look(self) -> None:
        self._next = math.inf
        now = time.monotonic()
        for call in self._calls:
            if call.deadline <= now:
                call.end(Verdict.LATE)
        deadlines = [call.deadline for call in self._calls if call.deadline > now]
        if deadlines:
            self._set(min(deadlines))
