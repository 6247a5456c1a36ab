"""Audits on a server: the same findings as in this process, whatever happens on the way."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from itertools import count, cycle

import grpc
import numpy as np
import pytest

import boxloss
from boxloss.audit.dataset import audit
from boxloss.audit.image import Image, Labels, Predictions
from boxloss.audit.rules import Rules
from boxloss.audit.wire import image_to_message
from boxloss.v1.audit_service_pb2 import AuditImage, AuditRequest, AuditRules
from boxloss.v1.audit_service_pb2_grpc import AuditServiceStub
from tests.audits import assert_same
from tests.servers import ServerProcess, endings, free_port, wait_until


def some_images(number: int, boxes: int = 20) -> Iterator[Image]:
    """Images of boxes that overlap by chance, some without a model and some without any box."""
    for seed in range(number):
        rng = np.random.default_rng(seed)
        drawn = 0 if seed % 7 == 3 else boxes
        corners = rng.uniform(0, 300, (2 * drawn, 2))
        placed = np.hstack([corners, corners + rng.uniform(0, 150, (2 * drawn, 2))])
        names = rng.choice(["cat", "dog", "fox"], 2 * drawn).tolist()
        labels = Labels(placed[:drawn], names[:drawn], crowd=rng.random(drawn) < 0.1)
        found = Predictions(placed[drawn:], names[drawn:], rng.random(drawn))
        yield Image(f"image {seed}" if seed % 2 else seed, labels, None if seed % 5 == 4 else found, 460, 450)


@pytest.mark.parametrize("rules", [Rules(), Rules("optimal", 0.4, 0.05)], ids=["greedy", "optimal"])
def test_a_server_finds_what_is_found_in_this_process(client: boxloss.Client, rules: Rules) -> None:
    remote, local = client.audit(some_images(60), rules, worst=7), audit(some_images(60), rules, worst=7)
    kinds: set[str] = set()
    for there, here in zip(remote, local, strict=True):
        assert there == here
        kinds.update(finding.kind for finding in here.findings)
    assert len(kinds) >= 4
    assert_same(remote.summary(), local.summary())


async def test_asyncio_finds_the_same(server: ServerProcess) -> None:
    async def images() -> AsyncIterator[Image]:
        for image in some_images(20):
            yield image

    async with boxloss.AsyncClient(server.address) as client:
        remote = client.audit(images())
        there = [each async for each in remote]
        assert there == list(audit(some_images(20)))
        assert_same(await remote.summary(), audit(some_images(20)).summary())
        assert_same(await client.audit(some_images(20)).summary(), audit(some_images(20)).summary())


def test_no_images_make_an_empty_summary(client: boxloss.Client) -> None:
    assert_same(client.audit([]).summary(), audit([]).summary())


def test_findings_come_while_images_are_read(client: boxloss.Client) -> None:
    asked = count()

    def endless() -> Iterator[Image]:
        while True:
            next(asked)
            yield from some_images(1)

    found = client.audit(endless())
    for _ in range(30):
        next(found)
    assert next(asked) < 30 + 2 * 8


def test_a_server_that_is_killed_is_asked_again_and_nothing_is_missing_or_twice() -> None:
    port = free_port()
    first = ServerProcess(f"--port={port}")
    with boxloss.Client(first.address, timeout=60) as client:
        found = client.audit(some_images(40))
        there = [next(found) for _ in range(15)]
        first.kill()
        successor: list[ServerProcess] = []
        starting = threading.Thread(target=lambda: successor.append(ServerProcess(f"--port={port}")))
        starting.start()
        there += list(found)
        starting.join()
        with successor[0]:
            assert there == list(audit(some_images(40)))
            assert_same(found.summary(), audit(some_images(40)).summary())


def test_the_contract_alone_gives_findings_and_then_a_summary(server: ServerProcess) -> None:
    images = list(some_images(3))
    asked = [AuditRequest(rules=AuditRules(worst_count=2)), *(AuditRequest(image=image_to_message(i)) for i in images)]
    with grpc.insecure_channel(server.address) as channel:
        answers = list(AuditServiceStub(channel).Audit(iter(asked)))
    assert [answer.WhichOneof("content") for answer in answers] == ["image"] * 3 + ["summary"]
    assert [answer.image.image_id for answer in answers[:3]] == [request.image.id for request in asked[1:]]
    assert answers[3].summary.image_count == 3
    assert len(answers[3].summary.worst_findings) == 2


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ([AuditRequest(image=image_to_message(next(some_images(1))))], "rules"),
        ([AuditRequest()], "rules"),
        ([AuditRequest(rules=AuditRules(min_iou=2.0))], r"rules\.min_iou"),
        ([AuditRequest(rules=AuditRules()), AuditRequest(rules=AuditRules())], "image"),
        ([AuditRequest(rules=AuditRules()), AuditRequest(image=AuditImage())], r"image\.id"),
    ],
)
def test_a_bad_message_is_named(server: ServerProcess, asked: list[AuditRequest], field: str) -> None:
    with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError, match=field) as failed:
        list(AuditServiceStub(channel).Audit(iter(asked)))
    assert failed.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_an_image_at_fault_ends_the_audit_after_those_before_it(client: boxloss.Client) -> None:
    good = list(some_images(2))
    many = Labels(np.zeros((1100, 4)), ["cat"] * 1100)
    found = client.audit([*good, Image("too many boxes", many)])
    assert [next(found), next(found)] == list(audit(good))
    with pytest.raises(boxloss.RequestTooLargeError, match=r"image: makes 1245200 pairs.*--max-request-pairs"):
        next(found)


def test_an_image_may_have_so_many_pairs_and_no_more() -> None:
    """Each box counts 32 pairs besides those that it makes with labels."""
    images = [Image(boxes, Labels(np.zeros((boxes, 4)), ["cat"] * boxes)) for boxes in (67, 68, 69)]
    limit = 68 * (68 + 32)
    with ServerProcess(f"--max-request-pairs={limit}") as server, boxloss.Client(server.address) as client:
        found = client.audit(images)
        assert [next(found).image_id, next(found).image_id] == [67, 68]
        with pytest.raises(boxloss.RequestTooLargeError, match=f"image: makes 6969 pairs.*the limit is {limit}"):
            next(found)


def test_audits_are_counted() -> None:
    with ServerProcess() as server, boxloss.Client(server.address) as client:
        summary = client.audit(some_images(10)).summary()
        assert server.total("boxloss_audit_images_total") == 10
        for kind, number in summary.findings.items():
            assert server.total("boxloss_audit_findings_total", kind=kind) == number
        assert server.total("boxloss_audit_iou_count") == summary.iou_histogram.sum() > 0
        assert server.total("grpc_server_handled_total", grpc_method="Audit") == 1


async def test_audits_that_are_read_to_their_end_are_successes_to_the_server() -> None:
    with ServerProcess() as server:
        for number in (1, 8, 20):
            with boxloss.Client(server.address) as client:
                assert len(list(client.audit(some_images(number)))) == number
            async with boxloss.AsyncClient(server.address) as connected:
                assert len([each async for each in connected.audit(some_images(number))]) == number
        assert endings(server, "Audit") == {"OK": 6}


def test_an_audit_that_the_caller_abandons_is_over_at_once() -> None:
    with ServerProcess() as server, boxloss.Client(server.address) as client:
        found = client.audit(cycle(some_images(8)))
        next(found)
        del found
        wait_until(lambda: sum(endings(server, "Audit").values()) == 1, "the audit is over")


def test_sigterm_does_not_wait_for_an_idle_audit() -> None:
    with ServerProcess() as server, grpc.insecure_channel(server.address) as channel:
        silent = threading.Event()

        def nothing() -> Iterator[AuditRequest]:
            silent.wait()
            yield from ()

        answers = AuditServiceStub(channel).Audit(nothing())
        with boxloss.Client(server.address) as client:
            client.info()
        server.terminate()
        with pytest.raises(grpc.RpcError) as ended:
            next(answers)
        silent.set()
        assert ended.value.code() == grpc.StatusCode.UNAVAILABLE
        assert server.wait() == 0
