"""What all specifications have in common."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from boxloss.errors import InvalidInputError, Violation
from boxloss.losses.parameters import Choice, Integer, Number, Switch

CATALOGUE: dict[str, type[Loss]] = {}
"""Every loss by its name."""


@dataclass(frozen=True)
class Loss:
    """Base of all specifications. Raises `InvalidInputError` for a parameter out of range.

    A subclass with a name enters the catalogue.
    """

    name: ClassVar[str]
    """Name in the contract, the command line and the metrics."""
    title: ClassVar[str]
    """Name in the literature."""
    summary: ClassVar[str]
    """What it measures, and what it was made for."""
    formula: ClassVar[str]
    paper: ClassVar[str]
    blind_spots: ClassVar[str]
    """Pairs on which it has no gradient, or which it ranks wrongly."""
    aliases: ClassVar[str] = ""
    """What other libraries call it."""
    needs: ClassVar[tuple[str, ...]] = ()
    """Fields of the request, besides the boxes, that the loss can need."""

    def __init_subclass__(cls) -> None:
        if "name" in vars(cls):
            CATALOGUE[cls.name] = cls

    @property
    def modifiable(self) -> bool:
        """Whether it has the form 1 - IoU + penalties, which `AlphaIoU`, `Inner` and `Focaler` change."""
        return False

    @property
    def weighable(self) -> bool:
        """Whether `Focal` can weight it."""
        return self.modifiable

    @property
    def has_similarity(self) -> bool:
        """Whether there is a similarity that belongs to it, 1 for identical boxes."""
        return self.modifiable

    @property
    def axis_aligned(self) -> bool:
        """Whether it is defined for axis-aligned boxes."""
        return True

    @property
    def oriented(self) -> bool:
        """Whether it is defined for oriented boxes."""
        return False

    @property
    def needed(self) -> tuple[str, ...]:
        """Those of `needs` that it needs with these parameters."""
        return self.needs

    def __post_init__(self) -> None:
        violations = []
        for each in fields(self):
            try:
                object.__setattr__(self, each.name, each.metadata["kind"].check(getattr(self, each.name)))
            except ValueError as error:
                violations.append(Violation(each.name, str(error)))
        if violations:
            raise InvalidInputError(violations)


@dataclass(frozen=True)
class PenaltyLoss(Loss):
    """Base of the losses of the form 1 - IoU + penalties."""

    @property
    def modifiable(self) -> bool:
        return True


@dataclass(frozen=True, kw_only=True)
class Base:
    """A parameter that is itself a loss, of the form 1 - IoU + penalties."""

    summary: str
    weighted: bool = False
    """Whether the base is only weighted, so that it may be an `AlphaIoU` too."""

    def check(self, value: object) -> Loss:
        """Returns the value; raises ValueError where a modifier cannot act on it."""
        if isinstance(value, Loss) and (value.weighable if self.weighted else value.modifiable):
            return value
        raise ValueError(f"{value!r} cannot be modified; take a linear {', '.join(self.names)}")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the losses that can be the base."""
        also = ("alpha_iou",) if self.weighted else ()
        return tuple(loss.name for loss in CATALOGUE.values() if issubclass(loss, PenaltyLoss) or loss.name in also)


def parameter(kind: Number | Integer | Switch | Choice | Base, **default: Any) -> Any:
    """A dataclass field with its kind; without a default, it must be given."""
    return field(metadata={"kind": kind}, **default)
