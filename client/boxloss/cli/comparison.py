"""A comparison of losses on a terminal."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator

from rich import box
from rich.console import Console
from rich.table import Table

from boxloss.compare.agreement import Disagreement
from boxloss.compare.comparison import Comparison
from boxloss.compare.descent import STEPS
from boxloss.compare.pairs import Pairs
from boxloss.compare.slopes import DONE

_DISAGREEMENTS = 5


def line(pairs: Pairs) -> str:
    """One line: what is compared, and what is not."""
    counts = [
        f"{len(pairs)} pairs of {pairs.labels} labels and {pairs.candidates} predictions",
        f"{pairs.crowds} crowds left out" if pairs.crowds else "",
        f"{pairs.flat} labels without area left out" if pairs.flat else "",
    ]
    return "; ".join(filter(None, counts))


def show(comparison: Comparison, console: Console) -> None:
    """Prints tables: distributions, gradients with descents, and disagreements; then the advice."""
    _distributions(comparison, console)
    _gradients(comparison, console)
    _disagreements(comparison, console)
    recommendation = comparison.recommendation
    console.print(f"recommended: {recommendation.loss or 'none of these'}")
    for kind, sentences in (("-", recommendation.reasons), ("note:", recommendation.remarks)):
        for sentence in sentences:
            console.print(textwrap.fill(f"{kind} {sentence}", console.width, subsequent_indent="  "))
    console.print("This is advice from these boxes alone; nothing was trained.")


def _distributions(comparison: Comparison, console: Console) -> None:
    view = _table("loss", "mean", "std", "min", "25 %", "median", "75 %", "95 %", "max")
    for name, each in comparison.losses.items():
        view.add_row(name, *map(_number, each.distribution))
    console.print(view)
    console.print()


def _gradients(comparison: Comparison, console: Console) -> None:
    view = _table(
        "loss",
        "rank like\nthe IoU",
        "no\ngradient",
        "step\nworsens",
        "steep\npairs",
        "IoU on\nthe way",
        "IoU at\nthe end",
    )
    for name, each in comparison.losses.items():
        view.add_row(
            name,
            _number(each.like_iou),
            _share(each.slopes.flat),
            _share(each.slopes.against),
            f"{_number(each.slopes.spread, 1)}",
            _number(each.descent.on_the_way),
            _number(each.descent.end),
        )
    console.print(view)
    start = next(iter(comparison.losses.values())).descent.path[0]
    console.print(
        f"gradients of pairs with an IoU below {DONE:g}; IoU: the mean over {STEPS} steps of descent, from {start:.3f}",
        style="dim",
    )
    console.print()


def _disagreements(comparison: Comparison, console: Console) -> None:
    names, pairs = list(comparison.losses), comparison.pairs
    view = _table("ranked most differently", "IoU", "by", "rank", "by", "rank")
    for each in _distinct(comparison):
        image, label, prediction, class_name = pairs.names[each.row]
        named = f"label {label}, prediction {prediction}"
        if image is not None:
            named = f"image {image}, {named} ({class_name})"
        view.add_row(
            named,
            f"{comparison.iou[each.row]:.2f}",
            names[each.first],
            f"{each.first_rank:g}",
            names[each.second],
            f"{each.second_rank:g}",
        )
    if view.row_count:
        console.print(view)
        console.print()


def _distinct(comparison: Comparison) -> Iterator[Disagreement]:
    """The largest disagreements, each about another pair and between other losses than those before."""
    seen: set[object] = set()
    count = 0
    for each in comparison.disagreements:
        about = {each.row, f"loss {each.first}"}
        if count < _DISAGREEMENTS and not about & seen:
            seen |= about
            count += 1
            yield each


def _table(first: str, *names: str) -> Table:
    view = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    view.add_column(first, overflow="fold")
    for name in names:
        view.add_column(name, justify="left" if name == "by" else "right")
    return view


def _number(value: float, digits: int = 3) -> str:
    if math.isnan(value):
        return ""
    return f"{value:z.{digits}f}" if abs(value) < 1000 else f"{value:.0f}"


def _share(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.0%}"
