"""The service over a real port and the raw contract: answers, status codes and their details, metrics, health."""

from __future__ import annotations

import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

from boxloss.contract import wire
from boxloss.losses import CATALOGUE, CIoU
from boxloss.v1 import array_pb2, loss_pb2, loss_service_pb2
from boxloss.v1.loss_service_pb2_grpc import LossServiceStub
from tests.boxes import random_boxes
from tests.catalogue import LOSSES
from tests.servers import ServerProcess

Request = loss_service_pb2.EvaluateRequest
Array = array_pb2.Array
ImageSize = loss_service_pb2.ImageSize
CIOU = wire.loss_to_message(CIoU())


def packed(*numbers: float) -> Array:
    return Array(data=np.array(numbers, "<f4").tobytes())


def plain(*numbers: float) -> Array:
    return Array(values=numbers)


def request(**changes: Any) -> Request:
    fields: dict[str, Any] = {"predictions": packed(0, 0, 4, 4), "targets": packed(1, 2, 5, 8), "losses": [CIOU]}
    return Request(**(fields | changes))


def details(error: Any) -> dict[str, Any]:
    """The google.rpc details of a failed call, by their kind."""
    trailers: dict[str, Any] = dict(error.trailing_metadata())
    status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    assert status.message == error.details()
    found: dict[str, Any] = {}
    for detail in status.details:
        kind = detail.TypeName().removeprefix("google.rpc.")
        message = getattr(error_details_pb2, kind)()
        detail.Unpack(message)
        found[kind] = message
    return found


def refused(call: Callable[[], Any]) -> tuple[grpc.StatusCode, str, dict[str, Any]]:
    with pytest.raises(grpc.RpcError) as failure:
        call()
    error: Any = failure.value
    return error.code(), error.details(), details(error)


def test_a_packed_request_gets_a_packed_answer(stub: LossServiceStub) -> None:
    response = stub.Evaluate(request(prediction_gradients=True, target_gradients=True, iou=True))
    (result,) = response.results
    assert response.dtype == array_pb2.DTYPE_FLOAT32
    assert np.frombuffer(result.loss.data, "<f4") == pytest.approx([0.9361860890], abs=1e-6)
    assert np.frombuffer(result.prediction_gradient.data, "<f4") == pytest.approx(
        [-0.0197488, -0.0338933, -0.0593026, -0.1171292], abs=1e-6
    )
    assert len(result.target_gradient.data) == 16
    assert np.frombuffer(response.iou.data, "<f4") == pytest.approx([3 / 17])
    assert response.execution.batch_pair_count >= 1
    assert response.execution.compute_time.nanos > 0


def test_a_plain_request_gets_a_plain_answer(stub: LossServiceStub) -> None:
    response = stub.Evaluate(
        request(predictions=plain(0, 0, 4, 4), targets=plain(1, 2, 5, 8), dtype="DTYPE_FLOAT64", iou=True)
    )
    assert response.results[0].loss.values == pytest.approx([0.9361860890731847], abs=1e-15)
    assert response.iou.values == pytest.approx([3 / 17])
    assert not response.results[0].HasField("prediction_gradient")


def test_what_was_not_asked_for_is_not_sent(stub: LossServiceStub) -> None:
    response = stub.Evaluate(request())
    assert not response.HasField("iou")
    assert not response.results[0].HasField("prediction_gradient")
    assert not response.results[0].HasField("target_gradient")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_answered_in_single(stub: LossServiceStub, dtype: str) -> None:
    boxes = np.array([0, 0, 512, 512], "<f4"), np.array([0, 0, 512, 1024], "<f4")
    data = [
        each.astype("<f2").tobytes() if dtype == "float16" else (each.view("<u4") >> 16).astype("<u2").tobytes()
        for each in boxes
    ]
    response = stub.Evaluate(
        request(predictions=Array(data=data[0]), targets=Array(data=data[1]), dtype=f"DTYPE_{dtype.upper()}", iou=True)
    )
    assert response.dtype == array_pb2.DTYPE_FLOAT32
    assert np.frombuffer(response.iou.data, "<f4") == [0.5]


def test_several_losses_are_answered_in_their_order(stub: LossServiceStub) -> None:
    context: dict[str, Any] = {"image_size": ImageSize(width=640, height=480), "running_mean": 0.7}
    messages = [wire.loss_to_message(loss) for loss in LOSSES]
    response = stub.Evaluate(request(losses=messages, **context))
    assert len(response.results) == len(LOSSES)
    alone = [stub.Evaluate(request(losses=[message], **context)).results[0].loss.data for message in messages]
    assert [result.loss.data for result in response.results] == alone


def test_zero_pairs_are_a_valid_request(stub: LossServiceStub) -> None:
    response = stub.Evaluate(Request(losses=[CIOU], prediction_gradients=True, iou=True))
    assert response.results[0].loss.data == b""
    assert response.HasField("iou")
    mean = stub.Evaluate(Request(losses=[CIOU], reduction=loss_service_pb2.REDUCTION_MEAN))
    assert np.frombuffer(mean.results[0].loss.data, "<f4") == [0]


def test_masked_rows_are_listed(stub: LossServiceStub) -> None:
    response = stub.Evaluate(
        request(
            predictions=packed(0, 0, 4, 4, 4, 4, 0, 0, 0, 0, 1, float("nan")),
            targets=packed(1, 2, 5, 8, 0, 0, 1, 1, 0, 0, 1, 1),
            invalid_boxes="INVALID_BOXES_MASK",
        )
    )
    assert list(response.masked_rows) == [1, 2]
    assert np.isnan(np.frombuffer(response.results[0].loss.data, "<f4")).tolist() == [False, True, True]


def oriented(predictions: Array, **changes: Any) -> Request:
    fields: dict[str, Any] = {
        "predictions": predictions,
        "targets": packed(0, 0, 1, 1, 0),
        "losses": [loss_pb2.Loss(giou=loss_pb2.Giou())],
        "box_format": array_pb2.BOX_FORMAT_CXCYWHA_DEGREES,
    }
    return Request(**(fields | changes))


SQUARE = (0, 0, 1, 0, 1, 1, 0, 1)
NAN = float("nan")
BAD_REQUESTS = [
    (request(predictions=Array(data=b"123")), "predictions.data: has 3 bytes, which is no multiple of 4"),
    (
        request(predictions=packed(1, 2, 3)),
        "predictions: has 3 numbers, which is no multiple of 4; send 4 for each xyxy box",
    ),
    (request(targets=packed(*range(8))), "targets: has 2 boxes for 1 predictions; send one for each"),
    (request(predictions=Array(data=bytes(16), values=range(4))), "predictions: has both data and values"),
    (request(losses=[]), "losses: has 0 losses; ask for 1 to 64"),
    (request(losses=[CIOU] * 65), "losses: has 65 losses; ask for 1 to 64"),
    (request(losses=[CIOU, loss_pb2.Loss()]), "losses[1].kind: is not set; set one of l1, l2, smooth_l1"),
    (
        request(losses=[loss_pb2.Loss(smooth_l1=loss_pb2.SmoothL1(beta=-1))]),
        "losses[0].smooth_l1.beta: -1 is out of range; it must be above 0",
    ),
    (request(predictions=packed(4, 0, 0, 4)), "predictions: row 0 is inverted; xyxy needs left <= right"),
    (
        request(targets=packed(1, 2, 5, -8), box_format="BOX_FORMAT_XYWH"),
        "targets: row 0 is inverted; xywh needs width and height of 0 or more",
    ),
    (
        request(targets=packed(1, 2, -5, 8), box_format="BOX_FORMAT_CXCYWH"),
        "targets: row 0 is inverted; cxcywh needs width and height of 0 or more",
    ),
    (request(targets=packed(0, 0, NAN, 4)), "targets: row 0 is not finite, or beyond 1e+15; send finite numbers"),
    (request(targets=packed(0, 0, 1e16, 4)), "targets: row 0 is not finite, or beyond 1e+15; send finite numbers"),
    (
        request(predictions=packed(*[4, 0, 0, 4] * 8), targets=packed(*[0, 0, 1, 1] * 8)),
        "predictions: rows 0, 1, 2, 3, 4 and 3 more are inverted",
    ),
    (request(predictions=plain(0, 0, 1e300, 4)), "predictions: row 0 is not finite, or beyond 1e+15"),
    (
        request(losses=[loss_pb2.Loss(gwd=loss_pb2.Gwd())]),
        "losses[0].gwd: is not defined for axis-aligned boxes (xyxy)",
    ),
    (
        request(box_format="BOX_FORMAT_QUAD", predictions=packed(*SQUARE), targets=packed(*SQUARE)),
        "losses[0].ciou: is not defined for oriented boxes (quad)",
    ),
    (
        oriented(packed(0, 0, 1, 0, 0)),
        "predictions: row 0 is without size; oriented boxes need width and height above 0",
    ),
    (oriented(packed(0, 0, 1, 1)), "predictions: has 4 numbers, which is no multiple of 5; send 5 for each"),
    (
        oriented(packed(0, 0, 1, 1, 1, 0, 0, 1), box_format="BOX_FORMAT_QUAD", targets=packed(*SQUARE)),
        "predictions: row 0 is not convex; send the corners in their order",
    ),
    (
        oriented(packed(0, 0, 4, 0, 1, 1, 0, 4), box_format="BOX_FORMAT_QUAD", targets=packed(*SQUARE)),
        "predictions: row 0 is not convex; send the corners in their order",
    ),
    (request(losses=[loss_pb2.Loss(mpdiou=loss_pb2.Mpdiou())]), "image_size: is not set; mpdiou needs it"),
    (
        request(losses=[loss_pb2.Loss(mpdiou=loss_pb2.Mpdiou())], image_size=ImageSize(width=-1, height=1)),
        "image_size: is -1 x 1; width and height must be above 0",
    ),
    (request(losses=[loss_pb2.Loss(wiou=loss_pb2.Wiou(version=3))]), "running_mean: is not set; wiou needs it"),
    (
        request(losses=[loss_pb2.Loss(wiou=loss_pb2.Wiou(version=3))], running_mean=0),
        "running_mean: is 0; a mean of 1 - IoU is above 0 and at most 1",
    ),
    (
        request(losses=[loss_pb2.Loss(l1=loss_pb2.L1())], similarities=True),
        "losses[0].l1: has no similarity; ask for the loss",
    ),
    (request(losses=[loss_pb2.Loss(wiou=loss_pb2.Wiou(version=4))]), "losses[0].wiou.version: 4 is out of range"),
    (
        request(losses=[loss_pb2.Loss(inner=loss_pb2.Inner(base=loss_pb2.Loss(l2=loss_pb2.L2())))]),
        "losses[0].inner.base: L2(coordinates='corners') cannot be modified",
    ),
    (
        request(losses=[loss_pb2.Loss(focaler=loss_pb2.Focaler(base=CIOU, lower=0.6, upper=0.5))]),
        "losses[0].focaler.upper: 0.5 is not above lower, 0.6",
    ),
    (request(weights=packed(1, 2)), "weights: has 2 numbers for 1 predictions; send one for each"),
    (request(weights=packed(-1)), "weights: row 0 is negative; send numbers of 0 or more"),
    (request(weights=packed(NAN)), "weights: row 0 is not finite; send numbers of 0 or more"),
]


@pytest.mark.parametrize(("bad", "complaint"), BAD_REQUESTS, ids=[complaint for _, complaint in BAD_REQUESTS])
def test_a_bad_request_is_refused_by_the_field_at_fault(stub: LossServiceStub, bad: Request, complaint: str) -> None:
    code, message, found = refused(lambda: stub.Evaluate(bad))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert complaint in message
    assert (found["ErrorInfo"].domain, found["ErrorInfo"].reason) == ("boxloss", "INVALID_INPUT")
    (violation,) = found["BadRequest"].field_violations
    assert complaint.startswith(f"{violation.field}: {violation.description[:10]}")


def test_all_fields_at_fault_are_named_at_once(stub: LossServiceStub) -> None:
    bad = request(predictions=packed(4, 0, 0, 4), targets=packed(0, 0, NAN, 4))
    _, _, found = refused(lambda: stub.Evaluate(bad))
    assert [violation.field for violation in found["BadRequest"].field_violations] == ["predictions", "targets"]


@pytest.mark.parametrize(
    ("newer", "field"),
    [
        (Request.FromString(request().SerializeToString() + b"\xc0\x3e\x01"), "field 1000"),
        (request(predictions=Array.FromString(packed(0, 0, 4, 4).SerializeToString() + b"\xc0\x3e\x01")), "field 1000"),
        (request(losses=[loss_pb2.Loss.FromString(b"\xc2\x3e\x00")]), "losses[0].field 1000"),
        (Request.FromString(request().SerializeToString() + b"\x20\x63"), "dtype"),
        (Request.FromString(request().SerializeToString() + b"\x28\x63"), "box_format"),
        (Request.FromString(request().SerializeToString() + b"\x38\x63"), "reduction"),
        (Request.FromString(request().SerializeToString() + b"\x40\x63"), "invalid_boxes"),
    ],
    ids=["a field", "a field of an array", "a loss", "a dtype", "a format", "a reduction", "a mode"],
)
def test_what_a_newer_client_asks_is_unimplemented_never_ignored(
    stub: LossServiceStub, newer: Request, field: str
) -> None:
    code, message, found = refused(lambda: stub.Evaluate(newer))
    assert code == grpc.StatusCode.UNIMPLEMENTED
    assert found["ErrorInfo"].reason == "UNSUPPORTED"
    assert "upgrade" in message
    assert found["BadRequest"].field_violations[0].field == field


def test_bytes_that_are_no_message_are_invalid(server: ServerProcess) -> None:
    with grpc.insecure_channel(server.address) as channel:
        call: Any = channel.unary_unary("/boxloss.v1.LossService/Evaluate")
        code, message, _ = refused(lambda: call(b"\xff\xff\xff"))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert "not a message of the contract" in message


def test_a_request_over_the_pair_limit_names_the_limit(server: ServerProcess, stub: LossServiceStub) -> None:
    boxes = Array(data=bytes(16 * (2**19 + 1)))
    code, message, found = refused(lambda: stub.Evaluate(request(predictions=boxes, targets=boxes, losses=[CIOU] * 2)))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert found["ErrorInfo"].reason == "REQUEST_TOO_LARGE"
    assert "makes 1048578 pairs, and the limit is 1048576" in message


def test_matrices(stub: LossServiceStub) -> None:
    rows, columns = packed(0, 0, 2, 2, 0, 0, 1, 1), packed(0, 0, 2, 2)
    response = stub.PairwiseIou(loss_service_pb2.PairwiseIouRequest(a=rows, b=columns))
    assert np.frombuffer(response.matrix.data, "<f4").tolist() == [1.0, 0.25]
    masked = stub.PairwiseIou(
        loss_service_pb2.PairwiseIouRequest(
            a=plain(0, 0, 2, 2, 3, 0, 1, 1),
            b=plain(0, 0, 2, 2),
            metric=loss_service_pb2.IOU_METRIC_GIOU,
            invalid_boxes=loss_service_pb2.INVALID_BOXES_MASK,
        )
    )
    assert masked.matrix.values == pytest.approx([1.0, NAN], nan_ok=True)
    assert list(masked.masked_rows) == [1]
    empty = stub.PairwiseIou(loss_service_pb2.PairwiseIouRequest(a=rows))
    assert empty.matrix.data == b""
    code, message, _ = refused(
        lambda: stub.PairwiseIou(loss_service_pb2.PairwiseIouRequest(a=packed(2, 0, 1, 1), b=columns))
    )
    assert (code, message[:15]) == (grpc.StatusCode.INVALID_ARGUMENT, "a: row 0 is inv")


def test_the_catalogue_names_every_loss_with_parameters_ranges_and_defaults(stub: LossServiceStub) -> None:
    offer = stub.ListLosses(loss_service_pb2.ListLossesRequest())
    assert [loss.name for loss in offer.losses] == list(CATALOGUE)
    assert all(loss.title and loss.summary and loss.formula and loss.paper for loss in offer.losses)
    assert all(loss.blind_spots for loss in offer.losses)
    (alpha_iou,) = (loss for loss in offer.losses if loss.name == "alpha_iou")
    assert alpha_iou.axis_aligned
    assert alpha_iou.oriented
    assert [parameter.name for parameter in alpha_iou.parameters] == ["base", "alpha"]
    assert {"iou", "giou", "diou", "ciou", "eiou", "siou", "inner"} <= set(alpha_iou.parameters[0].choices)
    alpha = alpha_iou.parameters[1]
    assert (alpha.default_number, alpha.range.minimum, alpha.range.minimum_excluded, alpha.range.maximum) == (
        3,
        0,
        True,
        10,
    )
    assert (offer.limits.message_bytes, offer.limits.request_pairs) == (2**26, 2**20)
    assert len(offer.metrics) == 5
    assert offer.device == "cpu"


def stream(stub: LossServiceStub, *messages: Request | None) -> Iterator[loss_service_pb2.EvaluateStreamResponse]:
    return stub.EvaluateStream(loss_service_pb2.EvaluateStreamRequest(request=each) for each in messages)


def test_a_stream_answers_in_order(stub: LossServiceStub) -> None:
    rng = np.random.default_rng(30)
    requests = []
    for count in rng.integers(0, 50, 40):
        boxes = [Array(data=random_boxes(rng, count).astype("<f4").tobytes()) for _ in range(2)]
        requests.append(request(predictions=boxes[0], targets=boxes[1]))
    answers = list(stream(stub, *requests))
    alone = [stub.Evaluate(each).results[0].loss.data for each in requests]
    assert [answer.response.results[0].loss.data for answer in answers] == alone


def test_a_failing_message_ends_its_stream_after_the_answers_before_it(stub: LossServiceStub) -> None:
    answers = stream(stub, request(), request(), request(predictions=packed(4, 0, 0, 4)), request())
    assert next(answers).response.results
    assert next(answers).response.results
    code, message, found = refused(lambda: next(answers))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert "predictions: row 0 is inverted" in message
    assert found["ErrorInfo"].metadata["message"] == "2"


def test_a_stream_message_without_a_request_is_refused(stub: LossServiceStub) -> None:
    code, message, _ = refused(lambda: next(stream(stub, None)))
    assert (code, message[:21]) == (grpc.StatusCode.INVALID_ARGUMENT, "request: is not set; ")


def test_a_stream_message_that_is_none_of_the_contract_is_refused_after_the_answers_before_it(
    server: ServerProcess,
) -> None:
    good = loss_service_pb2.EvaluateStreamRequest(request=request()).SerializeToString()
    with grpc.insecure_channel(server.address) as channel:
        call: Any = channel.stream_stream("/boxloss.v1.LossService/EvaluateStream")
        answers = call(iter([good, good, b"\xff\xff\xff", good]))
        assert next(answers)
        assert next(answers)
        code, message, _ = refused(lambda: next(answers))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert "not a message of the contract" in message


def test_health_and_reflection_are_the_standard_ones(server: ServerProcess) -> None:
    with grpc.insecure_channel(server.address) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        for service in ("", "boxloss.v1.LossService"):
            status = health.Check(health_pb2.HealthCheckRequest(service=service)).status
            assert status == health_pb2.HealthCheckResponse.SERVING
        reflection: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        (answer,) = reflection.ServerReflectionInfo(
            iter([reflection_pb2.ServerReflectionRequest(file_containing_symbol="boxloss.v1.LossService")])
        )
    described = FileDescriptorProto.FromString(answer.file_descriptor_response.file_descriptor_proto[0])
    assert [method.name for method in described.service[0].method] == [
        "Evaluate",
        "EvaluateStream",
        "PairwiseIou",
        "ListLosses",
    ]


def scrape(url: str) -> dict[tuple[str, str], float]:
    """Every sample by its name and the values of its labels, in the order of their names."""
    with urllib.request.urlopen(url) as response:
        families = list(text_string_to_metric_families(response.read().decode()))
    return {
        (sample.name, " ".join(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def test_metrics_count_calls_batches_and_losses() -> None:
    with ServerProcess() as server, grpc.insecure_channel(server.address) as channel:
        stub = LossServiceStub(channel)
        for _ in range(3):
            stub.Evaluate(request())
        refused(lambda: stub.Evaluate(request(losses=[])))
        list(stream(stub, request()))
        samples = scrape(server.metrics_url)
    evaluate = "Evaluate boxloss.v1.LossService unary"
    assert samples["grpc_server_started_total", evaluate] == 4
    assert samples["grpc_server_handled_total", f"OK {evaluate}"] == 3
    assert samples["grpc_server_handled_total", f"INVALID_ARGUMENT {evaluate}"] == 1
    assert samples["grpc_server_handled_total", "OK EvaluateStream boxloss.v1.LossService bidi_stream"] == 1
    assert samples["grpc_server_handling_seconds_count", evaluate] == 4
    assert samples["boxloss_losses_total", "ciou"] == 4
    assert samples["boxloss_queue_seconds_count", ""] == 4
    assert samples["boxloss_batch_requests_sum", ""] == 4
    assert samples["boxloss_batch_pairs_sum", ""] == 4
    assert samples["boxloss_compute_seconds_count", ""] == samples["boxloss_batch_requests_count", ""]
    assert samples["boxloss_waiting_pairs", ""] == 0
