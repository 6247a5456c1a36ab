"""Quotas: how much a single client may ask for."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Hashable
from functools import partial
from typing import Any

from boxloss.errors import QuotaExceededError, ServerBusyError
from boxloss_server.batching.admission import Admission, Outcome
from boxloss_server.batching.capacity import Capacity
from boxloss_server.batching.observer import Observer
from boxloss_server.batching.unread import UntilWritten

_RETRY_AFTER = 0.1
"""Seconds after which a client may come again that has too much in the server: when it is done is not known."""
_MANY = 1024
"""Clients that are remembered without a look at which of them are idle."""


class Quotas:
    """Submits requests to a batcher as far as the quota of their client goes.

    The rate is an average: a client may ask for a second's worth at once. A request of more than that is taken when the
    client has saved up for a second, and paid off afterwards.

    Args:
        batcher: computes.
        pairs_per_second: most pairs per second that a client may ask for; 0 for no limit.
        waiting_pairs: most pairs of a client that may wait, be computed or be answered and not read at once, unless a
            single request has more; 0 for no limit.
        observer: hears what is turned away.
    """

    def __init__(self, batcher: Admission, pairs_per_second: int, waiting_pairs: int, observer: Observer) -> None:
        self._batcher = batcher
        self._pairs_per_second = pairs_per_second
        self._waiting_pairs = waiting_pairs
        self._observer = observer
        self._accounts: dict[Hashable, _Account] = {}
        self._many = _MANY

    async def submit(
        self,
        work: Hashable,
        request: Any,
        pairs: int,
        deadline: float = float("inf"),
        client: Hashable = None,
        patient: bool = False,
        until_written: UntilWritten | None = None,
    ) -> Outcome[Any]:
        """Does what the batcher's `submit` does, once the client's quota allows it.

        A patient request waits for that; it is in nobody's way meanwhile.

        Raises:
            QuotaExceededError: the client has used its quota up, and the request is not patient.
            ServerBusyError: as the batcher does.
            DeadlineExceededError: as the batcher does.
        """
        account = self._account(client)
        room = max(pairs, 1)
        account.calls += 1
        try:
            if patient:
                await account.capacity.wait(room)
            else:
                self._admit(account, room)
        except BaseException:
            account.calls -= 1
            raise
        try:
            await account.pay(room)
            try:
                outcome = await self._batcher.submit(work, request, pairs, deadline, client, patient, until_written)
            except ServerBusyError:
                account.balance += room  # It got nothing for it.
                raise
        except BaseException:
            account.release(room, patient)
            raise
        if until_written:
            until_written(partial(account.release, room, patient))
        else:
            account.release(room, patient)
        return outcome

    def _admit(self, account: _Account, room: int) -> None:
        """Takes room for a request, or raises."""
        if delay := account.delay(room):
            self._observer.rejected("quota")
            raise QuotaExceededError(
                f"this client has used up its {self._pairs_per_second} pairs per second; come again in {delay:.2g} s",
                retry_after=delay,
            )
        if not account.capacity.admit(room):
            self._observer.rejected("quota")
            raise QuotaExceededError(
                f"{account.capacity.pairs} pairs of this client wait, of {self._waiting_pairs} that may; send less at "
                "once",
                retry_after=_RETRY_AFTER,
            )

    def _account(self, client: Hashable) -> _Account:
        account = self._accounts.get(client)
        if account is None:
            if len(self._accounts) >= self._many:
                self._accounts = {key: each for key, each in self._accounts.items() if not each.idle}
                self._many = max(2 * len(self._accounts), _MANY)
            account = self._accounts[client] = _Account(self._pairs_per_second, self._waiting_pairs)
        return account


class _Account:
    """What a client may still ask for.

    Args:
        rate: pairs that it gets per second; 0 for no limit.
        waiting: most pairs in the server; 0 for no limit.
    """

    def __init__(self, rate: int, waiting: int) -> None:
        self._rate = rate
        self._looked = time.monotonic()
        self.capacity = Capacity(waiting or sys.maxsize)
        self.balance = float(rate)
        """Pairs that it may ask for now; below 0, what it has to pay off."""
        self.calls = 0
        """Requests that have come and whose answers are not yet written."""

    @property
    def idle(self) -> bool:
        """Whether a new account would be the same."""
        return not self.calls and not self.delay(self._rate)

    def release(self, pairs: int, patient: bool) -> None:
        """Gives the room of a request back, which is over."""
        self.calls -= 1
        self.capacity.release(pairs, patient)

    def delay(self, pairs: int) -> float:
        """Seconds until a request may be taken; 0 if now."""
        if not self._rate:
            return 0.0
        now = time.monotonic()
        self.balance = min(self.balance + (now - self._looked) * self._rate, self._rate)
        self._looked = now
        return max(min(pairs, self._rate) - self.balance, 0.0) / self._rate

    async def pay(self, pairs: int) -> None:
        """Takes the pairs from the balance, and waits as long as that was not enough for them."""
        if not self._rate:
            return
        delay = self.delay(pairs)
        self.balance -= pairs
        if delay:
            try:
                await asyncio.sleep(delay)
            except asyncio.CancelledError:
                self.balance += pairs
                raise
