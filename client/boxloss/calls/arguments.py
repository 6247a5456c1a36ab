"""What callers pass besides boxes: checked where it comes in, so that a mistake is named and not met later."""

from __future__ import annotations

import math
from collections.abc import AsyncIterable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

from boxloss.errors import InvalidInputError, Violation
from boxloss.losses import Loss

_INSTANCE = "give for example boxloss.CIoU()"


def refuse(field: str, fault: str) -> NoReturn:
    """Raises InvalidInputError about an argument."""
    raise InvalidInputError([Violation(field, fault)])


def switch(value: object, field: str) -> bool:
    """Returns True or False, NumPy's as Python's; refuses all else."""
    if value is True or value is False:
        return value
    if isinstance(value, np.bool_):
        return bool(value)
    refuse(field, f"{value!r} is neither True nor False")


def number(value: object, field: str) -> float:
    """Returns a finite number; refuses all else."""
    if isinstance(value, bool | np.bool_ | str | bytes):
        refuse(field, f"{value!r} is not a number")
    try:
        found = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        refuse(field, f"{_shown(value)} is not a number")
    if not math.isfinite(found):
        refuse(field, f"{found} is not a finite number")
    return found


def whole(value: object, field: str) -> int:
    """Returns a whole number of 0 or more; refuses all else."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
        refuse(field, f"{_shown(value)} is not a whole number")
    if value < 0:
        refuse(field, f"is {value}; give 0 or more")
    return int(value)


def seconds(value: object, field: str = "timeout") -> float:
    """Returns a time of 0 or more, in seconds; refuses all else. An infinite time is no limit."""
    found = math.inf if isinstance(value, float) and value == math.inf else number(value, field)
    if found < 0:
        refuse(field, f"is {found:g}; give seconds, 0 or more")
    return found


def image_size(value: object) -> tuple[float, float]:
    """Returns the width and height of an image; refuses all else."""
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        refuse("image_size", f"{value!r} is not a width and a height; give for example (640, 480)")
    sides = tuple(value)
    if len(sides) != 2:
        refuse("image_size", f"has {len(sides)} numbers; give width and height, for example (640, 480)")
    return number(sides[0], "image_size[0]"), number(sides[1], "image_size[1]")


def losses(value: object) -> tuple[Loss, ...]:
    """Returns one or more losses; refuses all else."""
    if isinstance(value, Loss):
        refuse("losses", f"is one loss; give a list: [{value!r}]")
    if isinstance(value, str | bytes | type) or not isinstance(value, Iterable):
        refuse("losses", f"{_shown(value)} is no list of losses; give for example [boxloss.GIoU(), boxloss.CIoU()]")
    found = tuple(value)
    if not found:
        refuse("losses", "is empty; ask for one or more")
    faults = [
        Violation(f"losses[{index}]", _no_loss(each)) for index, each in enumerate(found) if not isinstance(each, Loss)
    ]
    if faults:
        raise InvalidInputError(faults)
    return found


def loss(value: object, field: str = "loss") -> Loss:
    """Returns a loss; refuses all else."""
    if not isinstance(value, Loss):
        refuse(field, _no_loss(value))
    return value


def batch(value: object) -> Sequence[Any]:
    """Returns predictions, targets and, where they are given, weights; refuses all else."""
    wanted = "give a tuple of predictions, targets and, where wanted, weights"
    if isinstance(value, str | bytes | Mapping) or not (hasattr(value, "__len__") and hasattr(value, "__getitem__")):
        refuse("batch", f"is {_shown(value)}; {wanted}")
    if not 2 <= len(value) <= 3:
        refuse("batch", f"has {len(value)} parts; {wanted}")
    return value  # type: ignore[return-value]


def address(value: object) -> None:
    """Refuses what is neither an address nor a list of some."""
    if isinstance(value, str):
        return
    if isinstance(value, bytes | Mapping) or not isinstance(value, Sequence):
        refuse("address", f'is {_shown(value)}; give "host:port", or a list of some')
    for index, each in enumerate(value):
        if not isinstance(each, str):
            refuse(f"address[{index}]", f'is {_shown(each)}; give "host:port"')


def items(value: object, field: str, asynchronous: bool = False) -> Any:
    """Returns what gives the items of a stream; refuses what cannot be iterated over."""
    iterable = isinstance(value, Iterable) or (asynchronous and isinstance(value, AsyncIterable))
    if isinstance(value, str | bytes | Mapping) or not iterable:
        hint = "; use AsyncClient for asynchronous ones" if isinstance(value, AsyncIterable) else ""
        refuse(field, f"{_shown(value)} cannot be iterated over; give a list or a generator{hint}")
    return value


def instance(value: object, kinds: type | tuple[type, ...], field: str, hint: str) -> None:
    """Refuses what is not of a kind."""
    if not isinstance(value, kinds):
        refuse(field, f"is {_shown(value)}; {hint}")


def _no_loss(value: object) -> str:
    if isinstance(value, type) and issubclass(value, Loss):
        return f"is the class {value.__name__}; give an instance: boxloss.{value.__name__}()"
    if isinstance(value, list | tuple):
        return f"is a {type(value).__name__}; give one loss, or use compare for several"
    return f"{_shown(value)} is no loss; {_INSTANCE}"


def _shown(value: object) -> str:
    """A value in few words."""
    text = repr(value)
    return text if len(text) <= 60 and "\n" not in text else f"of type {type(value).__name__}"
