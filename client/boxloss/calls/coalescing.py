"""Small concurrent calls: what many callers ask at the same time is sent in few messages.

Calls that ask the same about different pairs share a lane. While fewer than two messages of a lane are on their way, a
call leaves at once and alone: a lone caller waits for nobody. Calls that come meanwhile wait, and ride together as soon
as a message is answered. Each of them takes its own rows of the answer. Where the server refuses a message, its calls
go again, each alone, and meet their own errors.

There is no input, output or waiting here: `coalescer.py` does these with threads, `aio_coalescer.py` with tasks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from enum import Enum, auto
from typing import Any, Generic, TypeAlias, TypeVar

import numpy as np

from boxloss.calls.exchange import Kind, Question, check_results, execution_of, scale_of
from boxloss.calls.results import LossResult
from boxloss.contract.arrays import packed, valid_rows, view_of
from boxloss.contract.bulk import array_field
from boxloss.errors import DeadlineExceededError, ServerBusyError, ServerUnavailableError
from boxloss.v1 import loss_service_pb2
from boxloss.v1.loss_service_pb2 import EvaluateRequest

PLACES = 2
"""Messages of a lane on their way at once: the server computes one while the client writes and reads another."""

CALL_PAIRS = 1024
"""A call of more pairs goes its own way: it has little to save, and whoever rode with it would wait for it."""

MESSAGE_PAIRS = 16384
"""Most pairs that ride together. What a message costs besides them is little then."""

LANES = 256
"""Lanes that are remembered. One that is forgotten loses nothing: its calls know it."""


class Verdict(Enum):
    """What a call that waits is told instead of an answer."""

    LEAD = auto()
    """There is a place: go, and take along those that wait."""
    ALONE = auto()
    """The message has failed, which may be another's fault: go again, alone."""
    LATE = auto()
    """The message has been tried until its deadline."""

    @classmethod
    def after(cls, error: BaseException) -> Verdict:
        """What the calls of a failed message are told."""
        late = isinstance(error, ServerUnavailableError | ServerBusyError | DeadlineExceededError)
        return cls.LATE if late else cls.ALONE


class Call:
    """The pairs of one call, as they were when it was made, and where they are in a message.

    Args:
        question: what is asked.
        deadline: when its caller stops waiting, as time.monotonic() tells it.
    """

    def __init__(self, question: Question, deadline: float) -> None:
        self.deadline = deadline
        self.reduction = question.reduction
        self.predictions = packed(question.predictions)
        self.targets = packed(question.targets)
        self.weights = b"" if question.weights is None else packed(question.weights)
        self.pairs = question.pairs
        self.start = 0
        self.caller: Any = None
        """Context of the caller's trace, if it is traced."""


AnyCall = TypeVar("AnyCall", bound=Call)


class Lane(Generic[AnyCall]):
    """Calls that may ride together, and the places for the messages that they ride in.

    Args:
        kind: what they ask.
        timeout: seconds that each of them may take; so those that wait longer end earlier.
        message_bytes: the server's limit.
        request_pairs: the server's limit.
    """

    def __init__(self, kind: Kind, timeout: float, message_bytes: int, request_pairs: int) -> None:
        self.kind = kind
        template = kind.template("none")  # Reduced here, for each caller.
        self.template = template.SerializeToString()
        self.room = kind.room(template, message_bytes, min(request_pairs, MESSAGE_PAIRS))
        self._places = PLACES
        self._waiting: deque[AnyCall] = deque()

    def enter(self, call: AnyCall) -> bool:
        """Takes a place and returns True where there is one; else the call waits."""
        if self._places:
            self._places -= 1
            return True
        self._waiting.append(call)
        return False

    def leave(self) -> AnyCall | None:
        """Passes a place on to a call that waits, and returns it; where none waits, the place is free.

        It is the call that came last: who sends a message waits for it until the latest deadline in it.
        """
        if self._waiting:
            return self._waiting.pop()
        self._places += 1
        return None

    def gather(self, call: AnyCall) -> list[AnyCall]:
        """The call and those that ride with it: of those that wait, the first that came, as many as fit."""
        calls, pairs = [call], call.pairs
        while self._waiting and (pairs := pairs + self._waiting[0].pairs) <= self.room:
            calls.append(self._waiting.popleft())
        return calls

    def withdraw(self, call: AnyCall) -> bool:
        """Has a call wait no longer; False where it did not."""
        if call in self._waiting:
            self._waiting.remove(call)
            return True
        return False


class Message(Generic[AnyCall]):
    """Calls that ride together.

    Args:
        lane: whose.
        calls: one or more.
    """

    def __init__(self, lane: Lane[AnyCall], calls: Sequence[AnyCall]) -> None:
        self.calls = calls
        self.deadline = max(call.deadline for call in calls)
        self._lane = lane
        start = 0
        for call in calls:
            call.start = start
            start += call.pairs
        self.pairs = start

    def request(self) -> bytes:
        """What to send."""
        parts = [
            self._lane.template,
            *array_field(EvaluateRequest.PREDICTIONS_FIELD_NUMBER, [call.predictions for call in self.calls]),
            *array_field(EvaluateRequest.TARGETS_FIELD_NUMBER, [call.targets for call in self.calls]),
        ]
        if self._lane.kind.weighted:
            parts += array_field(EvaluateRequest.WEIGHTS_FIELD_NUMBER, [call.weights for call in self.calls])
        return b"".join(parts)


class Answer:
    """The answer to a message, from which each of its calls takes its rows.

    Args:
        kind: what was asked.
        response: the answer.
        pairs: of all calls.

    Raises:
        ServerError: it does not fit.
    """

    def __init__(self, kind: Kind, response: loss_service_pb2.EvaluateResponse, pairs: int) -> None:
        check_results(response, kind)
        dtype, boxes = response.dtype, (pairs, kind.columns)
        self._iou = view_of(response.iou, dtype, (pairs,))
        self._valid = valid_rows(response.masked_rows, pairs)
        self._parts = [
            (
                loss,
                view_of(result.loss, dtype, (pairs,)),
                view_of(result.prediction_gradient, dtype, boxes) if kind.options.gradients else None,
                view_of(result.target_gradient, dtype, boxes) if kind.options.target_gradients else None,
            )
            for loss, result in zip(kind.losses, response.results, strict=True)
        ]
        self._executions = (execution_of(response.execution),)

    def results(self, call: Call) -> list[LossResult]:
        """One result for each loss, in arrays that are the caller's own."""
        rows = slice(call.start, call.start + call.pairs)
        iou, valid = self._iou[rows].copy(), self._valid[rows].copy()
        results = []
        for loss, values, *slopes in self._parts:
            value = values[rows].copy()
            gradients = [None if each is None else each[rows].copy() for each in slopes]
            if call.reduction != "none":
                scale = scale_of(call.reduction, valid)
                value = np.asarray(value[valid].sum(dtype=np.float64) * scale, value.dtype)
                gradients = [None if each is None else each * each.dtype.type(scale) for each in gradients]
            results.append(LossResult(loss, value, gradients[0], gradients[1], iou, valid, None, self._executions))
        return results


Outcome: TypeAlias = Answer | Verdict
