"""When a call is tried again, and when no more; the waits are not waited for."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
from tenacity import Retrying

from boxloss import BoxlossError, InvalidInputError, QuotaExceededError, ServerBusyError, ServerUnavailableError
from boxloss.connection.retry import policy

TIMEOUT = 1000.0
AWAY = ServerUnavailableError("nobody answers")
BUSY = ServerBusyError("the queue is full", retry_after=3.0)


class Server:
    """Answers every try with an error, and goes on with the time for which its caller waits."""

    def __init__(self, error: BoxlossError) -> None:
        self.now = 0.0
        self.waits: list[float] = []
        self.tries = 0
        self._error = error

    def monotonic(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds

    def answer(self) -> None:
        self.tries += 1
        if self.tries > 8:
            raise KeyboardInterrupt
        raise self._error


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Server]:
    """Has a server that answers with an error asked until the caller gives up, or eight times."""

    def asked(error: BoxlossError, timeout: float = TIMEOUT, several: bool = False, chance: float = 1.0) -> Server:
        server = Server(error)
        monkeypatch.setattr("tenacity.time", server)
        monkeypatch.setattr(
            "tenacity.wait.random", SimpleNamespace(uniform=lambda low, high: low + chance * (high - low))
        )
        with pytest.raises((type(error), KeyboardInterrupt)):
            Retrying(**policy(timeout, several), sleep=server.wait)(server.answer)
        return server

    return asked


@pytest.mark.parametrize("chance", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("several", [False, True])
def test_waits_for_a_server_that_is_away_are_random_and_grow_up_to_a_second(
    tried: Callable[..., Server], chance: float, several: bool
) -> None:
    longest = [0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0]
    assert tried(AWAY, several=several, chance=chance).waits == pytest.approx([chance * each for each in longest])


def test_a_busy_server_is_given_the_time_that_it_asks_for_and_more_from_try_to_try(
    tried: Callable[..., Server],
) -> None:
    assert tried(BUSY).waits[:4] == pytest.approx([3.05, 3.1, 3.2, 3.4])


def test_another_server_is_asked_at_once_and_one_after_it_when_they_have_asked_for(
    tried: Callable[..., Server],
) -> None:
    assert tried(BUSY, several=True).waits[:3] == pytest.approx([0.05, 3.1, 3.2])


@pytest.mark.parametrize(("timeout", "tries"), [(8.99, 3), (9.0, 3), (9.01, 4)])
def test_no_try_begins_at_the_timeout_or_after(tried: Callable[..., Server], timeout: float, tries: int) -> None:
    assert tried(BUSY, timeout=timeout, chance=0.0).tries == tries


@pytest.mark.parametrize("error", [InvalidInputError([]), BoxlossError("the server failed")])
def test_what_would_fail_again_is_not_tried_again(tried: Callable[..., Server], error: BoxlossError) -> None:
    assert tried(error).tries == 1


def test_a_quota_that_is_used_up_is_waited_for_like_a_full_queue(tried: Callable[..., Server]) -> None:
    assert tried(QuotaExceededError("used up", retry_after=0.5)).waits[:2] == pytest.approx([0.55, 0.6])
