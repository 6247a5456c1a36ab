"""Traces of real processes, as a real receiver gets them: who called whom, and where the time went."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from boxloss import CIoU, GIoU
from boxloss.contract import wire
from boxloss.v1 import array_pb2
from boxloss.v1.loss_service_pb2 import EvaluateRequest, EvaluateStreamRequest, ListLossesRequest, PairwiseIouRequest
from boxloss.v1.loss_service_pb2_grpc import LossServiceStub
from boxloss_server import __version__
from tests.receiver import Receiver, Span
from tests.servers import ServerProcess, free_port

STAGES = ["queue", "copy", "compute", "answer"]
TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLER = "b7ad6b7169203331"
SAMPLED = (("traceparent", f"00-{TRACE}-{CALLER}-01"),)
NOT_SAMPLED = (("traceparent", f"00-{TRACE}-{CALLER}-00"),)
SERVER, INTERNAL = 2, 1
UNSET, ERROR = 0, 2
EXEMPLARY = {"grpc_server_handling_seconds", "boxloss_queue_seconds", "boxloss_compute_seconds"}
BOXES = array_pb2.Array(data=np.array([0, 0, 4, 4], "<f4").tobytes())


def request(**changes: Any) -> EvaluateRequest:
    fields: dict[str, Any] = {"predictions": BOXES, "targets": BOXES, "losses": [wire.loss_to_message(CIoU())]}
    return EvaluateRequest(**(fields | changes))


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiving:
        yield receiving


@pytest.fixture(scope="module")
def traced(receiver: Receiver) -> Iterator[ServerProcess]:
    with ServerProcess("--tracing", environment=receiver.variables) as server:
        yield server


@pytest.fixture
def tracing(traced: ServerProcess) -> Iterator[LossServiceStub]:
    with grpc.insecure_channel(traced.address) as channel:
        yield LossServiceStub(channel)


def of(trace: str, calls: int = 1) -> Callable[[list[Span]], bool]:
    """Whether so many calls of a trace have been received; their spans are sent last."""
    return lambda spans: sum(span.trace == trace and span.kind == SERVER for span in spans) == calls


def below(parent: Span, spans: list[Span]) -> list[Span]:
    """The spans below another, by when they start."""
    return sorted((span for span in spans if span.parent == parent.id), key=lambda span: span.start)


def new_trace() -> str:
    return os.urandom(16).hex()


def caller_of(trace: str) -> tuple[tuple[str, str], ...]:
    return (("traceparent", f"00-{trace}-{CALLER}-01"),)


def test_a_call_is_below_its_caller_and_above_its_stages(tracing: LossServiceStub, receiver: Receiver) -> None:
    trace = new_trace()
    execution = tracing.Evaluate(request(), metadata=caller_of(trace)).execution
    spans = [span for span in receiver.until(of(trace)) if span.trace == trace]
    (call,) = (span for span in spans if span.kind == SERVER)
    assert call.name == "boxloss.v1.LossService/Evaluate"
    assert call.parent == CALLER
    assert call.status == UNSET
    port = call.attributes.pop("network.peer.port")
    assert 0 < port < 2**16
    assert call.attributes == {
        "rpc.system.name": "grpc",
        "rpc.method": "boxloss.v1.LossService/Evaluate",
        "rpc.response.status_code": "OK",
        "network.peer.address": "127.0.0.1",
    }
    assert call.resource["service.name"] == "boxloss-server"
    assert call.resource["service.version"] == __version__

    stages = below(call, spans)
    assert [stage.name for stage in stages] == STAGES
    assert len(spans) == 5
    queue, copy, compute, answer = stages
    assert call.start <= queue.start
    assert queue.end == copy.start
    assert copy.end == compute.start
    assert compute.end == answer.start
    assert answer.end <= call.end
    assert queue.end - queue.start == pytest.approx(execution.queue_time.ToNanoseconds(), abs=2)
    assert compute.end - copy.start == pytest.approx(execution.compute_time.ToNanoseconds(), abs=4)
    for stage in copy, compute:
        assert stage.attributes == {"boxloss.batch.requests": 1, "boxloss.batch.pairs": 1}
    assert {stage.kind for stage in stages} == {INTERNAL}


def test_requests_that_share_a_batch_say_so(tracing: LossServiceStub, receiver: Receiver) -> None:
    trace = new_trace()
    box_format = "BOX_FORMAT_CXCYWHA_RADIANS"
    boxes = array_pb2.Array(data=np.tile(np.array([0, 0, 4, 4, 0.3], "<f4"), (2**17, 1)).tobytes())
    losses = [wire.loss_to_message(GIoU())]
    slow = request(predictions=boxes, targets=boxes, losses=losses, box_format=box_format)
    calls = [tracing.Evaluate.future(slow, metadata=caller_of(trace)) for _ in range(3)]
    batches = [call.result().execution for call in calls]
    spans = receiver.until(of(trace, 3))
    told = [
        (stage.attributes["boxloss.batch.requests"], stage.attributes["boxloss.batch.pairs"])
        for stage in spans
        if stage.trace == trace and stage.name == "compute"
    ]
    assert sorted(told) == sorted((each.batch_request_count, each.batch_pair_count) for each in batches)
    assert max(told) > (1, 2**17)


def test_a_matrix_has_stages_and_the_catalogue_has_none(tracing: LossServiceStub, receiver: Receiver) -> None:
    trace = new_trace()
    tracing.PairwiseIou(PairwiseIouRequest(a=BOXES, b=BOXES), metadata=caller_of(trace))
    tracing.ListLosses(ListLossesRequest(), metadata=caller_of(trace))
    spans = receiver.until(of(trace, 2))
    found = {span.name: [stage.name for stage in below(span, spans)] for span in spans if span.trace == trace}
    assert found.pop("boxloss.v1.LossService/PairwiseIou") == STAGES
    assert found.pop("boxloss.v1.LossService/ListLosses") == []


def test_each_message_of_a_stream_has_a_span(tracing: LossServiceStub, receiver: Receiver) -> None:
    trace = new_trace()
    messages = [EvaluateStreamRequest(request=request()) for _ in range(3)]
    bad = EvaluateStreamRequest(request=request(losses=[]))
    with pytest.raises(grpc.RpcError):
        list(tracing.EvaluateStream(iter([*messages, bad]), metadata=caller_of(trace)))
    spans = receiver.until(of(trace))
    (call,) = (span for span in spans if span.trace == trace and span.kind == SERVER)
    assert call.attributes["rpc.method"] == "boxloss.v1.LossService/EvaluateStream"
    assert call.attributes["rpc.response.status_code"] == "INVALID_ARGUMENT"
    children = below(call, spans)
    assert [span.name for span in children] == ["message"] * 4
    assert [span.attributes["boxloss.message.number"] for span in children] == [0, 1, 2, 3]
    codes = [span.attributes["rpc.response.status_code"] for span in children]
    assert codes == ["OK", "OK", "OK", "INVALID_ARGUMENT"]
    for span in children:
        stages = below(span, spans)
        assert [stage.name for stage in stages] == (STAGES if span is not children[-1] else [])
        assert all(span.start <= stage.start <= stage.end <= span.end for stage in stages)


def test_only_faults_of_the_server_are_errors(tracing: LossServiceStub, receiver: Receiver) -> None:
    trace = new_trace()
    for wrong in (request(losses=[]), request(box_format=99)):
        with pytest.raises(grpc.RpcError):
            tracing.Evaluate(wrong, metadata=caller_of(trace))
    spans = receiver.until(of(trace, 2))
    found = {span.attributes["rpc.response.status_code"]: span for span in spans if span.trace == trace}
    assert found["INVALID_ARGUMENT"].status == UNSET
    assert found["UNIMPLEMENTED"].status == ERROR
    assert found["UNIMPLEMENTED"].attributes["error.type"] == "UNIMPLEMENTED"


def test_a_call_without_a_trace_begins_one(tracing: LossServiceStub, receiver: Receiver) -> None:
    tracing.Evaluate(request(), metadata=(("traceparent", "nonsense"),))
    tracing.Evaluate(request())
    spans = receiver.until(lambda spans: sum(span.kind == SERVER and not span.parent for span in spans) >= 2)
    roots = [span for span in spans if span.kind == SERVER and not span.parent]
    assert len({span.trace for span in roots}) == len(roots)


def test_callers_decide_what_is_sampled(tracing: LossServiceStub, receiver: Receiver) -> None:
    ignored, trace = new_trace(), new_trace()
    tracing.Evaluate(request(), metadata=(("traceparent", f"00-{ignored}-{CALLER}-00"),))
    tracing.Evaluate(request(), metadata=caller_of(trace))
    spans = receiver.until(of(trace))
    assert not [span for span in spans if span.trace == ignored]


def test_health_checks_are_not_traced(traced: ServerProcess, tracing: LossServiceStub, receiver: Receiver) -> None:
    health, trace = new_trace(), new_trace()
    with grpc.insecure_channel(traced.address) as channel:
        checks: Any = health_pb2_grpc.HealthStub(channel)
        assert checks.Check(health_pb2.HealthCheckRequest(), metadata=caller_of(health)).status
    tracing.Evaluate(request(), metadata=caller_of(trace))
    assert not [span for span in receiver.until(of(trace)) if span.trace == health]


def exemplars(url: str) -> dict[str, set[str]]:
    """The traces that are examples of each metric."""
    accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
    with urllib.request.urlopen(urllib.request.Request(url, headers=accept)) as response:
        text = response.read().decode()
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):  # type: ignore[no-untyped-call]
        for sample in family.samples:
            if sample.exemplar:
                assert set(sample.exemplar.labels) == {"trace_id"}
                found.setdefault(family.name, set()).add(sample.exemplar.labels["trace_id"])
    return found


@pytest.mark.parametrize("flags", [[], ["--processes=2"]], ids=["one process", "two processes"])
def test_sampled_calls_are_examples_of_their_metrics(flags: list[str], receiver: Receiver) -> None:
    with (
        ServerProcess("--tracing", *flags, environment=receiver.variables) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        stub = LossServiceStub(channel)
        stub.Evaluate(request(), metadata=NOT_SAMPLED)
        assert exemplars(server.metrics_url) == {}
        trace = new_trace()
        stub.Evaluate(request(), metadata=caller_of(trace))
        assert exemplars(server.metrics_url) == {name: {trace} for name in EXEMPLARY}
        with urllib.request.urlopen(server.metrics_url) as response:  # As plain text, which has no exemplars.
            assert trace.encode() not in response.read()
    receiver.until(of(trace))


def test_without_being_asked_to_a_server_traces_nothing(server: ServerProcess) -> None:
    with grpc.insecure_channel(server.address) as channel:
        LossServiceStub(channel).Evaluate(request(), metadata=SAMPLED)
    assert exemplars(server.metrics_url) == {}


def test_a_server_serves_and_ends_where_no_receiver_answers() -> None:
    nobody = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{free_port()}", "OTEL_EXPORTER_OTLP_TIMEOUT": "1"}
    with ServerProcess("--tracing", environment=nobody) as server:
        with grpc.insecure_channel(server.address) as channel:
            assert LossServiceStub(channel).Evaluate(request(), metadata=SAMPLED).results
        assert server.stop() == 0
    complaints = [line for line in server.log if line["event"] == "tracing"]
    assert complaints
    assert all("export" in line["message"] for line in complaints)
    assert server.log[-1]["event"] == "stopped"


@pytest.mark.parametrize("flags", [[], ["--processes=2"]], ids=["one process", "two processes"])
@pytest.mark.parametrize("missing", ["opentelemetry", "opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.grpc"])
def test_without_the_extra_the_flag_is_refused(missing: str, flags: list[str]) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; from boxloss_server.__main__ import main; main()"
    command = [sys.executable, "-c", code, "--port=0", "--metrics-port=0", "--tracing", *flags]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == 2
    assert ended.stderr.startswith("boxloss-server: --tracing: ")
    assert "pip install 'boxloss-server[tracing]'" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
