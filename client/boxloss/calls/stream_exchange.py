"""Streams without input or output: what is on its way, what to send again, and when all is done.

`streams.py` carries them for threads, `aio_streams.py` for tasks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from typing import Any, Generic, TypeVar

from boxloss.calls import arguments
from boxloss.calls.exchange import Batch, EvaluationExchange, Options, Question, check_reduction
from boxloss.calls.results import LossResult, ServerInfo
from boxloss.contract.bulk import field
from boxloss.contract.words import Reduction
from boxloss.errors import InvalidInputError
from boxloss.losses import Loss
from boxloss.v1 import loss_service_pb2
from boxloss.v1.loss_service_pb2 import EvaluateStreamRequest

PATIENCE = 2.0
"""Seconds that a call's status may take after its last answer. It comes right with it, unless the server hangs."""

END: Any = object()
"""What stands for the end of the items, where any item may come."""

Item = TypeVar("Item")
Asked = TypeVar("Asked")
Result = TypeVar("Result")


class StreamExchange(ABC, Generic[Item, Asked, Result]):
    """The messages of a stream that are sent and not yet answered, in order, each with what it asks.

    They outlast a connection that breaks: the next one begins with them.
    """

    DEPTH = 8
    """Messages on their way at once: enough to hide the way, few enough to hold in memory."""

    def __init__(self) -> None:
        self._unanswered: deque[tuple[bytes, Asked]] = deque()
        self.ended = False
        """Whether nothing more will be asked."""
        self.fault: InvalidInputError | None = None
        """What is wrong with the input, to be raised when all before it is answered."""

    @property
    def unanswered(self) -> list[bytes]:
        """What a new connection begins with."""
        return [message for message, _ in self._unanswered]

    @property
    def wanting(self) -> bool:
        """Whether there is room for the next item."""
        return not self.ended and len(self._unanswered) < self.DEPTH

    @property
    def done(self) -> bool:
        """Whether all that was asked is answered."""
        return not self._unanswered

    @abstractmethod
    def ask(self, item: Item) -> list[bytes]:
        """The messages to send for the next item; none where it is at fault, which ends the input."""

    @abstractmethod
    def answer(self, response: Any) -> Result | None:
        """Takes the next answer; the item's result where it was its last.

        Raises:
            ServerError: it is no answer to what was asked.
        """


class EvaluationStreamExchange(StreamExchange[Batch, EvaluationExchange | None, LossResult]):
    """The messages of an evaluation stream. A batch's last one comes with its exchange.

    Args:
        loss: what to compute for every batch.
        options: how.
        reduction: of each batch.
        server: whose limits hold.
    """

    def __init__(self, loss: Loss, options: Options, reduction: Reduction, server: ServerInfo) -> None:
        super().__init__()
        self._loss = arguments.loss(loss)
        self._options = options.checked()
        check_reduction(reduction)
        self._reduction = reduction
        self.server = server
        self._answers: list[loss_service_pb2.EvaluateResponse] = []
        self._asked = 0

    def ask(self, batch: Batch) -> list[bytes]:
        name = f"batches[{self._asked}]"
        try:
            predictions, targets, *weights = arguments.batch(batch)
        except InvalidInputError as error:
            self.ended, self.fault = True, error.renamed({"batch": name})
            return []
        try:
            question = Question(predictions, targets, [self._loss], self._options, self._reduction, *weights[:1])
        except InvalidInputError as error:
            self.ended, self.fault = True, error.within(name)
            return []
        self._asked += 1
        return self._write(question)

    def cut(self, server: ServerInfo) -> None:
        """Has all that is not answered asked anew, in messages that fit other limits."""
        questions = [exchange.question for _, exchange in self._unanswered if exchange]
        self.server = server
        self._unanswered.clear()
        self._answers = []
        for question in questions:
            self._write(question)

    def _write(self, question: Question) -> list[bytes]:
        exchange = EvaluationExchange(question, self.server)
        messages = [
            b"".join(field(EvaluateStreamRequest.REQUEST_FIELD_NUMBER, request)) for request, _ in exchange.requests()
        ]
        self._unanswered.extend((message, None) for message in messages[:-1])
        self._unanswered.append((messages[-1], exchange))
        return messages

    def answer(self, response: loss_service_pb2.EvaluateStreamResponse) -> LossResult | None:
        self._answers.append(response.response)
        _, exchange = self._unanswered.popleft()
        if exchange is None:
            return None
        result = exchange.results(self._answers)[0]
        self._answers = []
        return result
