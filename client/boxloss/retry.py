"""When and for how long a failed call is tried again. All calls are pure, so all may be."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypedDict

from tenacity import RetryCallState, retry_if_exception_type, stop_before_delay, wait_random_exponential
from tenacity.retry import retry_base
from tenacity.stop import stop_base

from boxloss.errors import ServerBusyError, ServerUnavailableError

CHANNEL_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # gRPC waits up to two minutes before it connects again; a restarted server should be found in a second.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # While a call waits, a server that has vanished is missed after 15 seconds, however long the call may take.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),  # As often as it takes; the server allows it.
    # The retries here know the deadline and the server's own wish.
    ("grpc.enable_retries", 0),
]

_backoff = wait_random_exponential(multiplier=0.05, max=1.0)


class Policy(TypedDict):
    """Keywords of tenacity's Retrying and AsyncRetrying."""

    retry: retry_base
    wait: Callable[[RetryCallState], float]
    stop: stop_base
    reraise: bool


def policy(timeout: float) -> Policy:
    """Retries while the server is unavailable or busy, as long as the timeout allows."""
    return Policy(
        retry=retry_if_exception_type((ServerUnavailableError, ServerBusyError)),
        wait=_wait,
        stop=stop_before_delay(timeout),
        reraise=True,
    )


def _wait(state: RetryCallState) -> float:
    """What a busy server asks for, and more from try to try, so that callers spread."""
    error = state.outcome.exception() if state.outcome else None
    asked = error.retry_after if isinstance(error, ServerBusyError) else 0.0
    return asked + _backoff(state)
