"""How much a message may hold. It is counted over its bytes: parsing what is too much would already cost too much.

Small messages can hold cheap fields by the million: an empty loss takes two bytes, and with gzip a thousandth of that.
What is bounded follows from the contract's descriptors, so a new field is bounded, too.
"""

from __future__ import annotations

from collections import defaultdict
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError

from boxloss.errors import InputError, InvalidInputError, RequestTooLargeError, UnsupportedError, Violation
from boxloss.v1 import loss_service_pb2
from boxloss_server.service.decode import MAX_LOSSES, Limits
from boxloss_server.service.fields import FIXED, LENGTH, fields_of

MAX_FIELDS = 2**15
"""Fields of a message, with those of the messages in it. Numbers that are packed are one field. To walk over one
takes half a microsecond."""
MAX_ENTRIES = 2**14
"""Messages or texts in a repeated field."""
MAX_PLAIN_NUMBERS = 2**18
"""Plain numbers in a message. Parsing them takes a tenth of a microsecond each."""
MAX_TEXT_BYTES = 2**12

_SMALL = 2**12
"""Bytes of a message that costs little, whatever is in it."""
_MAX_DEPTH = 100
"""Messages in each other; protobuf takes no more."""
_LONGEST_VARINT = 10
_LOSSES: Any = loss_service_pb2.EvaluateRequest.DESCRIPTOR.fields_by_name["losses"]
_NUMBERS = FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT
_WIRE_TYPES = {
    FieldDescriptor.TYPE_DOUBLE: 1,
    FieldDescriptor.TYPE_FIXED64: 1,
    FieldDescriptor.TYPE_SFIXED64: 1,
    FieldDescriptor.TYPE_FLOAT: 5,
    FieldDescriptor.TYPE_FIXED32: 5,
    FieldDescriptor.TYPE_SFIXED32: 5,
    FieldDescriptor.TYPE_MESSAGE: LENGTH,
    FieldDescriptor.TYPE_STRING: LENGTH,
    FieldDescriptor.TYPE_BYTES: LENGTH,
}
"""All other types are varints."""


class _Field(NamedTuple):
    """What the walk over a message needs to know of a field."""

    name: str
    full_name: str
    bound: int
    """Most elements; 0 where it is not repeated."""
    message: Any
    """The descriptor of the message that it is."""
    text: bool
    packed: bool
    width: int
    """Bytes of each packed number; 0 for varints."""
    fault: InputError
    """What a message is refused with that has more."""


def check(kind: Descriptor, data: bytes, limits: Limits) -> None:
    """Refuses a message of a kind that holds too much, or what is not known.

    Raises:
        RequestTooLargeError: a repeated field has too many elements, or the message too many fields.
        InvalidInputError: there are too many losses, or a text is too long.
        UnsupportedError: a field is newer than this server.
        DecodeError: the bytes are no message.
    """
    if len(data) > _SMALL:
        _Walk(data, limits).over(kind, 0, len(data), 0)


def bound_of(field: FieldDescriptor, limits: Limits) -> int:
    """Most elements of a repeated field in a message, all places where it occurs taken together."""
    if field is _LOSSES:
        return MAX_LOSSES
    if field.cpp_type in _NUMBERS:
        return MAX_PLAIN_NUMBERS
    if _WIRE_TYPES.get(field.type) == LENGTH:
        return MAX_ENTRIES
    return limits.request_pairs  # One for each pair or box.


class _Walk:
    """A walk over the fields of one message."""

    def __init__(self, data: bytes, limits: Limits) -> None:
        self._data = data
        self._limits = limits
        self._found = 0
        self._counts: defaultdict[str, int] = defaultdict(int)

    def over(self, kind: Descriptor, start: int, end: int, depth: int) -> None:
        """Goes over the message in this part of the bytes, and those in it."""
        if depth > _MAX_DEPTH:
            raise DecodeError("Error parsing message: its messages are too deep in each other")
        known, counts = _fields_by_tag(kind, self._limits), self._counts
        for tag, _, content, position in fields_of(self._data, start, end):
            field = known.get(tag)
            if field is None:
                fault = f"is not known to this version of {kind.name}; upgrade the server"
                raise UnsupportedError([Violation(f"field {tag >> 3}", fault)])
            name, full_name, bound, message, text, packed, _, _ = field
            self._found += 1
            if self._found > MAX_FIELDS:
                fault = f"comes after {MAX_FIELDS} fields, the most that a message has; send fewer, and numbers packed"
                raise RequestTooLargeError([Violation(name, fault)])
            if bound:
                counts[full_name] += self._elements(field, content, position) if packed else 1
                if counts[full_name] > bound:
                    raise type(field.fault)(field.fault.violations)
            if message:
                if content < position:
                    try:
                        self.over(message, content, position, depth + 1)
                    except InputError as error:
                        raise error.within(f"{name}[{counts[full_name] - 1}]" if bound else name) from None
            elif text and position - content > MAX_TEXT_BYTES:
                fault = f"has {position - content} bytes; send at most {MAX_TEXT_BYTES}"
                raise InvalidInputError([Violation(name, fault)])

    def _elements(self, field: _Field, start: int, end: int) -> int:
        """How many elements a packed field holds, or so many of them that they are too many."""
        if field.width:
            return (end - start) // field.width
        if end - start > _LONGEST_VARINT * field.bound:
            return end - start
        return int(np.count_nonzero(np.frombuffer(self._data, np.int8, end - start, start) >= 0))


def _fault(field: FieldDescriptor, bound: int) -> InputError:
    """What a message is refused with that has too many elements of a field."""
    if field is _LOSSES:
        return InvalidInputError([Violation(field.name, f"has over {bound} losses; ask for 1 to {bound} in a request")])
    if field.cpp_type in _NUMBERS:
        fault = f"has over {bound} plain numbers; send them as bytes in `data`, or split the request"
    else:
        fault = f"has over {bound} elements; split the request"
    return RequestTooLargeError([Violation(field.name, fault)])


@lru_cache(maxsize=256)
def _fields_by_tag(kind: Descriptor, limits: Limits) -> dict[int, _Field]:
    """The fields of a kind of message by the tags that they are written with: of numbers two, if they are repeated."""
    found = {}
    for descriptor in kind.fields:
        each: Any = descriptor
        wire_type = _WIRE_TYPES.get(each.type, 0)
        bound = bound_of(each, limits) if each.is_repeated else 0
        text = each.type == FieldDescriptor.TYPE_STRING
        whole = _Field(each.name, each.full_name, bound, each.message_type, text, False, 0, _fault(each, bound))
        found[each.number << 3 | wire_type] = whole
        if each.is_repeated and wire_type != LENGTH:
            found[each.number << 3 | LENGTH] = whole._replace(packed=True, width=FIXED.get(wire_type, 0))
    return found
