"""The kinds of parameter that a loss can have: each knows its meaning and range, and checks a value against them."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Number:
    """A real number within a range."""

    summary: str
    above: float | None = None
    """The number must be greater than this."""
    minimum: float | None = None
    """The number must be this or more."""
    below: float | None = None
    """The number must be less than this."""
    maximum: float | None = None
    """The number must be this or less."""

    def check(self, value: object) -> float:
        """Returns the value as a float; raises ValueError where it is no number or out of range."""
        if isinstance(value, bool):
            raise ValueError(f"{value!r} is not a number")
        try:
            number = float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            raise ValueError(f"{value!r} is not a number") from None
        inside = (
            math.isfinite(number)
            and (self.above is None or number > self.above)
            and (self.minimum is None or number >= self.minimum)
            and (self.below is None or number < self.below)
            and (self.maximum is None or number <= self.maximum)
        )
        if not inside:
            raise ValueError(f"{number:g} is out of range; it must be {self.range}")
        return number

    @property
    def range(self) -> str:
        """The range in words, for example "above 0 and at most 10"."""
        bounds = [
            ("above", self.above),
            ("at least", self.minimum),
            ("below", self.below),
            ("at most", self.maximum),
        ]
        return " and ".join(f"{word} {bound:g}" for word, bound in bounds if bound is not None) or "finite"


@dataclass(frozen=True, kw_only=True)
class Integer:
    """A whole number within a range, both ends included."""

    summary: str
    minimum: int
    maximum: int

    def check(self, value: object) -> int:
        """Returns the value; raises ValueError where it is no whole number or out of range."""
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"{value!r} is not a whole number")
        if not self.minimum <= value <= self.maximum:
            raise ValueError(f"{value} is out of range; it must be {self.minimum} to {self.maximum}")
        return value


@dataclass(frozen=True, kw_only=True)
class Switch:
    """True or false."""

    summary: str

    def check(self, value: object) -> bool:
        """Returns the value; raises ValueError where it is neither True nor False."""
        if not isinstance(value, bool):
            raise ValueError(f"{value!r} is neither True nor False")
        return value


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One word of a few."""

    summary: str
    choices: tuple[str, ...]

    def check(self, value: object) -> str:
        """Returns the value; raises ValueError where it is none of the choices."""
        if not isinstance(value, str) or value not in self.choices:
            raise ValueError(f"{value!r} is not known; choose one of {', '.join(self.choices)}")
        return value
