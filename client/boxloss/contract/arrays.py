"""What callers pass as boxes to numpy arrays, and numpy arrays to and from the contract's arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from boxloss.errors import InvalidInputError, ServerError, Violation
from boxloss.v1 import array_pb2

Array: TypeAlias = NDArray[np.floating[Any]]


class _Convertible(Protocol):
    """What NumPy makes an array of, such as an array of its own or a torch tensor."""

    def __array__(self) -> NDArray[Any]: ...


Boxes: TypeAlias = _Convertible | Sequence[_Convertible | Sequence[float]]
"""Boxes of shape (N, 4), or (N, 5) or (N, 8) where the format says so: a numpy array, a list of lists, a torch tensor
on any device, or what numpy can read. Strings are refused."""

DTYPES = {
    np.dtype("float32"): array_pb2.DTYPE_FLOAT32,
    np.dtype("float64"): array_pb2.DTYPE_FLOAT64,
    np.dtype("float16"): array_pb2.DTYPE_FLOAT16,
}
_ANSWER_DTYPES: dict[int, str] = {array_pb2.DTYPE_FLOAT32: "<f4", array_pb2.DTYPE_FLOAT64: "<f8"}


def boxes_of(value: Boxes, field: str, columns: int) -> Array:
    """Reads boxes as an array of shape (N, columns) of float16, float32 or float64.

    Integers and lists become float64; bfloat16 tensors, which numpy lacks, float32.

    Raises:
        InvalidInputError: not numbers, or not of that shape.
    """
    array = _numbers(value, field)
    if array.size == 0 and array.ndim == 1:
        array = array.reshape(0, columns)
    if array.ndim != 2 or array.shape[1] != columns:
        single = array.shape == (columns,)
        hint = f"a single box is [[{', '.join('abcdefgh'[:columns])}]]" if single else "one row for each box"
        raise InvalidInputError([Violation(field, f"has shape {array.shape}; give (N, {columns}): {hint}")])
    return array


def weights_of(value: ArrayLike, dtype: np.dtype[Any]) -> Array:
    """Reads weights as an array of shape (N,).

    Raises:
        InvalidInputError: not numbers, or not of that shape.
    """
    array = _numbers(value, "weights").astype(dtype, copy=False)
    if array.ndim != 1:
        raise InvalidInputError([Violation("weights", f"has shape {array.shape}; give (N,): one for each pair")])
    return array


def _numbers(value: Any, field: str) -> Array:
    if type(value) is np.ndarray and value.dtype in DTYPES:
        return value
    try:
        if hasattr(value, "detach"):  # A torch tensor; torch itself is not needed to read it.
            tensor = value.detach().cpu()
            value = (tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy()
        array = np.asarray(value)
        array = array.astype(array.dtype.newbyteorder("="), copy=False)
        if array.dtype in DTYPES:
            return array
        if array.dtype.kind in "iufb":
            return array.astype(np.float64)
    except (TypeError, ValueError, RuntimeError, NotImplementedError):
        pass  # Rows of different lengths, or a tensor without numbers.
    raise InvalidInputError([Violation(field, "cannot be read as an array of numbers; give rows of numbers")])


def packed(array: Array) -> bytes:
    """The elements as little-endian bytes in row-major order."""
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def from_message(message: array_pb2.Array, dtype: int, shape: tuple[int, ...]) -> Array:
    """Reads an answer's array in the packed form; it can be written to."""
    return view_of(message, dtype, shape).copy()


def view_of(message: array_pb2.Array, dtype: int, shape: tuple[int, ...]) -> Array:
    """Reads an answer's array in the packed form without a copy; it cannot be written to.

    Raises:
        ServerError: it has another type or shape.
    """
    try:
        return np.frombuffer(message.data, _ANSWER_DTYPES[dtype]).reshape(shape)
    except (KeyError, ValueError):
        raise unexpected(
            f"an array of {len(message.data)} bytes and dtype {dtype} where {shape} numbers are due"
        ) from None


def valid_rows(masked: Sequence[int], count: int) -> NDArray[np.bool_]:
    """Which of so many rows an answer does not mask.

    Raises:
        ServerError: it masks others.
    """
    valid = np.ones(count, bool)
    if masked:
        rows = np.asarray(masked, np.int64)
        if rows.min() < 0 or rows.max() >= count:
            raise unexpected(f"masked rows {rows.min()} to {rows.max()} of {count}")
        valid[rows] = False
    return valid


def unexpected(what: str) -> ServerError:
    """What an answer that does not fit its question is told as."""
    return ServerError(f"the server answered with {what}; is it a boxloss server, of this version or a newer one?")
