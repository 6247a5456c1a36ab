"""Authorities, and a server with all that keeps others out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from boxloss import Tls
from tests.certificates import Authority
from tests.security.callers import RATE, TOKENS, write_tokens
from tests.servers import ServerProcess


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("security")


@pytest.fixture(scope="module")
def authority(folder: Path) -> Authority:
    return Authority(folder / "authority")


@pytest.fixture(scope="module")
def stranger(folder: Path) -> Authority:
    """An authority that signs the certificates of callers; nobody trusts it for servers."""
    return Authority(folder / "stranger")


@pytest.fixture(scope="module")
def tokens(folder: Path) -> Path:
    return folder / "tokens"


@pytest.fixture(scope="module")
def guarded(authority: Authority, tokens: Path) -> Iterator[ServerProcess]:
    """A server with TLS, tokens and quotas, which logs all that it can."""
    write_tokens(tokens, TOKENS)
    flags = f"--tokens-file={tokens}", f"--client-pairs-per-second={RATE}", "--log-level=debug"
    with ServerProcess(*authority.issue("guarded").flags, *flags) as server:
        yield server


@pytest.fixture(scope="module")
def tls(authority: Authority) -> Tls:
    return Tls(authority.certificate)


@pytest.fixture
def channel(guarded: ServerProcess, tls: Tls) -> Iterator[grpc.Channel]:
    with grpc.secure_channel(guarded.address, tls.credentials()) as channel:
        yield channel
