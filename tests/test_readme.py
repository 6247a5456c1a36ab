"""The README's code runs as it stands."""

from __future__ import annotations

import inspect
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import torch
from examples.simulation.cases import PER_POINT, POINTS
from google.protobuf import json_format

import boxloss
from boxloss.cli import main
from boxloss.files.formats import Format
from boxloss.losses import CATALOGUE
from boxloss.v1.loss_service_pb2 import EvaluateRequest
from boxloss.v1.loss_service_pb2_grpc import LossServiceStub
from boxloss_server.engine.formats import LARGEST
from boxloss_server.settings import Settings
from tests.servers import ServerProcess

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
COMMANDS = re.findall(r"^    \.venv/bin/boxloss (.*)$", README, re.MULTILINE)


def test_there_is_something_to_run() -> None:
    assert len(PYTHON) >= 4
    assert len(COMMANDS) >= 3


@pytest.mark.parametrize("code", PYTHON, ids=lambda code: code.strip().splitlines()[-1])
def test_python_blocks_run(code: str, server: ServerProcess) -> None:
    exec(compile(code.replace("localhost:50051", server.address), "README.md", "exec"), {"__name__": "readme"})


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_run(command: str, server: ServerProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("BOXLOSS_ADDRESS", server.address)
    with pytest.raises(SystemExit) as ended:
        main(shlex.split(command.replace("localhost:50051", server.address)))
    assert not ended.value.code


def test_the_grpcurl_request_is_one_of_the_contract(stub: LossServiceStub) -> None:
    (text,) = re.findall(r"grpcurl -plaintext -d '(.*?)'", README, re.DOTALL)
    answer = stub.Evaluate(json_format.Parse(text, EvaluateRequest()))
    assert answer.results[0].loss.values == pytest.approx([0.936186], abs=1e-6)


@pytest.mark.parametrize(
    ("words", "number"),
    [
        (r"has (\d+) losses", len(CATALOGUE)),
        (r"beyond (\S+)\)", LARGEST[torch.float32]),
        (r"`timeout` \((\d+) s\)", inspect.signature(boxloss.Client).parameters["timeout"].default),
        (r"--port (\d+)", Settings.model_fields["port"].default),
        (r"brings ([\d,]+) boxes", PER_POINT * POINTS),
    ],
)
def test_its_numbers_are_those_of_the_code(words: str, number: float) -> None:
    (told,) = set(re.findall(words, README))
    assert float(told.replace(",", "")) == number


def test_it_counts_the_formats_that_are_read() -> None:
    assert re.search(r"It reads\s+nine\s+formats", README)
    assert len(get_args(Format)) == 9


def test_the_demo_runs() -> None:
    ended = subprocess.run([sys.executable, ROOT / "examples/demo.py"], capture_output=True, text=True, timeout=100)
    assert ended.returncode == 0, ended.stderr
    for expected in ("CIoU", "mean", "calls at once became", "/metrics", "make serve"):
        assert expected in ended.stdout
