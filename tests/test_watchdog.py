"""What hangs, by the looks of the watchdog; tests/test_faults.py has real servers hang."""

from __future__ import annotations

import asyncio
import os
import threading
from typing import Any

import pytest
from structlog.testing import capture_logs

from boxloss_server.service import watchdog
from boxloss_server.service.watchdog import STATUS, Watchdog
from tests.clock import turns

FAR = 1e6
"""Seconds. The watchdog's own looks are far away."""


async def healthy() -> None: ...


async def test_a_loop_that_turns_and_steps_that_go_on_do_not_hang_however_long_it_takes() -> None:
    dog = Watchdog(FAR, healthy)
    with dog.watching():
        for _ in range(100):
            assert dog.look() is None
            dog.beat()
            await turns(1)


async def test_what_is_seen_ten_times_at_the_same_step_does_not_hang_and_eleven_times_does() -> None:
    dog = Watchdog(FAR, healthy)
    with dog.watching():
        dog.beat()
        for _ in range(10):
            assert dog.look() is None
            await turns(1)
        assert dog.look() == threading.get_ident()
        dog.rest()
        assert dog.look() is None


async def test_an_event_loop_that_does_not_turn_hangs() -> None:
    dog = Watchdog(FAR, healthy)
    with dog.watching():
        assert [dog.look() for _ in range(10)] == [None] * 10
        assert dog.look() == threading.get_ident()
        await turns(1)
        assert dog.look() is None


async def test_of_several_threads_the_one_that_hangs_is_named() -> None:
    dog = Watchdog(FAR, healthy)
    with dog.watching():
        other = threading.Thread(target=dog.beat)
        other.start()
        other.join()
        for _ in range(10):
            dog.beat()
            assert dog.look() is None
            await turns(1)
        assert dog.look() == other.ident
        dog.rest()
        dog.rest()  # Who does not compute may rest, too.


async def test_what_was_computed_before_is_not_watched() -> None:
    dog = Watchdog(FAR, healthy)
    dog.beat()
    with dog.watching():
        for _ in range(20):
            assert dog.look() is None
            await turns(1)


@pytest.mark.parametrize(("timeout", "threads"), [(0.0, []), (FAR, ["boxloss-watchdog"])])
async def test_the_watchdog_is_a_thread_that_ends_with_the_server(timeout: float, threads: list[str]) -> None:
    def watching() -> list[str]:
        return [each.name for each in threading.enumerate() if "watchdog" in each.name and each.daemon]

    with Watchdog(timeout, healthy).watching():
        assert watching() == threads
    assert watching() == []


@pytest.mark.parametrize("turning", [True, False], ids=["the loop turns", "the loop hangs"])
async def test_a_process_that_hangs_says_where_reports_not_serving_and_ends(
    monkeypatch: pytest.MonkeyPatch, turning: bool
) -> None:
    """The exit is noted here, where a process would end."""
    ended, unhealthy, statuses = threading.Event(), threading.Event(), []

    def exit_once(status: int) -> None:
        statuses.append(status)
        dog._ended.set()
        ended.set()

    def compute() -> None:
        dog.beat()
        ended.wait(30)

    async def report() -> None:
        unhealthy.set()

    monkeypatch.setattr(os, "_exit", exit_once)
    monkeypatch.setattr(watchdog, "_LAST_WORDS", 30.0 if turning else 0.05)
    dog = Watchdog(0.05, report)
    with capture_logs() as logs, dog.watching():
        if turning:
            computing = threading.Thread(target=compute, name="engine")
            computing.start()
            await asyncio.to_thread(ended.wait, 30)
            computing.join()
        else:
            assert ended.wait(30)
            assert not unhealthy.is_set()  # The loop cannot report it, and the process ends all the same.
            while any("_say" in each.name for each in threading.enumerate()):
                await turns(1)
    assert statuses == [STATUS] == [70]
    assert unhealthy.is_set()
    (line,) = logs
    assert (line["event"], line["log_level"]) == ("the server hangs and ends", "error")
    assert line["thread"] == ("engine" if turning else "MainThread")
    assert line["timeout_s"] == pytest.approx(0.05)
    assert "test_watchdog.py" in line["stack"]


def test_a_step_counts_for_its_thread_alone() -> None:
    dog: Any = Watchdog(FAR, healthy)
    dog.beat()

    def compute() -> None:
        dog.beat()
        dog.rest()

    other = threading.Thread(target=compute)
    other.start()
    other.join()
    assert list(dog._busy) == [threading.get_ident()]
