"""The metrics of a real server say what was sent to it, and where its time went."""

from __future__ import annotations

import math
import re
import time
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from boxloss import CIoU, GIoU, IoU, Tls
from boxloss.contract import wire
from boxloss.contract.words import COLUMNS
from boxloss.losses import CATALOGUE
from boxloss.v1 import array_pb2, audit_service_pb2, loss_service_pb2
from boxloss.v1.loss_service_pb2_grpc import LossServiceStub
from boxloss_server import __version__
from tests.boxes import random_boxes
from tests.certificates import Authority
from tests.held_server import HeldServer
from tests.security.callers import TOKENS, evaluate, write_tokens
from tests.servers import ServerProcess

Request = loss_service_pb2.EvaluateRequest
StreamRequest = loss_service_pb2.EvaluateStreamRequest
MatrixRequest = loss_service_pb2.PairwiseIouRequest

PAGE = (Path(__file__).parent.parent / "docs/metrics.md").read_text(encoding="utf-8")
SUFFIXES = {"counter": "_total", "info": "_info"}
FAILURES = ("INTERNAL", "UNKNOWN", "UNAVAILABLE", "DATA_LOSS", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED")
"""Codes that alerts look at."""
LIMIT = 2**20
LARGE = 5000
"""Pairs of a request that waits for the worker thread."""
RNG = np.random.default_rng(60)
SLOW_BOXES = np.tile(np.array([0, 0, 4, 4, 0.3], "<f4"), (2**19, 1))
"""So many, and with polygons to cut, that their batch takes a while."""


def packed(boxes: Any) -> array_pb2.Array:
    return array_pb2.Array(data=np.asarray(boxes, "<f4").tobytes())


def request(pairs: int = 1, loss: Any = None, **changes: Any) -> Request:
    fields: dict[str, Any] = {
        "predictions": packed(random_boxes(RNG, pairs)),
        "targets": packed(random_boxes(RNG, pairs)),
        "losses": [wire.loss_to_message(loss or CIoU())],
    }
    return Request(**(fields | changes))


def slow_request() -> Request:
    boxes = packed(SLOW_BOXES)
    return request(loss=GIoU(), predictions=boxes, targets=boxes, box_format="BOX_FORMAT_CXCYWHA_RADIANS")


def families(url: str) -> list[Metric]:
    accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
    with urllib.request.urlopen(urllib.request.Request(url, headers=accept)) as response:
        return list(text_string_to_metric_families(response.read().decode()))  # type: ignore[no-untyped-call]


class Samples:
    """What a server told when it was asked."""

    def __init__(self, server: ServerProcess) -> None:
        self.all = [sample for family in families(server.metrics_url) for sample in family.samples]

    def __call__(self, name: str, **labels: str) -> float:
        """The sum of the samples of a name that have these labels."""
        return sum(each.value for each in self.all if each.name == name and labels.items() <= each.labels.items())

    @property
    def labels(self) -> set[tuple[str, frozenset[tuple[str, str]]]]:
        """The series that there are, without histograms' buckets."""
        return {(each.name, frozenset(each.labels.items())) for each in self.all if "le" not in each.labels}


def until(server: ServerProcess, condition: Callable[[Samples], bool]) -> Samples:
    deadline = time.monotonic() + 60
    while not condition(samples := Samples(server)):
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)
    return samples


@pytest.fixture
def own() -> Iterator[tuple[ServerProcess, LossServiceStub]]:
    """A server of the test's own."""
    options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    with ServerProcess(f"--max-request-pairs={LIMIT}") as server, grpc.insecure_channel(server.address, options) as to:
        yield server, LossServiceStub(to)


def raw(channel: grpc.Channel, path: str) -> Callable[[bytes], Any]:
    """A method that takes and gives bytes."""
    method: Any = channel.unary_unary
    call: Callable[[bytes], Any] = method(path)
    return call


def refused(call: Callable[[], Any]) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as failure:
        call()
    error: Any = failure.value
    code: grpc.StatusCode = error.code()
    return code


def test_what_was_sent_is_counted(own: tuple[ServerProcess, LossServiceStub]) -> None:
    server, stub = own
    inverted = packed([[4, 0, 0, 4], [0, 0, 4, 4], [0, 0, math.nan, 4]])
    valid = packed([[0, 0, 4, 4]] * 3)
    for pairs in (1, 5, 9):
        stub.Evaluate(request(pairs))
    stub.Evaluate(request(3, losses=[wire.loss_to_message(loss) for loss in (IoU(), GIoU())], box_format=2))
    list(stub.EvaluateStream(iter([StreamRequest(request=request(2)), StreamRequest(request=request(4))])))
    masked = stub.Evaluate(request(predictions=inverted, targets=valid, invalid_boxes="INVALID_BOXES_MASK"))
    matrix = stub.PairwiseIou(MatrixRequest(a=inverted, b=valid, invalid_boxes=loss_service_pb2.INVALID_BOXES_MASK))
    assert len(masked.masked_rows) == len(matrix.masked_rows) == 2
    assert refused(lambda: stub.Evaluate(request(targets=inverted))) is grpc.StatusCode.INVALID_ARGUMENT
    assert refused(lambda: stub.Evaluate(request(predictions=inverted, targets=valid))).name == "INVALID_ARGUMENT"
    assert refused(lambda: list(stub.EvaluateStream(iter([StreamRequest()])))).name == "INVALID_ARGUMENT"
    assert refused(lambda: stub.Evaluate(request(box_format=99))) is grpc.StatusCode.UNIMPLEMENTED
    assert refused(lambda: stub.Evaluate(request(losses=[wire.loss_to_message(CIoU())] * 64, **many()))).name

    samples = Samples(server)
    assert samples("boxloss_formats_total", format="xyxy") == 3 + 2 + 1 + 1 + 1
    assert samples("boxloss_formats_total", format="xywh") == 1
    assert samples("boxloss_losses_total", loss="ciou") == 3 + 2 + 1 + 1
    assert samples("boxloss_losses_total", loss="giou") == 1
    assert samples("boxloss_masked_boxes_total") == 4
    assert samples("boxloss_rejected_total", reason="invalid") == 4
    assert samples("boxloss_rejected_total", reason="too_large") == 1
    assert samples("boxloss_rejected_total") == 5
    assert samples("boxloss_batch_requests_sum") == 3 + 1 + 2 + 1 + 1 + 1
    assert samples("boxloss_batch_pairs_sum") == 15 + 6 + 6 + 3 + 9 + 3
    assert samples("boxloss_queue_seconds_count") == 9
    assert samples("boxloss_answer_seconds_count") == 8  # One had invalid boxes.
    batches = samples("boxloss_batches_total")
    for stage in ("forming", "copy", "compute"):
        assert samples(f"boxloss_{stage}_seconds_count") == batches
    assert samples("boxloss_waiting_pairs_limit") == 2**22
    assert samples("boxloss_waiting_requests") == samples("boxloss_oldest_request_seconds") == 0
    assert samples("boxloss_build_info", version=__version__, device="cpu") == 1


def many() -> dict[str, Any]:
    """So many boxes that 64 losses of them are too many pairs."""
    boxes = packed(np.tile(np.array([0, 0, 4, 4], "<f4"), (LIMIT // 64 + 1, 1)))
    return {"predictions": boxes, "targets": boxes}


def test_the_stages_make_up_the_handling_time(own: tuple[ServerProcess, LossServiceStub]) -> None:
    server, stub = own
    started = time.perf_counter()
    answers: list[Any] = [stub.Evaluate(request(pairs)) for pairs in (1, 100, 4096, 20_000)]
    answers.append(stub.PairwiseIou(MatrixRequest(a=packed(random_boxes(RNG, 100)), b=packed(random_boxes(RNG, 100)))))
    passed = time.perf_counter() - started

    samples = Samples(server)
    seconds = {
        stage: samples(f"boxloss_{stage}_seconds_sum") for stage in ("queue", "forming", "copy", "compute", "answer")
    }
    assert min(seconds.values()) > 0
    handling = samples("grpc_server_handling_seconds_sum", grpc_service="boxloss.v1.LossService")
    assert seconds["queue"] + seconds["copy"] + seconds["compute"] + seconds["answer"] < handling < passed
    # One call at a time: each is a batch of its own, and is told what the metrics sum up.
    queue = sum(answer.execution.queue_time.ToNanoseconds() for answer in answers) / 1e9
    batch = sum(answer.execution.compute_time.ToNanoseconds() for answer in answers) / 1e9
    assert seconds["queue"] == seconds["forming"] == pytest.approx(queue, abs=1e-7)
    assert seconds["copy"] + seconds["compute"] == pytest.approx(batch, abs=1e-7)
    assert samples("boxloss_device_busy_seconds_total") == pytest.approx(batch, abs=1e-7)


def test_a_large_batch_mostly_computes(own: tuple[ServerProcess, LossServiceStub]) -> None:
    server, stub = own
    stub.Evaluate(slow_request())
    samples = Samples(server)
    handling = samples("grpc_server_handling_seconds_sum", grpc_service="boxloss.v1.LossService")
    assert handling / 2 < samples("boxloss_compute_seconds_sum") < handling


def waits_until_late(server: ServerProcess, stub: Any, timeout: float) -> bool:
    """Makes a call beside one that waits; whether it has waited, too, until its deadline. On a busy machine, a short
    one may be over before it has come.
    """
    late = stub.Evaluate.future(request(LARGE), timeout=timeout)
    samples = until(server, lambda samples: late.done() or samples("boxloss_waiting_requests") == 2)
    assert late.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    return samples("boxloss_waiting_requests") == 2


def test_requests_that_nobody_waits_for_are_counted_and_not_computed() -> None:
    with HeldServer() as server, grpc.insecure_channel(server.address) as channel:
        stub: Any = LossServiceStub(channel)
        with server.held():
            first = stub.Evaluate.future(request(LARGE))
            until(server, lambda samples: samples("boxloss_waiting_requests") == 1)
            cancelled = stub.Evaluate.future(request(LARGE))
            until(server, lambda samples: samples("boxloss_waiting_requests") == 2)
            cancelled.cancel()
            until(server, lambda samples: samples("boxloss_waiting_requests") == 1)
            assert any(waits_until_late(server, stub, timeout) for timeout in (0.1, 0.4, 1.6, 6.4, 25.6))
            assert not first.done()
        assert first.result().results
        samples = until(server, lambda samples: samples("boxloss_rejected_total", reason="deadline") >= 1)
        assert samples("boxloss_rejected_total", reason="cancelled") == 1
        assert samples("boxloss_batch_requests_sum") == 1
        handled = {code: samples("grpc_server_handled_total", grpc_code=code) for code in ("CANCELLED", *FAILURES)}
        # The caller cancels at its deadline, which may come first.
        assert handled["CANCELLED"] + handled["DEADLINE_EXCEEDED"] == sum(handled.values()) >= 2
        assert samples("grpc_server_started_total", grpc_method="Evaluate") == sum(handled.values()) + 1


def test_the_oldest_request_ages_until_it_is_answered(own: tuple[ServerProcess, LossServiceStub]) -> None:
    server, stub = own
    assert Samples(server)("boxloss_oldest_request_seconds") == 0
    started = time.monotonic()
    slow = stub.Evaluate.future(slow_request())
    first = until(server, lambda samples: samples("boxloss_oldest_request_seconds") > 0)
    stub.Evaluate(request())  # A younger one, which is answered first.
    later = until(
        server,
        lambda samples: samples("boxloss_oldest_request_seconds") > first("boxloss_oldest_request_seconds"),
    )
    assert later("boxloss_waiting_requests") == 1
    assert later("boxloss_oldest_request_seconds") < time.monotonic() - started
    assert slow.result().results
    assert Samples(server)("boxloss_oldest_request_seconds") == 0


def test_memory_is_the_process_s_and_the_machine_s(own: tuple[ServerProcess, LossServiceStub]) -> None:
    server, _ = own
    samples = Samples(server)
    used = samples("boxloss_device_memory_bytes", device="cpu", kind="used")
    assert used == pytest.approx(psutil.Process(server.pid).memory_info().rss, rel=0.1)
    assert samples("boxloss_device_memory_bytes", device="cpu", kind="total") == psutil.virtual_memory().total


def test_processes_are_added_up_and_the_machine_is_not() -> None:
    with ServerProcess("--processes=2") as server:
        samples = Samples(server)
    assert samples("boxloss_waiting_pairs_limit") == 2 * 2**22
    total = samples("boxloss_device_memory_bytes", kind="total")
    assert total == psutil.virtual_memory().total
    assert 2 * 2**26 < samples("boxloss_device_memory_bytes", kind="used") < total
    assert samples("boxloss_oldest_request_seconds") == 0


def test_strange_calls_make_no_new_series(own: tuple[ServerProcess, LossServiceStub]) -> None:
    server, stub = own

    def be_strange(word: str, number: int) -> None:
        with grpc.insecure_channel(server.address) as channel:
            for path in (f"/boxloss.v1.LossService/{word}", f"/{word}/Evaluate", f"/{word}"):
                refused(partial(raw(channel, path), b""))
            for method in ("Evaluate", "PairwiseIou", "ListLosses"):
                refused(partial(raw(channel, f"/boxloss.v1.LossService/{method}"), b"\xff"))
        strange: list[dict[str, Any]] = [
            {"box_format": number},
            {"dtype": number},
            {"reduction": number},
            {"losses": []},
            {"losses": [wire.loss_to_message(CIoU())] * number},
        ]
        for changes in strange:
            refused(partial(stub.Evaluate, request(1, None, **changes)))
        stub.Evaluate(request(), metadata=((word, word), ("user-agent", word)))

    for box_format, columns in COLUMNS.items():
        box = packed([[0, 0, 4, 4, 0][:columns] if columns < 8 else [0, 0, 4, 0, 4, 4, 0, 4]])
        stub.Evaluate(request(1, IoU(), predictions=box, targets=box, box_format=f"BOX_FORMAT_{box_format.upper()}"))
    be_strange("first", 90)
    before = Samples(server).labels
    for number in range(91, 99):
        be_strange(f"word-{number}", number)
    assert Samples(server).labels == before
    values = {value for _, labels in before for name, value in labels if name in ("loss", "format", "grpc_method")}
    methods = set(loss_service_pb2.DESCRIPTOR.services_by_name["LossService"].methods_by_name)
    assert values <= {*CATALOGUE, *COLUMNS, *methods, "Audit", "Check", "Watch", "List", "ServerReflectionInfo"}


def described(page: str) -> dict[str, tuple[str, set[str]]]:
    """Type and labels of the metrics in a page's tables, by their names."""
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (.*?) ?\| .+ \|$", page, re.MULTILINE)
    assert len({name for name, _, _ in rows}) == len(rows)
    return {name: (kind, set(re.findall(r"\w+", labels))) for name, kind, labels in rows}


def served(url: str) -> dict[str, tuple[str, set[str]]]:
    """Type and labels of the metrics at an address, by their names."""
    return {
        family.name + SUFFIXES.get(family.type, ""): (
            family.type,
            {name for sample in family.samples for name in sample.labels} - {"le"},
        )
        for family in families(url)
    }


def test_the_page_has_every_metric_and_no_other(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    write_tokens(tokens, TOKENS)
    authority = Authority(tmp_path / "authority")
    page = described(PAGE.partition("## A client")[0])
    assert page.pop("boxloss_process_restarts_total") == ("counter", {"reason"})  # Of several processes.
    with ServerProcess(f"--tokens-file={tokens}", *authority.issue("server").flags) as server:
        evaluate(server.address, tls=Tls(authority.certificate), token=TOKENS["alice"])
        assert page == served(server.metrics_url)
        assert Samples(server)("boxloss_certificate_expiry_timestamp_seconds") > time.time()
        assert Samples(server)("boxloss_files_read_failures_total") == 0
        for files in ("certificates", "tokens"):
            assert Samples(server)("boxloss_files_read_timestamp_seconds", files=files) == pytest.approx(
                time.time(), abs=60
            )


def test_a_server_serves_until_it_stops(own: tuple[ServerProcess, LossServiceStub]) -> None:
    server, stub = own
    assert Samples(server)("boxloss_processes_serving") == Samples(server)("boxloss_processes_wanted") == 1
    slow = stub.Evaluate.future(slow_request())
    until(server, lambda samples: samples("boxloss_waiting_requests") == 1)
    server.terminate()
    until(server, lambda samples: samples("boxloss_processes_serving") == 0)
    assert slow.result().results


def test_errors_are_counted_from_zero(server: ServerProcess) -> None:
    counted = {
        (sample.labels["grpc_service"], sample.labels["grpc_method"], sample.labels["grpc_code"])
        for sample in Samples(server).all
        if sample.name == "grpc_server_handled_total"
    }
    for contract in (loss_service_pb2, audit_service_pb2):
        for service in contract.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                assert counted >= {(service.full_name, method.name, code) for code in ("OK", *FAILURES)}


def test_prometheus_is_answered_in_openmetrics_where_it_asks(server: ServerProcess) -> None:
    accept = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1"
    with urllib.request.urlopen(urllib.request.Request(server.metrics_url, headers={"Accept": accept})) as response:
        assert response.headers["Content-Type"].startswith("application/openmetrics-text")
        assert response.read().endswith(b"# EOF\n")
    with urllib.request.urlopen(server.metrics_url) as response:
        assert response.headers["Content-Type"].startswith("text/plain")
