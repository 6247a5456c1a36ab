"""Callers with and without tokens, files that change, and what a server tells of them."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.rpc import error_details_pb2, status_pb2

import boxloss
from boxloss import CIoU
from boxloss.contract import wire
from boxloss.v1 import array_pb2, loss_service_pb2
from tests.servers import ServerProcess

A, B = [[0.0, 0.0, 4.0, 4.0]], [[1.0, 2.0, 5.0, 8.0]]
CIOU_OF_A_AND_B = 0.9361860890731847
TOKENS = {name: f"{name}-{'0123456789abcdef' * 2}" for name in ("alice", "bob", "greedy", "modest", "reader")}
RATE = 100
CHANGED, BROKEN = "changed files are read", "changed files are broken; what they said before holds"


def until(condition: Callable[[], Any], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def count(server: ServerProcess, event: str) -> int:
    """How many lines of the log tell of an event."""
    return sum(line.get("event") == event for line in list(server.log))


def changing(server: ServerProcess, change: Callable[[], Any], event: str = CHANGED) -> None:
    """Changes files, and waits until the server has noticed."""
    before = count(server, event)
    change()
    until(lambda: count(server, event) > before)


def rejected(server: ServerProcess, reason: str) -> float:
    with urllib.request.urlopen(server.metrics_url) as response:
        for line in response.read().decode().splitlines():
            if line.startswith(f'boxloss_rejected_total{{reason="{reason}"}}'):
                return float(line.split()[-1])
    return 0.0


def request_of(pairs: int) -> loss_service_pb2.EvaluateRequest:
    boxes = array_pb2.Array(data=np.tile(np.array([0, 0, 4, 4], "<f4"), (pairs, 1)).tobytes())
    return loss_service_pb2.EvaluateRequest(predictions=boxes, targets=boxes, losses=[wire.loss_to_message(CIoU())])


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


def write_tokens(path: Path, tokens: dict[str, str]) -> None:
    """Replaces the file at once."""
    draft = path.with_suffix(".new")
    draft.touch(0o600)
    draft.write_text("# Clients\n\n" + "".join(f"{name}  {token}\n" for name, token in tokens.items()))
    draft.replace(path)


def evaluate(address: str, timeout: float = 90.0, **options: Any) -> None:
    """Asks a server, which may still be starting on a busy machine."""
    with boxloss.Client(address, timeout=timeout, **options) as client:
        assert client.evaluate(A, B, CIoU()).loss == pytest.approx([CIOU_OF_A_AND_B])


def info_of(error: Any) -> error_details_pb2.ErrorInfo:
    status = status_pb2.Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"])
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return info
