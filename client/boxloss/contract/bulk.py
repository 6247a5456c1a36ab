"""Fields of messages that hold arrays, written by hand.

protobuf copies an array when it is set, and several times when the message is written; for large arrays that takes
longer than the network. A message's fields may come in any order, so what protobuf writes and what is written here can
be joined, with one copy.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import lru_cache
from typing import TypeAlias

import numpy as np

from boxloss.contract.arrays import Array
from boxloss.v1 import array_pb2

Part: TypeAlias = bytes | memoryview

_DATA = array_pb2.Array.DATA_FIELD_NUMBER
_LARGE = 2**14
"""Bytes from which on a copy costs more than a view."""
_LENGTH = 2
"""The wire type of what has a length."""


def field(number: int, *parts: Part) -> list[Part]:
    """The field of a message that holds these parts: bytes or another message."""
    return [_header(number, sum(map(len, parts))), *parts]


def array_field(number: int, elements: Sequence[Part]) -> list[Part]:
    """The field of a message that is an Array of these elements in the packed form."""
    return field(number, *field(_DATA, *elements))


def elements_of(array: Array) -> Part:
    """The elements of an array in the packed form; a view of a large one that is laid out so."""
    if sys.byteorder == "big":
        array = array.byteswap()
    if array.nbytes < _LARGE:
        return array.tobytes()
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


@lru_cache(4096)
def _header(number: int, length: int) -> bytes:
    """What comes before the content of a field."""
    return _varint(number << 3 | _LENGTH) + _varint(length)


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number >= 0x80:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
