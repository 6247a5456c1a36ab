"""Questions and answers without input or output: what to send for a call, and what its answers mean.

Both clients, blocking and asyncio, are thin shells around these. An input over the server's limits becomes several
messages, whose answers are joined again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Self, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from boxloss.calls import arguments
from boxloss.calls.results import Execution, LossResult, ServerInfo
from boxloss.contract.arrays import DTYPES, Array, Boxes, boxes_of, from_message, unexpected, valid_rows, weights_of
from boxloss.contract.bulk import array_field, elements_of
from boxloss.contract.wire import enum_choices, loss_to_message
from boxloss.contract.words import COLUMNS, BoxFormat, Invalid, Metric, Reduction
from boxloss.errors import InvalidInputError, Names, Violation
from boxloss.losses import Loss
from boxloss.v1 import array_pb2, loss_service_pb2
from boxloss.v1.loss_service_pb2 import EvaluateRequest, PairwiseIouRequest

Batch: TypeAlias = tuple[Boxes, Boxes] | tuple[Boxes, Boxes, ArrayLike]
"""Predictions, targets and, where wanted, weights."""

Slice: TypeAlias = "slice[int, int, None]"
Rows: TypeAlias = "NDArray[np.bool_]"

_BOX_FORMATS = enum_choices(array_pb2.BoxFormat.DESCRIPTOR)
_REDUCTIONS = enum_choices(loss_service_pb2.Reduction.DESCRIPTOR)
_INVALID = enum_choices(loss_service_pb2.InvalidBoxes.DESCRIPTOR)
_METRICS = enum_choices(loss_service_pb2.IouMetric.DESCRIPTOR)

_FRAMING_BYTES = 64
"""More than the tags and lengths of a message's arrays take."""


class Options(NamedTuple):
    """The keywords of an evaluation that concern each pair on its own."""

    gradients: bool = False
    target_gradients: bool = False
    box_format: BoxFormat = "xyxy"
    invalid: Invalid = "reject"
    similarity: bool = False
    image_size: tuple[float, float] | None = None
    running_mean: float | None = None

    def checked(self) -> Self:
        """The same in the types that they should have.

        Raises:
            InvalidInputError: one is not what it should be.
        """
        _number(_BOX_FORMATS, self.box_format, "box_format")
        _number(_INVALID, self.invalid, "invalid")
        return self._replace(
            gradients=arguments.switch(self.gradients, "gradients"),
            target_gradients=arguments.switch(self.target_gradients, "target_gradients"),
            similarity=arguments.switch(self.similarity, "similarity"),
            image_size=None if self.image_size is None else arguments.image_size(self.image_size),
            running_mean=None if self.running_mean is None else arguments.number(self.running_mean, "running_mean"),
        )


class Kind(NamedTuple):
    """What is asked about pairs of boxes, whichever they are: one message can ask it about many."""

    losses: tuple[Loss, ...]
    options: Options
    dtype: np.dtype[Any]
    weighted: bool

    @property
    def columns(self) -> int:
        """Numbers of a box."""
        return COLUMNS[self.options.box_format]

    def template(self, reduction: Reduction) -> loss_service_pb2.EvaluateRequest:
        """A message that lacks nothing but its pairs."""
        options = self.options
        return loss_service_pb2.EvaluateRequest(
            losses=[loss_to_message(loss) for loss in self.losses],
            dtype=DTYPES[self.dtype],
            box_format=_BOX_FORMATS[options.box_format],  # type: ignore[arg-type]
            reduction=_REDUCTIONS[reduction],  # type: ignore[arg-type]
            invalid_boxes=_INVALID[options.invalid],  # type: ignore[arg-type]
            prediction_gradients=options.gradients,
            target_gradients=options.target_gradients,
            iou=True,
            similarities=options.similarity,
            image_size=_image_size(options.image_size),
            running_mean=options.running_mean,
        )

    def room(self, template: loss_service_pb2.EvaluateRequest, message_bytes: int, request_pairs: int) -> int:
        """How many pairs a server with these limits takes in a message."""
        pair_bytes = (2 * self.columns + self.weighted) * self.dtype.itemsize + 1  # A crowd's mark.
        free = message_bytes - template.ByteSize() - _FRAMING_BYTES
        return min(free // pair_bytes, request_pairs // len(self.losses))


class Question:
    """What one caller asks, read and checked as far as that takes no server.

    Args:
        predictions: boxes of shape (N, 4).
        targets: boxes of shape (N, 4).
        losses: what to compute.
        options: how.
        reduction: of the pairs' losses.
        weights: of the pairs.
        crowd: which targets are crowds.

    Raises:
        InvalidInputError: a shape, a word or a combination is wrong.
    """

    def __init__(
        self,
        predictions: Boxes,
        targets: Boxes,
        losses: Sequence[Loss],
        options: Options,
        reduction: Reduction = "none",
        weights: ArrayLike | None = None,
        crowd: ArrayLike | None = None,
    ) -> None:
        options = options.checked()
        check_reduction(reduction)
        columns = COLUMNS[options.box_format]
        self.predictions = boxes_of(predictions, "predictions", columns)
        self.targets = boxes_of(targets, "targets", columns)
        if self.predictions.dtype != self.targets.dtype:
            dtype = np.result_type(self.predictions, self.targets)
            self.predictions, self.targets = self.predictions.astype(dtype), self.targets.astype(dtype)
        self.weights = None if weights is None else weights_of(weights, self.predictions.dtype)
        self.pairs = len(self.predictions)
        self.crowd = _crowd_of(crowd, self.pairs, "predictions")
        self.reduction = reduction
        self.kind = Kind(arguments.losses(losses), options, self.predictions.dtype, self.weights is not None)
        self._check()

    def _check(self) -> None:
        faults = []
        for name, array in (("targets", self.targets), ("weights", self.weights)):
            if array is not None and len(array) != self.pairs:
                faults.append(Violation(name, f"has {len(array)} rows for {self.pairs} predictions; give one for each"))
        if faults:
            raise InvalidInputError(faults)


class EvaluationExchange:
    """The messages of one evaluation, and the results that their answers make.

    Args:
        question: what is asked.
        server: whose limits hold.
    """

    def __init__(self, question: Question, server: ServerInfo) -> None:
        self.question = question
        self._kind = question.kind
        self._template = self._kind.template(question.reduction)
        self._count = question.pairs
        step = max(self._kind.room(self._template, server.message_bytes, server.request_pairs), 1)
        self._slices = [slice(start, start + step) for start in range(0, max(self._count, 1), step)]
        if len(self._slices) > 1 and question.reduction == "mean":
            # Means of parts of different size do not average; sums add.
            self._template.reduction = loss_service_pb2.REDUCTION_SUM

    def requests(self) -> Iterator[tuple[bytes, Names]]:
        """The messages to send, and what to call their fields in errors."""
        question = self.question
        for part in self._slices:
            rest = self._template
            if question.crowd is not None:
                rest = EvaluateRequest(crowd=question.crowd[part].tolist())
                rest.MergeFrom(self._template)
            request = [
                rest.SerializeToString(),
                *array_field(EvaluateRequest.PREDICTIONS_FIELD_NUMBER, [elements_of(question.predictions[part])]),
                *array_field(EvaluateRequest.TARGETS_FIELD_NUMBER, [elements_of(question.targets[part])]),
            ]
            if question.weights is not None:
                request += array_field(EvaluateRequest.WEIGHTS_FIELD_NUMBER, [elements_of(question.weights[part])])
            whole = len(self._slices) == 1
            names = {} if whole else {name: _part(name, part) for name in ("predictions", "targets", "weights")}
            yield b"".join(request), names

    def results(self, responses: Sequence[loss_service_pb2.EvaluateResponse]) -> list[LossResult]:
        """One result for each loss, from the answers to all messages."""
        counts = [len(self.question.predictions[part]) for part in self._slices]
        valid = np.ones(self._count, bool)
        for part, count, response in zip(self._slices, counts, responses, strict=True):
            check_results(response, self._kind)
            valid[part] = valid_rows(response.masked_rows, count)
        iou = _joined([from_message(r.iou, r.dtype, (n,)) for r, n in zip(responses, counts, strict=True)])

        def count_valid(part: Slice) -> int:
            return int(np.count_nonzero(valid[part]))

        executions = tuple(execution_of(response.execution) for response in responses)
        results = []
        for index, loss in enumerate(self._kind.losses):
            parts = [(r.results[index], r.dtype, n) for r, n in zip(responses, counts, strict=True)]
            value, gradient, target_gradient = self._reduce(
                [from_message(part.loss, dtype, self._value_shape(n)) for part, dtype, n in parts],
                [from_message(part.prediction_gradient, dtype, (n, self._kind.columns)) for part, dtype, n in parts]
                if self._kind.options.gradients
                else None,
                [from_message(part.target_gradient, dtype, (n, self._kind.columns)) for part, dtype, n in parts]
                if self._kind.options.target_gradients
                else None,
                valid,
            )
            mean = self._running_mean([part for part, _, _ in parts], [count_valid(part) for part in self._slices])
            results.append(LossResult(loss, value, gradient, target_gradient, iou, valid, mean, executions))
        return results

    @staticmethod
    def _running_mean(parts: Sequence[loss_service_pb2.LossResult], counts: Sequence[int]) -> float | None:
        """The parts' means hold shares of their own pairs: together, they hold shares by number."""
        if not parts[0].HasField("running_mean"):
            return None
        if not any(counts):
            return parts[0].running_mean
        return float(np.average([part.running_mean for part in parts], weights=counts))

    def _reduce(
        self, values: list[Array], gradients: list[Array] | None, target_gradients: list[Array] | None, valid: Rows
    ) -> tuple[Array, Array | None, Array | None]:
        """Joins the parts."""
        joined = [None if parts is None else _joined(parts) for parts in (gradients, target_gradients)]
        if self.question.reduction == "none":
            return _joined(values), joined[0], joined[1]
        if len(values) == 1:
            return values[0], joined[0], joined[1]
        scale = scale_of(self.question.reduction, valid)
        total = np.asarray(np.sum(values, dtype=np.float64) * scale, values[0].dtype)
        first, second = (None if array is None else array * array.dtype.type(scale) for array in joined)
        return total, first, second

    def _value_shape(self, count: int) -> tuple[int, ...]:
        return (count,) if self.question.reduction == "none" else ()


class MatrixExchange:
    """The messages of one IoU matrix, and the matrix that their answers make; arguments as `pairwise_iou`'s.

    Raises:
        InvalidInputError: a shape or a word is wrong.
    """

    def __init__(
        self,
        rows: Boxes,
        columns: Boxes,
        metric: Metric | Loss,
        box_format: BoxFormat,
        invalid: Invalid,
        crowd: ArrayLike | None,
        image_size: tuple[float, float] | None,
        server: ServerInfo,
    ) -> None:
        format_number = _number(_BOX_FORMATS, box_format, "box_format")
        numbers = COLUMNS[box_format]
        row_array, column_array = boxes_of(rows, "a", numbers), boxes_of(columns, "b", numbers)
        dtype = np.result_type(row_array, column_array)
        self._rows, self._columns = row_array.astype(dtype, copy=False), column_array.astype(dtype, copy=False)
        self._crowd = _crowd_of(crowd, len(self._columns), "boxes in b")
        self._template = loss_service_pb2.PairwiseIouRequest(
            dtype=DTYPES[dtype],
            box_format=format_number,  # type: ignore[arg-type]
            invalid_boxes=_number(_INVALID, invalid, "invalid"),  # type: ignore[arg-type]
            image_size=_image_size(image_size),
        )
        if isinstance(metric, type):
            arguments.loss(metric, "metric")
        if isinstance(metric, Loss):
            self._template.similarity.CopyFrom(loss_to_message(metric))
        else:
            self._template.metric = _number(_METRICS, metric, "metric")  # type: ignore[assignment]
        room = server.message_bytes - self._template.ByteSize() - _FRAMING_BYTES
        box_bytes = numbers * dtype.itemsize + 1  # A crowd's mark takes a byte.
        # A tile's two edges may take half of a message each.
        width = max(min(len(self._columns), room // (2 * box_bytes), server.request_pairs), 1)
        height = max(min(room // (2 * box_bytes), server.request_pairs // width), 1)
        self._tiles = [
            [
                (slice(top, top + height), slice(left, left + width))
                for left in range(0, max(len(self._columns), 1), width)
            ]
            for top in range(0, max(len(self._rows), 1), height)
        ]

    def requests(self) -> Iterator[tuple[bytes, Names]]:
        """The messages to send, a tile of the matrix each, and what to call their fields in errors."""
        for band in self._tiles:
            for vertical, horizontal in band:
                rest = self._template
                if self._crowd is not None:
                    rest = PairwiseIouRequest(crowd=self._crowd[horizontal].tolist())
                    rest.MergeFrom(self._template)
                request = [
                    rest.SerializeToString(),
                    *array_field(PairwiseIouRequest.A_FIELD_NUMBER, [elements_of(self._rows[vertical])]),
                    *array_field(PairwiseIouRequest.B_FIELD_NUMBER, [elements_of(self._columns[horizontal])]),
                ]
                whole = len(self._tiles) == len(band) == 1
                names = {} if whole else {"a": _part("a", vertical), "b": _part("b", horizontal)}
                yield b"".join(request), names

    def matrix(self, responses: Sequence[loss_service_pb2.PairwiseIouResponse]) -> Array:
        """The matrix of shape (N, M)."""
        answers = iter(responses)
        bands = []
        for band in self._tiles:
            tiles = []
            for vertical, horizontal in band:
                response = next(answers)
                shape = len(self._rows[vertical]), len(self._columns[horizontal])
                tiles.append(from_message(response.matrix, response.dtype, shape))
            bands.append(np.concatenate(tiles, axis=1))
        return np.concatenate(bands)


def check_results(response: loss_service_pb2.EvaluateResponse, kind: Kind) -> None:
    """Raises `ServerError` where an answer has not one result for each loss."""
    if len(response.results) != len(kind.losses):
        raise unexpected(f"{len(response.results)} results for {len(kind.losses)} losses")


def scale_of(reduction: Reduction, valid: Rows) -> float:
    """What makes a reduction of a sum over the valid pairs."""
    return 1 / max(int(np.count_nonzero(valid)), 1) if reduction == "mean" else 1.0


def check_reduction(reduction: Reduction) -> None:
    """Raises `InvalidInputError` where that is none."""
    _number(_REDUCTIONS, reduction, "reduction")


def _crowd_of(crowd: ArrayLike | None, count: int, boxes: str) -> NDArray[np.bool_] | None:
    """The marks of crowds, one for each of the boxes."""
    if crowd is None:
        return None
    try:
        marks = np.asarray(crowd)
    except ValueError:  # Rows of different lengths.
        marks = np.asarray(None)
    if marks.dtype.kind not in "biuf":
        raise InvalidInputError([Violation("crowd", "cannot be read as marks; give True or False for each box")])
    marks = marks.astype(bool)
    if marks.shape != (count,):
        raise InvalidInputError([Violation("crowd", f"has shape {marks.shape} for {count} {boxes}; give one each")])
    return marks


def _image_size(size: tuple[float, float] | None) -> loss_service_pb2.ImageSize | None:
    size = None if size is None else arguments.image_size(size)
    return None if size is None else loss_service_pb2.ImageSize(width=size[0], height=size[1])


def _number(choices: dict[str, int], word: str, field: str) -> int:
    if not isinstance(word, str) or word not in choices:
        raise InvalidInputError([Violation(field, f"{word!r} is not known; choose one of {', '.join(choices)}")])
    return choices[word]


def _part(name: str, part: Slice) -> str:
    """Row numbers in an error count from the start of this part."""
    return f"{name}[{part.start}:{part.stop}]"


def _joined(parts: list[Array]) -> Array:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def execution_of(message: loss_service_pb2.Execution) -> Execution:
    """How a message was served."""
    return Execution(
        queue_time=message.queue_time.ToNanoseconds() / 1e9,
        compute_time=message.compute_time.ToNanoseconds() / 1e9,
        batch_requests=message.batch_request_count,
        batch_pairs=message.batch_pair_count,
    )
