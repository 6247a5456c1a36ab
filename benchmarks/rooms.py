"""Where a request's time goes inside the server, room by room, called one after the other in this process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.in_process import WORK, engine_of
from benchmarks.spread import percentile
from benchmarks.workload import Workload

_LIMITS = 2**30
_SECONDS = 0.3


@dataclass(frozen=True)
class Room:
    """What one step of the way costs.

    Attributes:
        name: of the module and what it does.
        pairs: of a request.
        requests: that share a batch.
        seconds: for one request: a batch's time is shared by its requests.
    """

    name: str
    pairs: int
    requests: int
    seconds: float


def rooms(pairs: int, requests: int) -> Iterator[Room]:
    """Walks through the rooms with a batch of requests of so many pairs each."""
    from boxloss.v1.loss_service_pb2 import EvaluateRequest
    from boxloss_server.batching import Outcome
    from boxloss_server.engine.batch import Batch
    from boxloss_server.service.bulk import reader
    from boxloss_server.service.decode import Limits, decode_evaluation
    from boxloss_server.service.encode import encode_evaluation

    data = Workload(pairs).request
    read = reader(EvaluateRequest)
    limits = Limits(message_bytes=_LIMITS, request_pairs=_LIMITS)
    asked = decode_evaluation(read(data), limits)
    engine, _ = engine_of(WORK)
    batch = [asked.pairs] * requests
    scores: Any = engine.evaluate(WORK, batch)[0]
    outcome = Outcome(scores, 0.001, 0.001, 0.001, time.monotonic(), requests, requests * pairs)
    steps: dict[str, tuple[Callable[[], object], int]] = {
        "service/bulk, decode: read": (lambda: decode_evaluation(read(data), limits), 1),
        "engine/batch: join": (lambda: Batch(WORK, batch), requests),
        "engine: write planes, compute, take": (lambda: engine.evaluate(WORK, batch), requests),
        "service/encode: answer": (lambda: b"".join(encode_evaluation(asked, outcome)), 1),
    }
    for name, (step, shared) in steps.items():
        yield Room(name, pairs, requests, _time(step) / shared)


def _time(step: Callable[[], object]) -> float:
    taken: list[float] = []
    while sum(taken) < _SECONDS or len(taken) < 5:
        started = time.perf_counter()
        step()
        taken.append(time.perf_counter() - started)
    return percentile(taken, 50)
