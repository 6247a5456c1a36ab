"""When and for how long a failed call is tried again. All calls are pure, so all may be."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypedDict

from tenacity import RetryCallState, retry_if_exception_type, stop_before_delay, wait_random_exponential
from tenacity.retry import retry_base
from tenacity.stop import stop_base

from boxloss.errors import ServerBusyError, ServerUnavailableError

_backoff = wait_random_exponential(multiplier=0.05, max=1.0)


class Policy(TypedDict):
    """Keywords of tenacity's Retrying and AsyncRetrying."""

    retry: retry_base
    wait: Callable[[RetryCallState], float]
    stop: stop_base
    reraise: bool


def policy(timeout: float, several: bool) -> Policy:
    """Retries while the server is unavailable or busy, as long as the timeout allows.

    Args:
        timeout: in seconds.
        several: whether there are other servers, one of which gets the next try.
    """
    return Policy(
        retry=retry_if_exception_type((ServerUnavailableError, ServerBusyError)),
        wait=_wait_for_another if several else _wait,
        stop=stop_before_delay(timeout),
        reraise=True,
    )


def _wait(state: RetryCallState) -> float:
    """What a busy server asks for, and more from try to try, so that callers spread."""
    error = state.outcome.exception() if state.outcome else None
    asked = error.retry_after if isinstance(error, ServerBusyError) else 0.0
    return asked + _backoff(state)


def _wait_for_another(state: RetryCallState) -> float:
    """At first, no busy server's wish counts: another may have room."""
    return _backoff(state) if state.attempt_number == 1 else _wait(state)
