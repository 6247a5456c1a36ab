"""The SDK and a server that is broken or hostile: every call ends in a result that fits, or in a boxloss error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.any_pb2 import Any as Packed
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

import boxloss
from boxloss import BoxlossError, CIoU, GIoU, ServerError
from boxloss.v1.array_pb2 import DTYPE_FLOAT64, Array
from boxloss.v1.loss_service_pb2 import (
    EvaluateResponse,
    EvaluateStreamResponse,
    Limits,
    ListLossesResponse,
    LossResult,
    PairwiseIouResponse,
)
from tests.fuzz.mutation import altered

A, B = np.array([[0, 0, 4, 4], [1, 1, 3, 3.0]]), np.array([[1, 2, 5, 8], [1, 1, 3, 4.0]])
NUMBERS = Array(data=np.array([0.5, 0.25]).tobytes())
SLOPES = Array(data=np.zeros(8).tobytes())
MUTANTS = 400


class HostileServer(grpc.GenericRpcHandler):
    """A gRPC server that answers every call with the bytes, or the status, that it is told to."""

    def __init__(self) -> None:
        self.answers: dict[str, bytes] = {}
        self.status: tuple[grpc.StatusCode, bytes] | None = None
        self._server = grpc.server(ThreadPoolExecutor(4))
        self._server.add_generic_rpc_handlers((self,))
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def service(self, call: grpc.HandlerCallDetails) -> Any:
        name = call.method.rpartition("/")[2]
        if name == "EvaluateStream":
            return grpc.stream_stream_rpc_method_handler(lambda requests, context: self._stream(requests, context))
        return grpc.unary_unary_rpc_method_handler(lambda request, context: self._answer(name, context))

    def stop(self) -> None:
        self._server.stop(None).wait()

    def _stream(self, requests: Any, context: grpc.ServicerContext) -> Iterator[bytes]:
        for _ in requests:
            yield self._answer("EvaluateStream", context)

    def _answer(self, name: str, context: grpc.ServicerContext) -> bytes:
        if self.status and name != "ListLosses":
            context.set_trailing_metadata((("grpc-status-details-bin", self.status[1]),))
            context.abort(self.status[0], "as told")
        return self.answers[name]


def evaluation(**changes: Any) -> EvaluateResponse:
    fields: dict[str, Any] = {
        "results": [LossResult(loss=NUMBERS, prediction_gradient=SLOPES)],
        "iou": NUMBERS,
        "dtype": "DTYPE_FLOAT64",
    }
    return EvaluateResponse(**(fields | changes))


GOOD: dict[str, bytes] = {
    "ListLosses": ListLossesResponse(limits=Limits(message_bytes=2**20, request_pairs=2**10)).SerializeToString(),
    "Evaluate": evaluation().SerializeToString(),
    "EvaluateStream": EvaluateStreamResponse(response=evaluation()).SerializeToString(),
    "PairwiseIou": PairwiseIouResponse(
        matrix=Array(data=np.zeros(4).tobytes()), dtype=DTYPE_FLOAT64
    ).SerializeToString(),
}

ASK: dict[str, Callable[[Any], Any]] = {
    "ListLosses": lambda client: client.info(),
    "Evaluate": lambda client: client.evaluate(A, B, CIoU(), gradients=True),
    "Evaluate alone": lambda client: client.evaluate(A, B, CIoU(), gradients=True, crowd=[True, False]),
    "EvaluateStream": lambda client: next(iter(client.evaluate_stream([(A, B)], CIoU(), gradients=True))),
    "PairwiseIou": lambda client: client.pairwise_iou(A, B),
}


@pytest.fixture
def hostile() -> Iterator[HostileServer]:
    server = HostileServer()
    server.answers |= GOOD
    yield server
    server.stop()


@pytest.fixture
def connected(hostile: HostileServer) -> Iterator[boxloss.Client]:
    with boxloss.Client(hostile.address, timeout=10) as client:
        yield client


def shapes(answer: Any) -> Any:
    """What a caller relies on."""
    if isinstance(answer, boxloss.LossResult):
        assert answer.gradient is not None
        return answer.loss.shape, answer.gradient.shape, answer.iou.shape, answer.valid.shape
    return answer.shape if isinstance(answer, np.ndarray) else None


EXPECTED = dict.fromkeys(ASK, ((2,), (2, 4), (2,), (2,))) | {"PairwiseIou": (2, 2), "ListLosses": None}


@pytest.mark.parametrize("call", ASK)
def test_a_good_answer_is_a_result(connected: boxloss.Client, call: str) -> None:
    assert shapes(ASK[call](connected)) == EXPECTED[call]


BROKEN = {
    "nothing": EvaluateResponse(),
    "no dtype": evaluation(dtype=0),
    "a dtype of a newer server": evaluation(dtype=99),
    "half precision": evaluation(dtype="DTYPE_FLOAT16"),
    "too few results": evaluation(results=[]),
    "too many results": evaluation(results=[LossResult(loss=NUMBERS, prediction_gradient=SLOPES)] * 2),
    "no gradient": evaluation(results=[LossResult(loss=NUMBERS)]),
    "no IoU": evaluation(iou=None),
    "too few losses": evaluation(results=[LossResult(loss=Array(data=bytes(8)), prediction_gradient=SLOPES)]),
    "losses cut": evaluation(results=[LossResult(loss=Array(data=bytes(15)), prediction_gradient=SLOPES)]),
    "losses as plain numbers": evaluation(results=[LossResult(loss=Array(values=[1, 2]), prediction_gradient=SLOPES)]),
    "a masked row that is not there": evaluation(masked_rows=[2]),
    "a masked row before the first": evaluation(masked_rows=[-1]),
}


@pytest.mark.parametrize("call", [name for name in ASK if name.startswith("Evaluate")])
@pytest.mark.parametrize("fault", BROKEN)
def test_an_answer_that_does_not_fit_is_the_servers_fault(
    hostile: HostileServer, connected: boxloss.Client, call: str, fault: str
) -> None:
    hostile.answers["Evaluate"] = BROKEN[fault].SerializeToString()
    hostile.answers["EvaluateStream"] = EvaluateStreamResponse(response=BROKEN[fault]).SerializeToString()
    with pytest.raises(ServerError, match=r"the server answered with .*; is it a boxloss server"):
        ASK[call](connected)


def test_a_matrix_of_another_shape_is_the_servers_fault(hostile: HostileServer, connected: boxloss.Client) -> None:
    hostile.answers["PairwiseIou"] = PairwiseIouResponse(dtype=DTYPE_FLOAT64).SerializeToString()
    with pytest.raises(ServerError, match="where \\(2, 2\\) numbers are due"):
        connected.pairwise_iou(A, B)


def test_a_server_without_limits_is_told_apart(hostile: HostileServer, connected: boxloss.Client) -> None:
    hostile.answers["ListLosses"] = b""
    with pytest.raises(ServerError, match="a catalogue without limits"):
        connected.evaluate(A, B, CIoU())


def test_callers_that_ride_together_get_no_others_rows(hostile: HostileServer, connected: boxloss.Client) -> None:
    """The answer is for two pairs, whatever the message held."""
    with ThreadPoolExecutor(16) as callers:

        def ask(_: int) -> Any:
            try:
                return shapes(connected.evaluate(A, B, GIoU(), gradients=True))
            except ServerError:
                return None

        endings = set(callers.map(ask, range(200)))
    assert endings <= {None, EXPECTED["Evaluate"]}


@pytest.mark.parametrize("call", ASK)
def test_mutated_answers_are_results_that_fit_or_boxloss_errors(
    hostile: HostileServer, connected: boxloss.Client, call: str
) -> None:
    random = Random(call)
    endings = set()
    for _ in range(MUTANTS):
        name = call.partition(" ")[0]
        hostile.answers[name] = altered(GOOD[name], random)
        try:
            assert shapes(ASK[call](connected)) == EXPECTED[call]
            endings.add("result")
        except BoxlossError:
            endings.add("error")
    assert endings == {"result", "error"}


async def test_mutated_answers_are_no_other_errors_to_asyncio(hostile: HostileServer) -> None:
    random = Random(1)
    async with boxloss.AsyncClient(hostile.address, timeout=10) as client:
        endings = set()
        for _ in range(MUTANTS):
            hostile.answers["Evaluate"] = altered(GOOD["Evaluate"], random)
            hostile.answers["EvaluateStream"] = altered(GOOD["EvaluateStream"], random)
            try:
                assert shapes(await client.evaluate(A, B, CIoU(), gradients=True)) == EXPECTED["Evaluate"]
                async for result in client.evaluate_stream([(A, B)], CIoU(), gradients=True):
                    assert shapes(result) == EXPECTED["EvaluateStream"]
                endings.add("result")
            except BoxlossError:
                endings.add("error")
        assert endings == {"result", "error"}


def details(*messages: Any) -> bytes:
    packed = [Packed() for _ in messages]
    for each, message in zip(packed, messages, strict=True):
        each.Pack(message)
    status: bytes = Status(code=3, message="as told", details=packed).SerializeToString()
    return status


@pytest.mark.parametrize("code", ["INVALID_ARGUMENT", "UNIMPLEMENTED", "INTERNAL", "DATA_LOSS", "DEADLINE_EXCEEDED"])
def test_errors_with_mutated_details_are_boxloss_errors(
    hostile: HostileServer, connected: boxloss.Client, code: str
) -> None:
    random = Random(code)
    good = details(ErrorInfo(reason="INVALID_INPUT", domain="boxloss"), RetryInfo(retry_delay=Duration(seconds=1)))
    for _ in range(MUTANTS // 4):
        hostile.status = grpc.StatusCode[code], altered(good, random)
        with pytest.raises(BoxlossError):
            connected.evaluate(A, B, CIoU(), gradients=True)


def test_a_busy_server_that_asks_for_calls_in_the_past_is_asked_again(hostile: HostileServer) -> None:
    hostile.status = grpc.StatusCode.RESOURCE_EXHAUSTED, details(RetryInfo(retry_delay=Duration(seconds=-5)))
    with (
        boxloss.Client(hostile.address, timeout=0.5) as client,
        pytest.raises((boxloss.ServerBusyError, boxloss.DeadlineExceededError)),
    ):
        client.evaluate(A, B, CIoU())
