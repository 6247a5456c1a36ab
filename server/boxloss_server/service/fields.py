"""The fields of a message in protobuf's wire format, before anything is parsed."""

from __future__ import annotations

from collections.abc import Iterator

from google.protobuf.message import DecodeError

from boxloss.contract.bulk import Part

VARINT, LENGTH, GROUP = 0, 2, 3
"""Wire types."""
FIXED = {1: 8, 5: 4}
"""Wire types of numbers of so many bytes."""
_LONGEST = 5
"""Bytes of a tag or a length; protobuf takes no more."""


def fields_of(data: Part, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """The fields of the message that is in a part of `data`.

    Yields:
        The tag (number and wire type) of each, where it starts, where its content starts, and where it ends. Of a group
        only the start: what comes next is in it.

    Raises:
        DecodeError: protobuf would not read the message either.
    """
    position = start
    while position < end:
        first = position
        tag = data[position]
        position += 1
        if tag >= 0x80:
            tag, position = _read_varint(data, first, end, _LONGEST)
        wire_type = tag & 7
        if tag < 8 or tag >= 2**32:
            raise DecodeError("Error parsing message: a field without a number")
        content = position
        if wire_type == LENGTH:
            if position >= end:
                raise DecodeError("Error parsing message: it is cut short")
            length = data[position]
            position += 1
            if length >= 0x80:
                length, position = _read_varint(data, position - 1, end, _LONGEST)
            content = position
            position += length
        elif wire_type == VARINT:
            if position < end and data[position] < 0x80:
                position += 1
            else:
                _, position = _read_varint(data, position, end)
        elif wire_type in FIXED:
            position += FIXED[wire_type]
        elif wire_type != GROUP:
            raise DecodeError("Error parsing message: a field of no known kind")
        if position > end:
            raise DecodeError("Error parsing message: it is cut short")
        yield tag, first, content, position


def _read_varint(data: Part, position: int, end: int, longest: int = 10) -> tuple[int, int]:
    """A number of at most so many bytes, and where it ends."""
    number = 0
    for index in range(min(longest, end - position)):
        byte = data[position + index]
        number |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return number, position + index + 1
    raise DecodeError("Error parsing message: a number without an end")
