"""TLS, mutual TLS, tokens and quotas, with real servers and certificates; and nothing secret gets out."""

from __future__ import annotations

import asyncio
import os
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from structlog.testing import capture_logs

import boxloss
from boxloss import CIoU, Tls, wire
from boxloss.cli import main
from boxloss.v1 import array_pb2, loss_service_pb2
from boxloss.v1.loss_service_pb2_grpc import LossServiceStub
from boxloss_server.exposure import warn_of_exposure
from boxloss_server.service.certificates import Certificates
from boxloss_server.service.tokens import Tokens
from boxloss_server.settings import Settings
from tests.certificates import HERE, Authority, Pair
from tests.servers import ServerProcess, free_port

ROOT = Path(__file__).parent.parent
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
    draft.write_text("# Clients\n\n" + "".join(f"{name}  {token}\n" for name, token in tokens.items()))
    draft.replace(path)


def evaluate(address: str, **options: Any) -> None:
    with boxloss.Client(address, **options) as client:
        assert client.evaluate(A, B, CIoU()).loss == pytest.approx([CIOU_OF_A_AND_B])


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


# TLS


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
        with pytest.raises(boxloss.ServerUnavailableError, match="or the TLS to it"):
            evaluate(site.server.address, timeout=0.5, **options)


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
            while not done.is_set():
                assert client.evaluate(A, B, CIoU()).loss == pytest.approx([CIOU_OF_A_AND_B])
                calls += 1
        return calls

    def come_and_go() -> int:
        calls = 0
        options = [("grpc.use_local_subchannel_pool", 1)]
        while not done.is_set():
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


# Tokens


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


def refusal(call: Callable[[], Any]) -> Any:
    """The error that a call ends with."""
    with pytest.raises(grpc.RpcError) as refused:
        call()
    return refused.value


def info_of(error: Any) -> error_details_pb2.ErrorInfo:
    status = status_pb2.Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"])
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return info


def test_who_has_a_token_is_served(guarded: ServerProcess, tls: Tls) -> None:
    with boxloss.Client(guarded.address, tls=tls, token=TOKENS["alice"]) as client:
        assert client.evaluate(A, B, CIoU()).loss == pytest.approx([CIOU_OF_A_AND_B])
        assert client.pairwise_iou(A, B).shape == (1, 1)
        assert len(list(client.evaluate_stream([(A, B)] * 3, CIoU()))) == 3

    async def call() -> None:
        async with boxloss.AsyncClient(guarded.address, tls=tls, token=TOKENS["alice"]) as client:
            assert (await client.evaluate(A, B, CIoU())).loss == pytest.approx([CIOU_OF_A_AND_B])
            assert [result async for result in client.evaluate_stream([(A, B)], CIoU())]

    asyncio.run(call())


def test_without_a_token_every_rpc_but_health_is_refused_and_counted(
    guarded: ServerProcess, channel: grpc.Channel
) -> None:
    stub, before = LossServiceStub(channel), rejected(guarded, "unauthenticated")
    reflection: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
    asked = reflection_pb2.ServerReflectionRequest(list_services="")
    for call in (
        lambda: stub.Evaluate(request_of(1)),
        lambda: stub.Evaluate(request_of(2**21)),  # Too large, had it been received.
        lambda: stub.PairwiseIou(loss_service_pb2.PairwiseIouRequest()),
        lambda: stub.ListLosses(loss_service_pb2.ListLossesRequest()),
        lambda: list(stub.EvaluateStream(iter([loss_service_pb2.EvaluateStreamRequest()]))),
        lambda: list(reflection.ServerReflectionInfo(iter([asked]))),
    ):
        error = refusal(call)
        assert error.code() is grpc.StatusCode.UNAUTHENTICATED
        assert info_of(error).reason == "UNAUTHENTICATED"
        assert info_of(error).domain == "boxloss"
    assert rejected(guarded, "unauthenticated") == before + 6
    health: Any = health_pb2_grpc.HealthStub(channel)
    assert health.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.SERVING
    with urllib.request.urlopen(guarded.metrics_url) as response:
        sums = response.read().decode()
    assert 'grpc_method="ListLosses",grpc_service="boxloss.v1.LossService",grpc_type="unary"} 1.0' in "\n".join(
        line for line in sums.splitlines() if 'handled_total{grpc_code="UNAUTHENTICATED"' in line
    )


def test_a_refused_caller_gets_an_error_of_its_own_at_once(guarded: ServerProcess, tls: Tls) -> None:
    for token in (None, "a-token-that-nobody-knows"):
        with pytest.raises(boxloss.UnauthenticatedError, match="give the client a token= that it knows"):
            evaluate(guarded.address, tls=tls, token=token, timeout=60)

    async def call() -> None:
        async with boxloss.AsyncClient(guarded.address, tls=tls) as client:
            with pytest.raises(boxloss.UnauthenticatedError):
                await client.evaluate(A, B, CIoU())

    asyncio.run(call())


def test_no_token_gets_out(guarded: ServerProcess, channel: grpc.Channel, tls: Tls) -> None:
    """Not into a log, nor into an error, whatever came of the call."""
    stub, token = LossServiceStub(channel), TOKENS["reader"]
    wrong = "wrong-" + token.swapcase()
    stub.Evaluate(request_of(1), metadata=bearer(token))
    stub.Evaluate(request_of(1), metadata=(("authorization", f"bearer {token}"),))
    said = []
    for value in (
        f"Bearer {wrong}",
        f"Bearer  {token}",
        f"Bearer {token} ",
        f"Bearer {token} {token}",
        f"Bearer {token}{token}",
        f"Basic {token}",
        f"Bearer{token}",
        token,
        "Bearer",
        "",
    ):
        error = refusal(partial(stub.Evaluate, request_of(1), metadata=(("authorization", value),)))
        assert error.code() is grpc.StatusCode.UNAUTHENTICATED, value.replace(token, "TOKEN")
        said.append(f"{error} {error.trailing_metadata()}")
    said.append(str(refusal(lambda: stub.Evaluate(request_of(1), metadata=2 * bearer(token)))))
    said.append(str(refusal(lambda: stub.Evaluate(loss_service_pb2.EvaluateRequest(), metadata=bearer(token)))))
    for sent in (token, wrong):
        with (
            pytest.raises(boxloss.BoxlossError) as failed,
            boxloss.Client(guarded.address, tls=tls, token=sent) as client,
        ):
            client.evaluate(A, [[4.0, 0.0, 0.0, 4.0]], CIoU())
        said.append(f"{failed.value!r} {failed.value.metadata} {vars(client).get('token')}")
    until(lambda: count(guarded, "call refused") >= 14)
    said += map(str, guarded.log)
    for secret in (token, wrong, token[-16:], wrong[-16:]):
        assert not [text for text in said if secret in text]


def test_tokens_change_without_a_restart(guarded: ServerProcess, channel: grpc.Channel, tokens: Path) -> None:
    stub = LossServiceStub(channel)

    def known(token: str) -> bool:
        try:
            stub.ListLosses(loss_service_pb2.ListLossesRequest(), metadata=bearer(token))
        except grpc.RpcError:
            return False
        return True

    new = "erin-erin-erin-erin"
    assert not known(new)
    try:
        changing(guarded, lambda: write_tokens(tokens, TOKENS | {"erin": new}))
        assert known(new)
        assert known(TOKENS["alice"])
        changing(guarded, lambda: write_tokens(tokens, TOKENS | {"erin": f"{new} {new}-next"}))
        assert known(new)
        assert known(f"{new}-next")
        before = count(guarded, BROKEN)
        for number, text in enumerate(("", "erin\n", f"erin {new}\nerin {new}-2\n", "erin short\n"), 1):
            changing(guarded, partial(tokens.write_text, text), BROKEN)
            assert known(new)
            assert count(guarded, BROKEN) == before + number
        assert "short" not in str(list(guarded.log))
    finally:
        changing(guarded, lambda: write_tokens(tokens, TOKENS))
    assert not known(new)
    assert known(TOKENS["alice"])


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "names no client"),
        ("# nobody\n\n", "names no client"),
        ("alice\n", "line 1: write a client's name"),
        ("alice sixteen-letters-a sixteen-letters-b sixteen-letters-c", "line 1: write a client's name"),
        ("# all\nalice fifteen-letters", "line 2: a token has 16 characters or more"),
        ("alice sixteen-letters\N{LATIN SMALL LETTER E WITH ACUTE}", "line 1: a token has"),
        ("alice sixteen-letters-a\nalice sixteen-letters-b", "line 2: the client is there already"),
        ("alice sixteen-letters-a\nbob sixteen-letters-a", "line 2: the token is there already"),
        ("alice sixteen-letters-a sixteen-letters-a", "line 1: the token is there already"),
        (b"alice sixteen-letters-\xff", "is not UTF-8"),
    ],
)
def test_a_wrong_tokens_file_is_refused_without_telling_its_tokens(
    tmp_path: Path, text: str | bytes, complaint: str
) -> None:
    file = tmp_path / "tokens"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ValueError, match=f"--tokens-file {file}.*{complaint}") as refused:
        Tokens.read(file)
    assert "letters" not in str(refused.value)


# Quotas


def test_a_greedy_client_harms_no_modest_one(guarded: ServerProcess, channel: grpc.Channel) -> None:
    stub, before = LossServiceStub(channel), rejected(guarded, "quota")
    started = time.monotonic()
    greedy = [stub.Evaluate.future(request_of(10), metadata=bearer(TOKENS["greedy"])) for _ in range(500)]
    modest = [stub.Evaluate.future(request_of(10), metadata=bearer(TOKENS["modest"])) for _ in range(RATE // 10)]
    assert all(len(call.result().results) == 1 for call in modest)
    codes = [call.code() for call in greedy]
    took = time.monotonic() - started
    taken, refused = codes.count(grpc.StatusCode.OK), codes.count(grpc.StatusCode.RESOURCE_EXHAUSTED)
    assert taken + refused == 500
    assert RATE // 10 <= taken <= (1 + took) * RATE // 10
    assert refused > 0
    assert rejected(guarded, "quota") == before + refused
    error = greedy[codes.index(grpc.StatusCode.RESOURCE_EXHAUSTED)]
    assert info_of(error).reason == "QUOTA_EXCEEDED"
    assert int(dict(error.trailing_metadata())["grpc-retry-pushback-ms"]) > 0


def test_the_sdk_comes_again_when_told_and_streams_are_slowed_down(guarded: ServerProcess, tls: Tls) -> None:
    boxes = np.tile(A, (RATE, 1))
    with boxloss.Client(guarded.address, tls=tls, token=TOKENS["bob"]) as client:
        started = time.monotonic()
        assert sum(len(client.evaluate(boxes, boxes, CIoU()).loss) for _ in range(3)) == 3 * RATE
        assert time.monotonic() - started >= 2
        with pytest.raises(boxloss.QuotaExceededError, match=f"used up its {RATE} pairs per second") as refused:
            client.evaluate(boxes, boxes, CIoU(), timeout=0.1)
        assert 0 < refused.value.retry_after <= 1
        before, started = rejected(guarded, "quota"), time.monotonic()
        assert sum(len(each.loss) for each in client.evaluate_stream([(boxes, boxes)] * 3, CIoU())) == 3 * RATE
        assert time.monotonic() - started >= 2
        assert rejected(guarded, "quota") == before


def test_without_tokens_the_address_is_the_client_whatever_the_port() -> None:
    flags = "--host=0.0.0.0", "--metrics-host=0.0.0.0", f"--client-pairs-per-second={RATE}"
    with ServerProcess(*flags) as server, ExitStack() as stack:
        first, second = (
            LossServiceStub(
                stack.enter_context(grpc.insecure_channel(server.address, [("grpc.use_local_subchannel_pool", 1)]))
            )
            for _ in range(2)
        )
        first.Evaluate(request_of(100 * RATE))
        with pytest.raises(grpc.RpcError, match="this client has used up"):
            second.Evaluate(request_of(RATE))
        warnings = [line["event"] for line in server.log if line["level"] == "warning"]
        assert [text.partition(":")[0] for text in warnings] == [
            "others in the network can read and change what is sent",
            "anybody in the network can read the metrics, which have neither TLS nor a login",
        ]


# What is wrong at the start, and what others could see


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


# The client


@pytest.mark.parametrize("kind", [boxloss.Client, boxloss.AsyncClient])
async def test_a_token_is_not_sent_over_the_network_without_tls(kind: type[boxloss.Client]) -> None:
    for address in ("boxloss.example:50051", "192.0.2.1:50051", "[2001:db8::1]:50051", "dns:///localhost:1", "host"):
        with pytest.raises(ValueError, match="turn TLS on") as refused:
            kind(address, token=TOKENS["alice"])
        assert TOKENS["alice"] not in str(refused.value)


@pytest.mark.parametrize("address", ["localhost:1", "127.0.0.1:1", "127.1.2.3:1", "[::1]:1", "unix:/nowhere"])
def test_a_token_may_be_sent_within_this_computer(address: str) -> None:
    boxloss.Client(address, token=TOKENS["alice"]).close()


@pytest.mark.parametrize("token", ["", "secret\n", "secret secret", "secr\N{LATIN SMALL LETTER E WITH ACUTE}t"])
def test_what_is_no_token_is_refused_and_not_shown(token: str) -> None:
    with pytest.raises(ValueError, match="token is empty or has other characters") as refused:
        boxloss.Client(token=token)
    assert "secr" not in str(refused.value)


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


def test_the_command_takes_tls_and_a_token_from_a_file_or_the_environment(
    guarded: ServerProcess,
    authority: Authority,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def ping(*options: object) -> int:
        with pytest.raises(SystemExit) as ended:
            main(["ping", "--address", guarded.address, "--tls-ca", str(authority.certificate), *map(str, options)])
        return int(ended.value.code or 0)

    file = tmp_path / "token"
    file.write_text(f"{TOKENS['alice']}\n")
    assert ping("--token-file", file) == 0
    assert ping() == 1
    assert "refuses ListLosses" in capsys.readouterr().err
    monkeypatch.setenv("BOXLOSS_TOKEN", TOKENS["alice"])
    assert ping() == 0
    assert ping("--token", TOKENS["alice"]) == 2
    with pytest.raises(SystemExit) as ended:
        main(["losses", "--tls"])
    assert ended.value.code == 2
    assert "give its --address" in capsys.readouterr().err
