"""What fuzzing found, over the real socket: each of these once ended a call, or the server, in another way."""

from __future__ import annotations

from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc.status_pb2 import Status

import boxloss
from boxloss import BalancedL1, BoundedIoU, Focaler, InvalidInputError, IoU
from boxloss.contract.bulk import field
from boxloss.v1 import loss_pb2, loss_service_pb2
from boxloss.v1.array_pb2 import Array
from boxloss.v1.loss_service_pb2 import EvaluateRequest, EvaluateStreamRequest, ImageSize, PairwiseIouRequest
from boxloss.v1.loss_service_pb2_grpc import LossServiceStub
from boxloss_server.service.bulk import reader
from tests.servers import ServerProcess, endings, wait_until

BOXES = Array(data=np.array([0, 0, 4, 4], "<f4").tobytes())
BULKY = Array(data=bytes(2**17))
MPDIOU = loss_pb2.Loss(mpdiou=loss_pb2.Mpdiou())
GWD = loss_pb2.Loss(gwd=loss_pb2.Gwd())


def request(**changes: Any) -> EvaluateRequest:
    fields: dict[str, Any] = {"predictions": BOXES, "targets": BOXES, "losses": [MPDIOU]}
    return EvaluateRequest(**(fields | changes))


def ending(server: ServerProcess, method: str, data: bytes) -> tuple[grpc.StatusCode, str]:
    with grpc.insecure_channel(server.address, [("grpc.max_send_message_length", -1)]) as channel:
        calling: Any = channel.unary_unary(method)
        with pytest.raises(grpc.RpcError) as failure:
            calling(data)
    error: Any = failure.value
    return error.code(), error.details()


def refusal(server: ServerProcess, data: bytes, method: str = "Evaluate") -> tuple[grpc.StatusCode, str]:
    return ending(server, f"/boxloss.v1.LossService/{method}", data)


@pytest.mark.parametrize("size", [(1e200, 1.0), (1e-200, 1e-200)], ids=["overflow", "underflow"])
def test_an_image_size_whose_square_is_no_number_is_invalid(server: ServerProcess, size: tuple[float, float]) -> None:
    image = ImageSize(width=size[0], height=size[1])
    code, message = refusal(server, request(image_size=image).SerializeToString())
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "width and height must be above 0, 1e-15 to 1e+15" in message


def test_losses_nested_without_end_are_invalid(server: ServerProcess) -> None:
    """A Python stack is shorter than what a bulky message can nest."""
    data = bytes(2**17)
    for _ in range(3000):
        data = b"".join(field(22, *field(1, data)))
    code, message = refusal(server, b"".join(field(7, data)), "PairwiseIou")
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "not a message of the contract" in message


@pytest.mark.parametrize("method", ["Evaluate", "EvaluateStream", "PairwiseIou", "ListLosses"])
def test_millions_of_unknown_fields_are_refused_and_not_told_one_by_one(server: ServerProcess, method: str) -> None:
    """Telling them took ten seconds and a gigabyte, during which nobody else was served."""
    code, message = refusal(server, b"\xc0\x3e\x01" * 2**22, method)
    assert code is grpc.StatusCode.UNIMPLEMENTED
    assert message == f"field 1000: is not known to this version of {method}Request; upgrade the server"


def test_a_message_of_many_fields_is_left_to_protobuf() -> None:
    """Python would take a minute for what protobuf reads at once."""
    many = request(predictions=BULKY).SerializeToString() + b"\x78\x01" * 300
    received = reader(EvaluateRequest)(many)
    assert received.bulk == {}
    assert received.message == EvaluateRequest.FromString(many)


@pytest.mark.parametrize("head", [b"\x8a\x80\x80\x80\x80\x00", b"\x8a\x80\x80\x80\x10"], ids=["overlong", "too large"])
def test_a_tag_that_protobuf_does_not_take_is_left_to_it(head: bytes) -> None:
    content = BULKY.SerializeToString()
    data = head + b"".join(field(1, content))[1:]
    with pytest.raises(Exception, match="parsing message"):
        EvaluateRequest.FromString(data)
    with pytest.raises(Exception, match="parsing message"):
        reader(EvaluateRequest)(data)


def test_more_faults_than_trailers_hold_are_counted(server: ServerProcess, stub: LossServiceStub) -> None:
    """GRPC's clients drop a call with trailers of more than 16 KiB, and may from 8 KiB on."""
    code, message = refusal(server, request(losses=[GWD] * 64, similarities=True).SerializeToString())
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert message.startswith("losses[0].gwd: is not defined for axis-aligned boxes")
    assert message.endswith("more faults; correct these first")
    assert len(message) < 2**12


def test_a_shortened_error_still_tells_which_message_of_a_stream(stub: LossServiceStub) -> None:
    good, bad = request(losses=[loss_pb2.Loss(giou=loss_pb2.Giou())]), request(losses=[GWD] * 64)
    with pytest.raises(grpc.RpcError) as failure:
        list(stub.EvaluateStream(iter([EvaluateStreamRequest(request=each) for each in (good, good, bad)])))
    error: Any = failure.value
    status = Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"])
    assert b"message" in status.details[0].value
    assert b"2" in status.details[0].value


def test_the_health_of_an_unknown_service_is_no_fault_of_the_server() -> None:
    with ServerProcess() as server:
        code, _ = ending(server, "/grpc.health.v1.Health/Check", b"\n\1x")
        assert code is grpc.StatusCode.NOT_FOUND
        wait_until(lambda: endings(server, "Check") == {"NOT_FOUND": 1}, "the call is counted")
        server.stop()
        assert not [line for line in server.log if line.get("level") == "error"]


def test_a_watch_that_cannot_be_read_is_invalid(server: ServerProcess) -> None:
    with grpc.insecure_channel(server.address) as channel:
        watch: Any = channel.unary_stream("/grpc.health.v1.Health/Watch")
        with pytest.raises(grpc.RpcError) as failure:
            next(watch(b"\xff"))
        answers = watch(b"")
        assert next(answers) == b"\x08\x01"
        answers.cancel()
    error: Any = failure.value
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_balanced_l1_is_not_steeper_than_numbers_hold(stub: LossServiceStub) -> None:
    with pytest.raises(InvalidInputError, match="gamma: 41 is more than 80 times alpha"):
        BalancedL1(gamma=41)
    steepest = loss_pb2.Loss(balanced_l1=loss_pb2.BalancedL1(gamma=40))
    far = Array(data=np.array([0, 0, 4, 1e15], "<f4").tobytes())
    response = stub.Evaluate(request(losses=[steepest], predictions=far, prediction_gradients=True))
    for array in (response.results[0].loss, response.results[0].prediction_gradient):
        assert np.isfinite(np.frombuffer(array.data, "<f4")).all()


def test_focalers_range_is_as_wide_as_numbers_tell(stub: LossServiceStub) -> None:
    with pytest.raises(InvalidInputError, match="upper: 1e-09 is not above lower, 0, by 1e-06 or more"):
        Focaler(IoU(), lower=0, upper=1e-9)
    apart = Array(data=np.array([5, 5, 6, 6], "<f4").tobytes())
    base = loss_pb2.Loss(iou=loss_pb2.Iou())
    narrowest = loss_pb2.Loss(focaler=loss_pb2.Focaler(base=base, lower=0, upper=1e-6))
    response = stub.Evaluate(request(losses=[narrowest], predictions=apart, prediction_gradients=True))
    for array in (response.results[0].loss, response.results[0].prediction_gradient):
        assert np.isfinite(np.frombuffer(array.data, "<f4")).all()


def test_a_signalling_nan_is_refused_without_a_warning() -> None:
    signalling = np.array([0x7FF0000000000001, 0, 0, 0], "<u8").tobytes()
    good = request(predictions=None, losses=[loss_pb2.Loss(giou=loss_pb2.Giou())])
    with ServerProcess() as server:
        data = b"".join(field(1, b"".join(field(2, signalling)))) + good.SerializeToString()
        code, message = refusal(server, data)
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert "predictions: row 0 is not finite" in message
        server.stop()
        assert "Warning" not in str(server.log)


def test_arrays_are_found_in_nothing_but_requests() -> None:
    bulky = PairwiseIouRequest(a=BULKY, b=BOXES, similarity=MPDIOU)
    assert set(reader(PairwiseIouRequest)(bulky.SerializeToString()).bulk) == {"a"}
    streamed = EvaluateStreamRequest(request=request(targets=BULKY))
    assert set(reader(EvaluateStreamRequest)(streamed.SerializeToString()).bulk) == {"targets"}
    assert reader(loss_service_pb2.ListLossesRequest)(b"").bulk == {}


@pytest.mark.parametrize("gradients", [False, True])
def test_the_bounded_iou_of_the_least_width_is_a_number(client: boxloss.Client, gradients: bool) -> None:
    least = np.finfo("f4").tiny
    narrow, wide = (np.array([[0, 0, width, 4]], "f4") for width in (least, 4))
    for predictions, targets in ((narrow, wide), (wide, narrow)):
        result = client.evaluate(predictions, targets, BoundedIoU(), gradients=gradients)
        assert np.isfinite(result.loss).all()
        assert result.gradient is None or np.isfinite(result.gradient).all()
