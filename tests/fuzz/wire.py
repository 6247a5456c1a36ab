"""The wire format of protobuf, as far as it takes to write messages that protobuf itself would not."""

from __future__ import annotations

from typing import NamedTuple

VARINT, FIXED64, LENGTH, START, END, FIXED32 = range(6)
"""Wire types."""


class Field(NamedTuple):
    """A field of a message; the content is a varint, 8 or 4 bytes, or what has a length."""

    number: int
    kind: int
    content: bytes

    def encoded(self) -> bytes:
        length = varint(len(self.content)) if self.kind == LENGTH else b""
        return varint(self.number << 3 | self.kind) + length + self.content


def varint(number: int, length: int = 1) -> bytes:
    """A number of 64 bits, in at least so many bytes: more than needed are allowed, up to some limit."""
    number %= 2**64
    encoded = bytearray()
    while number >= 0x80 or len(encoded) < length - 1:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def join(fields: list[Field]) -> bytes:
    """The message of these fields."""
    return b"".join(each.encoded() for each in fields)


def split(data: bytes) -> list[Field] | None:
    """The fields of a message; None where it is none, or uses groups."""
    fields = []
    position = 0
    while position < len(data):
        read = _varint(data, position)
        if read is None:
            return None
        tag, position = read
        kind, start = tag & 7, position
        if kind == VARINT:
            read = _varint(data, position)
            if read is None:
                return None
            position = read[1]
        elif kind == LENGTH:
            read = _varint(data, position)
            if read is None:
                return None
            length, start = read
            position = start + length
        elif kind in (FIXED64, FIXED32):
            position += 8 if kind == FIXED64 else 4
        else:
            return None
        if position > len(data):
            return None
        fields.append(Field(tag >> 3, kind, data[start:position]))
    return fields


def _varint(data: bytes, position: int) -> tuple[int, int] | None:
    number = 0
    for shift, byte in enumerate(data[position : position + 10]):
        number |= (byte & 0x7F) << 7 * shift
        if byte < 0x80:
            return number, position + shift + 1
    return None
