"""Evaluation streams of the SDK, blocking and asyncio, against a real server; tests/test_reliability.py breaks them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import pytest

import boxloss
from boxloss import CIoU, GIoU, InvalidInputError
from tests.boxes import random_boxes
from tests.servers import ServerProcess

A, B = [[0.0, 0.0, 4.0, 4.0]], [[1.0, 2.0, 5.0, 8.0]]


def batches(count: int, seed: int = 45) -> list[tuple[Any, Any]]:
    rng = np.random.default_rng(seed)
    return [(random_boxes(rng, n), random_boxes(rng, n)) for n in rng.integers(0, 60, count)]


def test_a_stream_yields_one_result_for_each_batch_in_order(client: boxloss.Client) -> None:
    given = batches(50)
    results = list(client.evaluate_stream(iter(given), CIoU(), gradients=True))
    assert len(results) == 50
    for result, (predictions, targets) in zip(results, given, strict=True):
        np.testing.assert_array_equal(result.loss, client.evaluate(predictions, targets, CIoU()).loss)


def test_stream_batches_may_have_weights(client: boxloss.Client) -> None:
    (result,) = client.evaluate_stream([(A, B, [2.0])], CIoU(), reduction="sum")
    assert result.loss == pytest.approx(2 * 0.9361860890731847)


def test_an_empty_stream_yields_nothing(client: boxloss.Client) -> None:
    assert list(client.evaluate_stream([], CIoU())) == []


def test_a_stream_raises_after_the_results_before_the_fault(client: boxloss.Client) -> None:
    for bad, complaint in (
        ((A, B * 2), r"batches\[3\].targets: has 2 rows for 1 predictions"),
        ((A, [[5, 2, 1, 8]]), "targets: row 0 is inverted"),
    ):
        results = client.evaluate_stream([(A, B), (A, B), (A, B), bad, (A, B)], CIoU())
        for _ in range(3):
            assert next(results).loss.shape == (1,)
        with pytest.raises(InvalidInputError, match=complaint):
            next(results)


def test_a_stream_reads_few_batches_ahead(client: boxloss.Client) -> None:
    read = 0

    def source() -> Iterator[tuple[Any, Any]]:
        nonlocal read
        for _ in range(100):
            read += 1
            yield A, B

    results = client.evaluate_stream(source(), CIoU())
    next(results)
    assert read <= 10
    results.close()  # type: ignore[attr-defined]


async def test_asyncio_streams_take_both_kinds_of_iterables(server: ServerProcess, client: boxloss.Client) -> None:
    given = batches(30)

    async def source() -> AsyncIterator[tuple[Any, Any]]:
        for batch in given:
            await asyncio.sleep(0)
            yield batch

    expected = [result.loss for result in client.evaluate_stream(given, GIoU())]
    async with boxloss.AsyncClient(server.address) as connected:
        for iterable in (given, source()):
            results = [result.loss async for result in connected.evaluate_stream(iterable, GIoU())]
            for result, loss in zip(results, expected, strict=True):
                np.testing.assert_array_equal(result, loss)


def test_batches_over_the_limits_are_split_and_joined(client: boxloss.Client) -> None:
    rng = np.random.default_rng(48)
    given = [(random_boxes(rng, n), random_boxes(rng, n)) for n in (250, 0, 30, 500)]
    with (
        ServerProcess("--max-request-pairs=100", "--max-message-bytes=4096") as server,
        boxloss.Client(server.address) as narrow,
    ):
        parts = list(narrow.evaluate_stream(given, CIoU()))
    for first, second in zip(client.evaluate_stream(given, CIoU()), parts, strict=True):
        np.testing.assert_array_equal(first.loss, second.loss)
