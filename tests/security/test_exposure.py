"""What is wrong at the start is refused, and what others could see is warned of."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from structlog.testing import capture_logs

import boxloss
from boxloss import CIoU
from boxloss_server.exposure import warn_of_exposure
from boxloss_server.security import Certificates
from boxloss_server.settings import Settings
from tests.certificates import Authority
from tests.security.callers import CIOU_OF_A_AND_B, A, B


def run(*flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "boxloss_server", "--port=0", "--metrics-port=0", *flags]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, env=os.environ | {"BOXLOSS_DEVICE": "cpu"}
    )


@pytest.mark.parametrize("processes", [1, 2])
def test_a_missing_file_ends_the_server_with_flag_and_file(authority: Authority, processes: int) -> None:
    pair = authority.issue("missing")
    pair.key.unlink()
    ended = run(*pair.flags, f"--processes={processes}")
    assert ended.returncode == 1
    assert f"--tls-key {pair.key}: No such file or directory" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--tls-certificate=a.pem"], "--tls-certificate and --tls-key belong together"),
        (["--tls-key=a.pem"], "--tls-certificate and --tls-key belong together"),
        (["--tls-client-ca=a.pem"], "--tls-client-ca needs TLS"),
        (["--client-pairs-per-second=-1"], "--client-pairs-per-second"),
    ],
)
def test_settings_that_do_not_go_together_exit_2(flags: list[str], complaint: str) -> None:
    ended = run(*flags)
    assert ended.returncode == 2
    assert complaint in ended.stderr


def test_wrong_certificates_are_refused_with_flag_and_file(authority: Authority, stranger: Authority) -> None:
    pair, other = authority.issue("pair"), authority.issue("unlike")
    for certificate, key, client_ca, complaint in (
        (pair.certificate, other.key, None, f"--tls-key {other.key}: not a certificate and its private key"),
        (pair.key, pair.key, None, f"--tls-certificate {pair.key}"),
        (pair.certificate, pair.key, pair.key, f"--tls-client-ca {pair.key}: no certificates"),
        (pair.certificate, pair.key.parent, None, f"--tls-key {pair.key.parent}: Is a directory"),
    ):
        with pytest.raises((OSError, ValueError), match=complaint):
            Certificates(certificate, key, client_ca)
    Certificates(pair.certificate, pair.key, stranger.certificate)


@pytest.mark.parametrize(
    ("settings", "warnings"),
    [
        ({}, 0),
        ({"host": "localhost", "metrics_host": "::1"}, 0),
        ({"host": "[::1]"}, 0),
        ({"host": "0.0.0.0"}, 1),
        ({"host": "boxloss.example"}, 1),
        ({"host": "::", "tls_certificate": "a", "tls_key": "b"}, 0),
        ({"host": "::", "tls_certificate": "a", "tls_key": "b", "tokens_file": "c"}, 0),
        ({"tokens_file": "c"}, 1),
        ({"metrics_host": "0.0.0.0"}, 1),
        ({"host": "0.0.0.0", "metrics_host": "0.0.0.0", "tokens_file": "c"}, 3),
    ],
)
def test_what_others_could_see_is_warned_of(settings: dict[str, str], warnings: int) -> None:
    with capture_logs() as lines:
        warn_of_exposure(Settings.model_validate(settings))
    assert [line["log_level"] for line in lines] == ["warning"] * warnings


def test_an_embedded_server_does_not_mind_the_settings_of_another(
    authority: Authority, tokens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = authority.issue("embedded")
    for name, value in {
        "TLS_CERTIFICATE": pair.certificate,
        "TLS_KEY": pair.key,
        "TLS_CLIENT_CA": authority.certificate,
        "TOKENS_FILE": tokens,
        "CLIENT_PAIRS_PER_SECOND": 1,
        "CLIENT_WAITING_PAIRS": 1,
    }.items():
        monkeypatch.setenv(f"BOXLOSS_{name}", str(value))
    with boxloss.embedded(device="cpu") as client:
        for _ in range(3):
            assert client.evaluate(A, B, CIoU()).loss == pytest.approx([CIOU_OF_A_AND_B])
