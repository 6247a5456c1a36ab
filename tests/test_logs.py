"""A log that cannot be written harms nobody: no call, no exit status, no change of tokens; what is lost is counted."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest

import boxloss
from boxloss.v1 import loss_service_pb2
from boxloss.v1.loss_service_pb2_grpc import LossServiceStub
from boxloss_server import logs
from boxloss_server.logs import StandardError, configure_logs
from tests.security.callers import bearer, evaluate, request_of, write_tokens
from tests.servers import free_port, wait_until

LOST = "lines of the log were lost: standard error could not be written"
PIPE = 4096
"""Bytes that a pipe holds which is as small as it can be."""


class Server:
    """A server whose standard error goes wherever told.

    Args:
        flags: of its command line.
        options: of its process.
    """

    def __init__(self, *flags: str, **options: Any) -> None:
        port = free_port()
        self.address = f"127.0.0.1:{port}"
        command = [sys.executable, "-m", "boxloss_server", f"--port={port}", "--metrics-port=0", "--log-format=json"]
        environment = {**os.environ, "BOXLOSS_DEVICE": "cpu"}
        self.process = subprocess.Popen([*command, *flags], env=environment, **options)

    def ends(self, number: int = signal.SIGTERM) -> int:
        """Sends a signal; returns the exit status."""
        self.process.send_signal(number)
        return self.process.wait(60)


@contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    """A small pipe's two ends, closed afterwards if they are not yet."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PIPE)
    try:
        yield reader, writer
    finally:
        for end in (reader, writer):
            with suppress(OSError):
                os.close(end)


def closed(reader: int, writer: int, server: Server) -> None:
    """Closes both ends here, once the server serves: the reader of its log has gone."""
    os.close(writer)
    evaluate(server.address, token="first-first-first-first")
    os.close(reader)


@pytest.mark.parametrize("processes", [1, 2])
def test_without_a_reader_tokens_are_taken_away_and_accepted_calls_are_answered(tmp_path: Path, processes: int) -> None:
    tokens = tmp_path / "tokens"
    first, second, third = (f"{name}-{name}-{name}-{name}" for name in ("first", "second", "third"))
    write_tokens(tokens, {"client": first})
    with pipe() as (reader, writer):
        server = Server(f"--tokens-file={tokens}", f"--processes={processes}", stderr=writer)
        closed(reader, writer, server)
    with grpc.insecure_channel(server.address) as channel:
        stub = LossServiceStub(channel)

        def known(token: str) -> bool:
            try:
                stub.ListLosses(loss_service_pb2.ListLossesRequest(), metadata=bearer(token), timeout=30)
            except grpc.RpcError:
                return False
            return True

        for old, new in ((first, second), (second, third)):
            write_tokens(tokens, {"client": new})
            wait_until(lambda new=new: known(new), "the new token")  # type: ignore[misc]
            wait_until(lambda old=old: not known(old), "the end of the old token")  # type: ignore[misc]
        calls = [stub.Evaluate.future(request_of(2**18), metadata=bearer(third)) for _ in range(4)]
        list(stub.EvaluateStream(iter([]), metadata=bearer(third)))  # Answered after the four were accepted.
        server.process.terminate()
        for call in calls:
            assert len(call.result().results[0].loss.data) == 4 * 2**18
    assert server.process.wait(60) == 0


def test_with_a_full_disk_it_serves_and_ends_as_ever() -> None:
    with open("/dev/full", "wb", buffering=0) as full:
        server = Server(stderr=full)
        evaluate(server.address)
        assert server.ends() == 0
        assert Server("--log-level=loud", stderr=full).process.wait(60) == 2
        assert Server("--processes=2", "--host=192.0.2.1", stderr=full).process.wait(60) == 1


def test_with_standard_error_closed_no_connection_gets_the_log() -> None:
    server = Server("--log-level=debug", preexec_fn=lambda: os.close(2))
    evaluate(server.address)
    target = Path(f"/proc/{server.process.pid}/fd/2").readlink()
    assert target == Path("/dev/null")
    assert server.ends() == 0


def test_a_reader_that_does_not_read_stops_nobody_and_is_told_how_much_was_lost(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    write_tokens(tokens, {"client": "first-first-first-first"})
    refused = logs._KEPT + 500
    with pipe() as (reader, writer):
        server = Server(f"--tokens-file={tokens}", "--log-level=debug", stderr=writer)
        os.close(writer)
        evaluate(server.address, token="first-first-first-first")
        with grpc.insecure_channel(server.address) as channel:
            stub = LossServiceStub(channel)
            for _ in range(refused):
                with pytest.raises(grpc.RpcError, match="UNAUTHENTICATED"):
                    stub.ListLosses(loss_service_pb2.ListLossesRequest(), timeout=30)
        evaluate(server.address, token="first-first-first-first")
        with os.fdopen(os.dup(reader)) as log:
            lines = []
            for text in log:
                lines.append(json.loads(text))
                if lines[-1]["event"] == LOST:
                    server.process.terminate()
    assert server.process.wait(60) == 0
    lost = max(line["lines"] for line in lines if line["event"] == LOST)
    assert sum(line["event"] == "call refused" for line in lines) + lost == refused
    assert lines[-1]["event"] == "stopped"


def test_without_a_reader_that_reads_it_ends_all_the_same() -> None:
    with pipe() as (reader, writer):
        os.set_blocking(writer, False)
        while True:  # Nothing more goes in.
            try:
                os.write(writer, b"x")
            except BlockingIOError:
                break
        os.set_blocking(writer, True)
        server = Server(stderr=writer)
        evaluate(server.address)
        assert server.ends() == 0
        assert len(os.read(reader, 2 * PIPE)) == PIPE


@pytest.mark.parametrize("processes", [1, 2])
def test_ctrl_c_exits_0_though_it_ends_the_reader_of_the_log_first(tmp_path: Path, processes: int) -> None:
    """As in a shell: boxloss-server 2>&1 | tee log."""
    log = tmp_path / "log"
    with pipe() as (reader, writer):
        server = Server(f"--processes={processes}", stdout=writer, stderr=writer, process_group=0)
        tee = subprocess.Popen(["tee", log], stdin=reader, stdout=subprocess.DEVNULL, process_group=server.process.pid)
        os.close(reader)
        os.close(writer)
        wait_until(lambda: log.exists() and '"serving"' in log.read_text(), "the server's start")
        tee.send_signal(signal.SIGINT)
        tee.wait(60)
        os.killpg(server.process.pid, signal.SIGINT)
        assert server.process.wait(60) == 0


# The stream


def written(reader: int, until: str) -> str:
    """What comes out of a pipe up to and with a text."""
    text = ""
    while until not in text:
        text += os.read(reader, 2 * PIPE).decode()
    return text


def test_what_is_written_is_out_when_the_call_returns() -> None:
    with pipe() as (reader, writer):
        stream = StandardError(writer)
        os.set_blocking(reader, False)
        for number in range(50):
            stream.write(f"{number}\n")
            assert os.read(reader, PIPE) == f"{number}\n".encode()


@pytest.mark.parametrize(("more", "lost"), [(-1, 0), (0, 0), (1, 1), (5, 5)])
def test_so_many_texts_are_kept_and_the_others_counted(more: int, lost: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_KEPT", 20)
    with pipe() as (reader, writer):
        stream = StandardError(writer)
        stream.write("x" * 2 * PIPE)  # More than the pipe holds: it is kept until all of it is out.
        started = time.monotonic()
        for number in range(19 + more):
            stream.write(f" {number}")
        assert time.monotonic() - started < 10
        assert stream.lost == lost
        text = written(reader, f" {18 + min(more, 0)}")
        assert text.split() == ["x" * 2 * PIPE, *map(str, range(19 + min(more, 0)))]


def test_what_was_lost_is_told_once_when_the_disk_has_room_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "log"
    with open("/dev/full", "wb", buffering=0) as full, file.open("ab", buffering=0) as log:
        stream = StandardError(full.fileno())
        monkeypatch.setattr(sys, "stderr", stream)
        configure_logs("warning", "json")
        try:
            for number in range(3):
                stream.write(f"lost {number}\n")
            assert stream.lost == 3
            os.dup2(log.fileno(), full.fileno())
            for number in range(3):
                stream.write(f"kept {number}\n")
            wait_until(lambda: LOST in file.read_text(), "the number of lost lines")
        finally:
            monkeypatch.undo()
            configure_logs("warning", "console")
        stream.drain()
    lines = file.read_text().splitlines()
    assert [line for line in lines if not line.startswith("{")] == ["kept 0", "kept 1", "kept 2"]
    assert [json.loads(line)["lines"] for line in lines if line.startswith("{")] == [3]


def test_a_stream_that_others_have_made_non_blocking_loses_nothing() -> None:
    with pipe() as (reader, writer):
        os.set_blocking(writer, False)
        stream = StandardError(writer)
        threading.Timer(0.0, stream.write, [f"{'x' * 4 * PIPE}end"]).start()
        assert written(reader, "end") == f"{'x' * 4 * PIPE}end"
        assert stream.lost == 0


@pytest.mark.parametrize("stream", [None, open(os.devnull)], ids=["none", "not writable"])  # noqa: SIM115
def test_a_log_in_another_program_never_raises(stream: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    with boxloss.embedded(device="cpu") as client:
        client.info()
    logs._log.error("nobody reads this")
