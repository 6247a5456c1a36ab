"""Arrays of the contract to numpy arrays. What is wrong with them is collected, to be told all at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from boxloss.bulk import Part
from boxloss.errors import Violation
from boxloss.v1 import array_pb2
from boxloss.wire import refuse_unknown_fields
from boxloss.words import COLUMNS, BoxFormat
from boxloss_server.engine.pairs import Array
from boxloss_server.engine.validity import named_rows
from boxloss_server.service.bulk import Received


def read_boxes(request: Received[Any], field: str, dtype: str, box_format: BoxFormat, faults: list[Violation]) -> Array:
    """A field's array, of shape (N, K); of shape (0, K) where it is at fault."""
    flat, columns = _numbers(request, field, dtype, faults), COLUMNS[box_format]
    if len(flat) % columns:
        faults.append(
            Violation(
                field,
                f"has {len(flat)} numbers, which is no multiple of {columns}; send {columns} for each {box_format} box",
            )
        )
        flat = flat[:0]
    return flat.reshape(-1, columns)


def read_weights(request: Received[Any], dtype: str, faults: list[Violation]) -> Array:
    """The array of the field "weights", of shape (N,), finite and not negative."""
    weights = _numbers(request, "weights", dtype, faults)
    faults += named_rows(np.flatnonzero(~np.isfinite(weights)), "weights", "not finite; send numbers of 0 or more")
    faults += named_rows(np.flatnonzero(weights < 0), "weights", "negative; send numbers of 0 or more")
    return weights


def _numbers(request: Received[Any], field: str, dtype: str, faults: list[Violation]) -> Array:
    """A field's numbers in the type that they are computed in; none where the field is at fault."""
    message: array_pb2.Array = getattr(request.message, field)
    refuse_unknown_fields(message)
    data, reader = request.bulk.get(field) or message.data, _READERS[dtype]
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


class _Reader(NamedTuple):
    """How little-endian bytes of a dtype become an array of the type that is computed in."""

    size: int
    computed: type[np.floating]
    read: Callable[[Part], Array]


_READERS = {
    "float32": _Reader(4, np.float32, lambda data: np.frombuffer(data, "<f4")),
    "float64": _Reader(8, np.float64, lambda data: np.frombuffer(data, "<f8")),
    "float16": _Reader(2, np.float32, lambda data: np.frombuffer(data, "<f2").astype(np.float32)),
    # A bfloat16 is the upper half of a float32.
    "bfloat16": _Reader(
        2, np.float32, lambda data: (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    ),
}
