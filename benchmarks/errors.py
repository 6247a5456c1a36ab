"""What keeps a benchmark from being run or believed."""

from __future__ import annotations


class BenchmarkError(Exception):
    """A measurement that cannot be made or does not count; the message says why."""


class UnavailableError(BenchmarkError):
    """A contender that is not here."""
