"""Clients take renewed files into use while they live, and say when TLS is what is wrong."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

import boxloss
from boxloss import CIoU, Tls
from boxloss.connection import credentials
from boxloss.connection.channel import Address
from tests.certificates import HERE, Authority, Pair
from tests.security.callers import CIOU_OF_A_AND_B, A, B, evaluate, until
from tests.servers import ServerProcess


@pytest.fixture(scope="module")
def server(authority: Authority, stranger: Authority) -> Iterator[ServerProcess]:
    """A server that asks for certificates of the stranger."""
    with ServerProcess(*authority.issue("mutual").flags, f"--tls-client-ca={stranger.certificate}") as server:
        yield server


@pytest.fixture
def own(stranger: Authority) -> Pair:
    """The client's files, with a certificate that the server accepts."""
    return stranger.issue("own", "own@club")


@pytest.fixture
def tls(authority: Authority, own: Pair) -> Tls:
    return Tls(authority.certificate, own.certificate, own.key)


@pytest.fixture(autouse=True)
def _look_at_every_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(credentials, "_INTERVAL", 0.0)


def connections(server: ServerProcess) -> int:
    """How many this process has to a server."""
    return sum(
        bool(each.raddr) and each.raddr.port == server.port and each.status == psutil.CONN_ESTABLISHED
        for each in psutil.Process().net_connections("tcp")
    )


def call(client: boxloss.Client, timeout: float = 30.0) -> None:
    assert client.evaluate(A, B, CIoU(), timeout=timeout).loss == pytest.approx([CIOU_OF_A_AND_B])


async def call_async(client: boxloss.AsyncClient) -> None:
    assert (await client.evaluate(A, B, CIoU())).loss == pytest.approx([CIOU_OF_A_AND_B])


def fails(client: boxloss.Client, *causes: str) -> None:
    """Calls until the error says why; the first may not know yet, or have come to nothing on a busy machine."""

    def said() -> str:
        with pytest.raises((boxloss.ServerUnavailableError, boxloss.DeadlineExceededError)) as failed:
            call(client, timeout=0.5)
        return str(failed.value)

    def all_said() -> bool:
        error = said()
        return all(cause in error for cause in causes)

    until(all_said)


def test_a_client_whose_certificate_has_expired_takes_the_renewed_one(
    server: ServerProcess, stranger: Authority, own: Pair, tls: Tls
) -> None:
    good = stranger.issue("good", "own@club")
    own.replace(stranger.issue_expired("old"))
    with boxloss.Client(server.address, tls=tls) as client:
        fails(client, f"the server refuses the client's TLS certificate {own.certificate}")
        own.replace(good)
        call(client)
        assert [result.loss for result in client.evaluate_stream([(A, B)], CIoU())] == [
            pytest.approx([CIOU_OF_A_AND_B])
        ]


async def test_an_asyncio_client_takes_renewed_files_too(
    server: ServerProcess, stranger: Authority, own: Pair, tls: Tls
) -> None:
    good = stranger.issue("good", "own@club")
    own.replace(stranger.issue_expired("old"))
    async with boxloss.AsyncClient(server.address, tls=tls) as client:
        with pytest.raises(boxloss.ServerUnavailableError):
            await client.evaluate(A, B, CIoU(), timeout=0.5)
        own.replace(good)
        await call_async(client)


def test_a_client_takes_authorities_that_have_changed(
    server: ServerProcess, authority: Authority, stranger: Authority, own: Pair, tmp_path: Path
) -> None:
    trusted = tmp_path / "ca.pem"
    trusted.write_bytes(stranger.certificate.read_bytes())
    with boxloss.Client(server.address, tls=Tls(trusted, own.certificate, own.key)) as client:
        fails(client, "of an authority that the client does not trust")
        trusted.write_bytes(authority.certificate.read_bytes())
        call(client)


def test_changed_files_that_are_broken_are_not_used_and_named_when_the_old_ones_fail(
    server: ServerProcess, stranger: Authority, own: Pair, tls: Tls
) -> None:
    good = stranger.issue("good", "own@club")
    with boxloss.Client(server.address, tls=tls) as client:
        call(client)
        own.key.write_bytes(stranger.issue("other", "other@club").key.read_bytes())
        call(client)
        own.certificate.unlink()
        call(client)
        own.replace(good)
        call(client)
    own.replace(stranger.issue_expired("old"))
    with boxloss.Client(server.address, tls=tls) as client:
        own.key.write_text("half a k")
        fails(client, f"are not used: {own.certificate}, {own.key}: not a certificate and its private key")
        own.replace(good)
        call(client)


def test_files_are_looked_at_once_a_second(
    server: ServerProcess, stranger: Authority, own: Pair, tls: Tls, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = 1000.0
    monkeypatch.setattr(credentials, "_INTERVAL", 1.0)
    monkeypatch.setattr("boxloss.connection.credentials.time.monotonic", lambda: clock)
    certificates = credentials.Certificates(tls)
    own.replace(stranger.issue("new", "own@club"))
    clock += 0.99
    assert not certificates.renewed()
    clock += 0.01
    assert certificates.renewed()
    clock += 1.0
    assert not certificates.renewed()


def test_what_is_under_way_goes_on_over_the_old_connection_which_ends_with_it(
    server: ServerProcess, stranger: Authority, own: Pair, tls: Tls
) -> None:
    before = connections(server)
    with boxloss.Client(server.address, tls=tls) as client:
        asked: list[int] = []

        def batches() -> Iterator[tuple[Any, Any]]:
            for number in range(40):
                asked.append(number)
                yield A, B

        stream = client.evaluate_stream(batches(), CIoU())
        results = [next(stream)]
        for number in range(3):
            own.replace(stranger.issue(f"new{number}", "own@club"))
            call(client)
        until(lambda: connections(server) == before + 2)  # The stream's, and the newest.
        assert len(asked) < 40
        results += stream
        assert [result.loss for result in results] == [pytest.approx([CIOU_OF_A_AND_B])] * 40
        until(lambda: connections(server) == before + 1)
        call(client)
    until(lambda: connections(server) == before)


async def test_what_is_under_way_in_asyncio_goes_on_likewise(
    server: ServerProcess, stranger: Authority, own: Pair, tls: Tls
) -> None:
    before = connections(server)
    async with boxloss.AsyncClient(server.address, tls=tls) as client:
        go_on = asyncio.Event()

        async def batches() -> AsyncIterator[tuple[Any, Any]]:
            for number in range(40):
                if number == 20:
                    await go_on.wait()
                yield A, B

        stream = client.evaluate_stream(batches(), CIoU())
        first = asyncio.ensure_future(anext(stream))
        await first
        own.replace(stranger.issue("new", "own@club"))
        await call_async(client)
        assert connections(server) == before + 2
        go_on.set()
        assert len([result async for result in stream]) == 39
        async with asyncio.timeout(30):
            while connections(server) != before + 1:  # noqa: ASYNC110
                await asyncio.sleep(0.02)


def test_closing_a_client_ends_its_streams_over_old_connections(
    server: ServerProcess, stranger: Authority, own: Pair, tls: Tls
) -> None:
    client = boxloss.Client(server.address, tls=tls)
    stream = client.evaluate_stream(iter([(A, B)] * 40), CIoU())
    next(stream)
    own.replace(stranger.issue("new", "own@club"))
    call(client)
    client.close()
    with pytest.raises(boxloss.BoxlossError, match="this client is closed"):
        list(stream)
    until(lambda: not connections(server))


def test_errors_say_what_is_wrong_with_tls(
    server: ServerProcess, authority: Authority, stranger: Authority, own: Pair, tls: Tls
) -> None:
    outsider = authority.issue("outsider", "outsider@club")
    with ServerProcess() as plain, ServerProcess(*authority.issue("elsewhere", "elsewhere.example").flags) as elsewhere:
        cases: list[tuple[Address, Tls | None, str]] = [
            (server.address, None, "the server asks for TLS; give the client tls=boxloss.Tls(...)"),
            (server.address, Tls(authority.certificate), "asks for a TLS certificate of the client; give Tls(certif"),
            (
                server.address,
                Tls(authority.certificate, outsider.certificate, outsider.key),
                f"the server refuses the client's TLS certificate {outsider.certificate}",
            ),
            (server.address, Tls(stranger.certificate), "that the client does not trust; give that authority's file"),
            (server.address, Tls(), "of an authority that the client does not trust"),
            (plain.address, tls, "the server speaks no TLS; leave tls= out"),
            (elsewhere.address, tls, "the server's TLS certificate is for another name"),
            # A name that has an IPv6 address too, of whose error alone gRPC tells.
            (f"localhost:{elsewhere.port}", tls, "the server's TLS certificate is for another name"),
            (f"dns:///localhost:{elsewhere.port}", Tls(stranger.certificate), "client does not trust"),
            (f"localhost:{server.port}", None, "the server asks for TLS"),
            (f"localhost:{plain.port}", tls, "the server speaks no TLS"),
            ([f"{HERE}:1", elsewhere.address], None, "the server asks for TLS"),
        ]

        def ask(address: Address, tls: Tls | None, cause: str) -> None:
            with boxloss.Client(address, tls=tls) as client:
                fails(client, f"no connection to {client.address}: ", cause)

        with ThreadPoolExecutor(len(cases)) as threads:
            list(threads.map(lambda case: ask(*case), cases))


def test_where_nobody_listens_tls_is_not_blamed(tls: Tls) -> None:
    with pytest.raises(boxloss.ServerUnavailableError, match="no boxloss server answers at"):
        evaluate(f"{HERE}:1", tls=tls, timeout=0.3)
