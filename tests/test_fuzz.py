"""Fuzzing in small: found cases, calls of the contract, mutated calls; and that the fuzzer finds what there is to find.

`make fuzzquick` and `make fuzz` go on from here: CONTRIBUTING.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
import structlog
from hypothesis import HealthCheck, given, settings

from boxloss_server.engine import Engine
from boxloss_server.service import bulk, decode, servicer
from tests.fuzz import sockets
from tests.fuzz.mutation import from_bytes, mutate, to_bytes
from tests.fuzz.oracle import WELL_FORMED, Finding
from tests.fuzz.seeds import found, large_seeds, seeds
from tests.fuzz.strategies import METHODS, Call, calls
from tests.fuzz.target import Target
from tests.fuzz.trial import Trial
from tests.servers import ServerProcess

EVALUATE, STREAM, MATRIX, *_ = METHODS
GOOD = next(call for call in seeds() if call[0] == EVALUATE)


@pytest.fixture(scope="module")
def target() -> Iterator[Target]:
    with Target() as service:
        yield service


@pytest.fixture
def trial(target: Target) -> Trial:
    return Trial(target, inputs=10_000)


@pytest.mark.parametrize("name", found())
def test_a_found_case_is_found_no_more(trial: Trial, name: str) -> None:
    trial.make(found()[name])


def test_seeds_are_well_formed(trial: Trial) -> None:
    for call in seeds():
        trial.make(call)
    assert {ending for ending in trial.endings if not ending.endswith(" OK")} == {"Check NOT_FOUND"}


@settings(max_examples=150, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(call=calls())
def test_calls_of_the_contract_end_as_they_must(target: Target, call: Call) -> None:
    Trial(target, inputs=1000).make(call, WELL_FORMED)


def test_mutated_calls_end_as_they_must(trial: Trial) -> None:
    random = Random(1)
    pool = [to_bytes(call) for call in seeds()]
    for _ in range(2000):
        data = mutate(random.choice(pool), 2**13, random.getrandbits(32), lambda data, size: data[: len(data) // 2])
        trial.make(from_bytes(data))
    assert {"Evaluate OK", "Evaluate INVALID_ARGUMENT", "Evaluate UNIMPLEMENTED"} < set(trial.endings)


def test_calls_and_noise_on_sockets_leave_a_server_as_it_was() -> None:
    with ServerProcess() as server:
        report = sockets.run(server, inputs=500, seeded=1)
        assert report["inputs"] == 500
        assert server.stop() == 0


def test_bytes_are_a_call_and_a_call_is_bytes() -> None:
    for call in seeds():
        assert from_bytes(to_bytes(call)) == call
    assert from_bytes(b"")[0] == EVALUATE


def raising(*_: Any) -> Any:
    raise KeyError("planted")


def test_an_unforeseen_exception_is_found(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servicer, "decode_matrix", raising)
    with pytest.raises(Finding, match="INTERNAL"):
        trial.make((MATRIX, [b""]))
    trial._target.complaints.clear()


def test_wrong_numbers_are_found(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate = Engine.evaluate

    def off(self: Engine, work: Any, requests: Any) -> Any:
        answers: Any = evaluate(self, work, requests)
        answers[0].scores[0].loss[:] += 0.5
        return answers

    monkeypatch.setattr(Engine, "evaluate", off)
    with pytest.raises(Finding, match="a good request got"):
        trial.make(GOOD)


def test_numbers_that_are_not_finite_are_found(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate = Engine.evaluate

    def infinite(self: Engine, work: Any, requests: Any) -> Any:
        answers: Any = evaluate(self, work, requests)
        answers[0].scores[0].loss[:] = float("inf")
        return answers

    monkeypatch.setattr(Engine, "evaluate", infinite)
    with pytest.raises(Finding, match="not finite"):
        trial.make(GOOD)


def test_a_reading_that_is_not_protobufs_is_found(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "_elements", lambda content: content[:0])
    with pytest.raises(Finding, match="protobuf reads"):
        trial.make(next(large_seeds()))


def test_capacity_that_is_not_given_back_is_found(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    capacity = trial._target.capacity
    monkeypatch.setattr(capacity, "release", lambda pairs, patient: None)
    with pytest.raises(Finding, match="still counted as admitted"):
        trial.make(GOOD)
    capacity.pairs = capacity.requests = 0


def test_what_is_logged_or_forgotten_is_found(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = decode._check_size

    def complaining(*given: Any) -> None:
        structlog.get_logger().warning("planted")
        limits(*given)

    monkeypatch.setattr(decode, "_check_size", complaining)
    with pytest.raises(Finding, match="planted"):
        trial.make(GOOD)

    async def forget() -> None:
        asyncio.get_running_loop().call_soon(raising)

    monkeypatch.undo()
    trial._target.loop.run_until_complete(forget())
    with pytest.raises(Finding, match="event loop"):
        trial.make(GOOD)


def test_memory_that_grows_is_found(target: Target) -> None:
    trial = Trial(target, inputs=10)
    trial.make(GOOD)
    kept = bytearray(b"\1") * 2**28
    with pytest.raises(Finding, match="memory grew"):
        trial.end()
    assert kept
