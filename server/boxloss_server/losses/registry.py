"""Which function computes which loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

from torch import Tensor

from boxloss.losses import Loss

Terms: TypeAlias = tuple[Tensor, tuple[Tensor, ...]]
"""The IoU and the penalties of a loss of the form 1 - IoU + penalties."""

_Function = TypeVar("_Function", bound=Callable[..., Any])

_VALUES: dict[type[Loss], Callable[[Any, Any], Tensor]] = {}
_PENALTIES: dict[type[Loss], Callable[[Any, Any], tuple[Tensor, ...]]] = {}
_TERMS: dict[type[Loss], Callable[[Any, Any], Terms]] = {}


def computes_value(loss: type[Loss]) -> Callable[[_Function], _Function]:
    """Registers a function of geometry and specification that returns the loss of each pair."""
    return _registers(_VALUES, loss)


def computes_penalties(loss: type[Loss]) -> Callable[[_Function], _Function]:
    """Registers, for a loss of the form 1 - IoU + penalties, a function that returns the penalties."""
    return _registers(_PENALTIES, loss)


def computes_terms(loss: type[Loss]) -> Callable[[_Function], _Function]:
    """Registers, for a loss of that form with an IoU of its own, a function that returns both."""
    return _registers(_TERMS, loss)


def evaluate(geometry: Any, loss: Loss) -> Tensor:
    """The loss of each pair, with the shape of the geometry's planes; differentiable once."""
    if not loss.modifiable:
        return _VALUES[type(loss)](geometry, loss)
    iou, penalties = terms(geometry, loss)
    return 1 - iou + sum(penalties)


def similarity(geometry: Any, loss: Loss) -> Tensor:
    """The similarity of each pair that belongs to a loss: 1 for identical boxes, 1 - loss."""
    if not loss.modifiable:
        return 1 - evaluate(geometry, loss)
    iou, penalties = terms(geometry, loss)
    return iou - sum(penalties)


def terms(geometry: Any, loss: Loss) -> Terms:
    """The IoU and the penalties of a loss of the form 1 - IoU + penalties."""
    if type(loss) in _TERMS:
        return _TERMS[type(loss)](geometry, loss)
    return geometry.iou, _PENALTIES[type(loss)](geometry, loss)


def _registers(registry: dict[type[Loss], Any], loss: type[Loss]) -> Callable[[_Function], _Function]:
    def register(function: _Function) -> _Function:
        registry[loss] = function
        return function

    return register
