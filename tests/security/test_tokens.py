"""Who has a token is served, nobody else is, and no token gets out."""

from __future__ import annotations

import asyncio
import urllib.request
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

import boxloss
from boxloss import CIoU, Tls
from boxloss.cli import main
from boxloss.v1 import loss_service_pb2
from boxloss.v1.loss_service_pb2_grpc import LossServiceStub
from boxloss_server.security import Tokens
from tests.certificates import Authority
from tests.security.callers import (
    BROKEN,
    CIOU_OF_A_AND_B,
    TOKENS,
    A,
    B,
    bearer,
    changing,
    count,
    evaluate,
    info_of,
    rejected,
    request_of,
    until,
    write_tokens,
)
from tests.servers import ServerProcess


def refusal(call: Callable[[], Any]) -> Any:
    """The error that a call ends with."""
    with pytest.raises(grpc.RpcError) as refused:
        call()
    return refused.value


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
