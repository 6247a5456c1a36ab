"""The examples run as a newcomer runs them, and print what is right."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean

import grpc
import pytest

from tests.reference import Pair
from tests.servers import ServerProcess, answered

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
DEMO = "demo.py"  # A show of its own; tests/test_readme.py runs it.
SCRIPTS = sorted(path.name for path in EXAMPLES.glob("*.py") if path.name != DEMO)
ROW = re.compile(r"^\| \[(\w+\.py)\]\(\1\) \|.*\| `([^|]*)` \|$", re.MULTILINE)
TABLE: dict[str, str] = dict(ROW.findall((EXAMPLES / "README.md").read_text()))
NUMBER = re.compile(r"-?\d+(?:\.\d*)?")

LABELS = [label["bbox"] for label in json.loads((EXAMPLES / "coins/labels.json").read_text())["annotations"]]
PREDICTIONS = [found["bbox"] for found in json.loads((EXAMPLES / "coins/predictions.json").read_text())]


def run(script: Path | str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / script), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # Tests share the CPU; what is computed here is small.
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100)


def printed(script: Path | str, *arguments: str) -> list[str]:
    """The lines that a script prints, which has nothing to complain of."""
    ended = run(script, *arguments)
    assert ended.returncode == 0, ended.stderr
    assert not ended.stderr
    return ended.stdout.splitlines()


def numbers(text: str) -> list[float]:
    return [float(number) for number in NUMBER.findall(text)]


def pair(prediction: Sequence[float], target: Sequence[float]) -> Pair:
    """The reference of two boxes with left, top, width and height."""
    corners = ((x, y, x + width, y + height) for x, y, width, height in (prediction, target))
    return Pair(*corners)


@pytest.fixture(scope="module", params=["on a server", "without a server"])
def where(request: pytest.FixtureRequest, server: ServerProcess) -> list[str]:
    """The arguments of a script."""
    return [server.address] if request.param == "on a server" else []


def test_a_first_call(where: list[str]) -> None:
    *arrays, refused = printed("first_call.py", *where)
    pairs = [Pair((0, 0, 4, 4), (0, 0, 4, 4)), Pair((2, 2, 6, 5), (1, 2, 5, 8)), Pair((0, 0, 2, 2), (5, 5, 8, 8))]
    losses = [each.plain("ciou") for each in pairs]
    expected = [
        *(each.iou.value for each in pairs),
        *(loss.value for loss in losses),
        *(slope for loss in losses for slope in loss.slopes[:4]),
    ]
    assert numbers(" ".join(arrays)) == pytest.approx(expected, abs=1e-8)
    assert refused.startswith("predictions: row 0 is inverted; xyxy needs left <= right")


def test_asyncio(server: ServerProcess, where: list[str]) -> None:
    before = answered(server)
    *coins, last = printed("asyncio_calls.py", *where)
    best = [max((pair(found, label) for found in PREDICTIONS), key=lambda each: each.iou.value) for label in LABELS]
    expected = [(coin, each.iou.value, each.plain("ciou").value) for coin, each in enumerate(best, start=1)]
    assert [tuple(numbers(line)) for line in coins] == [pytest.approx(line, abs=6e-4) for line in expected]
    evaluations, messages = numbers(last)
    assert evaluations == len(LABELS)
    assert 0 < messages <= evaluations
    assert answered(server) - before == (messages if where else 0)


def test_streaming(server: ServerProcess, where: list[str]) -> None:
    before = server.total("grpc_server_started_total", grpc_method="EvaluateStream")
    lines = printed("streaming.py", *where)
    assert [numbers(line)[0] for line in lines] == list(range(0, 101, 10))
    for line in lines:
        pixels, iou, loss = numbers(line)
        pairs = [pair((left + pixels, *others), (left, *others)) for left, *others in LABELS]
        assert iou == pytest.approx(fmean(each.iou.value for each in pairs), abs=6e-4)
        assert loss == pytest.approx(fmean(each.plain("giou").value for each in pairs), abs=6e-4)
    started = server.total("grpc_server_started_total", grpc_method="EvaluateStream")
    assert started - before == (1 if where else 0)


@pytest.fixture(scope="module")
def losses_in_process(server: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """What train.py prints as it was: with one line changed back, and no call to the server."""
    script = (EXAMPLES / "train.py").read_text()
    (in_process,) = re.findall(r"^# (box_loss = .*)$", script, re.MULTILINE)
    changed, lines = re.subn(r"^box_loss = .*$", in_process, script, flags=re.MULTILINE)
    assert lines == 1
    before = tmp_path_factory.mktemp("training") / "train.py"
    before.write_text(changed)
    calls = answered(server)
    losses = [numbers(line)[1] for line in printed(before, server.address)]
    assert answered(server) == calls
    return losses


def test_one_line_of_a_training_script_changes(
    losses_in_process: list[float], server: ServerProcess, where: list[str]
) -> None:
    calls = answered(server)
    losses = [numbers(line)[1] for line in printed("train.py", *where)]
    assert answered(server) - calls == (201 if where else 0)
    assert losses == pytest.approx(losses_in_process, rel=1e-3)
    assert losses[-1] < losses[0] / 100


def test_a_labeling_pipeline(where: list[str]) -> None:
    assert printed("labeling_pipeline.py", *where) == [
        "careful: goes on",
        "forgetful: The model sees coin here (score 0.93), and there is no label. Add one, if you see it, too.",
        "eager: Repeats another coin (IoU 1.00). Remove one of them.",
        "72 labels, 20 findings; to review: forgetful, eager",
    ]


def test_prometheus() -> None:
    with ServerProcess() as server:
        client_line, server_line = printed("prometheus_metrics.py", server.address, server.metrics_url)
        calls, share, client_ms = numbers(client_line)
        batches, _, server_ms = numbers(server_line)
        assert calls == 500 == answered(server)
        assert batches == server.total("boxloss_batches_total")
        assert share == 99
        assert server_ms <= client_ms

        def within(milliseconds: float) -> float:
            bound = min((50e-6 * 2**step for step in range(18)), key=lambda each: abs(each - milliseconds / 1000))
            return server.total("grpc_server_handling_seconds_bucket", grpc_method="Evaluate", le=f"{bound:.9g}")

        assert within(server_ms / 2) < 0.99 * calls <= within(server_ms)


@pytest.fixture(scope="module")
def other_service() -> Iterator[str]:
    """Where gRPC is spoken, but not boxloss."""
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_wrong_address_is_named(script: str, other_service: str) -> None:
    ended = run(script, other_service)
    assert ended.returncode == 1
    *_, error = ended.stderr.splitlines()
    assert error.startswith("boxloss.errors.UnsupportedError: "), error
    assert f"is not offered by the server at {other_service}" in error


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_is_short_and_says_how_to_run_it(script: str) -> None:
    text = (EXAMPLES / script).read_text()
    assert len(text.splitlines()) < 40
    assert f"`python examples/{script} [HOST:PORT" in text


def test_the_table_names_all_scripts() -> None:
    assert set(TABLE) == {*SCRIPTS, DEMO}


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_table_shows_what_is_printed(script: str, server: ServerProcess) -> None:
    urls = [server.metrics_url] if "METRICS_URL" in (EXAMPLES / script).read_text() else []
    shown = TABLE[script].strip()
    lines = printed(script, server.address, *urls)
    similar = [line for line in lines if NUMBER.sub("", line.strip()).startswith(NUMBER.sub("", shown))]
    assert any(numbers(line)[: len(numbers(shown))] == pytest.approx(numbers(shown), rel=0.05) for line in similar), (
        lines
    )
