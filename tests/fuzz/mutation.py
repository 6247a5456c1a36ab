"""Mutations of calls as bytes, for a fuzzer that knows what is covered and not what a message is."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import numpy as np

from tests.fuzz.strategies import METHODS, NUMBERS, STREAMS, Call
from tests.fuzz.wire import FIXED64, LENGTH, VARINT, Field, join, split, varint

_NAMES = list(METHODS)
_BETWEEN = b"\xff\xfe\xff\xfe"
"""Separates the messages of a stream; a tag that no message has."""
_FLIPS = [0, 1, 4, 8, 63, 64, 127, 128, 255]


def to_bytes(call: Call) -> bytes:
    """A call as an input: a byte for its method, and its messages."""
    method, messages = call
    return bytes([_NAMES.index(method)]) + _BETWEEN.join(messages)


def from_bytes(data: bytes) -> Call:
    """The call that an input stands for; any bytes are one."""
    method = _NAMES[data[0] % len(_NAMES)] if data else _NAMES[0]
    return method, data[1:].split(_BETWEEN) if method in STREAMS else [data[1:]]


def mutate(data: bytes, size: int, seed: int, otherwise: Callable[[bytes, int], bytes]) -> bytes:
    """Another input that is like this one: mostly its message with some fields changed, else by `otherwise`."""
    random = Random(seed)
    method, messages = from_bytes(data)
    if random.random() < 0.2 or not messages:
        return otherwise(data, size)
    if method in STREAMS and random.random() < 0.3:
        messages = _rearranged(messages, random)
    else:
        place = random.randrange(len(messages))
        for _ in range(random.choice([1, 1, 2, 4])):
            messages[place] = altered(messages[place], random)
    if random.random() < 0.05:
        method = random.choice(_NAMES)
    return to_bytes((method, messages))[:size]


def _rearranged(messages: list[bytes], random: Random) -> list[bytes]:
    place = random.randrange(len(messages))
    return random.choice([[*messages, messages[place]], messages[:place] + messages[place + 1 :], messages[::-1]])


def altered(message: bytes, random: Random, depth: int = 0) -> bytes:
    """A message with one of its fields changed, or one of theirs."""
    fields = split(message)
    if not fields:
        return _bent(message, random)
    place = random.randrange(len(fields))
    chosen = fields[place]
    match random.randrange(24):
        case 0:
            del fields[place]
        case 1:
            fields.insert(random.randrange(len(fields) + 1), chosen)
        case 2:
            fields.append(fields.pop(place))
        case 3:
            fields[place] = chosen._replace(number=random.choice([*range(30), 1000, 2**29 - 1]))
        case 4:
            fields.append(Field(random.randrange(1, 16), VARINT, varint(random.choice([0, 1, 2, 3, 5, 6, 99, 2**63]))))
        case 5:  # Written longer than it need be.
            overlong = varint(chosen.number << 3 | chosen.kind, random.randrange(2, 11))
            return join(fields[:place]) + overlong + chosen.encoded()[1:] + join(fields[place + 1 :])
        case 6:  # Deeper.
            for _ in range(random.choice([1, 10, 60])):
                fields[place] = Field(chosen.number, LENGTH, fields[place].encoded())
        case _ if chosen.kind == LENGTH and depth < 20:
            fields[place] = chosen._replace(content=altered(chosen.content, random, depth + 1))
        case _ if chosen.kind == FIXED64:
            fields[place] = chosen._replace(content=np.array(random.choice(NUMBERS), "<f8").tobytes())
        case _ if chosen.kind == VARINT:
            fields[place] = chosen._replace(content=varint(random.choice([*range(9), 99, 2**31, 2**32, 2**63])))
        case _:
            fields[place] = chosen._replace(content=_bent(chosen.content, random))
    return join(fields)


def _bent(content: bytes, random: Random) -> bytes:
    """Content that has no fields: often an array."""
    if not content:
        return random.choice([b"", b"\x00", random.randbytes(16)])
    place = random.randrange(len(content))
    match random.randrange(5):
        case 0:
            return content[:place]
        case 1:
            return content + content[: random.choice([1, 4, 8, 16, 32])]
        case 2:
            start, number = place // 8 * 8, random.choice(NUMBERS)
            with np.errstate(over="ignore"):
                written = np.array(number, random.choice(["<f4", "<f8", "<f2"])).tobytes()
            return content[:start] + written + content[start + len(written) :]
        case 3:
            return content[:place] + bytes([random.choice(_FLIPS)]) + content[place + 1 :]
        case _:
            return content * random.choice([2, 3, 8]) if len(content) < 2**12 else content[: len(content) // 2]
