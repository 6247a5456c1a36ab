"""Traces that begin with a caller of the SDK and go on in the server, as a real receiver gets them."""

from __future__ import annotations

import asyncio
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

import boxloss
from boxloss import CIoU
from tests.receiver import Receiver, Span
from tests.servers import ServerProcess, free_port

A, B = [[0.0, 0.0, 4.0, 4.0]], [[1.0, 2.0, 5.0, 8.0]]
SERVER, CLIENT = 2, 3
ERROR = 2
EVALUATE = "boxloss.v1.LossService/Evaluate"

_program = trace.get_tracer("a program")


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiving:
        yield receiving


@pytest.fixture(scope="module")
def traced(receiver: Receiver) -> Iterator[ServerProcess]:
    """A server that traces; this program traces, too."""
    provider = TracerProvider(shutdown_on_exit=False)
    endpoint = receiver.variables["OTEL_EXPORTER_OTLP_ENDPOINT"]
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint), schedule_delay_millis=50))
    trace.set_tracer_provider(provider)
    with ServerProcess("--tracing", environment=receiver.variables) as server:
        yield server
    provider.shutdown()


def of(name: str, kind: int, count: int = 1) -> Callable[[list[Span]], bool]:
    """Whether so many spans have been received in traces that begin with a span of the program."""

    def received(spans: list[Span]) -> bool:
        return len(select(spans, name, kind)) == count

    return received


def select(spans: list[Span], name: str, kind: int) -> list[Span]:
    """The spans of a kind in the traces that begin with a span of this name."""
    traces = {span.trace for span in spans if span.name == name}
    return [span for span in spans if span.trace in traces and span.kind == kind]


def test_the_server_s_span_is_below_the_client_s_and_the_caller_s(traced: ServerProcess, receiver: Receiver) -> None:
    with boxloss.Client(traced.address, tracing=True) as client:
        client.info()
        with _program.start_as_current_span("train"):
            client.evaluate(A, B, CIoU())
    spans = receiver.until(of("train", SERVER))
    (caller,) = (span for span in spans if span.name == "train")
    (sent,), (answered,) = select(spans, "train", CLIENT), select(spans, "train", SERVER)
    assert sent.name == answered.name == EVALUATE
    assert sent.parent == caller.id
    assert answered.parent == sent.id
    assert sent.attributes == {
        "rpc.system.name": "grpc",
        "rpc.method": EVALUATE,
        "rpc.response.status_code": "OK",
    }
    assert sent.start <= answered.start
    assert answered.end <= sent.end


def test_matrices_and_streams_are_traced(traced: ServerProcess, receiver: Receiver) -> None:
    with boxloss.Client(traced.address, tracing=True) as client:
        client.info()
        with _program.start_as_current_span("label"):
            client.pairwise_iou(A, B)
            assert len(list(client.evaluate_stream([(A, B)] * 3, CIoU()))) == 3
    spans = receiver.until(of("label", SERVER, 2))
    sent = {span.id: span.name for span in select(spans, "label", CLIENT)}
    assert sorted(sent.values()) == ["boxloss.v1.LossService/EvaluateStream", "boxloss.v1.LossService/PairwiseIou"]
    for answered in select(spans, "label", SERVER):
        assert sent[answered.parent] == answered.name
    messages = [span for span in spans if span.name == "message" and span.parent in (s.id for s in spans)]
    assert len(messages) == 3


def check_shared(spans: list[Span], name: str, calls: int) -> int:
    """Every call is the parent of a message or linked to one, and only once; returns the messages."""
    callers = {(span.trace, span.id) for span in spans if span.name == name}
    sent = select(spans, name, CLIENT)
    asked = [(span.trace, span.parent) for span in sent] + [link for span in sent for link in span.links]
    assert len(callers) == len(asked) == calls
    assert set(asked) == callers
    assert sorted(span.parent for span in select(spans, name, SERVER)) == sorted(span.id for span in sent)
    return len(sent)


async def test_a_message_of_many_tasks_is_linked_to_all(traced: ServerProcess, receiver: Receiver) -> None:
    async def call(client: boxloss.AsyncClient) -> None:
        with trace.use_span(_program.start_span("task"), end_on_exit=True):
            await client.evaluate(A, B, CIoU())

    async with boxloss.AsyncClient(traced.address, tracing=True) as client:
        await client.info()
        await asyncio.gather(*(call(client) for _ in range(32)))
    spans = await asyncio.to_thread(receiver.until, complete("task", 32))
    assert check_shared(spans, "task", 32) < 32


def test_a_message_of_many_threads_is_linked_to_all(traced: ServerProcess, receiver: Receiver) -> None:
    def call(client: boxloss.Client) -> None:
        with _program.start_as_current_span("thread"):
            client.evaluate(A, B, CIoU())

    with boxloss.Client(traced.address, tracing=True) as client, ThreadPoolExecutor(8) as threads:
        client.info()
        list(threads.map(call, [client] * 100))
    check_shared(receiver.until(complete("thread", 100)), "thread", 100)


def complete(name: str, calls: int) -> Callable[[list[Span]], bool]:
    """Whether the spans of so many calls are there, with those of their messages on both sides."""

    def received(spans: list[Span]) -> bool:
        sent = select(spans, name, CLIENT)
        asked = len(sent) + sum(len(span.links) for span in sent)
        return asked == calls == sum(s.name == name for s in spans) and len(select(spans, name, SERVER)) == len(sent)

    return received


async def test_calls_that_fail_say_how(traced: ServerProcess, receiver: Receiver) -> None:
    with boxloss.Client(traced.address, tracing=True) as client:
        client.info()
        with _program.start_as_current_span("wrong"), pytest.raises(boxloss.InvalidInputError):
            client.evaluate(A, [[4.0, 0, 0, 4]], CIoU())
    async with boxloss.AsyncClient(f"127.0.0.1:{free_port()}", timeout=0.3, tracing=True) as lost:
        with _program.start_as_current_span("lost"), pytest.raises(boxloss.ServerUnavailableError):
            await lost.info()
    for name, code in (("wrong", "INVALID_ARGUMENT"), ("lost", "UNAVAILABLE")):
        (sent,) = select(await asyncio.to_thread(receiver.until, of(name, CLIENT)), name, CLIENT)
        assert sent.attributes["rpc.response.status_code"] == sent.attributes["error.type"] == code
        assert sent.status == ERROR


def test_without_an_sdk_the_caller_s_context_is_passed_on(traced: ServerProcess, receiver: Receiver) -> None:
    code = """
import sys, boxloss
from opentelemetry import context, propagate
context.attach(propagate.extract({"traceparent": sys.argv[2]}))
with boxloss.Client(sys.argv[1], tracing=True) as client:
    client.evaluate([[0, 0, 4, 4]], [[0, 0, 4, 4]], boxloss.CIoU())
"""
    trace_id, caller = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    subprocess.run([sys.executable, "-c", code, traced.address, f"00-{trace_id}-{caller}-01"], check=True, timeout=60)

    def answered(spans: list[Span]) -> list[Span]:
        return [span for span in spans if span.trace == trace_id and span.kind == SERVER]

    spans = receiver.until(lambda spans: len(answered(spans)) == 2)
    assert {span.parent for span in answered(spans)} == {caller}


def test_traces_and_tokens_travel_together(
    receiver: Receiver, traced: ServerProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token, file = secrets.token_urlsafe(32), tmp_path / "tokens"
    file.write_text(f"alice {token}\n")
    for name, value in receiver.variables.items():
        monkeypatch.setenv(name, value)
    with (
        ServerProcess("--tracing", f"--tokens-file={file}") as server,
        boxloss.Client(server.address, token=token, tracing=True) as client,
        _program.start_as_current_span("secret"),
    ):
        client.info()
        client.evaluate(A, B, CIoU())
        assert len(list(client.evaluate_stream([(A, B)], CIoU()))) == 1
    spans = receiver.until(of("secret", SERVER, 3))
    assert not [span for span in spans if token in str(span.attributes)]


def test_a_client_that_is_not_asked_to_sends_no_trace(traced: ServerProcess, receiver: Receiver) -> None:
    with boxloss.Client(traced.address) as silent, boxloss.Client(traced.address, tracing=True) as client:
        with _program.start_as_current_span("silent"):
            silent.evaluate(A, B, CIoU())
        with _program.start_as_current_span("loud"):
            client.info()
    receiver.until(of("loud", SERVER))
    spans = receiver.until(lambda spans: any(span.name == "silent" for span in spans))
    assert not select(spans, "silent", CLIENT)
    assert not select(spans, "silent", SERVER)
