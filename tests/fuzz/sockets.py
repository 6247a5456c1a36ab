"""Inputs over sockets to a real server: mutated calls of every RPC, and bytes that are no gRPC."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from random import Random
from typing import Any

import grpc
import grpc.aio
import psutil

from tests.fuzz.mutation import from_bytes, mutate, to_bytes
from tests.fuzz.oracle import SECONDS, WELL_FORMED, Finding, judge, judge_well_formed
from tests.fuzz.seeds import found, large_seeds, seeds
from tests.fuzz.strategies import STREAMS, Call
from tests.fuzz.target import Outcome
from tests.fuzz.trial import GROWTH
from tests.servers import ServerProcess

WATCH = "/grpc.health.v1.Health/Watch"
_TOGETHER = 16
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_SETTINGS = b"\0\0\0\4\0\0\0\0\0"
_SMALL = 2**13


def run(server: ServerProcess, inputs: int, seeded: int) -> dict[str, Any]:
    """Makes so many calls and connections; raises `Finding` where one does not end as it must, or leaves something."""
    return asyncio.run(_run(server, inputs, seeded))


async def _run(server: ServerProcess, inputs: int, seeded: int) -> dict[str, Any]:
    random = Random(seeded)
    endings: Counter[str] = Counter()
    slowest = 0.0
    memory = 0
    async with grpc.aio.insecure_channel(server.address) as channel:

        async def try_call(call: Call) -> None:
            nonlocal slowest
            outcome = await _call(channel, call)
            endings[f"{call[0].rpartition('/')[2]} {outcome.code.name}"] += 1
            slowest = max(slowest, outcome.seconds)
            try:
                judge(call, outcome)
            except Finding as finding:
                raise Finding(f"{finding}: {call[0]} {to_bytes(call)[:400]!r}") from None

        async def try_connection(data: bytes) -> None:
            endings[f"connection {await _connect(server.port, data)}"] += 1

        calls = _calls(random)
        while endings.total() < inputs:
            count = min(_TOGETHER, inputs - endings.total())
            tries = [
                try_connection(_no_grpc(random)) if random.random() < 0.1 else try_call(next(calls))
                for _ in range(count)
            ]
            await asyncio.gather(*tries)
            if not memory and endings.total() >= inputs / 10:
                memory = _memory(server)
        judge_well_formed(await _call(channel, WELL_FORMED))
    _look_after(server)
    grown = _memory(server) - memory
    if grown > GROWTH:
        raise Finding(f"the server's memory grew by {grown / 2**20:.0f} MiB in the last nine tenths")
    return {"inputs": endings.total(), "endings": endings, "slowest": slowest, "grown": grown}


def _calls(random: Random) -> Iterator[Call]:
    """Seeds and what they become when they are mutated again and again; now and then a large one."""
    pool = [*seeds(), *found().values(), (WATCH, [b""])]
    large = list(large_seeds())
    while True:
        place = random.randrange(len(pool))
        call = random.choice(large) if random.random() < 0.02 else pool[place]
        if call[0] == WATCH:
            yield WATCH, [random.choice([b"", b"\n\1x", random.randbytes(random.randrange(9))])]
            continue
        mutated = mutate(to_bytes(call), 2**22, random.getrandbits(32), lambda data, size: _noise(data, random))
        yield from_bytes(mutated)
        # What is a little wrong is more telling than what is wrong throughout.
        if len(mutated) < _SMALL and random.random() < 0.1 and len(pool) < 1000:
            pool.append(from_bytes(mutated))


def _noise(data: bytes, random: Random) -> bytes:
    place = random.randrange(len(data) + 1)
    return data[:place] + random.randbytes(random.randrange(8)) + data[place + random.randrange(8) :]


def _no_grpc(random: Random) -> bytes:
    """Bytes at random, HTTP/1, or a preface of HTTP/2 with frames at random."""
    noise = random.randbytes(random.randrange(200))
    match random.randrange(5):
        case 0:
            return noise
        case 1:
            return b"GET / HTTP/1.1\r\nHost: boxloss\r\n\r\n" + noise
        case 2:
            return _PREFACE[: random.randrange(len(_PREFACE))]
        case 3:
            return _PREFACE + noise
        case _:
            frames = []
            for _ in range(random.randrange(6)):
                content = random.randbytes(random.randrange(40))
                head = bytes([random.randrange(12), random.randrange(256)])
                frames.append(
                    len(content).to_bytes(3, "big") + head + random.choice([0, 1, 3]).to_bytes(4, "big") + content
                )
            return _PREFACE + _SETTINGS + b"".join(frames)


async def _call(channel: Any, call: Call) -> Outcome:
    """A call over the channel, anew where grpc.aio lost the server's status because it still wrote."""
    outcome = await _attempt(channel, call)
    while outcome.message == "Internal error from Core":
        outcome = await _attempt(channel, call)
    return outcome


async def _attempt(channel: Any, call: Call) -> Outcome:
    method, messages = call
    started = time.perf_counter()
    answers: list[bytes] = []
    ended: tuple[grpc.StatusCode, str, tuple[tuple[str, str | bytes], ...]] = grpc.StatusCode.OK, "", ()
    calling: Any
    try:
        if method == WATCH:
            calling = channel.unary_stream(method)(messages[0], timeout=SECONDS)
            answers.append(await calling.read())
            calling.cancel()
        elif method in STREAMS:
            calling = channel.stream_stream(method)(iter(messages), timeout=SECONDS)
            answers.extend([answer async for answer in calling])
        else:
            answers.append(await channel.unary_unary(method)(messages[0], timeout=SECONDS))
    except grpc.aio.AioRpcError as error:
        ended = error.code(), error.details() or "", tuple(error.trailing_metadata())
    return Outcome(*ended, answers, time.perf_counter() - started)


async def _connect(port: int, data: bytes) -> str:
    """Sends bytes on a connection of their own, and reads until the server closes it or has no more to say."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    end = "left"
    with suppress(ConnectionError):
        writer.write(data)
        writer.write_eof()
        await asyncio.wait_for(reader.read(), SECONDS)
        end = "closed"
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()
    return end


def _look_after(server: ServerProcess) -> None:
    """What the calls have left behind in the server."""
    deadline = time.monotonic() + SECONDS
    while waiting := server.total("boxloss_waiting_requests"):
        if time.monotonic() > deadline:
            raise Finding(f"{waiting:.0f} requests are still counted as admitted")
        time.sleep(0.05)
    if pairs := server.total("boxloss_waiting_pairs"):
        raise Finding(f"{pairs:.0f} pairs of no request are still counted as admitted")
    for line in server.log:
        # gRPC's own lines, about bytes that are no HTTP/2, are text.
        if line.get("level", "info") not in ("debug", "info") or "Traceback" in line.get("text", ""):
            raise Finding(f"the server logged {line}")


def _memory(server: ServerProcess) -> int:
    resident: int = psutil.Process(server.pid).memory_info().rss
    return resident
