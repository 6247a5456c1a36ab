"""Faults of the user's input."""

from __future__ import annotations

from boxloss.errors import InvalidInputError, Violation


def fault(place: object, description: str) -> InvalidInputError:
    """The error that says what is wrong, and what would be right, at a place: a file, a line or an option."""
    return InvalidInputError([Violation(str(place), description)])
