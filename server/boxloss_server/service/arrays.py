"""Arrays of the contract to numpy arrays. What is wrong with them is collected, to be told all at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from boxloss.contract.bulk import Part
from boxloss.contract.wire import refuse_unknown_fields
from boxloss.contract.words import COLUMNS, BoxFormat
from boxloss.errors import Violation
from boxloss.v1 import array_pb2
from boxloss_server.engine.pairs import Array
from boxloss_server.engine.validity import named_rows


def read_numbers(
    message: array_pb2.Array, bulk: memoryview | None, field: str, dtype: str, faults: list[Violation]
) -> Array:
    """An array's numbers in the type that they are computed in; none where the field is at fault.

    Args:
        message: the array.
        bulk: its packed elements, where they have been taken out of the message.
        field: its name.
        dtype: of its packed elements.
        faults: where faults are added.
    """
    refuse_unknown_fields(message)
    data, reader = bulk or message.data, _READERS[dtype]
    if message.values:
        if data:
            faults.append(Violation(field, "has both data and values; send one of them"))
        # What overflows is infinite, and refused as such; so is NaN, of which a signalling one would be warned about.
        with np.errstate(over="ignore", invalid="ignore"):
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


def as_boxes(numbers: Array, field: str, box_format: BoxFormat, faults: list[Violation]) -> Array:
    """Numbers as boxes of shape (N, K); of shape (0, K) where they do not make whole boxes."""
    columns = COLUMNS[box_format]
    if len(numbers) % columns:
        faults.append(
            Violation(
                field,
                f"has {len(numbers)} numbers, which is no multiple of {columns}; "
                f"send {columns} for each {box_format} box",
            )
        )
        numbers = numbers[:0]
    return numbers.reshape(-1, columns)


def check_weights(weights: Array, faults: list[Violation]) -> Array:
    """The weights, which must be finite and not negative; the field is "weights"."""
    faults += named_rows(np.flatnonzero(~np.isfinite(weights)), "weights", "not finite; send numbers of 0 or more")
    faults += named_rows(np.flatnonzero(weights < 0), "weights", "negative; send numbers of 0 or more")
    return weights


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
