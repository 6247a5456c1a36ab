"""The command boxloss-server: settings from flags and environment, and how it ends."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable

import pytest

import boxloss
from boxloss_server.settings import Settings
from tests.servers import ServerProcess, free_port


def run(*flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "boxloss_server", *flags],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=os.environ | environment,
    )


def test_help_explains_every_setting() -> None:
    shown = run("--help")
    assert shown.returncode == 0
    assert "BOXLOSS_MAX_WAITING_PAIRS" in shown.stdout
    text = " ".join(shown.stdout.split())
    for name, field in Settings.model_fields.items():
        assert f"--{name.replace('_', '-')}" in text
        assert field.description
        assert field.description in text


@pytest.mark.parametrize(
    ("flags", "environment", "complaint"),
    [
        (["--port=http"], {}, "--port: Input should be a valid integer"),
        (["--port=70000"], {}, "--port: Input should be less than or equal to 65535"),
        ([], {"BOXLOSS_MAX_BATCH_PAIRS": "0"}, "--max-batch-pairs: Input should be greater than or equal to 1"),
        (["--max-waiting-pairs=10"], {}, "max_waiting_pairs must be at least max_request_pairs"),
        (["--log-level=loud"], {}, "--log-level"),
        (["--prot=1"], {}, "--prot"),
        (["--host="], {}, "--host: Value error, is empty; give an address"),
        ([], {"BOXLOSS_METRICS_HOST": ""}, "--metrics-host: Value error, is empty"),
    ],
)
def test_wrong_settings_exit_2_and_name_the_flag(flags: list[str], environment: dict[str, str], complaint: str) -> None:
    ended = run(*flags, **environment)
    assert ended.returncode == 2
    assert complaint in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (
            lambda port: (f"--port={port}", "--metrics-port=0"),
            "cannot listen on 127.0.0.1:{port}: in use",
        ),
        (lambda port: ("--port=0", f"--metrics-port={port}"), "cannot serve metrics on 127.0.0.1:{port}"),
        (lambda port: ("--port=0", "--metrics-port=0", "--device=cuda:99"), "device 'cuda:99' is not here"),
        (lambda port: ("--port=0", "--metrics-port=0", "--device=abacus"), "device 'abacus' is not known"),
    ],
    ids=["port taken", "metrics port taken", "no such GPU", "no such device"],
)
def test_what_cannot_be_served_exits_1_and_says_why(flags: Callable[[int], tuple[str, ...]], complaint: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = run(*flags(port))
    assert ended.returncode == 1
    assert complaint.format(port=port) in ended.stderr
    assert "Traceback" not in ended.stderr


def test_flags_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.setenv("BOXLOSS_PORT", "1")
    monkeypatch.setenv("BOXLOSS_MAX_REQUEST_PAIRS", "123")
    with ServerProcess(f"--port={port}") as server, boxloss.Client(server.address) as client:
        assert server.port == port
        assert client.info().request_pairs == 123


def _has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.mark.skipif(not _has_ipv6(), reason="no IPv6 here")
@pytest.mark.parametrize(
    ("host", "processes", "shown", "reached"),
    [("::", 2, "[::]", ("[::1]", "127.0.0.1")), ("::1", 1, "[::1]", ("[::1]", "localhost"))],
)
def test_ipv6_addresses_need_no_brackets_and_are_shown_in_them(
    host: str, processes: int, shown: str, reached: tuple[str, ...]
) -> None:
    with ServerProcess(f"--host={host}", f"--metrics-host={host}", f"--processes={processes}") as server:
        assert server.address == f"{shown}:{server.port}"
        assert server.metrics_url.startswith(f"http://{shown}:")
        assert server.samples("boxloss_waiting_pairs")
        for each in reached:
            with boxloss.Client(f"{each}:{server.port}") as client:
                assert client.info().request_pairs > 0


@pytest.mark.parametrize(
    ("written", "host"),
    [
        ("::1", "[::1]"),
        ("[::1]", "[::1]"),
        ("2001:DB8::0", "[2001:db8::]"),
        ("fe80::1%eth0", "[fe80::1%eth0]"),
        ("127.0.0.1", "127.0.0.1"),
        ("boxloss.example", "boxloss.example"),
    ],
)
def test_hosts_are_kept_as_they_stand_before_a_port(written: str, host: str) -> None:
    assert Settings(host=written, metrics_host=written).host == host
    assert Settings(host=written, metrics_host=written).metrics_host == host


def test_logs_are_json_lines() -> None:
    server = ServerProcess()
    assert server.stop() == 0
    assert [line["event"] for line in server.log] == ["serving metrics", "serving", "shutting down", "stopped"]
    assert all({"timestamp", "level"} <= set(line) for line in server.log)
