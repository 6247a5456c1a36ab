"""Request messages to validated arrays. Whatever passes here cannot harm the batch that it joins."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
from google.protobuf.descriptor import EnumDescriptor

from boxloss.contract.wire import enum_choices, loss_from_message, refuse_unknown_fields
from boxloss.contract.words import COLUMNS, BoxFormat, Reduction
from boxloss.errors import InvalidInputError, RequestTooLargeError, UnsupportedError, Violation
from boxloss.losses import CIoU, DIoU, EIoU, GIoU, IoU, Loss
from boxloss.v1 import array_pb2, loss_pb2, loss_service_pb2
from boxloss_server.engine import Evaluation, Grid, Matrix, Pairs
from boxloss_server.engine.pairs import NO_ROWS, Array, Precision
from boxloss_server.engine.validity import invalid_rows, violations
from boxloss_server.service.arrays import as_boxes, check_weights, read_numbers
from boxloss_server.service.bulk import Received

MAX_LOSSES = 64


def _words(enum: EnumDescriptor, unspecified: str) -> dict[int, str]:
    """An enum's values as words, for example "xyxy" for BOX_FORMAT_XYXY; `unspecified` names what 0 means."""
    return {0: unspecified} | {number: word for word, number in enum_choices(enum).items()}


_DTYPES = _words(array_pb2.Dtype.DESCRIPTOR, "float32")
_BOX_FORMATS = _words(array_pb2.BoxFormat.DESCRIPTOR, "xyxy")
_REDUCTIONS = _words(loss_service_pb2.Reduction.DESCRIPTOR, "none")
_INVALID_BOXES = _words(loss_service_pb2.InvalidBoxes.DESCRIPTOR, "reject")
_METRIC_NAMES = _words(loss_service_pb2.IouMetric.DESCRIPTOR, "iou")

_METRICS: dict[str, Loss] = {loss.name: loss for loss in (IoU(), GIoU(), DIoU(), CIoU(), EIoU())}
"""The losses behind the metrics of PairwiseIou."""

_SMALLEST_IMAGE, _LARGEST_IMAGE = 1e-15, 1e15
"""Sides whose squares single precision holds."""
_SMALLEST_MEAN = 1e-6

_ARRAYS: tuple[Literal["predictions", "targets", "weights"], ...] = ("predictions", "targets", "weights")
_NOTHING = array_pb2.Array()
_REMEMBERED_BYTES = 2**12
"""Largest request without its arrays that is remembered."""


_AskedAboutBoxes = TypeVar("_AskedAboutBoxes", loss_service_pb2.EvaluateRequest, loss_service_pb2.PairwiseIouRequest)


@dataclass(frozen=True)
class Limits:
    """Limits on a request."""

    message_bytes: int
    request_pairs: int


class Asked(NamedTuple):
    """What an EvaluateRequest asks."""

    work: Evaluation
    pairs: Pairs
    iou: bool
    """Whether the IoU is wanted, too."""
    plain: bool
    """Whether the answer's arrays are to be plain numbers, as the predictions were."""


class _Header(NamedTuple):
    """What an EvaluateRequest asks about its pairs, whichever they are."""

    work: Evaluation
    dtype: str
    reduction: Reduction
    masks: bool
    iou: bool
    squared_image_diagonal: float
    running_mean: float
    faults: tuple[Violation, ...]


def decode_evaluation(received: Received[loss_service_pb2.EvaluateRequest], limits: Limits) -> Asked:
    """Reads what an EvaluateRequest asks, and its arrays, which are taken out of it.

    Raises:
        InvalidInputError: a field is missing, has the wrong size or holds what it must not.
        RequestTooLargeError: the request has too many pairs.
        UnsupportedError: a field or value is newer than this server.
    """
    request = received.message
    sent: dict[str, array_pb2.Array] = {name: getattr(request, name) for name in _ARRAYS if request.HasField(name)}
    crowd = np.array(request.crowd, bool) if request.crowd else None
    for name in _ARRAYS:
        request.ClearField(name)
    if crowd is not None:
        request.ClearField("crowd")
    # What is left is small, and mostly what others asked before.
    rest = request.SerializeToString()
    header = (_header if len(rest) <= _REMEMBERED_BYTES else _header.__wrapped__)(rest, crowd is not None)
    work, dtype, box_format = header.work, header.dtype, header.work.box_format
    faults = list(header.faults)

    def numbers(field: str) -> Array:
        return read_numbers(sent.get(field, _NOTHING), received.bulk.get(field), field, dtype, faults)

    predictions = as_boxes(numbers("predictions"), "predictions", box_format, faults)
    targets = as_boxes(numbers("targets"), "targets", box_format, faults)
    weights = check_weights(numbers("weights"), faults) if "weights" in sent else None
    if faults:
        raise InvalidInputError(faults)
    _check_size("predictions", len(predictions) * len(work.losses), limits)
    for field, array, elements in (
        ("targets", targets, "boxes"),
        ("weights", weights, "numbers"),
        ("crowd", crowd, "values"),
    ):
        if array is not None and len(array) != len(predictions):
            faults.append(
                Violation(field, f"has {len(array)} {elements} for {len(predictions)} predictions; send one for each")
            )
    if faults:
        raise InvalidInputError(faults)
    masked = NO_ROWS
    if header.masks:
        masked = np.union1d(invalid_rows(predictions, box_format), invalid_rows(targets, box_format))
    pairs = Pairs(
        predictions,
        targets,
        masked,
        weights,
        header.reduction,
        header.squared_image_diagonal,
        header.running_mean,
        crowd,
    )
    return Asked(work, pairs, header.iou, "predictions" in sent and bool(sent["predictions"].values))


@lru_cache(maxsize=1024)
def _header(data: bytes, crowds: bool) -> _Header:
    """Reads an EvaluateRequest without arrays."""
    request = loss_service_pb2.EvaluateRequest.FromString(data)
    refuse_unknown_fields(request)
    dtype = _word(_DTYPES, request.dtype, "dtype")
    box_format: Any = _word(_BOX_FORMATS, request.box_format, "box_format")
    reduction: Any = _word(_REDUCTIONS, request.reduction, "reduction")
    losses = _losses(request)
    faults: list[Violation] = []
    for index, loss in enumerate(losses):
        field = f"losses[{index}].{loss.name}"
        faults += _undefined(loss, field, box_format)
        if request.similarities and not loss.has_similarity:
            faults.append(Violation(field, "has no similarity; ask for the loss, or for a loss with an IoU"))
    diagonal = _squared_image_diagonal(request, losses, faults)
    running_mean = _running_mean(request, losses, faults)
    if crowds and any("running_mean" in loss.needed for loss in losses):
        faults.append(Violation("crowd", "does not go with a loss that needs a running mean; leave one of them out"))
    work = Evaluation(
        losses,
        box_format,
        _precision(dtype),
        request.prediction_gradients,
        request.target_gradients,
        request.similarities,
        crowds,
    )
    masks = _word(_INVALID_BOXES, request.invalid_boxes, "invalid_boxes") == "mask"
    return _Header(work, dtype, reduction, masks, request.iou, diagonal, running_mean, tuple(faults))


def decode_matrix(received: Received[loss_service_pb2.PairwiseIouRequest], limits: Limits) -> tuple[Matrix, Grid]:
    """Reads what a PairwiseIouRequest asks, and its arrays; raises as `decode_evaluation`."""
    request = received.message
    refuse_unknown_fields(request)
    dtype = _word(_DTYPES, request.dtype, "dtype")
    box_format: Any = _word(_BOX_FORMATS, request.box_format, "box_format")
    metric = _METRICS[_word(_METRIC_NAMES, request.metric, "metric")]
    faults: list[Violation] = []
    if request.HasField("similarity"):
        if request.metric:
            faults.append(Violation("metric", "is set beside similarity; set one of them"))
        metric = _loss_of(request.similarity, "similarity")
        if not metric.has_similarity:
            faults.append(Violation(f"similarity.{metric.name}", "has no similarity; take a loss with an IoU"))
    faults += _undefined(metric, "similarity" if request.HasField("similarity") else "metric", box_format)
    if "running_mean" in metric.needed:
        faults.append(Violation("similarity", "needs a running mean, which matrices do not take"))
    diagonal = _squared_image_diagonal(request, (metric,), faults)
    rows, columns = (
        as_boxes(
            read_numbers(getattr(request, field), received.bulk.get(field), field, dtype, faults),
            field,
            box_format,
            faults,
        )
        for field in ("a", "b")
    )
    crowd = np.array(request.crowd, bool) if request.crowd else None
    if crowd is not None and metric != IoU():
        faults.append(Violation("crowd", "goes with the plain IoU only; leave it out, or take that metric"))
    if faults:
        raise InvalidInputError(faults)
    if crowd is not None and len(crowd) != len(columns):
        raise InvalidInputError(
            [Violation("crowd", f"has {len(crowd)} values for {len(columns)} boxes in b; send one for each, or none")]
        )
    grid = Grid(rows, columns, NO_ROWS, NO_ROWS, crowd, diagonal)
    _check_size("a", pairs_of(grid), limits)
    masked = NO_ROWS, NO_ROWS
    if _word(_INVALID_BOXES, request.invalid_boxes, "invalid_boxes") == "mask":
        masked = invalid_rows(rows, box_format), invalid_rows(columns, box_format)
    elif faults := [*violations(rows, "a", box_format), *violations(columns, "b", box_format)]:
        raise InvalidInputError(faults)
    work = Matrix(metric, box_format, _precision(dtype))
    return work, grid._replace(masked_rows=masked[0], masked_columns=masked[1])


def pairs_of(grid: Grid) -> int:
    """How many pairs a matrix counts: all of its cells, or the boxes of one side where the other has none."""
    return max(len(grid.rows) * len(grid.columns), len(grid.rows), len(grid.columns))


def _word(words: dict[int, str], number: int, field: str) -> str:
    """The word for an enum value."""
    if number not in words:
        raise UnsupportedError([Violation(field, f"{number} is not known to this server; upgrade it")])
    return words[number]


def _losses(request: loss_service_pb2.EvaluateRequest) -> tuple[Loss, ...]:
    if not 1 <= len(request.losses) <= MAX_LOSSES:
        raise InvalidInputError(
            [Violation("losses", f"has {len(request.losses)} losses; ask for 1 to {MAX_LOSSES} in a request")]
        )
    return tuple([_loss_of(message, f"losses[{index}]") for index, message in enumerate(request.losses)])


def _loss_of(message: loss_pb2.Loss, field: str) -> Loss:
    try:
        return _loss(message.SerializeToString())
    except (InvalidInputError, UnsupportedError) as error:
        raise error.within(field) from None


@lru_cache(maxsize=1024)
def _loss(message: bytes) -> Loss:
    """Most requests ask for what others asked before."""
    return loss_from_message(loss_pb2.Loss.FromString(message))


def _undefined(loss: Loss, field: str, box_format: BoxFormat) -> list[Violation]:
    """The fault of a loss that is not defined for the format's kind of boxes."""
    oriented = COLUMNS[box_format] != 4
    if loss.oriented if oriented else loss.axis_aligned:
        return []
    kinds = ("oriented", "axis-aligned") if oriented else ("axis-aligned", "oriented")
    fault = f"is not defined for {kinds[0]} boxes ({box_format}); take {kinds[1]} ones, or another loss"
    return [Violation(field, fault)]


def _squared_image_diagonal(request: _AskedAboutBoxes, losses: Sequence[Loss], faults: list[Violation]) -> float:
    """NaN where the request has no image size."""
    if not request.HasField("image_size"):
        _check_needs("image_size", losses, faults)
        return math.nan
    refuse_unknown_fields(request.image_size)
    sides = request.image_size.width, request.image_size.height
    if not all(_SMALLEST_IMAGE <= side <= _LARGEST_IMAGE for side in sides):
        faults.append(
            Violation(
                "image_size",
                f"is {sides[0]:g} x {sides[1]:g}; width and height must be above 0, "
                f"{_SMALLEST_IMAGE:g} to {_LARGEST_IMAGE:g}",
            )
        )
        return math.nan
    return sides[0] ** 2 + sides[1] ** 2


def _running_mean(request: loss_service_pb2.EvaluateRequest, losses: Sequence[Loss], faults: list[Violation]) -> float:
    """NaN where the request has none."""
    if not request.HasField("running_mean"):
        _check_needs("running_mean", losses, faults)
        return math.nan
    if not _SMALLEST_MEAN <= request.running_mean <= 1:
        faults.append(
            Violation("running_mean", f"is {request.running_mean:g}; a mean of 1 - IoU is above 0 and at most 1")
        )
    return request.running_mean


def _check_needs(need: str, losses: Sequence[Loss], faults: list[Violation]) -> None:
    if names := [loss.name for loss in losses if need in loss.needed]:
        faults.append(Violation(need, f"is not set; {', '.join(names)} needs it"))


def _precision(dtype: str) -> Precision:
    """What arrays of a dtype are computed in."""
    return "float64" if dtype == "float64" else "float32"


def _check_size(field: str, pairs: int, limits: Limits) -> None:
    if pairs > limits.request_pairs:
        raise RequestTooLargeError(
            [
                Violation(
                    field,
                    f"makes {pairs} pairs, and the limit is {limits.request_pairs}; split the request, "
                    "or raise the server's --max-request-pairs",
                )
            ]
        )
