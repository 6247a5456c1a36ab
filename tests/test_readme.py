"""The README's code runs as it stands."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import json_format

from boxloss.cli import main
from boxloss.v1.loss_service_pb2 import EvaluateRequest
from boxloss.v1.loss_service_pb2_grpc import LossServiceStub
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


def test_the_demo_runs() -> None:
    ended = subprocess.run([sys.executable, ROOT / "examples/demo.py"], capture_output=True, text=True, timeout=100)
    assert ended.returncode == 0, ended.stderr
    for expected in ("CIoU", "mean", "calls at once became", "/metrics", "make serve"):
        assert expected in ended.stdout
