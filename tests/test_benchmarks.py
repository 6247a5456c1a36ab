"""The benchmarks: that they read, reckon and run right. What they measure is not tested."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from benchmarks import h2load, metrics
from benchmarks.arena import Arena
from benchmarks.contenders import Boxloss
from benchmarks.errors import BenchmarkError
from benchmarks.measure import check_counts
from benchmarks.memory import Memory
from benchmarks.options import Options
from benchmarks.overload import flood
from benchmarks.spread import Spread, percentile, ratio, spread
from benchmarks.tables import Table, number
from benchmarks.verification import verify
from benchmarks.workload import Answer, Workload, frame

from tests.shared_data import folder

needs_h2load = pytest.mark.skipif(not shutil.which("h2load"), reason="needs h2load, of Debian's package nghttp2-client")

GRPC = """\
starting benchmark...
spawning thread #0: 1 total client(s). 2000 total requests
Application protocol: h2c
progress: 100% done

finished in 1.15s, 1735.49 req/s, 2.70MB/s
requests: 2000 total, 2000 started, 2000 done, 2000 succeeded, 0 failed, 0 errored, 0 timeout
status codes: 2000 2xx, 0 3xx, 0 4xx, 0 5xx
traffic: 3.12MB (3267947) total, 5.93KB (6075) headers (space savings 96.25%), 3.02MB (3167381) data
                     min         max         mean         sd        +/- sd
time for request:    16.08ms     61.46ms     36.21ms      7.73ms    70.60%
time for connect:      216us       216us       216us         0us   100.00%
time to 1st byte:    16.40ms     16.40ms     16.40ms         0us   100.00%
req/s           :    1736.30     1736.30     1736.30        0.00   100.00%
"""
HTTP1 = """\
finished in 18.95ms, 527.65 req/s, 863.10KB/s
requests: 10 total, 10 started, 10 done, 10 succeeded, 0 failed, 0 errored, 0 timeout
status codes: 10 2xx, 0 3xx, 0 4xx, 0 5xx
traffic: 16.36KB (16750) total, 1.02KB (1040) headers (space savings 0.00%), 15.00KB (15360) data
"""
REFUSED = """\
finished in 229us, 0.00 req/s, 0B/s
requests: 3 total, 0 started, 0 done, 0 succeeded, 3 failed, 3 errored, 0 timeout
status codes: 0 2xx, 0 3xx, 0 4xx, 0 5xx
traffic: 0B (0) total, 0B (0) headers (space savings 0.00%), 0B (0) data
"""
NOT_FOUND = """\
finished in 1.11ms, 9017.13 req/s, 722.07KB/s
requests: 10 total, 10 started, 10 done, 0 succeeded, 10 failed, 0 errored, 0 timeout
status codes: 0 2xx, 0 3xx, 10 4xx, 0 5xx
traffic: 820B (820) total, 480B (480) headers (space savings 0.00%), 0B (0) data
"""
METRICS = """\
# TYPE grpc_server_handled_total counter
grpc_server_handled_total{grpc_code="OK",grpc_method="Evaluate",grpc_service="boxloss.v1.LossService",grpc_type="unary"} 7.0
grpc_server_handled_total{grpc_code="OK",grpc_method="ListLosses",grpc_service="boxloss.v1.LossService",grpc_type="unary"} 9.0
grpc_server_handled_total{grpc_code="OK",grpc_method="EvaluateStream",grpc_service="boxloss.v1.LossService",grpc_type="bidi_stream"} 2.0
grpc_server_handled_total{grpc_code="CANCELLED",grpc_method="Evaluate",grpc_service="boxloss.v1.LossService",grpc_type="unary"} 1.0
# TYPE boxloss_batch_requests histogram
boxloss_batch_requests_bucket{le="+Inf"} 5.0
boxloss_batch_requests_count 5.0
boxloss_batch_requests_sum 20.0
"""  # noqa: E501, as the server writes them.


@pytest.fixture
def options(tmp_path: Path) -> Options:
    """The least that can be measured."""
    return Options(("boxloss", "echo"), (16,), (2,), 1, 0.1, 1.0, tmp_path, frozenset(os.sched_getaffinity(0)))


@pytest.mark.parametrize(
    ("output", "report"),
    [(GRPC, h2load.Report(2000, 1.15, 3_167_381)), (HTTP1, h2load.Report(10, 0.01895, 15_360))],
    ids=["gRPC", "HTTP/1.1"],
)
def test_reads_what_h2load_prints(output: str, report: h2load.Report) -> None:
    read = h2load.parse(output)
    assert (read.requests, read.data_bytes) == (report.requests, report.data_bytes)
    assert read.seconds == pytest.approx(report.seconds)


@pytest.mark.parametrize("output", [REFUSED, NOT_FOUND, "starting benchmark...\n", ""])
def test_failed_requests_are_no_measurement(output: str) -> None:
    with pytest.raises(BenchmarkError):
        h2load.parse(output)


def test_requests_of_a_flood_may_fail() -> None:
    assert h2load.parse(NOT_FOUND, some_may_fail=True).requests == 10
    with pytest.raises(BenchmarkError):
        h2load.parse("", some_may_fail=True)


def test_a_missing_h2load_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(BenchmarkError, match="nghttp2-client"):
        h2load.check_installed()


def test_the_spread_is_median_and_ends() -> None:
    assert spread([3.0, 1.0, 10.0]) == Spread(3.0, 1.0, 10.0)
    assert spread([3.0, 1.0]) == Spread(2.0, 1.0, 3.0)


def test_a_ratio_is_taken_within_each_round() -> None:
    quiet, disturbed = [10.0, 5.0, 2.0], [20.0, 10.0, 4.0]
    assert ratio(quiet, disturbed) == Spread(0.5, 0.5, 0.5)
    assert ratio([1.0, 9.0], [1.0, 3.0]) == Spread(2.0, 1.0, 3.0)


@pytest.mark.parametrize(("percent", "value"), [(50, 50), (99, 99), (100, 100), (0.5, 1)])
def test_percentiles_are_among_the_values(percent: float, value: float) -> None:
    assert percentile(list(range(100, 0, -1)), percent) == value
    assert percentile([7], percent) == 7


def test_counts_are_of_evaluations_only() -> None:
    counts = metrics.parse(METRICS)
    assert counts == metrics.Counts({"OK": 9, "CANCELLED": 1}, batches=5, batched=20, kernels=0)
    earlier = metrics.Counts({"OK": 4, "CANCELLED": 1}, batches=1, batched=4, kernels=0)
    assert counts.since(earlier) == metrics.Counts({"OK": 5}, batches=4, batched=16, kernels=0)


@pytest.mark.parametrize(("slope", "flat"), [(0.0, True), (0.5, False)])
def test_memory_that_grows_is_not_flat(slope: float, flat: bool) -> None:
    seen = Memory(200, 16_384, 100.0, 90.0, [(float(second), 100 + slope * second) for second in range(100)])
    assert len(seen.tenths) == 10
    assert seen.flat is flat
    assert seen.peak == 100 + slope * 99


def test_tables_can_be_quoted() -> None:
    table = Table("Speed", ("what", "calls/s"), [("a|b", number(12_345.6)), (), ("c", number(0.12345))], ("what",))
    assert table.markdown() == "## Speed\n\n| what | calls/s |\n| :-- | --: |\n| a\\|b | 12,346 |\n| c | 0.123 |\n"


def test_wrong_answers_are_found() -> None:
    workload = Workload(3)
    zeros = Answer(np.zeros(3, np.float32), np.zeros(3, np.float32), np.zeros((3, 4), np.float32))
    with pytest.raises(BenchmarkError, match="wrong loss for 3 pairs"):
        verify("someone", workload, zeros)
    with pytest.raises(BenchmarkError, match=r"shape \(2,\)"):
        verify("someone", workload, zeros._replace(loss=zeros.loss[:2]))


@needs_h2load
def test_calls_that_h2load_takes_for_successes_are_counted(options: Options) -> None:
    boxloss = Boxloss()
    with Arena(options) as arena:
        arena.start(boxloss)
        assert boxloss.process
        members = boxloss.process.members()
        boxloss.verify(Workload(16))
        good = arena.file("good", lambda: frame(Workload(16).request))
        bad = arena.file("bad", lambda: frame(b"no message"))
        before = boxloss.counts()
        report, latencies = h2load.send(h2load.Load(boxloss.url, "grpc", good, 2, 4), 40)
        assert report.requests == len(latencies) == 40
        assert check_counts(boxloss, before, 40) >= 1
        before = boxloss.counts()
        h2load.send(h2load.Load(boxloss.url, "grpc", bad, 1, 1), 5)
        with pytest.raises(BenchmarkError, match="INVALID_ARGUMENT"):
            check_counts(boxloss, before, 5)
    assert members
    assert not any(member.is_running() for member in members)


@needs_h2load
def test_the_command_measures_and_reports(tmp_path: Path) -> None:
    flags = ["--contenders=boxloss,echo", "--sizes=16", "--concurrency=2", "--repeats=1", "--seconds=0.1"]
    ended = subprocess.run(
        [sys.executable, "-m", "benchmarks", "matrix", "callers", *flags, f"--output={tmp_path}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert ended.returncode == 0, ended.stderr
    assert "of echo" in ended.stdout
    results = json.loads((tmp_path / "results.json").read_text())
    for part in ("matrix", "callers"):
        (cell,) = results[part]
        assert cell["pairs"] == 16
        assert {name: len(samples) for name, samples in cell["samples"].items()} == {"boxloss": 1, "echo": 1}
        assert all(sample["rate"] > 0 for samples in cell["samples"].values() for sample in samples)
        assert all(sample["batch"] >= 1 for sample in cell["samples"]["boxloss"])
    assert "| 16 | 2 | boxloss |" in (tmp_path / "results.md").read_text()
    assert (tmp_path / "server.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "callers.png").exists()


@needs_h2load
def test_a_flood_is_answered_in_part(options: Options) -> None:
    contender = Boxloss("--compile=off", "--max-waiting-pairs=64", "--max-request-pairs=64")
    with Arena(options) as arena:
        arena.start(contender)
        body = arena.file("flood", lambda: frame(Workload(64).request))
        seen = flood(contender, h2load.Load(contender.url, "grpc", body, 4, 128), rate=20_000, seconds=0.2)
    assert seen.rate > 0
    assert 0 < seen.refused < 1
    assert seen.longest > 0


@needs_h2load
def test_the_command_ends_everything_when_it_is_ended(tmp_path: Path) -> None:
    flags = ["--contenders=boxloss", "--sizes=16", "--concurrency=2", "--repeats=1000", "--seconds=0.1"]
    process = psutil.Popen(
        [sys.executable, "-m", "benchmarks", "matrix", *flags, f"--output={tmp_path}"], stderr=subprocess.PIPE
    )
    while not (children := process.children(recursive=True)):
        assert process.poll() is None
    process.terminate()
    assert b"SIGTERM" in process.communicate(timeout=60)[1]
    assert not any(child.is_running() for child in children)


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [(["quality", "--seeds=1"], "boxloss, --min-score 0.05"), (["scale", "--images=200"], "200 images, embedded")],
    ids=["quality", "scale"],
)
def test_the_audit_is_measured(arguments: list[str], shown: str) -> None:
    folder("")
    command = [sys.executable, "-m", "benchmarks.audit", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert ended.returncode == 0, ended.stderr
    assert shown in ended.stdout


def test_peers_compute_with_the_same_torch() -> None:
    root = Path(__file__).parents[1]
    pins = [
        next(line for line in (root / name).read_text().splitlines() if line.startswith("torch=="))
        for name in ("constraints.txt", "benchmarks/peers.txt")
    ]
    assert pins[0] == pins[1]
