"""Calls that hypothesis makes of the contract."""

from __future__ import annotations

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.fuzz.strategies import Call, calls
from tests.fuzz.trial import Trial

_TOGETHER = 4
_ROUND = 200


def run(trial: Trial, inputs: int, seeded: int) -> None:
    """Makes calls until there are so many; raises the simplest that it knows of those that find something."""
    until = trial.made + inputs
    while trial.made < until:
        _run(trial, until, seeded)
        seeded += 1


def _run(trial: Trial, until: int, seeded: int) -> None:
    """A round; hypothesis remembers what it has tried, until it ends."""

    @seed(seeded)
    @settings(
        max_examples=_ROUND,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    @given(st.lists(calls(), min_size=1, max_size=_TOGETHER))
    def make(several: list[Call]) -> None:
        if trial.made < until:
            trial.make(*several[: until - trial.made])

    make()
