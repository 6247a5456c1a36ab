"""A greedy client pays for it alone, whoever it is known as."""

from __future__ import annotations

import time
from contextlib import ExitStack

import grpc
import numpy as np
import pytest

import boxloss
from boxloss import CIoU, Tls
from boxloss.v1.loss_service_pb2_grpc import LossServiceStub
from tests.security.callers import RATE, TOKENS, A, bearer, info_of, rejected, request_of
from tests.servers import ServerProcess


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
