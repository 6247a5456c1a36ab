"""Arrays of the contract to validated numpy arrays. What is wrong with them is collected, to be told all at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from boxloss.errors import Violation
from boxloss.v1 import array_pb2
from boxloss.wire import refuse_unknown_fields
from boxloss.words import COLUMNS, BoxFormat
from boxloss_server.engine.pairs import Array, Rows

_LARGEST = {"float32": 1e15, "float64": 1e150}
"""Coordinates beyond these would let an area overflow."""

_ROWS_NAMED = 5
NO_ROWS: Rows = np.empty(0, np.int64)


def read_boxes(
    message: array_pb2.Array, field: str, dtype: str, box_format: BoxFormat, faults: list[Violation]
) -> Array:
    """An array of shape (N, K); of shape (0, K) where the field is at fault."""
    flat, columns = _numbers(message, field, dtype, faults), COLUMNS[box_format]
    if len(flat) % columns:
        faults.append(
            Violation(
                field,
                f"has {len(flat)} numbers, which is no multiple of {columns}; send {columns} for each {box_format} box",
            )
        )
        flat = flat[:0]
    return flat.reshape(-1, columns)


def read_weights(message: array_pb2.Array, dtype: str, faults: list[Violation]) -> Array:
    """An array of shape (N,), finite and not negative; the field is "weights"."""
    weights = _numbers(message, "weights", dtype, faults)
    _name_rows(np.flatnonzero(~np.isfinite(weights)), "weights", "not finite; send numbers of 0 or more", faults)
    _name_rows(np.flatnonzero(weights < 0), "weights", "negative; send numbers of 0 or more", faults)
    return weights


def _numbers(message: array_pb2.Array, field: str, dtype: str, faults: list[Violation]) -> Array:
    """The array's elements in the type that they are computed in; none where the field is at fault."""
    refuse_unknown_fields(message)
    data, reader = message.data, _READERS[dtype]
    if message.values:
        if data:
            faults.append(Violation(field, "has both data and values; send one of them"))
        with np.errstate(over="ignore"):  # What overflows is infinite, and refused as such.
            return np.array(message.values, np.float64).astype(reader.computed)
    if len(data) % reader.size:
        faults.append(
            Violation(
                f"{field}.data",
                f"has {len(data)} bytes, which is no multiple of {reader.size}; send {dtype} numbers as dtype says",
            )
        )
        return np.empty(0, reader.computed)
    return reader.read(data)


@dataclass(frozen=True)
class _Reader:
    """How little-endian bytes of a dtype become an array of the type that is computed in."""

    size: int
    computed: type[np.floating]
    read: Callable[[bytes], Array]


_READERS = {
    "float32": _Reader(4, np.float32, lambda data: np.frombuffer(data, "<f4")),
    "float64": _Reader(8, np.float64, lambda data: np.frombuffer(data, "<f8")),
    "float16": _Reader(2, np.float32, lambda data: np.frombuffer(data, "<f2").astype(np.float32)),
    # A bfloat16 is the upper half of a float32.
    "bfloat16": _Reader(
        2, np.float32, lambda data: (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    ),
}


def invalid_rows(boxes: Array, field: str, box_format: BoxFormat, mask: bool, faults: list[Violation]) -> Rows:
    """Rows to mask; where invalid boxes are not to be masked, there are none, and `faults` names the rows instead."""
    with np.errstate(invalid="ignore", over="ignore"):
        largest = _LARGEST[boxes.dtype.name]
        unusable = ~(np.abs(boxes) <= largest).all(axis=1)
        misshapen = _misshapen(boxes, box_format)
    if not (unusable.any() or misshapen.any()):
        return NO_ROWS
    if mask:
        return np.flatnonzero(unusable | misshapen)
    _name_rows(np.flatnonzero(unusable), field, f"not finite, or beyond {largest:g}; send finite numbers", faults)
    _name_rows(np.flatnonzero(misshapen & ~unusable), field, _SHAPE_FAULTS[box_format], faults)
    return NO_ROWS


_SHAPE_FAULTS: dict[BoxFormat, str] = {
    "xyxy": "inverted; xyxy needs left <= right and top <= bottom: correct them, the box format, or have them masked",
    "xywh": "inverted; xywh needs width and height of 0 or more: correct them, the box format, or have them masked",
    "cxcywh": "inverted; cxcywh needs width and height of 0 or more: correct them, the box format, or have them masked",
    "cxcywha_degrees": "without size; oriented boxes need width and height above 0: correct them, or have them masked",
    "cxcywha_radians": "without size; oriented boxes need width and height above 0: correct them, or have them masked",
    "quad": "not convex; send the corners in their order around the box, without crossing, or have them masked",
}


def _misshapen(boxes: Array, box_format: BoxFormat) -> NDArray[np.bool_]:
    """Which rows are no boxes of their format."""
    match box_format:
        case "xyxy":
            return np.asarray(np.any(boxes[:, 2:] < boxes[:, :2], axis=1))
        case "xywh" | "cxcywh":
            return np.asarray(np.any(boxes[:, 2:] < 0, axis=1))
        case "cxcywha_degrees" | "cxcywha_radians":
            return np.asarray(np.any(boxes[:, 2:4] <= 0, axis=1))
        case "quad":
            return ~_convex(boxes)


def _convex(boxes: Array) -> NDArray[np.bool_]:
    """Which quadrilaterals turn to the same side at all four corners; crossing ones turn to both."""
    corners = boxes.astype(np.float64).reshape(-1, 4, 2)
    edges = np.roll(corners, -1, axis=1) - corners
    following = np.roll(edges, -1, axis=1)
    turns = np.sign(edges[..., 0] * following[..., 1] - edges[..., 1] * following[..., 0])
    return np.asarray(np.abs(turns.sum(axis=1)) == 4)


def _name_rows(rows: Rows, field: str, fault: str, faults: list[Violation]) -> None:
    """Notes a fault that some rows have; names the first of them."""
    if not len(rows):
        return
    named = ", ".join(map(str, rows[:_ROWS_NAMED]))
    more = f" and {len(rows) - _ROWS_NAMED} more" if len(rows) > _ROWS_NAMED else ""
    subject = f"row {named} is" if len(rows) == 1 else f"rows {named}{more} are"
    faults.append(Violation(field, f"{subject} {fault}"))
