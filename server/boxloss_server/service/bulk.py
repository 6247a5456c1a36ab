"""Bulky arrays in messages that come in, without copies.

protobuf copies an array when it parses a message, and again when the array is read: for large arrays that takes longer
than the computation. Here, arrays are views of the message that came in. All else is left to protobuf.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, NamedTuple, TypeVar

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message

from boxloss.contract.bulk import Part, field
from boxloss.errors import RequestTooLargeError, Violation
from boxloss.v1 import array_pb2, loss_service_pb2
from boxloss_server.service.fields import GROUP, fields_of

_Message = TypeVar("_Message", bound=Message)

_BULKY = 2**16
"""Bytes from which on copies cost more than finding an array does."""
MAX_PARSED_BYTES = 2**23
"""Most bytes that are left to protobuf, which copies them: a millisecond for each of these MiB, and no other call is
served meanwhile."""
_MANY = 256
"""Fields of a message from which on protobuf finds them faster; those that clients write have fewer."""
_ARRAY: Any = array_pb2.Array.DESCRIPTOR
_REQUEST: Any = loss_service_pb2.EvaluateRequest.DESCRIPTOR
"""The only message with arrays that is in another."""
_DATA = _ARRAY.fields_by_name["data"].number


class Received(NamedTuple, Generic[_Message]):
    """A message that came in."""

    message: _Message
    """All but the bulky arrays, which are empty here."""
    bulk: Mapping[str, memoryview]
    """Their elements in the packed form, by field."""


def reader(kind: type[_Message]) -> Callable[[bytes], Received[_Message]]:
    """A parser of messages of a kind, which `bounds.check` has let pass. It raises DecodeError, as protobuf's does, and
    `RequestTooLargeError` where much of a message is not in the `data` of an array.
    """
    descriptor: Any = kind.DESCRIPTOR

    def read(data: bytes) -> Received[_Message]:
        bulk: dict[str, memoryview] = {}
        rest = data
        if len(data) >= _BULKY:
            try:
                rest = _lift(memoryview(data), descriptor, bulk)
            except (_UnclearError, DecodeError):
                bulk = {}  # protobuf knows better.
        if len(rest) > MAX_PARSED_BYTES:
            fault = (
                f"has {len(rest)} bytes besides the `data` of its arrays, and the limit is {MAX_PARSED_BYTES}; send "
                "each array once, as `data` and nothing else, or split the request"
            )
            raise RequestTooLargeError([Violation("request", fault)])
        return Received(kind.FromString(rest), bulk)

    return read


class _UnclearError(Exception):
    """A message is in a form that is rare."""


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
    """Number, whole and content of each field. Groups are left to protobuf."""
    for found, (tag, start, content, end) in enumerate(fields_of(data, 0, len(data))):
        if found >= _MANY or tag & 7 == GROUP:
            raise _UnclearError
        yield tag >> 3, data[start:end], data[content:end]
