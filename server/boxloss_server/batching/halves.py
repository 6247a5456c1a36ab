"""Batches that fail: what one request does must not fail its neighbors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import structlog

from boxloss.errors import ServerUnavailableError

Compute: TypeAlias = Callable[[Any, Sequence[Any]], Sequence[Any]]
"""Computes the same work for a list of requests; answers in their order, with a result or an error."""

_log = structlog.get_logger()


def in_halves(compute: Compute, failed: Callable[[str], None]) -> Compute:
    """Has a batch that fails computed in halves, and these in halves, down to requests that fail alone.

    The error of such a request is its answer. A request is computed at most once for each level of halves. If there is
    nothing left to compute with, which `compute` tells by a ServerUnavailableError, all are answered with that.

    Args:
        compute: may raise.
        failed: hears of each failure: "split" of a batch, "request" of a request alone.
    """

    def computed(work: Any, requests: Sequence[Any]) -> Sequence[Any]:
        try:
            return compute(work, requests)
        except ServerUnavailableError as error:
            return [error] * len(requests)
        except Exception as error:
            if len(requests) == 1:
                failed("request")
                return [error]
            _log.warning("a batch failed and is split", requests=len(requests), error=repr(error))
        # Not in the except clause: while the error lives, so does the memory that its frames hold.
        failed("split")
        middle = len(requests) // 2
        return [*computed(work, requests[:middle]), *computed(work, requests[middle:])]

    return computed
