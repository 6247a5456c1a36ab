"""Small calls of threads, sent together; `boxloss.calls.coalescing` says which."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import TypeAlias

from boxloss.calls.coalescing import Answer, Call, Lane, Outcome, Verdict
from boxloss.calls.exchange import Question
from boxloss.errors import BoxlossError


class ThreadCall(Call):
    """A call whose thread may have to wait."""

    def __init__(self, question: Question, deadline: float) -> None:
        super().__init__(question, deadline)
        self.inbox: SimpleQueue[Outcome] = SimpleQueue()


Send: TypeAlias = Callable[[Lane[ThreadCall], list[ThreadCall]], Answer]
"""Sends calls in one message and waits for the answer."""


class Coalescer:
    """Has threads wait for each other: whoever gets a place sends the calls of those that wait with its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def ride(self, lane: Lane[ThreadCall], call: ThreadCall, send: Send) -> Outcome:
        """The answer to the message that a call rides in; a word where its time is over.

        Raises:
            BoxlossError: what `send` fails with, where the call rides alone.
        """
        with self._lock:
            leads = lane.enter(call)
        outcome = Verdict.LEAD if leads else self._wait(lane, call)
        if outcome is Verdict.LEAD:
            outcome = self._lead(lane, call, send)
        if outcome is Verdict.ALONE:
            outcome = send(lane, [call])
        return outcome

    def _lead(self, lane: Lane[ThreadCall], call: ThreadCall, send: Send) -> Outcome:
        """Sends a call with those that wait, hands them the answer, and the place to one that came meanwhile."""
        calls = [call]
        outcome: Outcome = Verdict.ALONE
        try:
            with self._lock:
                calls = lane.gather(call)
            outcome = send(lane, calls)
        except BoxlossError as error:
            if len(calls) == 1:
                raise
            outcome = Verdict.after(error)
        finally:
            for other in calls[1:]:
                other.inbox.put(outcome)
            if len(calls) > 1:
                time.sleep(0)  # First those answered go on; they may call again at once, and can ride together.
            self._pass_on(lane)
        return outcome

    def _wait(self, lane: Lane[ThreadCall], call: ThreadCall) -> Outcome:
        """Waits until a call has ridden with another's, or is told what to do."""
        outcome: Outcome | None = None
        try:
            outcome = call.inbox.get(timeout=max(call.deadline - time.monotonic(), 0))
        except Empty:
            return Verdict.LATE
        finally:
            if outcome is None:
                self._withdraw(lane, call)
        return outcome

    def _withdraw(self, lane: Lane[ThreadCall], call: ThreadCall) -> None:
        """Takes back a call whose caller has gone."""
        with self._lock:
            waited = lane.withdraw(call)
        if not waited and not call.inbox.empty() and call.inbox.get() is Verdict.LEAD:
            self._pass_on(lane)

    def _pass_on(self, lane: Lane[ThreadCall]) -> None:
        """Has another caller use the place that has become free."""
        with self._lock:
            if successor := lane.leave():
                successor.inbox.put(Verdict.LEAD)
