"""Bulky arrays in messages that come in, without copies.

protobuf copies an array when it parses a message, and again when the array is read: for large arrays that takes longer
than the computation. Here, arrays are views of the message that came in. All else is left to protobuf.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, NamedTuple, TypeVar

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from boxloss.bulk import Part, field
from boxloss.errors import UnsupportedError, Violation
from boxloss.v1 import array_pb2, loss_service_pb2

_Message = TypeVar("_Message", bound=Message)

_BULKY = 2**16
"""Bytes from which on copies cost more than finding an array does."""
_MUCH_UNKNOWN = 2**18
"""Bytes of fields that are not known which are too many to tell them one by one."""
_MANY = 256
"""Fields of a message from which on protobuf finds them faster; those that clients write have fewer."""
_ARRAY: Any = array_pb2.Array.DESCRIPTOR
_REQUEST: Any = loss_service_pb2.EvaluateRequest.DESCRIPTOR
"""The only message with arrays that is in another."""
_DATA = _ARRAY.fields_by_name["data"].number
_VARINT, _LENGTH = 0, 2
_FIXED = {1: 8, 5: 4}
_LONGEST = 5
"""Bytes of a tag or a length; protobuf takes no more."""


class Received(NamedTuple, Generic[_Message]):
    """A message that came in."""

    message: _Message
    """All but the bulky arrays, which are empty here."""
    bulk: Mapping[str, memoryview]
    """Their elements in the packed form, by field."""


def reader(kind: type[_Message]) -> Callable[[bytes], Received[_Message]]:
    """A parser of messages of a kind. It raises DecodeError, as protobuf's does.

    It raises `UnsupportedError` where much of a message is not known: its fields, told one by one, would take seconds.
    """
    descriptor: Any = kind.DESCRIPTOR

    def read(data: bytes) -> Received[_Message]:
        bulk: dict[str, memoryview] = {}
        rest = data
        if len(data) >= _BULKY:
            try:
                rest = _lift(memoryview(data), descriptor, bulk)
            except _UnclearError:
                bulk = {}  # protobuf knows better.
        message = kind.FromString(rest)
        if len(rest) >= _MUCH_UNKNOWN:
            _refuse_much_unknown(message)
        return Received(message, bulk)

    return read


class _UnclearError(Exception):
    """A message is malformed, or in a form that is rare."""


def _refuse_much_unknown(message: Message) -> None:
    known = type(message)()
    known.CopyFrom(message)
    known.DiscardUnknownFields()
    unknown = message.ByteSize() - known.ByteSize()
    if unknown >= _MUCH_UNKNOWN:
        fault = f"has {unknown} bytes in fields that this version does not know; upgrade the server"
        raise UnsupportedError([Violation("request", fault)])


def _lift(data: memoryview, kind: Descriptor, bulk: dict[str, memoryview]) -> bytes:
    """The message without its bulky arrays, which go into `bulk`."""
    kept: list[Part] = []
    seen: set[int] = set()
    for number, whole, content in _fields(data):
        descriptor: FieldDescriptor | None = kind.fields_by_number.get(number)
        if descriptor is None or descriptor.message_type is None or descriptor.is_repeated:
            kept.append(whole)
            continue
        if number in seen:
            raise _UnclearError  # Of such a message protobuf makes one.
        seen.add(number)
        if len(content) < _BULKY:
            kept.append(whole)
        elif descriptor.message_type is _REQUEST:
            kept += field(number, _lift(content, _REQUEST, bulk))
        elif descriptor.message_type is _ARRAY and (elements := _elements(content)) is not None:
            bulk[descriptor.name] = elements
            kept += field(number)
        else:
            kept.append(whole)
    return b"".join(kept)


def _elements(content: memoryview) -> memoryview | None:
    """The elements of an Array that has nothing but these."""
    fields = list(_fields(content))
    return fields[0][2] if len(fields) == 1 and fields[0][0] == _DATA else None


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview, memoryview]]:
    """Number, whole and content (of a field with a length) of each field."""
    position = found = 0
    while position < len(data):
        start = position
        found += 1
        tag, position = _read_varint(data, position, _LONGEST)
        if found > _MANY or tag >= 2**32:
            raise _UnclearError
        content = data[:0]
        if tag & 7 == _LENGTH:
            length, position = _read_varint(data, position, _LONGEST)
            content = data[position : position + length]
            position += length
        elif tag & 7 == _VARINT:
            _, position = _read_varint(data, position)
        elif tag & 7 in _FIXED:
            position += _FIXED[tag & 7]
        else:
            raise _UnclearError
        if position > len(data):
            raise _UnclearError
        yield tag >> 3, data[start:position], content


def _read_varint(data: memoryview, position: int, longest: int = 10) -> tuple[int, int]:
    """A number of at most so many bytes, and where it ends."""
    number = 0
    for index, byte in enumerate(data[position : position + longest]):
        number |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return number, position + index + 1
    raise _UnclearError
