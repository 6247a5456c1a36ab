"""TLS and mutual TLS, with real certificates that expire, change and break."""

from __future__ import annotations

import asyncio
import os
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import grpc
import pytest

import boxloss
from boxloss import CIoU, Tls
from boxloss.v1.loss_service_pb2_grpc import LossServiceStub
from tests.certificates import HERE, Authority, Pair
from tests.security.callers import (
    BROKEN,
    CHANGED,
    CIOU_OF_A_AND_B,
    RATE,
    TOKENS,
    A,
    B,
    bearer,
    changing,
    count,
    evaluate,
    rejected,
    request_of,
    until,
    write_tokens,
)
from tests.servers import ServerProcess, free_port

ROOT = Path(__file__).parent.parent.parent


class Site:
    """A server with TLS whose certificate changes.

    Args:
        authority: issues the certificates.
    """

    def __init__(self, authority: Authority) -> None:
        self.authority = authority
        self.good = authority.issue("good")
        self.pair = authority.issue("site")
        self.server = ServerProcess(*self.pair.flags)
        self.tls = Tls(authority.certificate)

    def show(self, pair: Pair) -> None:
        """Has the server show another certificate."""
        changing(self.server, lambda: self.pair.replace(pair))

    def shown(self) -> str:
        """The certificate that the server shows to a new connection."""
        return ssl.get_server_certificate((HERE, self.server.port))


@pytest.fixture(scope="module")
def site(authority: Authority) -> Iterator[Site]:
    site = Site(authority)
    yield site
    assert site.server.stop() == 0


def leaf(pair: Pair) -> str:
    return pair.certificate.read_text().partition("-----END")[0]


def test_calls_go_over_tls(site: Site) -> None:
    evaluate(site.server.address, tls=site.tls)

    async def call() -> None:
        async with boxloss.AsyncClient(site.server.address, tls=site.tls) as client:
            assert (await client.evaluate(A, B, CIoU())).loss == pytest.approx([CIOU_OF_A_AND_B])
            async for result in client.evaluate_stream([(A, B)], CIoU()):
                assert result.loss == pytest.approx([CIOU_OF_A_AND_B])

    asyncio.run(call())


def test_who_does_not_trust_the_server_sends_it_nothing(site: Site, stranger: Authority) -> None:
    for options in ({"tls": Tls(stranger.certificate)}, {"tls": Tls()}, {}):
        with pytest.raises(boxloss.ServerUnavailableError, match=r"no connection to .*TLS"):
            evaluate(site.server.address, timeout=1.0, **options)


def test_expired_certificates_and_those_for_another_name_are_refused(site: Site) -> None:
    for pair, complaint in (
        (site.authority.issue_expired("expired"), "certificate has expired"),
        (site.authority.issue("elsewhere", "elsewhere.example"), "Hostname Verification Check failed"),
    ):
        site.show(pair)
        with pytest.raises(boxloss.ServerUnavailableError, match=complaint):
            evaluate(site.server.address, timeout=0.5, tls=site.tls)
    site.show(site.good)
    evaluate(site.server.address, tls=site.tls)


def test_certificates_change_under_load_without_a_failed_call(site: Site) -> None:
    """Old connections live on, and new ones are made all the time."""
    pairs = [site.authority.issue(f"load{number}") for number in range(3)]
    done = threading.Event()
    states: list[grpc.ChannelConnectivity] = []
    credentials = site.tls.credentials()

    def stay() -> int:
        calls = 0
        with boxloss.Client(site.server.address, tls=site.tls) as client:
            while not done.wait(0.01):
                assert client.evaluate(A, B, CIoU()).loss == pytest.approx([CIOU_OF_A_AND_B])
                calls += 1
        return calls

    def come_and_go() -> int:
        calls = 0
        options = [("grpc.use_local_subchannel_pool", 1)]
        while not done.wait(0.01):
            with grpc.secure_channel(site.server.address, credentials, options) as channel:
                LossServiceStub(channel).Evaluate(request_of(1), timeout=30)
            calls += 1
        return calls

    with grpc.secure_channel(site.server.address, credentials) as channel, ThreadPoolExecutor(4) as threads:
        channel.subscribe(states.append, try_to_connect=True)
        until(lambda: states and states[-1] is grpc.ChannelConnectivity.READY)
        connected = len(states)
        callers = [threads.submit(each) for each in (stay, stay, come_and_go, come_and_go)]
        try:
            for pair in pairs:
                site.show(pair)
                assert leaf(pair) in site.shown()
        finally:
            done.set()
        assert all(caller.result() > 0 for caller in callers)
        LossServiceStub(channel).Evaluate(request_of(1), timeout=30)
        assert len(states) == connected  # The connection of old is still the same.


def test_broken_files_keep_the_old_certificate_and_are_logged_once(site: Site) -> None:
    site.show(site.good)
    other = site.authority.issue("other")
    before = count(site.server, BROKEN)
    for number, text in enumerate((b"", site.good.key.read_bytes()[:100], other.key.read_bytes(), None), 1):
        if text is None:
            changing(site.server, site.pair.key.unlink, BROKEN)
        else:
            changing(site.server, partial(site.pair.key.write_bytes, text), BROKEN)
        for _ in range(3):
            assert leaf(site.good) in site.shown()
        evaluate(site.server.address, tls=site.tls)
        assert count(site.server, BROKEN) == before + number
    site.show(other)
    assert count(site.server, BROKEN) == before + 4
    assert leaf(other) in site.shown()
    assert str(site.pair.key) in next(line["error"] for line in site.server.log if line.get("event") == BROKEN)


def test_processes_share_certificates_and_tokens(authority: Authority, folder: Path) -> None:
    pair, other = authority.issue("shared"), authority.issue("renewed")
    file = folder / "shared tokens"
    write_tokens(file, {"alice": TOKENS["alice"]})
    with ServerProcess("--processes=2", *pair.flags, f"--tokens-file={file}") as server, ExitStack() as stack:
        credentials = Tls(authority.certificate).credentials()

        def connect() -> LossServiceStub:
            options = [("grpc.use_local_subchannel_pool", 1)]
            return LossServiceStub(stack.enter_context(grpc.secure_channel(server.address, credentials, options)))

        stubs = [connect() for _ in range(16)]  # So many that both processes have some.
        for stub in stubs:
            stub.Evaluate(request_of(1), metadata=bearer(TOKENS["alice"]), timeout=30)
            with pytest.raises(grpc.RpcError, match="UNAUTHENTICATED"):
                stub.Evaluate(request_of(1), timeout=30)
        before = count(server, CHANGED)
        pair.replace(other)
        write_tokens(file, {"bob": TOKENS["bob"]})
        until(lambda: count(server, CHANGED) >= before + 4)  # Two files of each process.
        for _ in range(16):
            assert leaf(other) in ssl.get_server_certificate((HERE, server.port))
        for stub in stubs:
            stub.Evaluate(request_of(1), metadata=bearer(TOKENS["bob"]), timeout=30)
            with pytest.raises(grpc.RpcError, match="UNAUTHENTICATED"):
                stub.Evaluate(request_of(1), metadata=bearer(TOKENS["alice"]), timeout=30)
        assert rejected(server, "unauthenticated") == 32


@pytest.mark.parametrize("name", ["guarded", "club"])
def test_the_image_finds_a_server_with_tls_healthy(name: str, request: pytest.FixtureRequest) -> None:
    server: ServerProcess = request.getfixturevalue(name)
    variables = {"BOXLOSS_PORT": str(server.port), "BOXLOSS_TLS_CERTIFICATE": "of the server"}
    if name == "club":
        variables["BOXLOSS_TLS_CLIENT_CA"] = "of the callers"
    check = [sys.executable, str(ROOT / "deploy/healthcheck.py")]
    subprocess.run(check, env=os.environ | variables, check=True)
    dead = subprocess.run(check, env=os.environ | variables | {"BOXLOSS_PORT": str(free_port())}, capture_output=True)
    assert dead.returncode == 1
    assert b"Connection refused" in dead.stderr


# Mutual TLS


@pytest.fixture(scope="module")
def club(authority: Authority, stranger: Authority) -> Iterator[ServerProcess]:
    """A server that asks for certificates of the stranger, and has quotas."""
    quota = f"--client-pairs-per-second={RATE}"
    with ServerProcess(*authority.issue("club").flags, f"--tls-client-ca={stranger.certificate}", quota) as server:
        yield server


def test_mutual_tls_asks_callers_for_a_certificate(
    club: ServerProcess, authority: Authority, stranger: Authority
) -> None:
    member, outsider = stranger.issue("member", "member@club"), authority.issue("outsider", "outsider@club")
    expired = stranger.issue_expired("late")
    evaluate(club.address, tls=Tls(authority.certificate, member.certificate, member.key))
    for shown in ((), (outsider.certificate, outsider.key), (expired.certificate, expired.key)):
        with pytest.raises(boxloss.ServerUnavailableError):
            evaluate(club.address, timeout=0.5, tls=Tls(authority.certificate, *shown))


def test_a_certificates_common_name_is_the_client(
    club: ServerProcess, authority: Authority, stranger: Authority
) -> None:
    cards = [
        stranger.issue(f"card{number}", f"{number}@club", common_name=name)
        for number, name in enumerate(("carol", "carol", "dave"))
    ]
    with ExitStack() as stack:
        first, second, other = (
            LossServiceStub(
                stack.enter_context(
                    grpc.secure_channel(
                        club.address, Tls(authority.certificate, card.certificate, card.key).credentials()
                    )
                )
            )
            for card in cards
        )
        first.Evaluate(request_of(100 * RATE))
        with pytest.raises(grpc.RpcError, match="this client has used up"):
            second.Evaluate(request_of(RATE))
        other.Evaluate(request_of(RATE))


# The client


def test_wrong_files_of_the_client_are_named(authority: Authority) -> None:
    pair, other = authority.issue("own"), authority.issue("others")
    with pytest.raises(ValueError, match="belong together"):
        Tls(certificate=pair.certificate)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pem"):
        boxloss.Client(tls=Tls("nowhere.pem"))
    with pytest.raises(ValueError, match=f"{pair.key}: no certificates in PEM form"):
        boxloss.Client(tls=Tls(pair.key))
    with pytest.raises(ValueError, match=f"{other.key}: not a certificate and its private key"):
        boxloss.Client(tls=Tls(None, pair.certificate, other.key))
