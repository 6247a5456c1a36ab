"""What a client counts, for Prometheus: pip install 'boxloss[metrics]'.

>>> import boxloss, prometheus_client
>>> from boxloss.metrics import ClientMetrics
>>> client = boxloss.Client("localhost:50051", metrics=ClientMetrics(prometheus_client.REGISTRY))
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from tenacity import RetryCallState

from boxloss.errors import BoxlossError

try:
    from prometheus_client import CollectorRegistry, Counter, Histogram
except ImportError as error:
    raise ImportError("boxloss.metrics needs prometheus-client: pip install 'boxloss[metrics]'") from error

_SECONDS = tuple(50e-6 * 2**step for step in range(18))
"""Those of the server, so that both can be compared."""
_CALLS = tuple(2.0**step for step in range(11))


class ClientMetrics:
    """The metrics of a client, or of several that share them. Methods are named as the server's RPCs are.

    Args:
        registry: where they are registered.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        calls = Counter("boxloss_client_calls", "Calls, by how they ended.", ("method", "code"), registry=registry)
        seconds = Histogram(
            "boxloss_client_seconds",
            "Time of a call, retries included.",
            ("method",),
            buckets=_SECONDS,
            registry=registry,
        )
        retries = Counter(
            "boxloss_client_retries", "Messages sent again, by why.", ("method", "reason"), registry=registry
        )
        self._messages = Counter("boxloss_client_messages", "Messages to the server.", registry=registry)
        self._coalesced = Histogram(
            "boxloss_client_coalesced_calls", "Small calls that share a message.", buckets=_CALLS, registry=registry
        )
        # A counter of some label takes longer to find than to count.
        self._calls, self._seconds, self._retries = cache(calls.labels), cache(seconds.labels), cache(retries.labels)

    @contextmanager
    def call(self, method: str) -> Iterator[None]:
        """Counts and times what is called within."""
        started = time.perf_counter()
        code = "OK"
        try:
            yield
        except BoxlossError as error:
            code = error.code
            raise
        except GeneratorExit:  # A stream of which no more was wanted.
            raise
        except BaseException as error:
            code = "UNKNOWN" if isinstance(error, Exception) else "CANCELLED"
            raise
        finally:
            self._calls(method, code).inc()
            self._seconds(method).observe(time.perf_counter() - started)

    def sent(self, messages: int = 1) -> None:
        """Counts messages, each once."""
        self._messages.inc(messages)

    def coalesced(self, calls: int) -> None:
        """Notes how many calls share a message."""
        self._coalesced.observe(calls)

    def retried(self, method: str, state: RetryCallState) -> None:
        """Counts a message that is sent again."""
        error = state.outcome.exception() if state.outcome else None
        reason = error.reason.lower() if isinstance(error, BoxlossError) else "unknown"
        self._retries(method, reason).inc()
