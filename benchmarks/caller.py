"""Callers in Python: one process of asyncio tasks, each with one call under way, arrays in and arrays out.

Usage: python -m benchmarks.caller CONTENDER URL PAIRS TASKS SECONDS. Prints what it saw as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import grpc.aio

from benchmarks.echo import UNARY
from benchmarks.spread import percentile
from benchmarks.workload import LOSS, Workload
from boxloss.calls.aio import AsyncClient
from boxloss.connection.channel import channel_options

Call = Callable[[], Awaitable[object]]

_TIMEOUT = 300.0
_WARM_UP = 0.3
"""Seconds before anything is counted."""


@dataclass(frozen=True)
class Seen:
    """Calls completed within some seconds, and the seconds that half and 99 % of them took at most."""

    calls: int
    seconds: float
    p50: float
    p99: float


@asynccontextmanager
async def boxloss(url: str, workload: Workload) -> AsyncIterator[Call]:
    """The SDK."""
    predictions, targets = workload.boxes
    async with AsyncClient(urlsplit(url).netloc, timeout=_TIMEOUT) as client:
        yield lambda: client.evaluate(predictions, targets, LOSS, gradients=True)


@asynccontextmanager
async def echo(url: str, workload: Workload) -> AsyncIterator[Call]:
    """Bare grpc.aio: the same bytes, neither written nor read."""
    request, netloc = workload.request, urlsplit(url).netloc
    async with grpc.aio.insecure_channel(netloc, channel_options(netloc)) as channel:
        method: Any = channel.unary_unary(UNARY)
        yield lambda: method(request, timeout=_TIMEOUT)


@asynccontextmanager
async def peer(url: str, workload: Workload) -> AsyncIterator[Call]:
    """aiohttp, with the least that turns arrays to bytes and back."""
    boxes = workload.boxes
    headers = {"Content-Type": "application/octet-stream"}
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(_TIMEOUT),
        headers=headers,
        raise_for_status=True,
    ) as session:

        async def call() -> object:
            async with session.post(url, data=boxes.tobytes()) as response:
                return workload.read_raw(await response.read())

        yield call


async def measure(call: Call, tasks: int, seconds: float) -> Seen:
    """Has each task call one time after the other; counts after a warm-up of as many calls as there are tasks.

    Lasts longer than asked where calls are so slow that fewer were answered than there are tasks.
    """
    latencies: list[float] = []
    last = time.perf_counter()
    done = False

    async def work() -> None:
        nonlocal last
        while not done:
            asked = time.perf_counter()
            await call()
            last = time.perf_counter()
            latencies.append(last - asked)

    async def pass_time(least: float) -> None:
        enough, soonest = len(latencies) + tasks, time.perf_counter() + least
        while len(latencies) < enough or time.perf_counter() < soonest:  # noqa: ASYNC110, what calls may cost is counted.
            await asyncio.sleep(0.005)

    async with asyncio.TaskGroup() as group:
        for _ in range(tasks):
            group.create_task(work())
        await pass_time(_WARM_UP)
        warm, started = len(latencies), last
        await pass_time(seconds)
        counted, ended = latencies[warm:], last
        done = True  # What is under way is answered, or it would be computed while another is measured.
    return Seen(len(counted), ended - started, percentile(counted, 50), percentile(counted, 99))


CALLERS = {"boxloss": boxloss, "echo": echo}


async def main(contender: str, url: str, pairs: int, tasks: int, seconds: float) -> None:
    """Measures and prints."""
    async with CALLERS.get(contender, peer)(url, Workload(pairs)) as call:
        print(json.dumps(asdict(await measure(call, tasks, seconds))))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5])))
