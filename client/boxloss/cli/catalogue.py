"""The catalogue of losses as a table."""

from __future__ import annotations

from collections.abc import Iterable

from rich import box
from rich.table import Table

from boxloss.calls.results import LossInfo, ParameterInfo


def catalogue(losses: Iterable[LossInfo], *, plain: bool) -> Table:
    """A row for each loss: name, formula, parameters and paper; `plain` has no lines."""
    table = Table(
        "loss",
        "formula",
        "parameters",
        "paper",
        box=None if plain else box.SIMPLE_HEAD,
        pad_edge=False,
        leading=0 if plain else 1,
    )
    for loss in losses:
        table.add_row(
            loss.name, loss.formula, ("; " if plain else "\n").join(map(_parameter, loss.parameters)), loss.paper
        )
    return table


def _parameter(parameter: ParameterInfo) -> str:
    """For example "gamma=0.5 (above 0, at most 10)"."""
    match parameter.default:
        case None:
            default = "..."
        case bool() as switch:
            default = str(switch).lower()
        case float() as number:
            default = f"{number:g}"
        case word:
            default = word
    return f"{parameter.name}={default} ({_range(parameter)})"


def _range(parameter: ParameterInfo) -> str:
    if parameter.choices:
        return ", ".join(parameter.choices)
    if isinstance(parameter.default, bool):
        return "true, false"
    bounds = [
        ("above" if parameter.minimum_excluded else "at least", parameter.minimum),
        ("below" if parameter.maximum_excluded else "at most", parameter.maximum),
    ]
    return ", ".join(f"{word} {bound:g}" for word, bound in bounds if bound is not None) or "any number"
