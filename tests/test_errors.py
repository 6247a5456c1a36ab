"""The contract's table of errors is true: each row is caused on a real server, and none is missing."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2, status_pb2

from boxloss import CIoU, GIoU, errors
from boxloss.contract import wire
from boxloss.v1 import array_pb2, loss_service_pb2
from tests.faulty_server import FAILS, LACKS_MEMORY
from tests.security.callers import TOKENS, bearer
from tests.servers import ServerProcess, wait_until

PROTO = Path("proto/boxloss/v1/loss_service.proto").read_text()
EVALUATE, STREAM, MATRIX = (
    f"/boxloss.v1.LossService/{method}" for method in ("Evaluate", "EvaluateStream", "PairwiseIou")
)
MESSAGE_BYTES = 2**20
LARGE = 2**18
"""Pairs that the slow server computes for half a second."""


class Row(NamedTuple):
    code: str
    reason: str
    details: str


def rows() -> list[Row]:
    return [Row(*found) for found in re.findall(r"^//   ([A-Z_]+) +([A-Z_]+) +(BadRequest|RetryInfo|-) ", PROTO, re.M)]


def of_grpc() -> list[tuple[str, str]]:
    return re.findall(r"^//   ([A-Z_]+) +([a-z].*?)  ", PROTO, re.M)


def row_of(error: Any) -> Row:
    """What an error is told as."""
    trailers = dict(error.trailing_metadata() or ())
    if "grpc-status-details-bin" not in trailers:
        return Row(error.code().name, "", "")
    status = status_pb2.Status()
    status.ParseFromString(trailers["grpc-status-details-bin"])
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert info.domain == errors.DOMAIN
    names = [detail.TypeName().rpartition(".")[2] for detail in status.details[1:]]
    assert ("grpc-retry-pushback-ms" in trailers) == (names == ["RetryInfo"])
    return Row(error.code().name, info.reason, "".join(names) or "-")


def request_of(first: float = 0.0, pairs: int = 1) -> loss_service_pb2.EvaluateRequest:
    predictions = np.tile(np.array([first, 0, 4, 4], "<f4"), (pairs, 1))
    boxes = array_pb2.Array(data=predictions.tobytes())
    return loss_service_pb2.EvaluateRequest(predictions=boxes, targets=boxes, losses=[wire.loss_to_message(CIoU())])


def failure(
    server: ServerProcess,
    request: bytes,
    method: str = EVALUATE,
    client: str = "alice",
    timeout: float = 60,
    options: Any = (),
) -> Row:
    sends = ("grpc.max_send_message_length", -1), *options
    with grpc.insecure_channel(server.address, options=sends) as channel:
        call: Any = channel.unary_unary(method)
        with pytest.raises(grpc.RpcError) as failed:
            call(request, timeout=timeout, metadata=bearer(TOKENS[client]) if client else None)
    return row_of(failed.value)


@pytest.fixture(scope="module")
def faulty() -> Iterator[ServerProcess]:
    flags = f"--max-message-bytes={MESSAGE_BYTES}", "--max-request-pairs=5000", "--compile=off"
    with ServerProcess(*flags, module="tests.faulty_server") as server:
        yield server


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    tokens = tmp_path_factory.mktemp("tokens") / "tokens"
    tokens.write_text("".join(f"{name} {token}\n" for name, token in TOKENS.items()))
    tokens.chmod(0o600)
    limits = f"--max-request-pairs={LARGE}", f"--max-waiting-pairs={2 * LARGE}", f"--client-waiting-pairs={LARGE}"
    with ServerProcess(*limits, f"--tokens-file={tokens}", "--compile=off", module="tests.slow_server") as server:
        yield server


def matrix_of(rows: int, columns: int) -> loss_service_pb2.PairwiseIouRequest:
    a, b = (request_of(pairs=number).predictions for number in (rows, columns))
    return loss_service_pb2.PairwiseIouRequest(a=a, b=b)


def two_losses(pairs: int) -> loss_service_pb2.EvaluateRequest:
    request = request_of(pairs=pairs)
    request.losses.append(wire.loss_to_message(GIoU()))
    return request


@pytest.mark.parametrize(
    ("method", "fits", "is_too_large"),
    [
        (EVALUATE, [request_of(pairs=4999), request_of(pairs=5000)], request_of(pairs=5001)),
        (EVALUATE, [two_losses(2499), two_losses(2500)], two_losses(2501)),
        (MATRIX, [matrix_of(49, 100), matrix_of(50, 100)], matrix_of(1, 5001)),
    ],
    ids=["pairs", "pairs under two losses", "pairs of a matrix"],
)
def test_a_request_may_have_so_many_pairs_and_no_more(
    faulty: ServerProcess, method: str, fits: list[Any], is_too_large: Any
) -> None:
    with grpc.insecure_channel(faulty.address) as channel:
        call: Any = channel.unary_unary(method)
        for request in fits:
            assert call(request.SerializeToString(), timeout=60)
    assert failure(faulty, is_too_large.SerializeToString(), method).reason == "REQUEST_TOO_LARGE"


INVERTED = loss_service_pb2.EvaluateRequest(
    predictions=array_pb2.Array(values=[4, 4, 0, 0]),
    targets=array_pb2.Array(values=[0, 0, 4, 4]),
    losses=[wire.loss_to_message(CIoU())],
)
AT_FAULT = {
    "INVALID_INPUT": INVERTED.SerializeToString(),
    "REQUEST_TOO_LARGE": request_of(pairs=5001).SerializeToString(),
    "UNSUPPORTED": request_of().SerializeToString() + b"\xc0\x3e\x01",
    "OUT_OF_MEMORY": request_of(LACKS_MEMORY).SerializeToString(),
    "INTERNAL": request_of(FAILS).SerializeToString(),
}


def test_each_reason_of_the_sdk_is_in_the_table_with_its_code() -> None:
    def tree(error: type[errors.BoxlossError]) -> Iterator[type[errors.BoxlossError]]:
        yield error
        for each in error.__subclasses__():
            yield from tree(each)

    known = {(each.code, each.reason) for each in tree(errors.BoxlossError) if each.reason != "UNKNOWN"}
    assert known == {(row.code, row.reason) for row in rows()}
    assert len(rows()) == len(known)


@pytest.mark.parametrize("reason", AT_FAULT)
def test_a_request_at_fault(faulty: ServerProcess, reason: str) -> None:
    row = failure(faulty, AT_FAULT[reason])
    assert row.reason == reason
    assert row in rows()


def test_a_call_without_a_token(busy: ServerProcess) -> None:
    row = failure(busy, request_of().SerializeToString(), client="")
    assert row.reason == "UNAUTHENTICATED"
    assert row in rows()


@pytest.mark.parametrize(("asking", "reason"), [(["alice"], "QUOTA_EXCEEDED"), (["greedy", "bob"], "QUEUE_FULL")])
def test_room_that_is_used_up(busy: ServerProcess, asking: list[str], reason: str) -> None:
    """Each client may have half of it."""
    request = request_of(pairs=LARGE).SerializeToString()
    with grpc.insecure_channel(busy.address, options=[("grpc.max_send_message_length", -1)]) as channel:
        call: Any = channel.unary_unary(EVALUATE)
        computing = [call.future(request, metadata=bearer(TOKENS[name])) for name in asking]
        wait_until(lambda: busy.total("boxloss_waiting_pairs") >= len(asking) * LARGE, "large requests are computed")
        row = failure(busy, request_of().SerializeToString(), client="alice")
        for each in computing:
            each.cancel()
    wait_until(lambda: busy.total("boxloss_waiting_pairs") == 0, "they are over")
    assert row.reason == reason
    assert row in rows()


def test_a_server_that_shuts_down() -> None:
    with ServerProcess("--compile=off") as server, grpc.insecure_channel(server.address) as channel:
        ends = threading.Event()

        def messages() -> Iterator[bytes]:
            yield loss_service_pb2.EvaluateStreamRequest(request=request_of()).SerializeToString()
            ends.wait()

        stream: Any = channel.stream_stream(STREAM)
        answers = stream(messages())
        next(answers)
        server.terminate()
        with pytest.raises(grpc.RpcError) as failed:
            next(answers)
        ends.set()
        row = row_of(failed.value)
        assert row.reason == "UNAVAILABLE"
        assert row in rows()


def test_errors_of_grpc_itself_carry_no_reason(faulty: ServerProcess, busy: ServerProcess) -> None:
    request = request_of().SerializeToString()
    too_large = bytes(MESSAGE_BYTES + 1)
    caused = [
        failure(faulty, too_large),
        failure(faulty, request_of(pairs=1000).SerializeToString(), options=[("grpc.max_receive_message_length", 100)]),
        failure(busy, request_of(pairs=LARGE).SerializeToString(), timeout=0.2),
        failure(faulty, request, method="/boxloss.v1.LossService/Divine"),
    ]
    wait_until(lambda: busy.total("boxloss_waiting_pairs") == 0, "it is over")
    assert {row.reason for row in caused} == {""}
    assert {row.code for row in caused} | {"CANCELLED", "UNAVAILABLE"} == {code for code, _ in of_grpc()}
