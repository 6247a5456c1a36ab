"""Calls to start from: every method, loss and format, both forms of arrays; and the cases that were found."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from boxloss.audit.image import Image, Labels, Predictions
from boxloss.audit.wire import image_to_message
from boxloss.contract.wire import loss_to_message
from boxloss.losses import GWD, KLD, CIoU, GIoU, ProbIoU
from boxloss.v1 import array_pb2, loss_service_pb2
from boxloss.v1.audit_service_pb2 import AuditRequest, AuditRules
from boxloss.v1.loss_service_pb2 import EvaluateRequest, PairwiseIouRequest
from tests.catalogue import LOSSES
from tests.fuzz.mutation import from_bytes
from tests.fuzz.strategies import METHODS, Call
from tests.fuzz.wire import LENGTH, Field

CORPUS = Path(__file__).parent / "corpus"
"""The cases that were found: for each an input that once did harm."""

_EVALUATE, _STREAM, _MATRIX, _LIST, _HEALTH, _REFLECTION, _AUDIT = METHODS
_SQUARES = np.array([[0, 0, 4, 4], [1, 1, 3, 3]])
_OTHERS = np.array([[1, 2, 5, 8], [1, 1, 3, 4]])
_QUADS = np.array([[0, 0, 4, 0, 4, 4, 0, 4], [1, 1, 3, 1, 3, 3, 1, 3]])
_ANGLES = np.array([[30.0], [-60.0]])


def seeds() -> Iterator[Call]:
    """Well-formed calls."""
    for place, loss in enumerate(LOSSES):
        yield _EVALUATE, [_request(losses=[loss_to_message(loss)], reduction=place % 4).SerializeToString()]
    for box_format in range(7):
        dtype = box_format % 4
        boxes = [_array(_in_format(each, box_format), dtype) for each in (_SQUARES, _OTHERS)]
        losses = [GIoU()] if box_format < 4 else [GIoU(), GWD(), KLD(), ProbIoU()]
        request = _request(
            predictions=boxes[0],
            targets=boxes[1],
            losses=map(loss_to_message, losses),
            dtype=dtype,
            box_format=box_format,
        )
        yield _EVALUATE, [request.SerializeToString()]
        matrix = PairwiseIouRequest(a=boxes[0], b=boxes[1], dtype=dtype, box_format=box_format)  # type: ignore[arg-type]
        yield _MATRIX, [matrix.SerializeToString()]
    matrix = PairwiseIouRequest(a=_array(_SQUARES), b=_array(_OTHERS), similarity=loss_to_message(CIoU()))
    yield _MATRIX, [matrix.SerializeToString()]
    plain = array_pb2.Array(values=_SQUARES.ravel().tolist())
    crowded = _request(predictions=plain, crowd=[True, False], running_mean=None, weights=_array(np.ones(2)))
    for request in (crowded, _request(invalid_boxes=loss_service_pb2.INVALID_BOXES_MASK, target_gradients=True)):
        yield _EVALUATE, [request.SerializeToString()]
        yield _STREAM, [Field(1, LENGTH, request.SerializeToString()).encoded()] * 3
    yield _AUDIT, [AuditRequest(rules=AuditRules()).SerializeToString(), *[_audited().SerializeToString()] * 2]
    yield _LIST, [b""]
    for service in (b"", b"boxloss.v1.LossService", b"another"):
        yield _HEALTH, [Field(1, LENGTH, service).encoded()]
    yield _REFLECTION, [Field(number, LENGTH, b"boxloss.v1.Loss").encoded() for number in (3, 4, 6, 7)]


def large_seeds() -> Iterator[Call]:
    """Well-formed calls whose arrays are too large to be copied."""
    boxes = _array(np.tile(_SQUARES, (4000, 1)))
    request = _request(predictions=boxes, targets=boxes)
    yield _EVALUATE, [request.SerializeToString()]
    yield _STREAM, [Field(1, LENGTH, request.SerializeToString()).encoded()] * 2
    yield _MATRIX, [PairwiseIouRequest(a=boxes, b=_array(_OTHERS)).SerializeToString()]


def found() -> dict[str, Call]:
    """The cases that were found, by name."""
    return {path.name: from_bytes(path.read_bytes()) for path in sorted(CORPUS.iterdir())}


def _request(**changes: object) -> EvaluateRequest:
    fields: dict[str, object] = {
        "predictions": _array(_SQUARES),
        "targets": _array(_OTHERS),
        "losses": [loss_to_message(CIoU())],
        "iou": True,
        "prediction_gradients": True,
        "image_size": loss_service_pb2.ImageSize(width=10, height=8),
        "running_mean": 0.5,
    }
    return EvaluateRequest(**(fields | changes))  # type: ignore[arg-type]


def _audited() -> AuditRequest:
    image = Image(
        "7",
        Labels(_SQUARES, ["cat", "dog"], [0, "a"], np.array([False, True])),
        Predictions(_OTHERS, ["cat", "cat"], np.array([0.9, 0.4])),
        10,
        8,
    )
    return AuditRequest(image=image_to_message(image))


def _array(numbers: np.ndarray, dtype: int = 0) -> array_pb2.Array:
    return array_pb2.Array(data=numbers.astype(["<f4", "<f4", "<f8", "<f2"][dtype]).tobytes())


def _in_format(boxes: np.ndarray, box_format: int) -> np.ndarray:
    if box_format == 6:
        return _QUADS
    return np.hstack([boxes, _ANGLES]) if box_format > 3 else boxes
