"""What a message may hold: counted over its bytes, before anything of it is parsed."""

from __future__ import annotations

import gzip
import threading
import zlib
from collections.abc import Iterator
from typing import Any

import grpc
import psutil
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor

import boxloss
from boxloss.errors import InputError, InvalidInputError, RequestTooLargeError, UnsupportedError
from boxloss.v1 import audit_service_pb2, loss_service_pb2
from boxloss_server.service import bounds
from boxloss_server.service.bounds import bound_of, check
from boxloss_server.service.compression import MAX_RATIO, Decompression
from boxloss_server.service.decode import Limits
from tests.servers import ServerProcess

LIMITS = Limits(message_bytes=2**20, request_pairs=3000)
SERVICES = [
    *loss_service_pb2.DESCRIPTOR.services_by_name.values(),
    *audit_service_pb2.DESCRIPTOR.services_by_name.values(),
]
REQUESTS: list[Descriptor] = [method.input_type for service in SERVICES for method in service.methods]
VARINTS = {FieldDescriptor.TYPE_BOOL, FieldDescriptor.TYPE_ENUM, FieldDescriptor.TYPE_INT32, FieldDescriptor.TYPE_INT64}


def varint(number: int) -> bytes:
    low, number = number & 0x7F, number >> 7
    return bytes([low | 0x80]) + varint(number) if number else bytes([low])


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def repeated(kind: Descriptor, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The ways to all repeated fields of a message; of a loss within a loss, only the first."""
    for each in kind.fields:
        way = (*path, each)
        if each.is_repeated:
            yield way
        if each.message_type and each.message_type not in [one.message_type for one in path]:
            yield from repeated(each.message_type, way)


CASES = [
    pytest.param(kind, way, id="-".join([kind.name, *(each.name for each in way)]))
    for kind in REQUESTS
    for way in repeated(kind)
]


def message(way: tuple[Any, ...], count: int, packed: bool) -> bytes:
    """A message with so many elements of a field, at the end of a way."""
    *outer, last = way
    number = last.number
    if last.type in VARINTS:
        content = field(number, b"\x01" * count) if packed else (varint(number << 3) + b"\x01") * count
    elif last.type == FieldDescriptor.TYPE_DOUBLE:
        content = field(number, bytes(8 * count)) if packed else (varint(number << 3 | 1) + bytes(8)) * count
    else:
        content = field(number, b"") * count
    for each in reversed(outer):
        content = field(each.number, content)
    return content


@pytest.mark.parametrize(("kind", "way"), CASES)
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "one by one"])
def test_every_repeated_field_is_bounded(
    monkeypatch: pytest.MonkeyPatch, kind: Descriptor, way: tuple[Any, ...], packed: bool
) -> None:
    monkeypatch.setattr(bounds, "MAX_FIELDS", 2**30)
    bound = bound_of(way[-1], LIMITS)
    for count in (bound - 1, bound):
        check(kind, message(way, count, packed), LIMITS)
    monkeypatch.setattr(bounds, "_SMALL", 0)
    with pytest.raises(InputError, match=f"{way[-1].name}: has over {bound}") as refused:
        check(kind, message(way, bound + 1, packed), LIMITS)
    assert isinstance(refused.value, InvalidInputError | RequestTooLargeError)


@pytest.mark.parametrize("kind", REQUESTS, ids=lambda kind: kind.name)
def test_what_is_not_known_is_refused_at_its_first_field(kind: Descriptor) -> None:
    with pytest.raises(UnsupportedError, match=f"field 1000: is not known to this version of {kind.name}"):
        check(kind, field(1000, bytes(2**16)), LIMITS)


def test_all_fields_together_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "MAX_FIELDS", 2000)
    kind = loss_service_pb2.EvaluateRequest.DESCRIPTOR
    gradients = varint(loss_service_pb2.EvaluateRequest.PREDICTION_GRADIENTS_FIELD_NUMBER << 3) + b"\x01"
    monkeypatch.setattr(bounds, "_SMALL", 0)
    for count in (1999, 2000):
        check(kind, gradients * count, LIMITS)
    with pytest.raises(RequestTooLargeError, match="comes after 2000 fields"):
        check(kind, gradients * 2001, LIMITS)


async def test_a_compressed_message_may_become_so_much_larger_and_no_more() -> None:
    decompression = Decompression(2**26)
    noise = zlib.compress(bytes(range(256)) * 4096)  # What gzip makes little of.
    text = bytes(2**20 - len(noise)) + noise
    assert await decompression.message(gzip.compress(text)) == text
    bomb = gzip.compress(bytes(2**24))
    assert len(bomb) * MAX_RATIO < 2**24
    with pytest.raises(RequestTooLargeError, match="once decompressed"):
        await decompression.message(bomb)
    with pytest.raises(InvalidInputError, match="no whole gzip"):
        await decompression.message(gzip.compress(text)[:-4])


@pytest.mark.parametrize("size", [-1, 0, 1])
async def test_a_compressed_message_may_become_as_large_as_any(size: int) -> None:
    limit = 2**20
    data = gzip.compress(bytes(limit + size))
    decompression = Decompression(limit)
    if size <= 0:
        assert len(await decompression.message(data)) == limit + size
    else:
        with pytest.raises(RequestTooLargeError, match=f"is over {limit} bytes"):
            await decompression.message(data)


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with ServerProcess("--compile=off") as running:
        yield running


REQUEST = loss_service_pb2.EvaluateRequest
SMALL_THAT_COST_MUCH = {
    "losses": field(REQUEST.LOSSES_FIELD_NUMBER, b"") * 10_000_000,
    "crowd": field(REQUEST.CROWD_FIELD_NUMBER, bytes(20_000_000)),
    "crowd, one by one": (varint(REQUEST.CROWD_FIELD_NUMBER << 3) + b"\x01") * 10_000_000,
    "plain values": field(REQUEST.TARGETS_FIELD_NUMBER, field(1, bytes(8 * 2_000_000))),
}


@pytest.mark.parametrize("what", SMALL_THAT_COST_MUCH)
@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.NoCompression])
def test_small_messages_that_would_cost_much_are_refused_and_cost_little(
    server: ServerProcess, what: str, compression: grpc.Compression
) -> None:
    """Others are served meanwhile, and the memory stays: each took seconds of everybody's time and gigabytes."""
    before = psutil.Process(server.pid).memory_info().rss
    refused, answered = threading.Event(), 0
    codes: list[grpc.StatusCode] = []

    def send() -> None:
        with grpc.insecure_channel(server.address, options=[("grpc.max_send_message_length", -1)]) as channel:
            call: Any = channel.unary_unary("/boxloss.v1.LossService/Evaluate")
            for _ in range(3):
                with pytest.raises(grpc.RpcError) as failed:
                    call(SMALL_THAT_COST_MUCH[what], compression=compression, timeout=60)
                codes.append(failed.value.code())
        refused.set()

    sending = threading.Thread(target=send)
    with boxloss.Client(server.address) as client:
        sending.start()
        while not refused.is_set():
            client.evaluate([[0.0, 0.0, 4.0, 4.0]], [[1.0, 2.0, 5.0, 8.0]], boxloss.IoU(), timeout=5)
            answered += 1
    sending.join()
    assert codes == [grpc.StatusCode.INVALID_ARGUMENT] * 3
    assert answered > 3
    assert psutil.Process(server.pid).memory_info().rss - before < 5e8
