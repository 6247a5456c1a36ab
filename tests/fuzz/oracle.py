"""What every call must end in, whatever its bytes were."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import fields
from typing import Any
from urllib.parse import quote

import grpc
import numpy as np
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

from boxloss.contract import wire
from boxloss.losses import CIoU, Loss
from boxloss.losses.modifiers import Modifier
from boxloss.v1 import array_pb2, loss_service_pb2
from boxloss.v1.audit_service_pb2 import AuditRequest, AuditResponse
from boxloss.v1.loss_service_pb2 import EvaluateRequest, EvaluateResponse, EvaluateStreamRequest, PairwiseIouRequest
from boxloss_server.service.bulk import reader
from tests.fuzz.strategies import METHODS, Call
from tests.fuzz.target import AUDIT_SERVICE, LOSS_SERVICE, Outcome

SECONDS = 10.0
"""What takes longer hangs: the largest input here is computed in a hundredth, on a machine that others use, too."""

WELL_FORMED: Call = (
    f"{LOSS_SERVICE}/Evaluate",
    [
        EvaluateRequest(
            predictions=array_pb2.Array(values=[0, 0, 4, 4]),
            targets=array_pb2.Array(values=[1, 2, 5, 8]),
            losses=[wire.loss_to_message(CIoU())],
            dtype=array_pb2.DTYPE_FLOAT64,
        ).SerializeToString()
    ],
)
_ITS_LOSS = 0.9361860890731847

_CODES = {"OK", "INVALID_ARGUMENT", "UNIMPLEMENTED", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"}
_CODES_OF_HEALTH = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "UNIMPLEMENTED"}  # The last for fields that are not known.
_TRAILER_BYTES = 8192
"""gRPC's own clients may drop a call whose trailers are larger."""

_DTYPES: dict[int, str] = {array_pb2.DTYPE_FLOAT32: "<f4", array_pb2.DTYPE_FLOAT64: "<f8"}
_COLUMNS = {0: 4, 1: 4, 2: 4, 3: 4, 4: 5, 5: 5, 6: 8}
_SIZES = {0: 4, 1: 4, 2: 8, 3: 2, 4: 2}


_DIVISORS = {"alpha", "beta", "delta", "gamma", "constant"}
"""Parameters that something is divided by."""


class Finding(AssertionError):  # noqa: N818 - It is a discovery.
    """A call that did not end as it must."""


def judge(call: Call, outcome: Outcome) -> None:
    """Raises `Finding` where a call ended in a way that the contract does not know."""
    method, messages = call
    ours = method.startswith("/boxloss.")
    _must(outcome.code.name in (_CODES if ours else _CODES_OF_HEALTH), f"{outcome.code.name}: {outcome.message}")
    _must(outcome.seconds < SECONDS, f"took {outcome.seconds:.1f} s")
    if ours and outcome.code is not grpc.StatusCode.OK:
        _judge_error(outcome)
    if not ours:
        return
    if method.startswith(AUDIT_SERVICE):
        _judge_audit(messages, outcome)
        return
    for message in messages:
        compare_readers(METHODS[method], message)
    for message, answer in zip(messages, outcome.answers, strict=False):
        _judge_answer(METHODS[method].FromString(message), answer)
    if outcome.code is grpc.StatusCode.OK:
        _must(len(outcome.answers) == len(messages), "answers are missing")


def judge_well_formed(outcome: Outcome) -> None:
    """Raises `Finding` where the well-formed call did not get the right numbers."""
    _must(outcome.code is grpc.StatusCode.OK, f"a good request ended with {outcome.code.name}: {outcome.message}")
    (loss,) = EvaluateResponse.FromString(outcome.answers[0]).results[0].loss.values
    _must(math.isclose(loss, _ITS_LOSS, rel_tol=1e-12), f"a good request got {loss}")


def compare_readers(kind: type[Message], data: bytes) -> None:
    """Raises `Finding` where the service reads bytes otherwise than protobuf does."""
    expected: Message | None = None
    received = None
    with suppress(DecodeError):
        expected = kind.FromString(data)
    with suppress(DecodeError):
        received = reader(kind)(data)
    _must((expected is None) == (received is None), "protobuf reads what the service refuses, or the other way round")
    if expected is None or received is None:
        return
    message: Any = received.message
    inner = message.request if isinstance(message, EvaluateStreamRequest) else message
    for name, elements in received.bulk.items():
        getattr(inner, name).data = bytes(elements)
    # As bytes: NaN is unlike itself.
    same = expected.SerializeToString(deterministic=True) == message.SerializeToString(deterministic=True)
    _must(same, "protobuf reads another message than the service")


def _judge_error(outcome: Outcome) -> None:
    """An error says what is wrong, in a form and size that clients can read."""
    size = len(quote(outcome.message)) + sum(len(key) + len(value) + 32 for key, value in outcome.trailers) + 128
    _must(size < _TRAILER_BYTES, f"trailers of {size} bytes")
    trailers: dict[str, Any] = dict(outcome.trailers)
    status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    _must(status.message == outcome.message != "", "the status has another message")
    info, request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for detail in status.details:
        detail.Unpack(info)
        detail.Unpack(request)
    _must(info.domain == "boxloss", "the error has no ErrorInfo")
    if outcome.code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNIMPLEMENTED):
        _must(len(request.field_violations) > 0, "the error names no field")


def _judge_audit(messages: list[bytes], outcome: Outcome) -> None:
    """Findings of each image, and in the end a summary of all."""
    answers = [AuditResponse.FromString(answer) for answer in outcome.answers]
    images = len(answers)
    if outcome.code is grpc.StatusCode.OK:
        images = max(len(messages) - 1, 0)
        _must(
            [answer.WhichOneof("content") for answer in answers] == ["image"] * images + ["summary"],
            "answers are missing",
        )
        _must(answers[-1].summary.image_count == images, "the summary counts other images")
    for message, answer in zip(messages[1:], answers[:images], strict=False):
        asked = AuditRequest.FromString(message).image
        _must(answer.image.image_id == asked.id, "findings of another image")
        for finding in answer.image.findings:
            _must(0 <= finding.score <= 1, f"a score of {finding.score}")
            _must(len(finding.box) == 4 and all(map(math.isfinite, finding.box)), f"a box {finding.box}")
            _must(not finding.HasField("label") or 0 <= finding.label < len(asked.labels.classes), "no such label")


def _judge_answer(request: Message, answer: bytes) -> None:
    if isinstance(request, EvaluateStreamRequest):
        response = loss_service_pb2.EvaluateStreamResponse.FromString(answer).response
        _judge_evaluation(request.request, response)
    elif isinstance(request, EvaluateRequest):
        _judge_evaluation(request, EvaluateResponse.FromString(answer))
    elif isinstance(request, PairwiseIouRequest):
        _judge_matrix(request, loss_service_pb2.PairwiseIouResponse.FromString(answer))
    else:
        loss_service_pb2.ListLossesResponse.FromString(answer)


def _judge_evaluation(request: EvaluateRequest, response: EvaluateResponse) -> None:
    columns = _COLUMNS[request.box_format]
    pairs = _count(request.predictions, request.dtype) // columns
    masked = _masked(response.masked_rows, pairs, request.invalid_boxes)
    sane, tame = _is_sane(request), _is_tame(request)
    _must(len(response.results) == len(request.losses), "results are missing")
    iou = _array(response.iou, response.dtype, pairs if request.iou else 0)
    if request.iou:
        _must(bool(np.array_equal(np.isnan(iou), masked)), "the IoU is NaN, and not where masked")
        _must(bool(((iou[~masked] >= 0) & (iou[~masked] <= 1 + 1e-5)).all()), "an IoU beyond 0 to 1")
    for result in response.results:
        if request.reduction in (0, 1):
            loss = _array(result.loss, response.dtype, pairs)
            _must(bool(np.isnan(loss[masked]).all()), "a masked loss is no NaN")
            loss = loss[~masked]
        else:
            loss = _array(result.loss, response.dtype, 1)
        gradients = [
            _array(gradient, response.dtype, pairs * columns if asked else 0).reshape(-1, columns)
            for gradient, asked in (
                (result.prediction_gradient, request.prediction_gradients),
                (result.target_gradient, request.target_gradients),
            )
        ]
        for gradient in gradients:
            _must(len(gradient) == 0 or not gradient[masked].any(), "a masked gradient is not 0")
        for numbers in (loss, *gradients):
            _must(not (sane and np.isnan(numbers).any()), "NaN for valid boxes")
            _must(not tame or bool(np.isfinite(numbers).all()), "a number that is not finite")


def _judge_matrix(request: PairwiseIouRequest, response: loss_service_pb2.PairwiseIouResponse) -> None:
    columns = _COLUMNS[request.box_format]
    shape = _count(request.a, request.dtype) // columns, _count(request.b, request.dtype) // columns
    rows = _masked(response.masked_rows, shape[0], request.invalid_boxes)
    others = _masked(response.masked_columns, shape[1], request.invalid_boxes)
    matrix = _array(response.matrix, response.dtype, shape[0] * shape[1]).reshape(shape)
    _must(bool(np.isnan(matrix[rows]).all() and np.isnan(matrix[:, others]).all()), "a masked number is no NaN")
    if not request.HasField("similarity"):
        _must(not np.isnan(matrix[~rows][:, ~others]).any(), "NaN for valid boxes")


def _count(array: array_pb2.Array, dtype: int) -> int:
    return len(array.values) or len(array.data) // _SIZES[dtype]


def _array(message: array_pb2.Array, dtype: int, count: int) -> Any:
    _must(not (message.data and message.values), "an answer has data and values")
    numbers = np.array(message.values) if message.values else np.frombuffer(message.data, _DTYPES[dtype])
    _must(len(numbers) == count, f"{len(numbers)} numbers where {count} are due")
    return numbers


def _masked(rows: Sequence[int], count: int, invalid_boxes: int) -> Any:
    """Which rows are masked."""
    _must(not rows or invalid_boxes == loss_service_pb2.INVALID_BOXES_MASK, "rows are masked that must be refused")
    _must(sorted(set(rows)) == list(rows) and all(0 <= row < count for row in rows), f"masked rows {rows}")
    return np.isin(np.arange(count), rows)


def _is_sane(request: EvaluateRequest) -> bool:
    """Whether nothing in a request is so large or small that its square could not be computed with."""
    return (
        all(_has_sane_numbers(wire.loss_from_message(loss)) for loss in request.losses)
        and bool((_elements(request.weights, request.dtype) <= 1e3).all())
        and all(1e-3 <= side <= 1e6 for side in (request.image_size.width or 1, request.image_size.height or 1))
        and 0.01 <= (request.running_mean or 1) <= 1
        and all(_are_sane(boxes, request) for boxes in (request.predictions, request.targets))
    )


def _is_tame(request: EvaluateRequest) -> bool:
    """Whether besides nothing is at the edge of what is allowed, so that all numbers of its answer are finite."""
    return (
        _is_sane(request)
        and all(_is_plain(wire.loss_from_message(loss)) for loss in request.losses)
        and (request.image_size.width or 1) >= 1
        and all(_are_tame(boxes, request) for boxes in (request.predictions, request.targets))
    )


def _has_sane_numbers(loss: Loss) -> bool:
    values = {each.name: getattr(loss, each.name) for each in fields(loss)}
    return all(
        _has_sane_numbers(value) if isinstance(value, Loss) else not isinstance(value, float) or value <= 1e6
        for value in values.values()
    ) and all(value >= 1e-6 for name, value in values.items() if name in _DIVISORS)


def _is_plain(loss: Loss) -> bool:
    """Whether all of a loss's parameters are what they are unless given."""
    return loss == type(loss)(**({"base": loss.base} if isinstance(loss, Modifier) else {})) and (
        not isinstance(loss, Modifier) or _is_plain(loss.base)
    )


def _are_sane(boxes: array_pb2.Array, request: EvaluateRequest) -> bool:
    numbers = _elements(boxes, request.dtype)
    if not (np.abs(numbers) <= 1e6).all():
        return False
    rows = numbers.reshape(-1, _COLUMNS[request.box_format])
    if request.box_format < 4:
        return True
    if request.box_format < 6:  # Oriented boxes are computed with in units of their own sides.
        return bool((rows[:, 2:4] >= 1e-6).all())
    corners = rows.reshape(-1, 4, 2)
    edges = np.abs(corners - np.roll(corners, 1, axis=1)).max(axis=2)
    x, y = np.moveaxis(corners[:, 2:] - corners[:, :2], 2, 0)
    return bool(
        ((edges == 0) | (edges >= 1e-6)).all() and (np.abs(x[:, 0] * y[:, 1] - y[:, 0] * x[:, 1]) >= 1e-6).all()
    )


def _are_tame(boxes: array_pb2.Array, request: EvaluateRequest) -> bool:
    columns = _COLUMNS[request.box_format]
    rows = _elements(boxes, request.dtype).reshape(-1, columns)
    if columns == 8 or not (np.abs(rows) <= 1e4).all():
        return False
    sizes = rows[:, 2:4] if request.box_format > 1 else rows[:, 2:] - rows[:, :2]
    return bool((sizes >= 0.1).all())


def _elements(array: array_pb2.Array, dtype: int) -> Any:
    if array.values or dtype == array_pb2.DTYPE_BFLOAT16:
        return np.array(array.values or [np.nan])
    with np.errstate(invalid="ignore"):  # A signalling NaN is no complaint of the service's.
        return np.frombuffer(array.data, f"<f{_SIZES[dtype]}").astype(np.float64)


def _must(holds: bool, finding: str) -> None:
    if not holds:
        raise Finding(finding)
