"""Bulky arrays in messages: what is read and written by hand is what protobuf reads and writes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError, Message

from boxloss.contract.bulk import array_field, elements_of, field
from boxloss.v1.array_pb2 import DTYPE_FLOAT32, DTYPE_FLOAT64, Array
from boxloss.v1.loss_service_pb2 import EvaluateRequest, EvaluateResponse, EvaluateStreamRequest, LossResult
from boxloss_server.service.bulk import reader

BULKY = np.arange(40_000, dtype="<f4").tobytes()
OTHER = np.arange(40_000, 80_000, dtype="<f4").tobytes()


def request(**fields: Any) -> EvaluateRequest:
    message = EvaluateRequest(
        dtype=DTYPE_FLOAT32, prediction_gradients=True, running_mean=0.5, crowd=[True, False], **fields
    )
    message.losses.add().ciou.gate = 0.25
    return message


def put_back(message: Message, bulk: dict[str, memoryview]) -> Message:
    inner = message.request if isinstance(message, EvaluateStreamRequest) else message
    for name, elements in bulk.items():
        assert not getattr(inner, name).data
        getattr(inner, name).data = bytes(elements)
    return message


MESSAGES: dict[str, tuple[Message, set[str]]] = {
    "two arrays": (request(predictions=Array(data=BULKY), targets=Array(data=OTHER)), {"predictions", "targets"}),
    "one bulky": (request(predictions=Array(data=BULKY), targets=Array(data=b"1234")), {"predictions"}),
    "weights": (request(weights=Array(data=BULKY)), {"weights"}),
    "none bulky": (request(predictions=Array(data=b"1234")), set()),
    "plain numbers": (request(predictions=Array(values=range(40_000))), set()),
    "both forms": (request(predictions=Array(data=BULKY, values=[1.0])), set()),
    "in a stream": (EvaluateStreamRequest(request=request(predictions=Array(data=BULKY))), {"predictions"}),
    "empty": (EvaluateRequest(), set()),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_a_message_is_the_same_with_its_bulky_arrays_taken_out(name: str) -> None:
    message, bulky = MESSAGES[name]
    received = reader(type(message))(message.SerializeToString())
    assert set(received.bulk) == bulky
    assert put_back(received.message, dict(received.bulk)) == message


def test_what_protobuf_would_merge_is_left_to_it() -> None:
    twice = request(predictions=Array(data=BULKY)).SerializeToString()
    twice += EvaluateRequest(predictions=Array(data=b"last")).SerializeToString()
    received = reader(EvaluateRequest)(twice)
    assert received.bulk == {}
    assert received.message.predictions.data == b"last"


def test_fields_that_are_not_known_are_kept() -> None:
    data = request(predictions=Array(data=BULKY)).SerializeToString() + b"".join(field(99, b"new"))
    assert b"new" in reader(EvaluateRequest)(data).message.SerializeToString()


@pytest.mark.parametrize("cut", [1, 2, 3, 70_000, len(BULKY)])
def test_a_truncated_message_is_refused_as_protobuf_refuses_it(cut: int) -> None:
    data = request(predictions=Array(data=BULKY), targets=Array(data=OTHER)).SerializeToString()
    with pytest.raises(DecodeError):
        reader(EvaluateRequest)(data[:-cut])


def test_bytes_that_are_no_message_are_read_as_protobuf_reads_them() -> None:
    rng = np.random.default_rng(0)
    whole = request(predictions=Array(data=BULKY), targets=Array(data=OTHER)).SerializeToString()
    for _ in range(300):
        data = bytearray(whole)
        for place in rng.integers(0, 60, 3):
            data[place] = rng.integers(256)
        try:
            expected = EvaluateRequest.FromString(bytes(data))
        except DecodeError:
            with pytest.raises(DecodeError):
                reader(EvaluateRequest)(bytes(data))
        else:
            received = reader(EvaluateRequest)(bytes(data))
            assert put_back(received.message, dict(received.bulk)) == expected


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16_383, 16_384, 300_000])
def test_what_is_written_by_hand_protobuf_reads(size: int) -> None:
    elements = bytes(range(256)) * (size // 256 + 1)
    parts = field(
        EvaluateResponse.RESULTS_FIELD_NUMBER,
        *array_field(LossResult.LOSS_FIELD_NUMBER, [memoryview(elements)[:size]]),
        LossResult(running_mean=0.25).SerializeToString(),
    )
    response = EvaluateResponse.FromString(
        b"".join([*parts, EvaluateResponse(dtype=DTYPE_FLOAT64).SerializeToString()])
    )
    expected = EvaluateResponse(dtype=DTYPE_FLOAT64)
    expected.results.add(loss=Array(data=elements[:size]), running_mean=0.25)
    assert response == expected


@pytest.mark.parametrize(
    "array", [np.float32(2.5), np.empty((0, 4)), np.arange(12.0).reshape(3, 4)[:, ::2], np.ones((999, 9)).T]
)
def test_elements_are_in_row_major_order_whatever_the_layout(array: Any) -> None:
    assert bytes(elements_of(np.asarray(array))) == np.asarray(array).tobytes()
